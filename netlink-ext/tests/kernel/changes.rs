//! Changes by others, and silence about our own.

use netlink_ext::addr::Address;
use netlink_ext::{BatchSocket, Change, ChangeScope, ChangeSocket, Request};

use crate::support::{Host, address, block_on, create, delete, done, in_namespace, pod, send};

fn listen(host: &Host, receive_buffer: usize) -> ChangeSocket {
    let ignore_ports = vec![host.batch.port()];
    ChangeSocket::open(&ChangeScope { ifindex: host.ifindex(), ignore_ports, receive_buffer }).unwrap()
}

/// All changes up to the one that `last` knows.
async fn until(socket: &mut ChangeSocket, last: impl Fn(&Change) -> bool) -> Vec<Change> {
    let mut changes = Vec::new();
    loop {
        match socket.try_next().unwrap() {
            None => socket.readable().await.unwrap(),
            Some(change) => {
                changes.push(change);
                if changes.last().is_some_and(&last) {
                    return changes;
                }
            }
        }
    }
}

#[test]
fn foreign_changes_are_heard_and_our_own_are_not() {
    in_namespace(|| {
        block_on(async {
            let mut host = Host::new();
            host.ask_user_space();
            let mut changes = listen(&host, 1 << 20);
            let ifindex = host.ifindex();
            let write = |n: u16, text: &str| {
                let address = Address { ifindex, address: format!("{text}/32").parse().unwrap() };
                let route = host.route(&format!("10.244.{n}.0/24"));
                (host.entry(pod(n), n), address, route)
            };
            let (own, foreign) = (write(1, "10.244.1.1"), write(2, "10.244.2.1"));
            let requests = |(entry, address, route)| {
                [Request::PutNeigh(entry), Request::PutAddress(address), Request::PutRoute(route)]
            };
            done(host.batch.send(&requests(own)));
            let mut other = BatchSocket::open().unwrap();
            done(other.send(&requests(foreign)));
            done(other.send(&[Request::DelRoute(foreign.2)]));

            let heard = until(&mut changes, |change| matches!(change, Change::Route { gone: true, .. })).await;
            let neighbours: Vec<_> = heard
                .iter()
                .filter_map(
                    |change| if let Change::Neigh { entry, gone } = change { Some((entry, gone)) } else { None },
                )
                .collect();
            assert!(matches!(neighbours[..], [(entry, false)] if entry.address == pod(2)), "{neighbours:?}");
            let is_put = |wanted, change: &Change| matches!(change, Change::Address { address, gone: false } if address.address == wanted);
            assert!(heard.iter().any(|change| is_put(foreign.1, change)), "{heard:?}");
            assert!(!heard.iter().any(|change| is_put(own.1, change)), "{heard:?}");
            assert!(heard.contains(&Change::Route { route: foreign.2, gone: false }), "{heard:?}");
            assert!(!heard.contains(&Change::Route { route: own.2, gone: false }), "{heard:?}");
            assert_eq!(heard.last(), Some(&Change::Route { route: foreign.2, gone: true }));
        });
    });
}

#[test]
fn fdb_rows_are_heard_whoever_wrote_them() {
    in_namespace(|| {
        block_on(async {
            let mut host = Host::new();
            let mut changes = listen(&host, 1 << 20);
            let other = create(&mut host.dumper, "x9", 9);
            let row = host.row(1, "10.0.0.2");
            let elsewhere = netlink_ext::fdb::Row { ifindex: other.index, ..row };
            done(host.batch.send(&[
                Request::PutFdb(elsewhere),
                Request::PutFdb(row),
                Request::DelFdb(elsewhere),
                Request::DelFdb(row),
            ]));
            let heard = until(&mut changes, |change| matches!(change, Change::Fdb { gone: true, .. })).await;
            let rows = heard.iter().filter_map(|change| {
                if let Change::Fdb { row, gone } = change { Some((row.row, *gone)) } else { None }
            });
            assert_eq!(rows.collect::<Vec<_>>(), [(row, false), (row, true)], "of the one device only");
        });
    });
}

#[test]
fn links_come_change_and_go() {
    in_namespace(|| {
        block_on(async {
            let mut host = Host::new();
            let mut changes = listen(&host, 1 << 20);
            let link = create(&mut host.dumper, "x9", 9);
            delete(link.index);
            let heard = until(&mut changes, |change| matches!(change, Change::LinkGone { .. })).await;
            assert!(heard.iter().any(|change| matches!(change, Change::Link(seen) if *seen == link)), "{heard:?}");
            assert_eq!(heard.last(), Some(&Change::LinkGone { ifindex: link.index, name: "x9".into() }));
        });
    });
}

#[test]
fn misses_do_not_come_here_and_an_overrun_is_told() {
    in_namespace(|| {
        block_on(async {
            let mut host = Host::new();
            host.ask_user_space();
            let mut changes = listen(&host, 1);
            (0..50).map(pod).for_each(send);
            // The kernel may still tell of the links and their IPv6 addresses, or of more of that than the buffer holds.
            while let Some(change) = changes.try_next().unwrap() {
                assert!(!matches!(change, Change::Neigh { .. }), "a miss came as {change:?}");
            }
            let mut other = BatchSocket::open().unwrap();
            done(other.send(&(0..100).map(|n| Request::PutNeigh(host.entry(pod(n), 1))).collect::<Vec<_>>()));
            let heard = until(&mut changes, |change| *change == Change::Overrun).await;
            assert!(heard.len() < 100);
            while changes.try_next().unwrap().is_some() {}
            let last = address("10.244.9.9");
            done(other.send(&[Request::PutNeigh(host.entry(last, 1))]));
            let is_last = |change: &Change| matches!(change, Change::Neigh { entry, .. } if entry.address == last);
            until(&mut changes, is_last).await; // and it goes on listening
        });
    });
}
