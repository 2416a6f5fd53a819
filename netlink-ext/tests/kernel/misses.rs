//! Misses that the kernel really asks, and none of what it merely tells.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_ext::{Miss, Request, pending_misses};

use crate::support::{Far, Host, address, asking, block_on, create, done, in_namespace, mac, next_miss, pod, send};

const BUFFER: usize = 1 << 20;

#[test]
fn an_unknown_address_is_an_l3_miss_in_both_families() {
    in_namespace(|| {
        block_on(async {
            let mut host = Host::new();
            host.ask_user_space();
            let ifindex = host.ifindex();
            let mut misses = host.misses(BUFFER);
            for to in [pod(5), address("fd01:0:5::5")] {
                send(to);
                assert_eq!(next_miss(&mut misses).await, Miss::L3 { ifindex, address: to });
                assert_eq!(pending_misses(&mut host.dumper, ifindex).unwrap(), [to]);
                done(
                    host.batch.send(&[Request::PutFdb(host.row(1, "10.0.0.2")), Request::PutNeigh(host.entry(to, 1))]),
                );
                assert_eq!(pending_misses(&mut host.dumper, ifindex).unwrap(), [] as [IpAddr; 0]);
            }
        });
    });
}

#[test]
fn the_packet_that_waited_arrives_once_the_miss_is_answered() {
    in_namespace(|| {
        block_on(async {
            let mut host = Host::new();
            let far = Far::new();
            host.ask_user_space();
            let mut misses = host.misses(BUFFER);
            send(pod(7));
            let Miss::L3 { address, .. } = next_miss(&mut misses).await else { panic!("no L3 miss") };
            done(
                host.batch.send(&[Request::PutFdb(host.row(1, "10.0.0.2")), Request::PutNeigh(host.entry(address, 1))]),
            );
            assert_eq!(far.receive(), Some(pod(7)));
        });
    });
}

#[test]
fn an_unknown_mac_is_an_l2_miss() {
    in_namespace(|| {
        block_on(async {
            let mut host = Host::new();
            host.ask_user_space();
            let ifindex = host.ifindex();
            let mut misses = host.misses(BUFFER);
            let entries = [host.entry(pod(5), 77), host.entry(address("fd01:0:5::5"), 78)];
            done(host.batch.send(&entries.map(Request::PutNeigh)));
            for (entry, last) in entries.iter().zip([77, 78]) {
                send(entry.address);
                assert_eq!(next_miss(&mut misses).await, Miss::L2 { ifindex, mac: mac(last) });
            }
        });
    });
}

#[test]
fn neither_our_writes_nor_other_devices_reach_the_socket() {
    in_namespace(|| {
        block_on(async {
            let mut host = Host::new();
            host.ask_user_space();
            let other = create(&mut host.dumper, "x9", 9);
            let mut elsewhere = host.route("10.245.0.0/16");
            elsewhere.ifindex = Some(other.index);
            let mut requests = asking(other.index).to_vec();
            requests.push(Request::PutRoute(elsewhere));
            done(host.batch.send(&requests));
            // A buffer for a handful: an echo of these writes would overrun it.
            let mut misses = host.misses(1);
            for n in 0..200 {
                let writes = [Request::PutFdb(host.row(n, "10.0.0.2")), Request::PutNeigh(host.entry(pod(n), n))];
                done(host.batch.send(&writes));
            }
            send(address("10.245.0.1"));
            assert_eq!(pending_misses(&mut host.dumper, other.index).unwrap(), [address("10.245.0.1")]);
            assert_eq!(misses.try_next().unwrap(), None);
            send(pod(1000));
            assert_eq!(next_miss(&mut misses).await, Miss::L3 { ifindex: host.ifindex(), address: pod(1000) });
            assert_eq!(misses.try_next().unwrap(), None);
        });
    });
}

#[test]
fn after_an_overrun_every_address_still_gets_its_answer() {
    // Few enough not to fill the ARP table, which all namespaces of the machine share (gc_thresh3, 1024).
    const FLOOD: u16 = 200;
    in_namespace(|| {
        block_on(async {
            let mut host = Host::new();
            let far = Far::new();
            host.ask_user_space();
            done(host.batch.send(&[Request::PutFdb(host.row(1, "10.0.0.2"))]));
            let mut misses = host.misses(1);
            (0..FLOOD).map(pod).for_each(send);

            let (mut overruns, mut heard) = (0, BTreeSet::new());
            while let Some(miss) = misses.try_next().unwrap() {
                match miss {
                    Miss::Overrun => overruns += 1,
                    Miss::L3 { address, .. } => drop(heard.insert(address)),
                    Miss::L2 { .. } => panic!("the row is there"),
                }
            }
            assert!(overruns > 0 && heard.len() < usize::from(FLOOD), "{overruns} overruns, {} heard", heard.len());

            let mut missing: BTreeSet<_> = (0..FLOOD).map(pod).collect();
            let ifindex = host.ifindex();
            let pending: BTreeSet<_> = pending_misses(&mut host.dumper, ifindex).unwrap().into_iter().collect();
            assert!(pending.is_subset(&missing) && pending.is_superset(&heard));
            let answers: Vec<_> = pending.iter().map(|address| Request::PutNeigh(host.entry(*address, 1))).collect();
            done(host.batch.send(&answers));
            while missing.intersection(&pending).next().is_some() {
                missing.remove(&far.receive().expect("an answered packet"));
            }
            // With other tests at the table's brim an address may have found no place; its next packet does.
            for address in missing {
                send(address);
                done(host.batch.send(&[Request::PutNeigh(host.entry(address, 1))]));
                assert_eq!(far.receive(), Some(address));
            }
        });
    });
}

#[test]
fn a_socket_awaited_before_the_miss_wakes() {
    in_namespace(|| {
        block_on(async {
            let mut host = Host::new();
            host.ask_user_space();
            done(host.batch.send(&[Request::PutFdb(host.row(1, "10.0.0.2"))]));
            let mut misses = host.misses(BUFFER);
            for n in 0..20 {
                assert_eq!(misses.try_next().unwrap(), None);
                let (miss, ()) = tokio::join!(next_miss(&mut misses), async {
                    tokio::task::yield_now().await;
                    send(pod(n));
                });
                assert_eq!(miss, Miss::L3 { ifindex: host.ifindex(), address: pod(n) });
                done(host.batch.send(&[Request::PutNeigh(host.entry(pod(n), 1))]));
            }
        });
    });
}
