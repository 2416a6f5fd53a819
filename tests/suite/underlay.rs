//! The interface under the tunnel changes: device, record, `subnet.env` and the peers follow.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::net::Ipv4Addr;
use std::time::Duration;

use twill_lab::{Lab, NODE_CONFIG, Node, Peer, Pod, Twilld, wait_until};

#[path = "underlay_addresses.rs"]
mod addresses;
#[path = "underlay_hops.rs"]
mod hops;

const MODES: [&str; 2] = ["--peer-mode=all", "--peer-mode=on-demand"];
/// For what passes through etcd, also over a connection that has to be made anew.
const PATIENCE: Duration = Duration::from_secs(30);

/// Two nodes that reach each other; the second one's daemon is started with `args`.
struct Pair {
    lab: Lab,
    daemons: [Twilld; 2],
    pods: [Pod; 2],
}

impl Pair {
    fn new(mode: &str, args: &[&str]) -> Self {
        Self::prepared(mode, args, |_| ())
    }

    /// The same with something done to the nodes before.
    fn prepared(mode: &str, args: &[&str], prepare: impl FnOnce(&Lab)) -> Self {
        let lab = Lab::with_nodes(2);
        lab.put_config(NODE_CONFIG);
        prepare(&lab);
        let mut first = lab.node(1).twilld(&[mode]);
        first.wait_ready();
        let mut second = lab.node(2).twilld(&[&[mode], args].concat());
        second.wait_ready();
        let mut daemons = [first, second];
        daemons[0].wait_log(&["peer joined", &lab.node(2).as_peer().subnet.to_string()], PATIENCE);
        let pods = [lab.node(1).pod(1), lab.node(2).pod(1)];
        pods[0].ping(pods[1].addr()).unwrap();
        Self { lab, daemons, pods }
    }

    /// The node whose underlay changes.
    fn moving(&self) -> Node {
        self.lab.node(2)
    }

    /// Waits until node 2 is known under `address`, by the same key, in etcd and in the other node's kernel.
    fn wait_known_as(&self, address: Ipv4Addr) {
        let peer = Peer { public_ip: address, ..self.moving().as_peer() };
        let said = || self.lab.get(&peer.key()).is_some_and(|record| record.value.contains(&format!("\"{address}\"")));
        wait_until("the record follows", PATIENCE, said);
        wait_until("the record is the only one of this node", PATIENCE, || self.lab.records().len() == 2);
        wait_until("the device follows", PATIENCE, || {
            let link = self.moving().ip_json("-d link show flannel.1").ok()?;
            (link[0]["linkinfo"]["info_data"]["local"] == address.to_string()).then_some(())
        });
        // On demand, a packet may have to ask for it.
        wait_until("they reach each other", PATIENCE, || {
            self.pods[0].send(self.pods[1].addr());
            self.lab.node(1).holds_exactly(std::slice::from_ref(&peer))
        });
        for (from, to) in [(&self.pods[0], &self.pods[1]), (&self.pods[1], &self.pods[0])] {
            wait_until("an answer", PATIENCE, || from.exec(&format!("ping -n -c1 -W0.5 {}", to.addr())));
        }
    }

    /// What must not change: the key, the MAC, when the record was first written, and subnet.env but for its MTU.
    fn identity(&self) -> (Peer, i64) {
        let peer = self.moving().as_peer();
        let record = self.lab.get(&peer.key()).unwrap();
        (peer, record.create_revision)
    }
}

/// Gives node 2 a second leg on the fabric, `eth1`.
fn second_interface(lab: &Lab, address: &str) {
    let node = lab.node(2);
    lab.fabric()
        .ip_batch([
            format!("link add node2b type veth peer name eth1 netns {}", node.netns().name()),
            "link set node2b master fabric up".to_owned(),
        ])
        .unwrap();
    node.netns().ip_batch([format!("addr add {address}/16 dev eth1"), "link set eth1 up".to_owned()]).unwrap();
}

#[test]
fn a_changed_mtu_reaches_the_device_and_subnet_env() {
    for mode in MODES {
        let mut pair = Pair::new(mode, &[]);
        let node = pair.moving();
        let (before, ping) = (node.link("flannel.1").unwrap(), pair.pods[0].ping_running(pair.pods[1].addr(), 20));
        ping.wait_received(5);
        for mtu in [1400, 1500, 1280] {
            node.exec(&format!("ip link set eth0 mtu {mtu}")).unwrap();
            wait_until(&format!("MTU {mtu} - 50 in subnet.env and on the device"), PATIENCE, || {
                let (file, device) = (node.subnet_env().ok()?.mtu, node.link("flannel.1").ok()?.mtu);
                (file == mtu - 50 && device == mtu - 50).then_some(())
            });
        }
        assert_eq!(node.link("flannel.1").unwrap().ifindex, before.ifindex, "the device was not made anew");
        ping.wait_received(5);
        assert_eq!(ping.stop().lost, 0);
        assert!(pair.daemons[1].runs());
        assert!(!pair.daemons[1].log().contains("another program changed"), "{}", pair.daemons[1].log());
    }
}

#[test]
fn a_changed_address_is_followed_where_the_kernel_promotes_the_second_one() {
    for mode in MODES {
        let pair = Pair::new(mode, &[]);
        let (node, before) = (pair.moving(), pair.identity());
        node.netns().sysctl("ipv4/conf/eth0/promote_secondaries", "1").unwrap();
        let old = node.addr();
        node.exec("ip addr add 10.99.7.7/16 dev eth0").unwrap();
        node.exec(&format!("ip addr del {old}/16 dev eth0")).unwrap();
        node.exec("ip route replace default via 10.99.0.1").unwrap();
        pair.wait_known_as(Ipv4Addr::new(10, 99, 7, 7));
        assert_eq!(pair.identity(), before);
    }
}

#[test]
fn a_new_address_as_from_dhcp_is_followed() {
    for mode in MODES {
        let pair = Pair::new(mode, &[]);
        let (node, before) = (pair.moving(), pair.identity());
        node.netns()
            .ip_batch([
                "addr flush dev eth0 scope global",
                "addr add 10.99.7.8/16 dev eth0",
                "route add default via 10.99.0.1",
            ])
            .unwrap();
        pair.wait_known_as(Ipv4Addr::new(10, 99, 7, 8));
        assert_eq!(pair.identity(), before);
        assert!(!pair.daemons[1].log().contains("another program changed"), "{}", pair.daemons[1].log());
    }
}

#[test]
fn a_second_address_changes_nothing() {
    let mut pair = Pair::new(MODES[1], &[]);
    let (node, before) = (pair.moving(), pair.identity());
    let record = pair.lab.get(&before.0.key()).unwrap();
    node.exec("ip addr add 10.99.7.9/16 dev eth0").unwrap();
    // What comes after is handled after: once this is through, the address has been looked at.
    node.exec("ip link set eth0 mtu 1400").unwrap();
    wait_until("a later change is followed", PATIENCE, || node.subnet_env().is_ok_and(|env| env.mtu == 1350));
    assert_eq!(pair.lab.get(&before.0.key()).unwrap(), record);
    assert!(pair.daemons[1].runs());
}

#[test]
fn a_link_local_address_is_not_taken_for_want_of_a_global_one() {
    let lab = Lab::with_nodes(1);
    lab.put_config(IPV6_ONLY);
    let node = lab.node(1);
    // As a host is before it has heard of a router: only what the link itself gives.
    node.exec("ip -6 addr flush dev eth0 scope global").unwrap();
    node.exec("ip -6 route replace default dev eth0").unwrap();
    let mut daemon = node.twilld(&[]);
    daemon.wait_log(&["cannot choose the tunnel's interface", "fe80::", "is a link-local address"], PATIENCE);
    assert_eq!(lab.records(), []);
    node.exec(&format!("ip addr add {}/64 dev eth0 nodad", node.addr6())).unwrap();
    daemon.wait_ready();
    wait_recorded(&lab, &format!(r#""PublicIPv6":"{}""#, node.addr6()));
}

#[test]
fn an_ipv4_default_route_over_an_ipv6_next_hop_is_followed() {
    for mode in MODES {
        let pair = Pair::prepared(mode, &[], |lab| {
            second_interface(lab, "10.99.8.8");
            lab.node(2).exec("ip -4 route replace default via inet6 fe80::1 dev eth1").unwrap();
        });
        let before = pair.identity();
        pair.wait_known_as(Ipv4Addr::new(10, 99, 8, 8));
        pair.moving().exec("ip -4 route replace default via inet6 fe80::1 dev eth0").unwrap();
        pair.wait_known_as(pair.moving().addr());
        let both = "ip -4 route replace default nexthop via inet6 fe80::1 dev eth1 nexthop via inet6 fe80::1 dev eth0";
        pair.moving().exec(both).unwrap();
        pair.moving().exec("ip link set eth0 down").unwrap();
        pair.wait_known_as(Ipv4Addr::new(10, 99, 8, 8));
        assert_eq!(pair.identity(), before);
    }
}

#[test]
fn an_interface_that_goes_down_and_comes_up_is_used_again() {
    for mode in MODES {
        let mut pair = Pair::new(mode, &[]);
        let (node, before) = (pair.moving(), pair.identity());
        node.exec("ip link set eth0 down").unwrap();
        let lost = pair.pods[0].exec(&format!("ping -n -c1 -W0.2 {}", pair.pods[1].addr()));
        assert!(lost.is_err(), "the underlay is down");
        // The kernel took the default route with the interface; whoever brings it up puts it back.
        node.netns().ip_batch(["link set eth0 up", "route replace default via 10.99.0.1"]).unwrap();
        wait_until("they reach each other", PATIENCE, || {
            pair.pods[0].exec(&format!("ping -n -c1 -W0.5 {}", pair.pods[1].addr()))
        });
        pair.wait_known_as(node.addr());
        assert_eq!(pair.identity(), before);
        assert!(pair.daemons[1].runs());
    }
}

#[test]
fn an_interface_that_is_down_for_a_moment_while_its_route_is_away_is_used_again() {
    let mut pair = Pair::new(MODES[0], &[]);
    let node = pair.moving();
    node.exec("ip route del default").unwrap();
    pair.daemons[1].wait_log(&["underlay is not usable"], PATIENCE);
    pair.pods[0].ping(pair.pods[1].addr()).unwrap();
    node.exec("ip route add default via 10.99.0.1").unwrap();
    pair.wait_known_as(node.addr());
}

#[test]
fn the_default_route_is_followed_to_another_interface() {
    for mode in MODES {
        let pair = Pair::new(mode, &[]);
        let before = pair.identity();
        second_interface(&pair.lab, "10.99.8.8");
        pair.moving().exec("ip route replace default via 10.99.0.1 dev eth1").unwrap();
        pair.wait_known_as(Ipv4Addr::new(10, 99, 8, 8));
        assert_eq!(pair.identity(), before);
    }
}

#[test]
fn the_default_route_is_not_followed_away_from_a_named_interface() {
    let mut pair = Pair::new(MODES[1], &["--iface=eth0"]);
    let (node, before) = (pair.moving(), pair.identity());
    let record = pair.lab.get(&before.0.key()).unwrap();
    second_interface(&pair.lab, "10.99.8.9");
    node.exec("ip route replace default via 10.99.0.1 dev eth1").unwrap();
    node.exec("ip link set eth0 mtu 1400").unwrap();
    wait_until("a later change is followed", PATIENCE, || node.subnet_env().is_ok_and(|env| env.mtu == 1350));
    assert_eq!(pair.lab.get(&before.0.key()).unwrap(), record);
    assert_eq!(pair.identity(), before);
    assert!(pair.daemons[1].runs());
    pair.pods[0].ping(pair.pods[1].addr()).unwrap();
}

#[test]
fn an_interface_that_is_made_anew_is_used_again() {
    let pair = Pair::new(MODES[0], &["--iface=eth0"]);
    let (node, before) = (pair.moving(), pair.identity());
    // Its tunnel device goes with it.
    node.exec("ip link del eth0").unwrap();
    pair.lab
        .fabric()
        .ip_batch([
            format!("link add node2 type veth peer name eth0 netns {}", node.netns().name()),
            "link set node2 master fabric up".to_owned(),
        ])
        .unwrap();
    let lines = [format!("addr add {}/16 dev eth0", node.addr()), "link set eth0 up".to_owned()];
    node.netns().ip_batch(lines.into_iter().chain(["route add default via 10.99.0.1".to_owned()])).unwrap();
    wait_until("the device is back", PATIENCE, || node.link("flannel.1"));
    pair.wait_known_as(node.addr());
    assert_eq!(pair.identity(), before);
}

/// Waits until the record of node 1 has this text.
fn wait_recorded(lab: &Lab, text: &str) {
    wait_until(&format!("a record with {text}"), PATIENCE, || {
        let records = lab.records();
        (records.len() == 1 && records[0].value.contains(text)).then_some(()).ok_or(format!("{records:?}"))
    });
}

const IPV6_ONLY: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00:16::/48"}"#;
