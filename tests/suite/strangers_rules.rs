//! Policy rules of other programs that take packets to peers before the main table is asked.

use super::*;

/// What a policy rule before the main table takes from the peers: set up with these lines, named so.
const RULES: [(&[&str], &str); 8] = [
    (
        &["ip route add {subnet} via 10.99.0.1 dev eth0 table 100", "ip rule add lookup 100 priority 90"],
        "90: from all lookup 100",
    ),
    (
        &["ip route add default via 10.99.0.1 dev eth0 table 100", "ip rule add to 10.5.0.0/16 lookup 100 priority 91"],
        "91: from all to 10.5.0.0/16 lookup 100",
    ),
    (
        &[
            "ip route add default via 10.99.0.1 dev eth0 table 100",
            "ip rule add from 10.5.0.0/16 lookup 100 priority 92",
        ],
        "92: from 10.5.0.0/16 lookup 100",
    ),
    (&["ip rule add to {pod}/32 prohibit priority 93"], "93: from all to {pod} prohibit"),
    (
        &["ip route add unreachable default table 100", "ip rule add to 10.5.0.0/16 lookup 100 priority 94"],
        "94: from all to 10.5.0.0/16 lookup 100",
    ),
    (
        &["ip route add blackhole 10.5.0.0/16 table 1000", "ip rule add to 10.5.0.0/16 lookup 1000 priority 95"],
        "95: from all to 10.5.0.0/16 lookup 1000",
    ),
    (
        &["ip route add prohibit {pod}/32 table 100", "ip rule add to {pod}/32 lookup 100 priority 96"],
        "96: from all to {pod} lookup 100",
    ),
    // What ends a table only is no end of the way, and what a later rule's table has is.
    (
        &[
            "ip route add unreachable default table 1000",
            "ip route add throw 10.5.0.0/16 table 1000",
            "ip route add unreachable default table 100",
            "ip rule add to 10.5.0.0/16 lookup 1000 priority 97",
            "ip rule add to 10.5.0.0/16 lookup 100 priority 98",
        ],
        "98: from all to 10.5.0.0/16 lookup 100",
    ),
];

#[test]
fn a_policy_rule_that_takes_peers_packets_is_named_and_left() {
    for mode in MODES {
        let mut pair = Pair::new(mode);
        for (setup, rule) in RULES {
            setup.iter().for_each(|line| pair.run(line));
            let named = pair.filled(&format!(
                "peer {{subnet}}: the policy rule `{rule}` of another program takes packets to this peer before the main table is asked"
            ));
            pair.daemons[0].wait_log(&["WARN", "not ready", &named], PATIENCE);
            // As a daemon that starts has it.
            pair.daemons[0].kill();
            pair.restart(mode);
            pair.daemons[0].wait_log(&["WARN", &named, "ip rule add to"], PATIENCE);
            let priority = rule.split(':').next().unwrap();
            assert!(pair.node().exec("ip rule").unwrap().contains(&format!("{priority}:")), "it is not ours to remove");
            pair.run(&format!("ip rule del priority {priority}"));
            pair.daemons[0].wait_ready();
            pair.is_mended(rule);
            // The rule that only led on to it.
            let _ = pair.node().exec("ip rule del priority 97");
            for table in [100, 1000] {
                let _ = pair.node().exec(&format!("ip route flush table {table}"));
            }
        }
    }
}

/// As a VPN and a policy-routing CNI plugin have them.
#[test]
fn policy_rules_that_take_nothing_from_the_peers_are_no_matter() {
    for mode in MODES {
        let mut pair = Pair::new(mode);
        for line in [
            "ip route add default via 10.99.0.1 dev eth0 table 51820",
            "ip rule add not fwmark 0xca6c lookup 51820 priority 101",
            "ip rule add fwmark 0x80000/0xff0000 unreachable priority 102",
            "ip rule add iif cni0 to 10.7.0.0/16 lookup 51820 priority 103",
            "ip rule add from {own}/32 lookup 51820 priority 104",
            // Its table has nothing of the network's.
            "ip route add 100.64.0.0/10 via 10.99.0.1 dev eth0 table 52",
            "ip route add throw 10.5.0.0/16 table 52",
            "ip rule add lookup 52 priority 105",
            // A copy of the main table's routes.
            "ip route add 10.5.0.0/16 dev flannel.1 table 53",
            "ip rule add lookup 53 priority 106",
            // The table refuses all addresses but the network's, which go on to the next rule.
            "ip route add unreachable default table 54",
            "ip route add throw 10.5.0.0/16 table 54",
            "ip rule add to 10.5.0.0/16 lookup 54 priority 106",
            "ip rule add lookup main suppress_prefixlength 0 priority 107",
            "ip rule add lookup 51820 priority 108",
        ] {
            pair.run(line);
        }
        pair.daemons[0].kill();
        pair.restart(mode);
        pair.daemons[0].wait_ready();
        // What comes after is handled after.
        pair.run("ip rule add to 10.5.0.0/16 lookup 51820 priority 100");
        pair.daemons[0].wait_log(&["not ready", "`100: from all to 10.5.0.0/16 lookup 51820`"], PATIENCE);
        let named = pair.daemons[0].lines(&["before the main table is asked"]);
        assert!(named.iter().all(|line| line.contains("`100: ")), "{named:?}");
    }
}

/// The line tells how many peers are cut off, and stays one line while more come.
#[test]
fn a_policy_rule_that_takes_the_packets_of_many_peers_says_of_how_many() {
    let mut pair = Pair::new(MODES[0]);
    let peers = [241, 242, 243]
        .map(|n| Peer::new(&format!("10.5.{n}.0/24"), &format!("10.99.1.{n}"), &format!("02:00:00:00:01:{n:02x}")));
    peers[..2].iter().for_each(|peer| pair.lab.put_peer(peer));
    let all = [pair.peer.clone(), peers[0].clone(), peers[1].clone()];
    wait_until("they are programmed", PATIENCE, || pair.node().holds_exactly(&all));
    pair.run("ip route add unreachable default table 1000");
    pair.run("ip rule add to 10.5.0.0/16 lookup 1000 priority 90");
    let rule =
        "the policy rule `90: from all to 10.5.0.0/16 lookup 1000` of another program takes packets to these peers";
    let named = pair.filled(&format!("peer {{subnet}} and 2 more peers: {rule}"));
    pair.daemons[0].wait_log(&["WARN", "ip rule add to", &named], PATIENCE);
    pair.lab.put_peer(&peers[2]);
    let named = pair.filled(&format!("peer {{subnet}} and 3 more peers: {rule}"));
    pair.daemons[0].wait_log(&["not ready", &named], PATIENCE);
    assert_eq!(pair.daemons[0].lines(&["WARN", "ip rule add to", "the policy rule"]).len(), 1);
    pair.run("ip rule del priority 90");
    pair.daemons[0].wait_ready();
}

/// The second family has tables and rules of its own.
#[test]
fn an_ipv6_rule_whose_table_refuses_is_named() {
    let config = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"vxlan"}}"#;
    let (lab, mut daemons, pods) = Lab::running(2, config, &[MODES[1]]);
    let (node, far) = (lab.node(1), pods[1].addr6().unwrap());
    pods[0].ping(far).unwrap();
    node.exec("ip -6 route add blackhole default table 1000").unwrap();
    node.exec("ip -6 rule add to fc00::/48 lookup 1000 priority 90").unwrap();
    let subnet = lab.node(2).subnet_env().unwrap().ipv6_subnet.unwrap();
    let named = format!("peer {}/64: the policy rule `90: from all to fc00::/48 lookup 1000`", subnet.network());
    daemons[0].wait_log(&["WARN", "not ready", &named], PATIENCE);
    node.exec("ip -6 rule del priority 90").unwrap();
    pods[0].ping(far).unwrap();
}
