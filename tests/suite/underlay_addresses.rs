//! Which of an interface's addresses is chosen: temporary, tentative, duplicate, deprecated and passing ones.

use super::*;

/// The addresses of `eth0` with this flag in the words of `ip -j addr`.
fn flagged(node: &Node, flag: &str) -> Vec<String> {
    let shown = node.ip_json("-6 addr show dev eth0").unwrap();
    let all = shown[0]["addr_info"].as_array().unwrap();
    let with = all.iter().filter(|address| address[flag] == true);
    with.filter_map(|address| address["local"].as_str().map(str::to_owned)).collect()
}

#[test]
fn a_node_with_privacy_addresses_keeps_its_subnet_over_restarts() {
    let lab = Lab::with_nodes(1);
    lab.put_config(IPV6_ONLY);
    let node = lab.node(1);
    node.netns().sysctl("ipv6/conf/eth0/use_tempaddr", "2").unwrap();
    let mut before = None;
    for run in 0..3 {
        // As after a boot: other temporary addresses, which the kernel lists before the stable one.
        node.exec("ip -6 addr flush dev eth0 scope global").unwrap();
        node.exec(&format!("ip addr add {}/64 dev eth0 nodad mngtmpaddr", node.addr6())).unwrap();
        node.exec("ip -6 route replace default via fd99::1 dev eth0").unwrap();
        wait_until("a temporary address", PATIENCE, || !flagged(&node, "temporary").is_empty());
        let mut daemon = node.twilld(&[]);
        daemon.wait_ready();
        wait_recorded(&lab, &format!(r#""PublicIPv6":"{}""#, node.addr6()));
        let why = format!("{} is temporary (privacy extensions)", flagged(&node, "temporary")[0]);
        daemon.wait_log(&["default route, metric", &why], PATIENCE);
        let record = lab.records().remove(0);
        let identity = (record.key, record.create_revision);
        assert_eq!(*before.get_or_insert_with(|| identity.clone()), identity, "run {run}");
        assert!(daemon.terminate().status.success());
    }
}

#[test]
fn an_address_that_another_host_has_is_passed_over() {
    let lab = Lab::with_nodes(1);
    lab.put_config(IPV6_ONLY);
    let node = lab.node(1);
    // The fabric's own, listed first.
    node.exec("ip -6 route del default").unwrap();
    node.exec("ip addr add fd99::1/64 dev eth0").unwrap();
    wait_until("detection finds the fabric", PATIENCE, || flagged(&node, "dadfailed") == ["fd99::1"]);
    let mut daemon = node.twilld(&["--iface=eth0"]);
    daemon.wait_ready();
    wait_recorded(&lab, &format!(r#""PublicIPv6":"{}""#, node.addr6()));
    daemon.wait_log(&["fd99::1 failed duplicate address detection"], PATIENCE);
}

#[test]
fn a_tentative_address_is_waited_for() {
    let lab = Lab::with_nodes(1);
    lab.put_config(IPV6_ONLY);
    let node = lab.node(1);
    node.exec("ip -6 addr flush dev eth0 scope global").unwrap();
    // A second each: long enough to be seen.
    node.netns().sysctl("ipv6/conf/eth0/dad_transmits", "7").unwrap();
    node.exec(&format!("ip addr add {}/64 dev eth0", node.addr6())).unwrap();
    let mut daemon = node.twilld(&["--iface=eth0"]);
    daemon.wait_ready();
    daemon.wait_log(&["waiting for duplicate address detection", &node.addr6().to_string()], PATIENCE);
    wait_recorded(&lab, &format!(r#""PublicIPv6":"{}""#, node.addr6()));
    assert!(flagged(&node, "tentative").is_empty());
}

#[test]
fn a_tentative_address_is_not_waited_for_for_ever() {
    let lab = Lab::with_nodes(1);
    lab.put_config(IPV6_ONLY);
    let node = lab.node(1);
    node.netns().sysctl("ipv6/conf/eth0/dad_transmits", "1000").unwrap();
    // Listed before the one that is there.
    node.exec("ip addr add fd99::77/64 dev eth0").unwrap();
    let mut daemon = node.twilld(&[]);
    daemon.wait_log(&["duplicate address detection is not through after", "fd99::77"], PATIENCE);
    daemon.wait_ready();
    wait_recorded(&lab, &format!(r#""PublicIPv6":"{}""#, node.addr6()));
}

#[test]
fn a_deprecated_address_that_stands_first_is_not_taken() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    node.netns()
        .ip_batch([
            &format!("addr change {}/16 dev eth0 preferred_lft 0", node.addr()),
            "addr add 10.99.7.7/16 dev eth0",
        ])
        .unwrap();
    let mut daemon = node.twilld(&[]);
    daemon.wait_ready();
    wait_recorded(&lab, r#""PublicIP":"10.99.7.7""#);
    daemon.wait_log(&[&format!("{} is deprecated", node.addr())], PATIENCE);
}

#[test]
fn a_permanent_address_goes_before_one_with_a_lifetime_which_serves_where_it_is_the_only_one() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    let own = format!("{}/16 dev eth0", node.addr());
    node.exec(&format!("ip addr change {own} valid_lft 3000 preferred_lft 3000")).unwrap();
    let mut daemon = node.twilld(&[]);
    daemon.wait_ready();
    wait_recorded(&lab, &format!(r#""PublicIP":"{}""#, node.addr()));
    daemon.wait_log(&[&format!("{} ends unless its lifetime is renewed", node.addr())], PATIENCE);
    node.exec("ip addr add 192.168.7.7/24 dev eth0").unwrap();
    daemon.kill();
    let mut daemon = node.twilld(&[]);
    daemon.wait_ready();
    wait_recorded(&lab, r#""PublicIP":"192.168.7.7""#);
    assert_eq!(daemon.lines(&["192.168.7.7 ends"]), [] as [String; 0]);
}

#[test]
fn an_address_that_becomes_deprecated_is_followed_to_a_better_one_only() {
    for mode in MODES {
        let mut pair = Pair::new(mode, &[]);
        let (node, before) = (pair.moving(), pair.identity());
        node.exec(&format!("ip addr change {}/16 dev eth0 preferred_lft 0", node.addr())).unwrap();
        node.exec("ip link set eth0 mtu 1400").unwrap();
        wait_until("a later change is followed", PATIENCE, || node.subnet_env().is_ok_and(|env| env.mtu == 1350));
        pair.wait_known_as(node.addr());
        node.exec("ip addr add 10.99.7.7/16 dev eth0").unwrap();
        pair.wait_known_as(Ipv4Addr::new(10, 99, 7, 7));
        pair.daemons[1].wait_log(&["the underlay changed", &format!("{} is deprecated", node.addr())], PATIENCE);
        assert_eq!(pair.identity(), before);
    }
}

#[test]
fn a_deprecated_address_that_is_named_stays() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    let mut daemon = node.twilld(&[&format!("--iface={}", node.addr())]);
    daemon.wait_ready();
    node.exec("ip addr add 10.99.7.7/16 dev eth0").unwrap();
    node.exec(&format!("ip addr change {}/16 dev eth0 preferred_lft 0", node.addr())).unwrap();
    node.exec("ip link set eth0 mtu 1400").unwrap();
    wait_until("a later change is followed", PATIENCE, || node.subnet_env().is_ok_and(|env| env.mtu == 1350));
    wait_recorded(&lab, &format!(r#""PublicIP":"{}""#, node.addr()));
    assert!(daemon.runs());
}
