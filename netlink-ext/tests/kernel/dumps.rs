//! Dumps under changes, and dumps in steps.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use netlink_ext::addr::Address;
use netlink_ext::dump::{Query, Row, Step};
use netlink_ext::{BatchSocket, Dumper, Error, Family, Request};

use crate::support::{Host, done, in_namespace, pod};

/// Enough for several datagrams of 32 KiB.
const MANY: u32 = 3000;

/// An address on `lo`, which has index 1 in every namespace.
fn loopback(n: u32) -> Address {
    let address = Ipv4Addr::from(0x0a63_0000 + n);
    Address { ifindex: 1, address: ipnetwork::IpNetwork::new(address.into(), 32).unwrap() }
}

fn with_many_addresses() -> (BatchSocket, Dumper) {
    let mut batch = BatchSocket::open().unwrap();
    done(batch.send(&(0..MANY).map(|n| Request::PutAddress(loopback(n))).collect::<Vec<_>>()));
    (batch, Dumper::open().unwrap())
}

#[test]
fn a_change_between_two_steps_interrupts() {
    in_namespace(|| {
        let (mut batch, mut dumper) = with_many_addresses();
        let mut seen = 0;
        dumper.start(Query::Addresses { ifindex: Some(1) }).unwrap();
        assert_eq!(dumper.step(&mut |_| seen += 1).unwrap(), Step::More);
        assert!(seen > 0 && seen < MANY);
        done(batch.send(&[Request::PutAddress(loopback(MANY))]));
        let end = loop {
            match dumper.step(&mut |_| ()).unwrap() {
                Step::More => (),
                end => break end,
            }
        };
        assert_eq!(end, Step::Interrupted);
        // The rest of it is left where it is; the next dump is not confused by that.
        let addresses: BTreeSet<_> = dumper.addresses(Some(1)).unwrap().into_iter().map(|seen| seen.address).collect();
        assert!((0..=MANY).all(|n| addresses.contains(&loopback(n))));
        assert_eq!(dumper.step(&mut |_| ()).unwrap(), Step::Done, "nothing is under way");
    });
}

#[test]
fn a_collected_dump_is_consistent_whatever_others_do() {
    in_namespace(|| {
        let (mut batch, mut dumper) = with_many_addresses();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        // The sockets are of this namespace, whichever thread uses them.
        let writer = std::thread::spawn(move || {
            let mut rounds = 0;
            while !stopped.load(Ordering::Relaxed) {
                // First the new one, then the old one: a consistent dump has one or both.
                done(batch.send(&[Request::PutAddress(loopback(MANY + 1 + rounds % 2))]));
                done(batch.send(&[Request::DelAddress(loopback(MANY + 1 + (rounds + 1) % 2))]).map(drop_gone));
                rounds += 1;
                std::thread::yield_now();
            }
            rounds
        });
        let (mut whole, mut interrupted) = (0, 0);
        while whole + interrupted < 20 {
            match dumper.addresses(Some(1)) {
                Ok(addresses) => {
                    whole += 1;
                    assert!(addresses.len() as u32 >= MANY);
                    let set: BTreeSet<_> = addresses.iter().map(|seen| seen.address).collect();
                    assert_eq!(set.len(), addresses.len(), "none twice");
                    assert!((0..MANY).all(|n| set.contains(&loopback(n))), "none missing");
                }
                Err(Error::DumpInterrupted { .. }) => interrupted += 1,
                Err(error) => panic!("{error}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(writer.join().unwrap() > 0);
        let last: BTreeSet<_> = dumper.addresses(Some(1)).unwrap().into_iter().map(|seen| seen.address).collect();
        assert!((0..MANY).all(|n| last.contains(&loopback(n))), "and left in peace, the dump succeeds");
    });
}

/// Takes out refusals of deletes for what is not there.
fn drop_gone(failures: Vec<netlink_ext::Failure>) -> Vec<netlink_ext::Failure> {
    failures.into_iter().filter(|failure| !failure.refusal.is_gone()).collect()
}

/// The reason for what dump.rs says about deleting between steps; if this fails, the kernel has become better.
#[test]
fn a_deletion_between_two_steps_hides_other_fdb_rows() {
    const ROWS: u16 = 5000;
    const DELETED: u16 = 400;
    in_namespace(|| {
        let mut host = Host::new();
        let ifindex = host.ifindex();
        done(host.batch.send(&(0..ROWS).map(|n| Request::PutFdb(host.row(n, "10.0.0.2"))).collect::<Vec<_>>()));
        let mut shown = BTreeSet::new();
        let mut sink = |row| {
            if let Row::Fdb(seen) = row {
                shown.insert(seen.row);
            }
        };
        host.dumper.start(Query::Fdb { ifindex }).unwrap();
        host.dumper.step(&mut sink).unwrap();
        host.dumper.step(&mut sink).unwrap();
        let rows = |range: std::ops::Range<u16>| range.map(|n| host.row(n, "10.0.0.2"));
        let kept: Vec<_> = rows(0..ROWS - DELETED).collect();
        // The newest, which are shown first.
        let deletes: Vec<_> = rows(ROWS - DELETED..ROWS).map(Request::DelFdb).collect();
        done(host.batch.send(&deletes));
        while host.dumper.step(&mut sink).unwrap() == Step::More {}
        let hidden = kept.iter().filter(|row| !shown.contains(row)).count();
        assert_eq!(hidden, usize::from(DELETED), "one for each");
        let again: BTreeSet<_> = host.dumper.fdb(ifindex).unwrap().into_iter().map(|seen| seen.row).collect();
        assert!(kept.iter().all(|row| again.contains(row)), "left in peace it is complete");
    });
}

#[test]
fn a_dump_goes_in_steps_with_other_work_between() {
    const ROWS: u16 = 2000;
    in_namespace(|| {
        let mut host = Host::new();
        done(host.batch.send(&(0..ROWS).map(|n| Request::PutFdb(host.row(n, "10.0.0.2"))).collect::<Vec<_>>()));
        let ifindex = host.ifindex();
        host.dumper.start(Query::Fdb { ifindex }).unwrap();
        let (mut rows, mut steps) = (BTreeSet::new(), 0);
        loop {
            steps += 1;
            let mut sink = |row| {
                let Row::Fdb(seen) = row else { panic!("{row:?}") };
                rows.insert(seen.row);
            };
            if host.dumper.step(&mut sink).unwrap() == Step::Done {
                break;
            }
            done(host.batch.send(&[Request::PutNeigh(host.entry(pod(1), 1))]));
        }
        assert_eq!(rows.len(), ROWS.into());
        assert!(steps > 2, "{steps}");
    });
}

#[test]
fn a_dump_begun_anew_forgets_the_one_before() {
    in_namespace(|| {
        let mut host = Host::new();
        let ifindex = host.ifindex();
        done(host.batch.send(&(0..2000).map(|n| Request::PutFdb(host.row(n, "10.0.0.2"))).collect::<Vec<_>>()));
        host.dumper.start(Query::Fdb { ifindex }).unwrap();
        host.dumper.step(&mut |_| ()).unwrap();
        assert_eq!(host.dumper.neighbours(ifindex, Family::V4).unwrap(), []);
        assert_eq!(host.dumper.fdb(ifindex).unwrap().len(), 2000);
    });
}
