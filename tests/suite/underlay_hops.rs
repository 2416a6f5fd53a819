//! Default routes with several next hops: the first that lives is followed.

use super::*;

/// A pair whose second node has `eth1` with 10.99.8.8 too, and these default routes before its daemon starts.
fn pair_with_default(mode: &str, lines: &[&str]) -> Pair {
    Pair::prepared(mode, &[], |lab| {
        second_interface(lab, "10.99.8.8");
        lab.node(2).netns().ip_batch(["route del default"].iter().chain(lines)).unwrap();
    })
}

#[test]
fn of_several_next_hops_the_first_that_lives_is_followed() {
    for mode in MODES {
        let mut pair = pair_with_default(
            mode,
            &["route add default nexthop via 10.99.0.1 dev eth0 nexthop via 10.99.0.1 dev eth1"],
        );
        let (node, before) = (pair.moving(), pair.identity());
        pair.daemons[1].wait_log(&["eth0", "next hop 1 of 2"], PATIENCE);
        pair.wait_known_as(node.addr());
        node.exec("ip link set eth0 down").unwrap();
        pair.wait_known_as(Ipv4Addr::new(10, 99, 8, 8));
        pair.daemons[1].wait_log(&["the underlay changed", "eth1", "next hop 2 of 2"], PATIENCE);
        // Until then nothing could leave this host.
        let log = pair.daemons[1].log();
        let (down, moved) =
            (log.find("not ready missing=\"underlay: eth0 is down\""), log.find("the underlay changed"));
        assert!(down.is_some_and(|down| Some(down) < moved), "{log}");
        node.exec("ip link set eth0 up").unwrap();
        pair.wait_known_as(node.addr());
        assert_eq!(pair.identity(), before);
    }
}

#[test]
fn of_several_ipv6_next_hops_the_first_that_lives_is_followed() {
    let lab = Lab::with_nodes(2);
    lab.put_config(IPV6_ONLY);
    second_interface(&lab, "10.99.8.8");
    let node = lab.node(2);
    node.netns()
        .ip_batch([
            "addr add fd99::88/64 dev eth1 nodad",
            "route del ::/0",
            "route add ::/0 nexthop via fd99::1 dev eth1 nexthop via fd99::1 dev eth0",
        ])
        .unwrap();
    let mut daemon = node.twilld(&[]);
    daemon.wait_ready();
    wait_recorded(&lab, r#""PublicIPv6":"fd99::88""#);
    node.exec("ip link set eth1 down").unwrap();
    wait_recorded(&lab, &format!(r#""PublicIPv6":"{}""#, node.addr6()));
    assert!(daemon.runs());
}

#[test]
fn a_next_hop_object_and_a_group_of_them_are_followed() {
    for compat in ["1", "0"] {
        let pair = Pair::prepared(MODES[0], &[], |lab| {
            second_interface(lab, "10.99.8.8");
            lab.node(2).netns().sysctl("ipv4/nexthop_compat_mode", compat).unwrap();
            lab.node(2)
                .netns()
                .ip_batch([
                    "route del default",
                    "nexthop add id 1 via 10.99.0.1 dev eth0",
                    "nexthop add id 2 via 10.99.0.1 dev eth1",
                    "nexthop add id 10 group 1/2",
                    "route add default nhid 10",
                ])
                .unwrap();
        });
        let (node, before) = (pair.moving(), pair.identity());
        pair.wait_known_as(node.addr());
        node.exec("ip nexthop replace id 10 group 2").unwrap();
        pair.wait_known_as(Ipv4Addr::new(10, 99, 8, 8));
        node.exec("ip nexthop replace id 2 via 10.99.0.1 dev eth0").unwrap();
        pair.wait_known_as(node.addr());
        assert_eq!(pair.identity(), before);
    }
}
