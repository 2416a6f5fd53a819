//! Batches with errors in them: the right index, the kernel's words, and everything else done.

use std::process::Command;

use netlink_ext::route::Route;
use netlink_ext::{BatchSocket, Dumper, Error, Family, Refusal, Request, fdb};

use crate::support::{Host, address, done, in_namespace, mac, pod};

/// A route that the kernel refuses with a text: its gateway is on no link.
fn hopeless(host: &Host, n: u16) -> Request {
    let destination = format!("10.{}.{}.0/24", 100 + n / 256, n % 256);
    Request::PutRoute(Route { gateway: Some(address("192.0.2.1")), ..host.route(&destination) })
}

#[test]
fn errors_in_the_midst_are_mapped_and_the_rest_is_done() {
    in_namespace(|| {
        let mut host = Host::new();
        let ifindex = host.ifindex();
        let bad = [0, 100, 255, 256, 511, 512, 599];
        let requests: Vec<_> = (0..600)
            .map(|n| if bad.contains(&n) { hopeless(&host, n) } else { Request::PutNeigh(host.entry(pod(n), 1)) })
            .collect();
        let failures = host.batch.send(&requests).unwrap();
        assert_eq!(failures.iter().map(|failure| failure.index as u16).collect::<Vec<_>>(), bad);
        for failure in &failures {
            let refusal = Refusal { errno: 101, message: Some("Nexthop has invalid gateway".into()) };
            assert_eq!(failure.refusal, refusal, "ENETUNREACH");
        }
        assert_eq!(host.dumper.neighbours(ifindex, Family::V4).unwrap().len(), 600 - bad.len());
    });
}

#[test]
fn a_thousand_failures_are_a_thousand_failures() {
    in_namespace(|| {
        let mut host = Host::new();
        let requests: Vec<_> = (0..1000).map(|n| hopeless(&host, n)).collect();
        let failures = host.batch.send(&requests).unwrap();
        assert!(failures.iter().map(|failure| failure.index).eq(0..1000));
        assert!(failures.iter().all(|failure| failure.refusal.message.is_some()));
        done(host.batch.send(&[Request::PutNeigh(host.entry(pod(1), 1))]));
    });
}

#[test]
fn the_last_of_a_chunk_may_fail() {
    in_namespace(|| {
        let mut host = Host::new();
        for count in [1, 2, 255, 256, 257] {
            let mut requests = vec![Request::PutNeigh(host.entry(pod(1), 1)); count];
            requests[count - 1] = Request::DelNeigh { ifindex: host.ifindex(), address: pod(2) };
            let failures = host.batch.send(&requests).unwrap();
            assert_eq!(failures.len(), 1);
            assert!(failures[0].index == count - 1 && failures[0].refusal.is_gone());
        }
        done(host.batch.send(&[]));
    });
}

#[test]
fn ten_thousand_peers_are_there_afterwards() {
    const PEERS: u16 = 10_000;
    in_namespace(|| {
        let mut host = Host::new();
        let mut requests = Vec::new();
        for n in 0..PEERS {
            let gateway = pod(n);
            let destination = format!("100.{}.{}.0/24", 64 + n / 256, n % 256);
            let route =
                Route { gateway: Some(gateway), onlink: true, metric: 1000 + u32::from(n), ..host.route(&destination) };
            requests.push(Request::PutFdb(host.row(n, "10.0.0.2")));
            requests.push(Request::PutNeigh(host.entry(gateway, n)));
            requests.push(Request::PutRoute(route));
        }
        done(host.batch.send(&requests));
        let ifindex = host.ifindex();
        assert_eq!(host.dumper.fdb(ifindex).unwrap().len(), PEERS.into());
        assert_eq!(host.dumper.neighbours(ifindex, Family::V4).unwrap().len(), PEERS.into());
        assert_eq!(host.dumper.routes(Family::V4, Some(ifindex), Some(116), None).unwrap().len(), PEERS.into());
    });
}

#[test]
fn without_the_capability_each_request_is_denied() {
    in_namespace(|| {
        let _host = Host::new();
        // A user namespace made now has no power over the network namespace made before. A process has to be alone in
        // its threads to enter one, hence a process of its own.
        let status = Command::new("unshare")
            .args(["--user", std::env::current_exe().unwrap().to_str().unwrap()])
            .args(["--ignored", "--exact", "batches::denied"])
            .status()
            .unwrap();
        assert!(status.success());
    });
}

#[test]
#[ignore = "half of the test above, which runs it in a user namespace"]
fn denied() {
    let mut dumper = Dumper::open().unwrap();
    let ifindex = dumper.link_named("x0").unwrap().expect("looking is free").index;
    let row = fdb::Row { ifindex, mac: mac(1), remote: address("10.0.0.2") };
    let failures = BatchSocket::open().unwrap().send(&[Request::PutFdb(row), Request::DelFdb(row)]).unwrap();
    assert!(failures.len() == 2 && failures.iter().all(|failure| failure.refusal.is_denied()), "{failures:?}");
    assert_eq!(dumper.fdb(ifindex).unwrap(), []);
}

#[test]
fn an_error_of_a_dump_speaks_too() {
    in_namespace(|| {
        let error = Dumper::open().unwrap().routes(Family::V4, Some(9999), None, None).unwrap_err();
        assert!(matches!(&error, Error::Refused { refusal, .. } if refusal.is_gone()), "{error}");
    });
}
