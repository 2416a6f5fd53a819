//! Masquerade and forwarding: who the far side sees, whose rules are there, and what becomes of others'.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use twill_lab::{Lab, NODE_CONFIG, Namespace, Node, Pod, Twilld, wait_until};

use crate::PATIENCE;

const BOTH: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}"#;
const MASQ: &[&str] = &["--ip-masq"];

/// Two nodes with both families, a daemon and a pod on each.
fn cluster(args: &[&str]) -> (Lab, Vec<Twilld>, Vec<Pod>) {
    let lab = Lab::with_nodes(2);
    lab.put_config(BOTH);
    let daemons = lab.start_all(args);
    let pods = lab.nodes().iter().map(|node| node.pod(1)).collect();
    (lab, daemons, pods)
}

/// Whom `server` sees when `client` opens a connection to it at `address`.
#[track_caller]
fn seen(client: &Namespace, server: &Namespace, address: impl Into<IpAddr>) -> IpAddr {
    let address: IpAddr = address.into();
    let listener = server.enter(|| TcpListener::bind(SocketAddr::new(address, 0))).unwrap().unwrap();
    let to = listener.local_addr().unwrap();
    let mut stream = client.enter(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap().unwrap();
    let (mut accepted, peer) = listener.accept().unwrap();
    accepted.write_all(b"x").unwrap();
    stream.write_all(b"x").unwrap();
    peer.ip()
}

/// The first address of a node's subnet in each family: its VXLAN devices'.
fn own(node: &Node) -> [IpAddr; 2] {
    let env = node.subnet_env().unwrap();
    [env.subnet.unwrap().network().into(), env.ipv6_subnet.unwrap().network().into()]
}

fn rules(node: &Node, table: &str) -> String {
    node.exec(&format!("nft list table {table}")).unwrap_or_default()
}

/// The fabric's addresses: for a node's pods, the outside.
fn outside() -> [IpAddr; 2] {
    ["10.99.0.1".parse().unwrap(), "fd99::1".parse().unwrap()]
}

#[test]
fn the_far_side_sees_the_right_source() {
    let (lab, _daemons, pods) = cluster(MASQ);
    let (one, two) = (lab.node(1), lab.node(2));
    let nodes: [IpAddr; 2] = [one.addr().into(), one.addr6().into()];
    for (family, node) in nodes.into_iter().enumerate() {
        let (pod, far) = (pods[0].addrs()[family], pods[1].addrs()[family]);
        // To the outside: the node. Within the network: itself.
        assert_eq!(seen(pods[0].netns(), lab.fabric(), outside()[family]), node);
        assert_eq!(seen(pods[0].netns(), pods[1].netns(), far), pod);
        // A node to a pod elsewhere: an address of the network, for the answer to find its way through the tunnel.
        assert_eq!(seen(one.netns(), pods[1].netns(), far), own(&one)[family]);
        // From outside to a pod of this node: as it is.
        lab.fabric().exec(&format!("ip route add {pod} via {node}")).unwrap();
        assert_eq!(seen(lab.fabric(), pods[0].netns(), pod), outside()[family]);
        // From outside through this node to a pod elsewhere: this node, so that the answer comes back here.
        lab.fabric().exec(&format!("ip route add {far} via {node}")).unwrap();
        assert_eq!(seen(lab.fabric(), pods[1].netns(), far), own(&one)[family]);
    }
    assert!(rules(&two, "ip twill.1").contains("masquerade fully-random"));
}

#[test]
fn flushed_and_deleted_tables_are_mended() {
    let (lab, mut daemons, pods) = cluster(MASQ);
    let node = lab.node(1);
    let before = [rules(&node, "ip twill.1"), rules(&node, "ip6 twill.1")];
    assert!(before.iter().all(|table| table.matches("masquerade fully-random").count() == 2), "{before:?}");
    for wreck in [
        "nft flush ruleset",
        "nft delete table ip twill.1",
        "nft flush chain ip6 twill.1 postrouting",
        "nft insert rule ip twill.1 postrouting accept",
    ] {
        node.exec(wreck).unwrap();
        wait_until(&format!("mended after {wreck}"), PATIENCE, || {
            let now = [rules(&node, "ip twill.1"), rules(&node, "ip6 twill.1")];
            if now == before { Ok(()) } else { Err(now.join("\n")) }
        });
    }
    daemons[0].wait_log(&["another program changed our nftables rules", "nft (pid "], PATIENCE);
    assert_eq!(seen(pods[0].netns(), lab.fabric(), outside()[0]), IpAddr::from(node.addr()));
}

#[test]
fn a_tool_that_comes_back_again_and_again_is_named_few_times_and_mended_each_time() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    let mut daemon = node.twilld(MASQ);
    daemon.wait_ready();
    let before = rules(&node, "ip twill.1");
    // More often than it answers at once.
    for round in 0..14 {
        node.exec("nft delete table ip twill.1").unwrap();
        wait_until(&format!("mended, time {round}"), PATIENCE, || rules(&node, "ip twill.1") == before);
    }
    daemon.wait_log(&["nft (pid "], PATIENCE);
    // They are in; three times mended; the node is not ready while that goes on.
    let lines = daemon.log().lines().filter(|line| line.contains("nftables")).count();
    assert!(lines <= 5, "{}", daemon.log());
    assert!(daemon.terminate().status.success());
}

#[test]
fn without_the_flags_no_rules_and_those_of_an_earlier_run_go() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    let mut daemon = node.twilld(MASQ);
    daemon.wait_ready();
    assert!(daemon.terminate().status.success());
    let kept = rules(&node, "ip twill.1");
    assert!(kept.contains("masquerade") && kept.contains("chain forward"), "a stop took the rules: {kept}");
    let mut daemon = node.twilld(&[]);
    daemon.wait_ready();
    let forward = rules(&node, "ip twill.1");
    assert!(!forward.contains("masquerade") && forward.contains("ip daddr 10.5.0.0/16 accept"), "{forward}");
    assert!(daemon.terminate().status.success());
    let mut daemon = node.twilld(&["--iptables-forward-rules=false"]);
    daemon.wait_ready();
    // What comes through the tunnel changes nothing of the host, whatever else is wanted.
    let all = node.exec("nft list ruleset").unwrap();
    assert!(!all.contains("accept\n\t}") && !all.contains("forward") && !all.contains("masquerade"), "{all}");
}

#[test]
fn rules_of_an_earlier_flannel_go_once_ours_are_in() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    for line in [
        "iptables-nft -t nat -N FLANNEL-POSTRTG",
        "iptables-nft -t nat -A POSTROUTING -m comment --comment flanneld -j FLANNEL-POSTRTG",
        "iptables-nft -t nat -A FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully",
        "iptables-nft -t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE",
        "iptables-nft -N FLANNEL-FWD",
        "iptables-nft -A FORWARD -j FLANNEL-FWD",
        "iptables-nft -A FLANNEL-FWD -s 10.5.0.0/16 -j ACCEPT",
        "nft add table ip6 flannel-ipv6",
    ] {
        node.exec(line).unwrap();
    }
    let mut daemon = node.twilld(MASQ);
    daemon.wait_ready();
    daemon.wait_log(&["earlier flannel removed"], PATIENCE);
    let all = node.exec("nft list ruleset").unwrap();
    let ours = all.replace("\"flannel.1\"", "");
    assert!(!ours.to_lowercase().contains("flannel"), "{all}");
    assert!(all.contains("ip saddr 172.17.0.0/16"), "another's rule is gone: {all}");
}

#[test]
fn a_chain_that_drops_our_packets_is_named_and_flannel_s_way_through_it_stays() {
    let lab = Lab::with_nodes(2);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    node.exec("iptables-nft -P FORWARD DROP").unwrap();
    let mut daemon = node.twilld(&[]);
    daemon.wait_ready();
    daemon.wait_log(&["dropped by a chain that is not ours", "ip filter FORWARD (policy drop)"], PATIENCE);
    assert!(daemon.terminate().status.success());
    // As Docker and flannel leave it.
    for line in [
        "iptables-nft -N FLANNEL-FWD",
        "iptables-nft -A FORWARD -j FLANNEL-FWD",
        "iptables-nft -A FLANNEL-FWD -s 10.5.0.0/16 -j ACCEPT",
        "iptables-nft -A FLANNEL-FWD -d 10.5.0.0/16 -j ACCEPT",
    ] {
        node.exec(line).unwrap();
    }
    let daemons = lab.start_all(&[]);
    let pods: Vec<Pod> = lab.nodes().iter().map(|node| node.pod(1)).collect();
    pods[1].ping(pods[0].addr()).unwrap();
    assert!(rules(&node, "ip filter").contains("FLANNEL-FWD"));
    assert!(!daemons[0].log().contains("not ours"), "{}", daemons[0].log());
}

/// The ways of other tools to drop what `FLANNEL-FWD` lets through before them, and what the log says of each once it drops
/// our packets unconditionally.
const DROPPERS: [&[&str]; 4] = [
    &["iptables-nft -A FORWARD -m comment --comment rest -j REJECT --reject-with icmp-host-prohibited"],
    &["iptables-nft -A FORWARD ! -i eth7 -j DROP"],
    &["iptables-nft -N OTHER", "iptables-nft -A OTHER -s 10.5.0.0/16 -j DROP", "iptables-nft -A FORWARD -j OTHER"],
    &[
        "nft add table inet fw",
        "nft add chain inet fw FORWARD { type filter hook forward priority 0 ; policy accept ; }",
        "nft add chain inet fw FLANNEL-FWD",
        "nft add rule inet fw FLANNEL-FWD ip saddr 10.5.0.0/16 accept",
        "nft add rule inet fw FLANNEL-FWD ip daddr 10.5.0.0/16 accept",
        "nft add rule inet fw FORWARD jump FLANNEL-FWD",
        "nft add rule inet fw FORWARD ip protocol icmp reject",
    ],
];

#[test]
fn flannel_s_way_through_stays_where_a_rule_behind_it_may_drop() {
    let lab = Lab::with_nodes(2);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    let mut daemons = lab.start_all(&[]);
    let pods: Vec<Pod> = lab.nodes().iter().map(|node| node.pod(1)).collect();
    daemons[0].kill();
    for dropper in DROPPERS {
        node.exec("nft flush ruleset").unwrap();
        for line in [
            "iptables-nft -N FLANNEL-FWD",
            "iptables-nft -A FORWARD -m comment --comment flanneld -j FLANNEL-FWD",
            "iptables-nft -A FLANNEL-FWD -s 10.5.0.0/16 -j ACCEPT",
            "iptables-nft -A FLANNEL-FWD -d 10.5.0.0/16 -j ACCEPT",
        ]
        .iter()
        .chain(dropper)
        {
            node.exec(line).unwrap();
        }
        let mut daemon = node.twilld(&[]);
        daemon.wait_ready();
        daemon.wait_log(&["a chain of an earlier flannel stays", "FLANNEL-FWD"], PATIENCE);
        pods[1].ping(pods[0].addr()).unwrap();
        assert!(!daemon.log().contains("not ours"), "{dropper:?}: {}", daemon.log());
        assert!(daemon.terminate().status.success());
    }
}

#[test]
fn drops_before_flannel_s_chain_do_not_keep_it_and_those_of_our_packets_are_named() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    for line in [
        "iptables-nft -A FORWARD -s 10.5.200.0/24 -p tcp -j REJECT",
        "iptables-nft -A FORWARD -m conntrack --ctstate INVALID -j DROP",
        "iptables-nft -N FLANNEL-FWD",
        "iptables-nft -A FORWARD -j FLANNEL-FWD",
        "iptables-nft -A FLANNEL-FWD -s 10.5.0.0/16 -j ACCEPT",
        "iptables-nft -A FORWARD -j LOG",
        "nft add table inet fw",
        "nft add chain inet fw first { type filter hook forward priority -5 ; policy accept ; }",
        "nft add rule inet fw first ip daddr 10.5.128.0/17 counter drop",
    ] {
        node.exec(line).unwrap();
    }
    let mut daemon = node.twilld(&[]);
    daemon.wait_ready();
    daemon.wait_log(&["earlier flannel removed", "chain ip filter FLANNEL-FWD"], PATIENCE);
    daemon.wait_log(
        &[
            "dropped by a chain that is not ours",
            "ip filter FORWARD (a rule drops 10.5.200.0/24)",
            "inet fw first (a rule drops 10.5.128.0/17)",
        ],
        PATIENCE,
    );
    let all = node.exec("nft list ruleset").unwrap();
    assert!(!all.contains("FLANNEL") && all.contains("10.5.200.0/24"), "{all}");
}

#[test]
fn what_is_not_ours_to_do_stays_and_a_stuck_chain_blocks_no_other() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    for line in [
        "iptables-nft -t nat -N FLANNEL-POSTRTG",
        "iptables-nft -t nat -A POSTROUTING -j FLANNEL-POSTRTG",
        "nft add table ip stuck",
        "nft add chain ip stuck FLANNEL-FWD",
        // A call that only the map knows.
        "nft add map ip stuck calls { type inet_service : verdict ; elements = { 80 : jump FLANNEL-FWD } ; }",
        "iptables-nft -N FLANNEL-FWD",
        "iptables-nft -N OTHER",
        "iptables-nft -A FORWARD -j OTHER",
        "iptables-nft -A OTHER -j FLANNEL-FWD",
    ] {
        node.exec(line).unwrap();
    }
    let left = || node.exec("nft list ruleset").unwrap();
    let mut daemon = node.twilld(&[]);
    daemon.wait_ready();
    daemon.wait_log(&["earlier flannel removed", "chain ip filter FLANNEL-FWD"], PATIENCE);
    daemon.wait_log(&["cannot remove the rules of an earlier flannel", "ip stuck FLANNEL-FWD"], PATIENCE);
    assert!(left().contains("FLANNEL-POSTRTG"), "without --ip-masq: {}", left());
    assert!(daemon.terminate().status.success());
    node.exec("nft delete table ip stuck").unwrap();
    node.exec("iptables-nft -A FORWARD -j FLANNEL-POSTRTG").unwrap_err();
    node.exec("iptables-nft -N FLANNEL-FWD").unwrap();
    let mut daemon = node.twilld(&["--ip-masq", "--iptables-forward-rules=false"]);
    daemon.wait_ready();
    daemon.wait_log(&["earlier flannel removed", "FLANNEL-POSTRTG"], PATIENCE);
    assert!(!left().contains("FLANNEL-POSTRTG") && left().contains("FLANNEL-FWD"), "{}", left());
}

/// As flannel leaves it with an iptables that is iptables-legacy.
const IN_LEGACY: [&str; 9] = [
    "-t nat -N FLANNEL-POSTRTG",
    "-t nat -A POSTROUTING -m comment --comment flanneld-masq -j FLANNEL-POSTRTG",
    "-t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN",
    "-t nat -A FLANNEL-POSTRTG -p tcp -j MASQUERADE --random-fully",
    "-t nat -A POSTROUTING -p udp -j MASQUERADE",
    "-N FLANNEL-FWD",
    "-A FORWARD -m comment --comment flanneld-forward -j FLANNEL-FWD",
    "-A FLANNEL-FWD -p tcp -j ACCEPT",
    "-A FORWARD -p udp -j ACCEPT",
];

#[test]
fn rules_of_an_earlier_flannel_in_iptables_legacy_go_too() {
    let lab = Lab::with_nodes(1);
    lab.put_config(BOTH);
    let node = lab.node(1);
    for program in ["iptables-legacy", "ip6tables-legacy"] {
        IN_LEGACY.iter().for_each(|line| drop(node.exec(&format!("{program} -w {line}")).unwrap()));
    }
    let saved = || ["iptables-legacy-save", "ip6tables-legacy-save"].map(|program| node.exec(program).unwrap());
    let mut daemon = node.twilld(MASQ);
    daemon.wait_ready();
    for chain in
        ["ip nat FLANNEL-POSTRTG", "ip filter FLANNEL-FWD", "ip6 nat FLANNEL-POSTRTG", "ip6 filter FLANNEL-FWD"]
    {
        daemon.wait_log(&["earlier flannel removed", &format!("{chain} of iptables-legacy")], PATIENCE);
    }
    for saved in saved() {
        assert!(!saved.contains("FLANNEL") && saved.contains("-A POSTROUTING -p udp -j MASQUERADE"), "{saved}");
        assert!(saved.contains("-A FORWARD -p udp -j ACCEPT"), "{saved}");
    }
    assert!(daemon.terminate().status.success());

    // Docker's policy: what came through FLANNEL-FWD comes through nothing else.
    for line in
        ["-P FORWARD DROP", "-N FLANNEL-FWD", "-A FLANNEL-FWD -s 10.5.0.0/16 -j ACCEPT", "-A FORWARD -j FLANNEL-FWD"]
    {
        node.exec(&format!("iptables-legacy -w {line}")).unwrap();
    }
    let mut daemon = node.twilld(MASQ);
    daemon.wait_ready();
    daemon.wait_log(&["stays", "ip filter FLANNEL-FWD of iptables-legacy"], PATIENCE);
    assert!(saved()[0].contains("-A FORWARD -j FLANNEL-FWD"), "{}", saved()[0]);
    assert!(!daemon.log().contains("not ours"), "{}", daemon.log());
    assert!(daemon.terminate().status.success());
    node.exec("iptables-legacy -w -F FORWARD").unwrap();
    let mut daemon = node.twilld(MASQ);
    daemon.wait_ready();
    daemon.wait_log(&["not ours", "ip filter FORWARD (policy drop) of iptables-legacy"], PATIENCE);
}

#[test]
fn iptables_legacy_is_left_alone_where_it_is_not_in_use_and_named_where_its_programs_are_missing() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    let in_use =
        || node.netns().enter(|| std::fs::read_to_string("/proc/thread-self/net/ip_tables_names")).unwrap().unwrap();
    let mut daemon = node.twilld(MASQ);
    daemon.wait_ready();
    assert!(daemon.terminate().status.success());
    assert_eq!(in_use(), "", "a table was made by looking at it");
    assert!(!daemon.log().contains("iptables-legacy"), "{}", daemon.log());
    node.exec("iptables-legacy -w -t nat -N FLANNEL-POSTRTG").unwrap();
    let mut daemon = node.twilld_under(&["env", "PATH=/nonexistent"], MASQ);
    daemon.wait_ready();
    daemon.wait_log(&["iptables-legacy-save", "grep FLANNEL"], PATIENCE);
}

#[test]
fn the_timer_mends_where_no_notification_comes() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    // The rules' thread believes that it listens and hears nothing: its first setsockopt joins the group.
    let deaf = &["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "inject=setsockopt:retval=0:when=1"];
    let mended = || rules(&node, "ip twill.1").contains("masquerade");
    let mut daemon = node.twilld_under(deaf, &["--ip-masq", "--iptables-resync=86400"]);
    daemon.wait_ready();
    node.exec("nft flush ruleset").unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert!(!mended(), "it heard of the change: this test tests nothing");
    daemon.kill();
    let mut daemon = node.twilld_under(deaf, &["--ip-masq", "--iptables-resync=1"]);
    daemon.wait_ready();
    node.exec("nft flush ruleset").unwrap();
    wait_until("mended", PATIENCE, mended);
}

#[test]
fn a_family_whose_table_cannot_be_written_does_not_hold_up_the_other() {
    let lab = Lab::with_nodes(1);
    lab.put_config(BOTH);
    let node = lab.node(1);
    let mut owner = node.netns().command("nft").unwrap().arg("-i").stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = owner.stdin.take().unwrap();
    // Only who made it may change it, and it goes with him.
    stdin.write_all(b"add table ip twill.1 { flags owner; }\n").unwrap();
    wait_until("the table is there", PATIENCE, || rules(&node, "ip twill.1").contains("owner"));
    let mut daemon = node.twilld(&["--ip-masq", "--iptables-resync=86400"]);
    daemon.wait_log(&["nftables rules are not in place"], PATIENCE);
    wait_until("the other family's rules", PATIENCE, || rules(&node, "ip6 twill.1").contains("masquerade"));
    assert!(!daemon.log().contains("info ready"), "{}", daemon.log());
    drop(stdin);
    owner.wait().unwrap();
    daemon.wait_ready();
    assert!(rules(&node, "ip twill.1").contains("masquerade"));
    assert!(!daemon.log().contains("changed by another"), "{}", daemon.log());
}

#[test]
fn the_rules_are_kept_on_a_thread_of_their_own() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let mut daemon = lab.node(1).twilld(MASQ);
    daemon.wait_ready();
    let threads = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let name = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
    let names: Vec<String> = threads.map(|thread| name(thread.unwrap())).collect();
    assert!(names.iter().any(|name| name.trim() == "nftables"), "{names:?}");
    assert!(daemon.terminate().status.success());
}
