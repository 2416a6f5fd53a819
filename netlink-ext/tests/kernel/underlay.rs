//! What the choice of an underlay rests on: the state of addresses, and default routes with all their ways.

use std::collections::BTreeMap;

use netlink_ext::addr::Seen;
use netlink_ext::nexthop::{DefaultRoute, Hop};
use netlink_ext::{BatchSocket, Change, ChangeScope, ChangeSocket, Dumper, Family};

use crate::support::{address, block_on, in_namespace, ip};

/// Two links up, `a0` and `b0`, each with an address of both families.
fn two_links() -> Dumper {
    ip("link add a0 type veth peer name a1\n\
        link add b0 type veth peer name b1\n\
        addr add 10.1.0.5/24 dev a0\n\
        addr add fd01::5/64 dev a0 nodad\n\
        addr add 10.2.0.5/24 dev b0\n\
        addr add fd02::5/64 dev b0 nodad\n\
        link set a0 up\n\
        link set a1 up\n\
        link set b0 up\n\
        link set b1 up");
    Dumper::open().unwrap()
}

fn index(dumper: &mut Dumper, name: &str) -> u32 {
    dumper.link_named(name).unwrap().unwrap().index
}

/// The addresses of a device by what they are.
fn addresses(dumper: &mut Dumper, name: &str) -> BTreeMap<String, Seen> {
    let ifindex = index(dumper, name);
    let seen = dumper.addresses(Some(ifindex)).unwrap();
    seen.into_iter().map(|seen| (seen.address.address.to_string(), seen)).collect()
}

/// The ways of the one default route of a family.
#[track_caller]
fn hops(dumper: &mut Dumper, family: Family) -> Vec<Hop> {
    let [route] = <[DefaultRoute; 1]>::try_from(dumper.default_routes(family).unwrap()).unwrap();
    route.hops
}

fn living(ifindex: u32) -> Hop {
    Hop { ifindex, dead: false, linkdown: false }
}

#[test]
fn the_state_of_an_address_is_read_and_a_change_of_it_is_heard() {
    in_namespace(|| {
        block_on(async {
            let mut dumper = two_links();
            // Detection that does not end while the test looks.
            std::fs::write("/proc/sys/net/ipv6/conf/b0/dad_transmits", "100").unwrap();
            ip("addr add fd01::6/64 dev a0 nodad preferred_lft 0\n\
                addr add 10.1.0.6/24 dev a0 preferred_lft 0\n\
                addr add 10.8.0.1 peer 10.8.0.2/32 dev a0\n\
                addr add 10.9.0.1/24 dev a0 scope host\n\
                addr add 10.9.1.1/24 dev a0 scope link\n\
                link set b0 down\n\
                addr add fd02::7/64 dev b0\n\
                link set b0 up");
            let seen = addresses(&mut dumper, "a0");
            let is = |address: &str| seen[address];
            assert!(is("fd01::6/64").is_deprecated() && is("10.1.0.6/24").is_deprecated());
            assert!(!is("fd01::5/64").is_deprecated() && !is("10.1.0.5/24").is_deprecated());
            assert!(!is("10.1.0.6/24").is_temporary(), "it is the second one of its prefix, and has that flag");
            assert_eq!((is("10.8.0.1/32").peer, is("10.1.0.5/24").peer), (Some(address("10.8.0.2")), None));
            assert!(is("10.9.0.1/24").is_host_local() && is("10.9.1.1/24").is_link_local());
            assert!(!is("10.1.0.5/24").is_host_local() && !is("10.1.0.5/24").is_link_local());
            let tentative = addresses(&mut dumper, "b0")["fd02::7/64"];
            assert!(tentative.is_tentative() && !tentative.is_duplicate());

            let batch = BatchSocket::open().unwrap();
            let scope = ChangeScope { ifindex: 1, ignore_ports: vec![batch.port()], receive_buffer: 1 << 20 };
            let mut changes = ChangeSocket::open(&scope).unwrap();
            ip("addr change fd01::5/64 dev a0 preferred_lft 0");
            loop {
                match changes.try_next().unwrap() {
                    Some(Change::Address { address, gone: false })
                        if address.address.address == "fd01::5/64".parse().unwrap() =>
                    {
                        break assert!(address.is_deprecated());
                    }
                    Some(_) => {}
                    None => changes.readable().await.unwrap(),
                }
            }
        });
    });
}

#[test]
fn a_duplicate_and_a_temporary_address_are_told() {
    in_namespace(|| {
        let mut dumper = two_links();
        // The other end of the link has it already.
        ip("addr add fd01::9/64 dev a1 nodad\n\
            addr add fd01::9/64 dev a0\n\
            link set b0 down");
        // Privacy extensions make a temporary address beside one from a router, which ip(8) can stand in for.
        std::fs::write("/proc/sys/net/ipv6/conf/b0/use_tempaddr", "2").unwrap();
        ip("link set b0 up\n\
            addr add fd02::8/64 dev b0 nodad mngtmpaddr");
        let is_duplicate = |dumper: &mut Dumper| addresses(dumper, "a0")["fd01::9/64"].is_duplicate();
        let temporary =
            |dumper: &mut Dumper| addresses(dumper, "b0").values().filter(|seen| seen.is_temporary()).count();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !(is_duplicate(&mut dumper) && temporary(&mut dumper) == 1) {
            assert!(std::time::Instant::now() < deadline, "{:?}", addresses(&mut dumper, "b0"));
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert!(!addresses(&mut dumper, "a0")["fd01::9/64"].is_tentative(), "it is no use waiting for it");
        assert!(!addresses(&mut dumper, "b0")["fd02::8/64"].is_temporary());
    });
}

#[test]
fn every_way_of_a_default_route_is_read() {
    in_namespace(|| {
        let mut dumper = two_links();
        let (a0, b0) = (index(&mut dumper, "a0"), index(&mut dumper, "b0"));
        ip("route add default nexthop via 10.1.0.1 nexthop via 10.2.0.1\n\
            route add ::/0 nexthop via fd01::1 dev a0 nexthop via fd02::1 dev b0");
        for family in Family::BOTH {
            assert_eq!(hops(&mut dumper, family), [living(a0), living(b0)]);
        }
        ip("link set a0 down");
        for family in Family::BOTH {
            assert_eq!(
                hops(&mut dumper, family),
                [Hop { ifindex: a0, dead: true, linkdown: true }, living(b0)],
                "{family:?}"
            );
        }
        ip("link set a0 up\nlink set b1 down");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let linkdown = [living(a0), Hop { ifindex: b0, dead: false, linkdown: true }];
        while hops(&mut dumper, Family::V4) != linkdown {
            assert!(std::time::Instant::now() < deadline, "{:?}", hops(&mut dumper, Family::V4));
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        ip("link set b1 up\n\
            route replace default via 10.2.0.1\n\
            route add unreachable default metric 7\n\
            route add 10.7.0.0/16 via 10.1.0.1");
        let route = DefaultRoute { family: Family::V4, metric: 0, table: 254, hops: vec![living(b0)], objects: vec![] };
        let mut seen = dumper.default_routes(Family::V4).unwrap();
        seen[0].hops[0].linkdown = false; // the carrier may take its time
        assert_eq!(seen, [route], "of those that send");
    });
}

#[test]
fn next_hop_objects_and_groups_tell_their_ways_also_where_the_route_does_not() {
    in_namespace(|| {
        block_on(async {
            let mut dumper = two_links();
            let (a0, b0) = (index(&mut dumper, "a0"), index(&mut dumper, "b0"));
            ip("nexthop add id 1 via 10.1.0.1 dev a0\n\
                nexthop add id 2 via 10.2.0.1 dev b0\n\
                nexthop add id 3 via fd01::1 dev a0\n\
                nexthop add id 4 via fd02::1 dev b0\n\
                nexthop add id 5 blackhole\n\
                nexthop add id 10 group 2/1\n\
                nexthop add id 11 group 4/3\n\
                route add default nhid 10\n\
                route add ::/0 nhid 11\n\
                route add default nhid 1 metric 5\n\
                route add default nhid 5 metric 6");
            for compat in ["1", "0"] {
                std::fs::write("/proc/sys/net/ipv4/nexthop_compat_mode", compat).unwrap();
                let routes = dumper.default_routes(Family::V4).unwrap();
                let told: Vec<_> = routes.iter().map(|route| (route.metric, &*route.hops, &*route.objects)).collect();
                let expected: [(u32, &[Hop], &[u32]); 2] =
                    [(0, &[living(b0), living(a0)], &[10, 2, 1]), (5, &[living(a0)], &[1])];
                assert_eq!(told, expected, "compat mode {compat}");
                assert_eq!(hops(&mut dumper, Family::V6), [living(b0), living(a0)], "compat mode {compat}");
            }

            let scope = ChangeScope { ifindex: 1, ignore_ports: vec![], receive_buffer: 1 << 20 };
            let mut changes = ChangeSocket::open(&scope).unwrap();
            ip("nexthop replace id 10 group 1/2");
            while changes.try_next().unwrap() != Some(Change::Nexthop { id: 10 }) {
                changes.readable().await.unwrap();
            }
            assert_eq!(dumper.default_routes(Family::V4).unwrap()[0].hops, [living(a0), living(b0)]);
        });
    });
}
