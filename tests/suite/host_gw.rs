//! host-gw: routes through the peers' hosts where these are on the node's own link, a word about those that are not, and
//! flannel's records.

use serde_json::Value;
use twill_lab::{Lab, NODE_CONFIG, Node, PREFIX, Pod, Twilld, wait_until};

use crate::PATIENCE;

const HOST_GW: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;
const DUAL: &str =
    r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"host-gw"}}"#;

/// What the log says of a peer whose host is behind a router.
const NOT_REACHED: &str = "peer not reached";

/// A node's subnets, IPv4 first, each with the host's address of that family.
fn subnets(node: &Node) -> Vec<(String, String)> {
    let address =
        |subnet: &String| if subnet.contains(':') { node.addr6().to_string() } else { node.addr().to_string() };
    node.leased().into_iter().map(|subnet| (subnet.clone(), address(&subnet))).collect()
}

/// The routes to a subnet, without the metric and what the kernel adds.
fn routes_to(node: &Node, subnet: &str) -> Vec<String> {
    let family = if subnet.contains(':') { "-6" } else { "-4" };
    let routes = node.exec(&format!("ip {family} route show {subnet}")).unwrap();
    let routes = routes.lines().map(|route| route.split(" metric ").next().unwrap_or_default().trim().to_owned());
    routes.collect()
}

#[track_caller]
fn await_routes(node: &Node, subnet: &str, expected: &[String]) {
    wait_until(&format!("node {} routes {subnet} by {expected:?}", node.index()), PATIENCE, || {
        let routes = routes_to(node, subnet);
        if routes == expected { Ok(()) } else { Err(format!("{routes:?}")) }
    });
}

/// The way to a peer's subnet through its host.
fn through(subnet: &str, host: &str) -> [String; 1] {
    [format!("{subnet} via {host} dev eth0 proto 116")]
}

#[track_caller]
fn await_peer(node: &Node, peer: &Node) {
    for (subnet, host) in subnets(peer) {
        await_routes(node, &subnet, &through(&subnet, &host));
    }
}

#[track_caller]
fn await_all(lab: &Lab) {
    for node in lab.nodes() {
        lab.nodes().iter().filter(|peer| peer.index() != node.index()).for_each(|peer| await_peer(node, peer));
    }
}

#[track_caller]
fn ping_all_to_all(pods: &[Pod]) {
    for from in pods {
        for to in pods.iter().flat_map(Pod::addrs) {
            from.ping(to).unwrap();
        }
    }
}

/// Puts a peer's record as flannel writes it.
fn put_flannel_s(lab: &Lab, subnet: &str, host: &str) {
    let value = format!(r#"{{"PublicIP":"{host}","PublicIPv6":null,"BackendType":"host-gw"}}"#);
    lab.put(&format!("{PREFIX}/subnets/{}", subnet.replace('/', "-")), &value);
}

#[test]
fn pods_reach_each_other_through_their_hosts_and_the_records_are_flannel_s() {
    for args in [&["--peer-mode=on-demand"], &["--peer-mode=all"]] {
        let (lab, _daemons, pods) = Lab::running(3, DUAL, args);
        await_all(&lab);
        ping_all_to_all(&pods);
        for node in lab.nodes() {
            assert!(!node.exec("ip -o link").unwrap().contains("flannel"), "{args:?}: a device was made");
            assert_eq!(node.subnet_env().unwrap().mtu, 1500, "nothing is added to a packet");
        }
        for (record, node) in lab.records().iter().zip(by_subnet(&lab)) {
            let mut value: Value = serde_json::from_str(&record.value).unwrap();
            let members = value.as_object_mut().unwrap();
            assert!(members.remove("NodeID").is_some() && members.remove("Instance").is_some());
            let (v4, v6) = (node.addr(), node.addr6());
            let flannel_s = format!(r#"{{"PublicIP":"{v4}","PublicIPv6":"{v6}","BackendType":"host-gw","#);
            assert!(record.value.starts_with(&flannel_s), "{}", record.value);
            assert_eq!(members.len(), 3, "{}", record.value);
        }
    }
}

/// The nodes in the order of their subnets, as etcd has the records.
fn by_subnet(lab: &Lab) -> Vec<Node> {
    let mut nodes = lab.nodes().to_vec();
    nodes.sort_by_key(|node| node.leased()[0].replace('/', "-"));
    nodes
}

#[test]
fn a_host_behind_a_router_is_named_once_and_routed_when_it_is_on_the_link() {
    let lab = Lab::with_nodes(3);
    lab.put_config(HOST_GW);
    let (one, two, three) = (lab.node(1), lab.node(2), lab.node(3));
    // Between these two is a router: the fabric.
    for (node, other) in [(&one, &three), (&three, &one)] {
        node.exec(&format!("ip route add {} via 10.99.0.1", other.addr())).unwrap();
    }
    let mut daemons = lab.start_all(&[]);
    let pods: Vec<Pod> = lab.nodes().iter().map(|node| node.pod(1)).collect();
    let (subnet, host) = subnets(&three).remove(0);
    daemons[0].wait_log(&[NOT_REACHED, &subnet, &host, "host-gw has no other way to it"], PATIENCE);
    await_peer(&one, &two);
    await_peer(&two, &three);
    ping_all_to_all(&pods[..2]);
    assert_eq!(routes_to(&one, &subnet), [] as [String; 0]);
    // The node is fine.
    daemons[0].wait_ready();

    one.exec(&format!("ip route del {host}")).unwrap();
    await_peer(&one, &three);
    three.exec(&format!("ip route del {}", one.addr())).unwrap();
    await_all(&lab);
    ping_all_to_all(&pods);
    assert_eq!(daemons[0].lines(&[NOT_REACHED]).len(), 1, "{}", daemons[0].log());
    // Again, which is news again.
    one.exec(&format!("ip route add {host} via 10.99.0.1")).unwrap();
    wait_until("it is named again", PATIENCE, || daemons[0].lines(&[NOT_REACHED, &subnet]).len() == 2);
    await_routes(&one, &subnet, &[]);
}

#[test]
fn a_route_of_the_operator_s_to_a_peer_behind_a_router_is_left_alone() {
    let (lab, mut daemons, _pods) = Lab::running(1, HOST_GW, &[]);
    let node = lab.node(1);
    put_flannel_s(&lab, "10.5.200.0/24", "192.0.2.7");
    daemons[0].wait_log(&[NOT_REACHED, "10.5.200.0/24", "192.0.2.7"], PATIENCE);
    node.exec("ip route add 10.5.200.0/24 via 10.99.0.1").unwrap();
    // A peer that comes after it is done with.
    put_flannel_s(&lab, "10.5.201.0/24", "10.99.1.201");
    await_routes(&node, "10.5.201.0/24", &through("10.5.201.0/24", "10.99.1.201"));
    daemons[0].wait_ready();
    assert_eq!(routes_to(&node, "10.5.200.0/24"), ["10.5.200.0/24 via 10.99.0.1 dev eth0"]);
    assert!(daemons[0].lines(&["goes before ours"]).is_empty(), "{}", daemons[0].log());
}

#[test]
fn a_route_comes_back_and_goes_with_its_record() {
    let (lab, mut daemons, pods) = Lab::running(2, DUAL, &[]);
    let (one, two) = (lab.node(1), lab.node(2));
    await_all(&lab);
    for (subnet, _) in subnets(&two) {
        let family = if subnet.contains(':') { "-6" } else { "-4" };
        one.exec(&format!("ip {family} route del {subnet}")).unwrap();
    }
    await_peer(&one, &two);
    one.exec("ip link set eth0 down").unwrap();
    one.exec("ip link set eth0 up").unwrap();
    one.exec(&format!("ip addr replace {}/64 dev eth0 nodad", one.addr6())).unwrap();
    await_peer(&one, &two);
    ping_all_to_all(&pods);

    let left = subnets(&two);
    assert!(daemons[1].terminate().status.success());
    lab.delete(&format!(
        "{PREFIX}/subnets/{}",
        left.iter().map(|(subnet, _)| subnet.replace('/', "-")).collect::<Vec<_>>().join("&")
    ));
    for (subnet, _) in left {
        await_routes(&one, &subnet, &[]);
    }
}

#[test]
fn a_host_that_gets_another_address_or_mtu_is_followed() {
    let (lab, _daemons, pods) = Lab::running(2, HOST_GW, &[]);
    await_all(&lab);
    let (one, two) = (lab.node(1), lab.node(2));
    let (subnet, old) = subnets(&two).remove(0);
    two.netns().sysctl("ipv4/conf/eth0/promote_secondaries", "1").unwrap();
    two.exec("ip addr add 10.99.7.7/16 dev eth0").unwrap();
    two.exec(&format!("ip addr del {old}/16 dev eth0")).unwrap();
    await_routes(&one, &subnet, &through(&subnet, "10.99.7.7"));
    await_peer(&two, &one);
    for (from, to) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
        wait_until("an answer", PATIENCE, || from.exec(&format!("ping -n -c1 -W0.5 {}", to.addr())));
    }
    two.exec("ip link set eth0 mtu 1400").unwrap();
    wait_until("subnet.env has the new MTU", PATIENCE, || two.subnet_env().is_ok_and(|env| env.mtu == 1400));
}

#[test]
fn a_restart_loses_no_packet_and_takes_out_what_nobody_wants() {
    let (lab, mut daemons, pods) = Lab::running(2, HOST_GW, &[]);
    await_all(&lab);
    let (one, two) = (lab.node(1), lab.node(2));
    put_flannel_s(&lab, "10.5.200.0/24", "10.99.1.200");
    await_routes(&one, "10.5.200.0/24", &through("10.5.200.0/24", "10.99.1.200"));
    let terminate = |daemon: &mut Twilld| assert!(daemon.terminate().status.success());
    for stop in [terminate, Twilld::kill] {
        let ping = pods[0].ping_running(pods[1].addr(), 20);
        ping.wait_received(5);
        stop(&mut daemons[0]);
        ping.wait_received(5);
        daemons[0] = one.twilld(&[]);
        daemons[0].wait_ready();
        ping.wait_received(10);
        assert_eq!(ping.stop().lost, 0);
        await_peer(&one, &two);
    }
    assert!(daemons[0].terminate().status.success());
    lab.delete(&format!("{PREFIX}/subnets/10.5.200.0-24"));
    daemons[0] = one.twilld(&[]);
    await_routes(&one, "10.5.200.0/24", &[]);
    await_peer(&one, &two);
}

#[test]
fn flannel_s_own_routes_are_taken_over_and_its_other_backends_are_named() {
    let lab = Lab::with_nodes(1);
    lab.put_config(HOST_GW);
    let node = lab.node(1);
    put_flannel_s(&lab, "10.5.200.0/24", "10.99.1.200");
    lab.put(
        &format!("{PREFIX}/subnets/10.5.201.0-24"),
        r#"{"PublicIP":"10.99.1.201","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:c9"}}"#,
    );
    node.exec("ip route add 10.5.200.0/24 via 10.99.1.200 dev eth0").unwrap();
    let mut daemon = node.twilld(&[]);
    daemon.wait_ready();
    await_routes(&node, "10.5.200.0/24", &through("10.5.200.0/24", "10.99.1.200"));
    daemon.wait_log(&["10.5.201.0-24", r#"of the backend \"vxlan\", not \"host-gw\""#], PATIENCE);
}

#[test]
fn a_network_goes_from_vxlan_to_host_gw_and_back() {
    let (lab, mut daemons, pods) = Lab::running(2, NODE_CONFIG, &["--peer-mode=all"]);
    ping_all_to_all(&pods);
    lab.put_config(HOST_GW);
    for daemon in &mut daemons {
        daemon.wait_log(&["the network config was changed; this daemon goes on"], PATIENCE);
        assert!(daemon.terminate().status.success());
    }
    let mut daemons: Vec<Twilld> = lab.nodes().iter().map(|node| node.twilld(&[])).collect();
    for daemon in &mut daemons {
        daemon.wait_ready();
        assert_eq!(daemon.lines(&["uses no such device", "flannel.1", "ip link del"]).len(), 1, "{}", daemon.log());
    }
    await_all(&lab);
    for node in lab.nodes() {
        assert!(node.link("flannel.1").is_ok(), "it may be another daemon's");
    }
    // The pods have the MTU of the tunnel, which is less.
    ping_all_to_all(&pods);

    lab.put_config(NODE_CONFIG);
    for daemon in &mut daemons {
        assert!(daemon.terminate().status.success());
    }
    let mut daemons: Vec<Twilld> = lab.nodes().iter().map(|node| node.twilld(&["--peer-mode=all"])).collect();
    daemons.iter_mut().for_each(Twilld::wait_ready);
    let (one, two) = (lab.node(1), lab.node(2));
    for (node, peer) in [(&one, &two), (&two, &one)] {
        wait_until("the tunnel is back", PATIENCE, || node.holds(&peer.as_peer()).map_err(|e| format!("{e:#}")));
    }
    ping_all_to_all(&pods);
}

#[test]
fn an_address_of_somebody_else_s_is_refused() {
    let lab = Lab::with_nodes(1);
    lab.put_config(HOST_GW);
    let mut daemon = lab.node(1).twilld(&["--public-ip=192.0.2.9"]);
    assert!(!daemon.wait_exit(PATIENCE).status.success());
    daemon.wait_log(&["the public address 192.0.2.9 is not the address of this host", "host-gw"], PATIENCE);
}

#[test]
fn a_second_daemon_waits_for_the_first() {
    let (lab, mut daemons, _pods) = Lab::running(1, HOST_GW, &[]);
    let mut second = lab.node(1).twilld(&[]);
    second.wait_log(&["another twilld keeps", "host-gw"], PATIENCE);
    assert!(daemons[0].terminate().status.success());
    second.wait_ready();
}
