#![allow(missing_docs, clippy::unwrap_used)]
use netlink_ext::route::*;
use netlink_ext::*;
use netlink_sys::{Socket, SocketAddr};
use std::process::Command;
use std::time::Instant;
fn sh(c: &str) {
    assert!(Command::new("sh").arg("-c").arg(c).status().unwrap().success());
}
fn raw_fdb(ifindex: u32, n: usize) -> f64 {
    let mut s = Socket::new(0).unwrap();
    s.bind_auto().unwrap();
    let mut seq = 1u32;
    let mut ack = vec![0u8; 65536];
    let t = Instant::now();
    let mut i = 0;
    let mut b: Vec<u8> = Vec::with_capacity(32768);
    while i < n {
        b.clear();
        let end = (i + 256).min(n);
        for k in i..end {
            let fl: u16 = 1 | 0x400 | 0x100 | if k == end - 1 { 4 } else { 0 };
            b.extend_from_slice(&48u32.to_ne_bytes());
            b.extend_from_slice(&28u16.to_ne_bytes());
            b.extend_from_slice(&fl.to_ne_bytes());
            b.extend_from_slice(&seq.to_ne_bytes());
            b.extend_from_slice(&[0; 4]);
            seq += 1;
            b.extend_from_slice(&[7, 0, 0, 0]);
            b.extend_from_slice(&ifindex.to_ne_bytes());
            b.extend_from_slice(&[0xc0, 0, 2, 0]);
            b.extend_from_slice(&[10, 0, 2, 0, 2, 0, (k >> 24) as u8, (k >> 16) as u8, (k >> 8) as u8, k as u8, 0, 0]);
            b.extend_from_slice(&[8, 0, 1, 0, 10, 0, 0, 2]);
        }
        s.send_to(&b, &SocketAddr::new(0, 0), 0).unwrap();
        s.recv(&mut &mut ack[..], 0).unwrap();
        i = end;
    }
    t.elapsed().as_secs_f64()
}
fn main() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    sh(
        "ip link set lo up; ip link add u0 type veth peer name u1; ip addr add 10.0.0.1/24 dev u0; ip link set u0 up; ip link set u1 up",
    );
    let n: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    let mut batch = BatchSocket::open().unwrap();
    let mut d = Dumper::open().unwrap();
    for round in 0..3 {
        sh(
            "ip link add x0 address 02:00:00:00:00:01 type vxlan id 1 dev u0 local 10.0.0.1 dstport 8472 nolearning; ip link set x0 up",
        );
        let ifindex = d.link_named("x0").unwrap().unwrap().index;
        let raw = raw_fdb(ifindex, n);
        sh(
            "ip link del x0; ip link add x0 address 02:00:00:00:00:01 type vxlan id 1 dev u0 local 10.0.0.1 dstport 8472 nolearning; ip link set x0 up",
        );
        let ifindex = d.link_named("x0").unwrap().unwrap().index;
        let m = |k: usize| [2, 0, (k >> 24) as u8, (k >> 16) as u8, (k >> 8) as u8, k as u8];
        let a = |k: usize| std::net::IpAddr::from([100, 64 + (k >> 16) as u8, (k >> 8) as u8, k as u8]);
        let f: Vec<_> = (0..n)
            .map(|k| Request::PutFdb(fdb::Row { ifindex, mac: m(k), remote: "10.0.0.2".parse().unwrap() }))
            .collect();
        let ne: Vec<_> = (0..n)
            .map(|k| {
                Request::PutNeigh(neigh::Entry {
                    ifindex,
                    address: a(k),
                    mac: m(k),
                    state: neigh::State::Permanent,
                    ext_learned: false,
                    protocol: 116,
                })
            })
            .collect();
        let r: Vec<_> = (0..n)
            .map(|k| {
                Request::PutRoute(Route {
                    destination: ipnetwork::IpNetwork::new(a(k), 32).unwrap(),
                    kind: Kind::Unicast,
                    ifindex: Some(ifindex),
                    gateway: Some(a(k)),
                    onlink: true,
                    source: None,
                    protocol: 116,
                    metric: k as u32 + 10,
                    table: 254,
                })
            })
            .collect();
        for (name, q) in [("fdb", &f), ("neigh", &ne), ("route", &r)] {
            let t = Instant::now();
            assert!(batch.send(q).unwrap().is_empty());
            let e = t.elapsed().as_secs_f64();
            println!(
                "{round} put {name} {:.3} us/op {}",
                e * 1e6 / n as f64,
                if name == "fdb" {
                    format!("raw {:.3} ratio {:.2}", raw * 1e6 / n as f64, e / raw)
                } else {
                    String::new()
                }
            );
        }
        let t = Instant::now();
        let c = d.fdb(ifindex).unwrap().len();
        println!("dump fdb {c} {:?}", t.elapsed());
        let t = Instant::now();
        let c = d.neighbours(ifindex, Family::V4).unwrap().len();
        println!("dump neigh {c} {:?}", t.elapsed());
        let t = Instant::now();
        let c = d.routes(Family::V4, Some(ifindex), Some(116), None).unwrap().len();
        println!("dump routes {c} {:?}", t.elapsed());
        for c in [
            "bridge fdb show dev x0 >/dev/null",
            "ip neigh show dev x0 >/dev/null",
            "ip route show proto 116 >/dev/null",
        ] {
            let t = Instant::now();
            sh(c);
            println!("{c} {:?}", t.elapsed());
        }
        sh("ip link del x0");
    }
}
