//! What is others' stays, what is ours and stale goes: restarts, comparisons, and a second Twill beside the first.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::time::Duration;

use twill_lab::{Lab, NODE_CONFIG, Node, Peer, Pod, Twilld, wait_until};

const MODES: [&str; 2] = ["--peer-mode=all", "--peer-mode=on-demand"];
/// For states that take milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A peer that is only a record.
fn recorded(n: u8) -> Peer {
    Peer::new(&format!("10.5.{n}.0/24"), &format!("10.99.1.{n}"), &format!("02:00:00:00:01:{n:02x}"))
}

fn in_subnet(peer: &Peer) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::from(u32::from(peer.subnet.network()) + 77)
}

/// Waits until the kernel holds exactly these, which on demand takes a packet to each.
fn used(node: &Node, pod: &Pod, peers: &[Peer]) {
    wait_until("the peers are programmed", PATIENCE, || {
        peers.iter().for_each(|peer| pod.send(in_subnet(peer)));
        node.holds_exactly(peers)
    });
}

/// What others may have on a node, inside our network and outside, on our device and elsewhere: the command, and what
/// shows it. Where our device is made anew, what hung on it is gone with it.
const ON_OURS: [(&str, &str, &str); 4] = [
    (
        "ip route add 192.168.77.0/24 via 10.5.9.0 dev flannel.1 onlink proto static",
        "ip route show table all",
        "192.168.77.0/24 via 10.5.9.0 dev flannel.1 proto static onlink",
    ),
    (
        "ip route add 10.5.241.7/32 via 10.5.241.9 dev flannel.1 onlink proto static",
        "ip route show table all",
        "10.5.241.7 via 10.5.241.9 dev flannel.1 proto static onlink",
    ),
    (
        "ip route add 10.5.246.0/24 via 10.5.246.0 dev flannel.1 onlink proto 116 table 100",
        "ip route show table all",
        "10.5.246.0/24 via 10.5.246.0 dev flannel.1 table 100 proto 116 onlink",
    ),
    (
        "ip neigh add 10.5.241.9 lladdr 02:00:00:00:09:01 dev flannel.1 nud permanent",
        "ip neigh show",
        "10.5.241.9 dev flannel.1 lladdr 02:00:00:00:09:01 PERMANENT",
    ),
];
const ELSEWHERE: [(&str, &str, &str); 9] = [
    ("ip link add vx9 type vxlan id 9 dev eth0 local 10.99.0.11 dstport 4790 nolearning", "ip link show", "vx9:"),
    ("ip link set vx9 up", "ip link show vx9", "UP"),
    ("ip link add br9 type bridge", "ip link show", "br9:"),
    (
        "bridge fdb add 02:00:00:00:09:02 dev vx9 dst 10.99.1.9 self permanent",
        "bridge fdb show dev vx9",
        "02:00:00:00:09:02 dst 10.99.1.9 self permanent",
    ),
    (
        "ip neigh add 10.5.242.0 lladdr 02:00:00:00:09:02 dev vx9 nud permanent protocol 116",
        "ip neigh show dev vx9",
        "10.5.242.0 lladdr 02:00:00:00:09:02",
    ),
    (
        "ip route add 10.9.242.0/24 via 10.9.242.0 dev vx9 onlink proto 116",
        "ip route show",
        "10.9.242.0/24 via 10.9.242.0 dev vx9 proto 116 onlink",
    ),
    (
        "ip route add 10.5.243.0/24 via 10.99.0.1 proto static",
        "ip route show",
        "10.5.243.0/24 via 10.99.0.1 dev eth0 proto static",
    ),
    ("ip route add unreachable 10.5.244.0/24 proto static", "ip route show", "unreachable 10.5.244.0/24 proto static"),
    ("ip route add unreachable 172.20.0.0/16 proto 116", "ip route show", "unreachable 172.20.0.0/16 proto 116"),
];

#[track_caller]
fn all_there(node: &Node, when: &str, rows: &[(&str, &str, &str)]) {
    for (made_by, command, shows) in rows {
        let output = node.exec(command).unwrap();
        assert!(output.contains(shows), "{when}: `{made_by}` has been undone; `{command}` shows\n{output}");
    }
}

/// Makes the daemon look at everything again, as it does after any change of its device.
fn compare(node: &Node) {
    node.exec("ip link set flannel.1 mtu 1300").unwrap();
    wait_until("the device is mended", PATIENCE, || node.link("flannel.1").is_ok_and(|link| link.mtu == 1450));
}

#[test]
fn what_is_others_survives_everything() {
    for mode in MODES {
        let lab = Lab::with_nodes(1);
        lab.put_config(NODE_CONFIG);
        let mut daemons = lab.start_all(&[mode]);
        let (node, peers) = (lab.node(1), [recorded(201), recorded(202)]);
        let pod = node.pod(1);
        peers.iter().for_each(|peer| lab.put_peer(peer));
        used(&node, &pod, &peers);
        // The routes on our device are in the way of `holds_exactly`: its state is what is compared.
        for (command, ..) in ELSEWHERE.iter().chain(&ON_OURS) {
            node.exec(command).unwrap_or_else(|error| panic!("{error:#}"));
        }
        let all = [&ELSEWHERE[..], &ON_OURS[..]].concat();
        let before = node.state().unwrap();
        all_there(&node, "at first", &all);
        assert!(daemons[0].terminate().status.success());
        all_there(&node, "after a stop", &all);
        daemons[0] = node.twilld(&[mode]);
        daemons[0].wait_ready();
        all_there(&node, "after a start", &all);
        daemons[0].kill();
        daemons[0] = node.twilld(&[mode]);
        daemons[0].wait_ready();
        all_there(&node, "after a kill", &all);
        compare(&node);
        all_there(&node, "after a comparison", &all);
        lab.put_peer(&Peer { public_ip: "10.99.1.250".parse().unwrap(), ..peers[0].clone() });
        wait_until("the change is there", PATIENCE, || {
            node.fdb().iter().any(|row| row.dst.to_string() == "10.99.1.250")
        });
        lab.put_peer(&peers[0]);
        wait_until("all is as before", PATIENCE, || node.is_again(&before));
        all_there(&node, "after changed records", &all);
        node.exec("ip link del flannel.1").unwrap();
        wait_until("the peers are back", PATIENCE, || node.holds(&peers[1]));
        all_there(&node, "after our device was made anew", &ELSEWHERE);
    }
}

/// The records change while the daemon is dead; the kernel is right as soon as the next one is ready.
fn nothing_is_stale_after(mode: &str, stop: fn(&mut Twilld)) {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let mut daemons = lab.start_all(&[mode]);
    let node = lab.node(1);
    let pod = node.pod(1);
    let [stays, goes, moves, comes] = [recorded(201), recorded(202), recorded(203), recorded(204)];
    let first = [stays.clone(), goes.clone(), moves.clone()];
    first.iter().for_each(|peer| lab.put_peer(peer));
    used(&node, &pod, &first);
    stop(&mut daemons[0]);
    let moved = Peer::new("10.5.203.0/24", "10.99.1.233", "02:00:00:00:01:e9");
    lab.delete(&goes.key());
    lab.put_peer(&moved);
    lab.put_peer(&comes);
    // What flannel, or a kill between two rows, would leave.
    node.exec("bridge fdb add 02:00:00:00:08:01 dev flannel.1 dst 10.99.1.88 self permanent").unwrap();
    node.exec("ip neigh add 10.5.188.0 lladdr 02:00:00:00:08:01 dev flannel.1 nud permanent").unwrap();
    node.exec("ip route add 10.5.188.0/24 via 10.5.188.0 dev flannel.1 onlink").unwrap();
    node.exec("ip route add unreachable 10.5.204.0/24 proto 116 metric 2147483648").unwrap();
    daemons[0] = node.twilld(&[mode]);
    daemons[0].wait_ready();
    let mut expected = vec![stays, moved];
    if mode == MODES[0] {
        expected.push(comes.clone());
    }
    node.holds_exactly(&expected).unwrap();
    assert!(!node.exec("ip route").unwrap().contains("unreachable"), "{}", node.exec("ip route").unwrap());
    wait_until("the new one is there", PATIENCE, || {
        pod.send(in_subnet(&comes));
        node.holds(&comes)
    });
}

#[test]
fn all_mode_nothing_is_stale_after_a_kill() {
    nothing_is_stale_after(MODES[0], Twilld::kill);
}

#[test]
fn on_demand_nothing_is_stale_after_a_kill() {
    nothing_is_stale_after(MODES[1], Twilld::kill);
}

#[test]
fn all_mode_nothing_is_stale_after_a_stop() {
    nothing_is_stale_after(MODES[0], |daemon| assert!(daemon.terminate().status.success()));
}

#[test]
fn on_demand_nothing_is_stale_after_a_stop() {
    nothing_is_stale_after(MODES[1], |daemon| assert!(daemon.terminate().status.success()));
}

#[test]
fn a_subnet_that_moves_to_another_node_is_followed_under_traffic() {
    for mode in MODES {
        let lab = Lab::with_nodes(3);
        lab.put_config(NODE_CONFIG);
        let mut daemons: Vec<Twilld> = Vec::new();
        for n in [1, 2] {
            daemons.push(lab.node(n).twilld(&[mode]));
            daemons[n - 1].wait_ready();
        }
        let (one, two) = (lab.node(1).as_peer(), lab.node(2).as_peer());
        daemons[0].wait_log(&["peer joined", &two.subnet.to_string()], PATIENCE);
        let pods = [lab.node(1).pod(1), lab.node(2).pod(1)];
        pods[0].ping(pods[1].addr()).unwrap();
        let moved = Peer::new(&two.subnet.to_string(), "10.99.0.13", "02:00:00:00:07:01");
        by_hand(&lab.node(3), &moved, &one, &pods[1].addr().to_string());
        let ping = pods[0].ping_running(pods[1].addr(), 10);
        ping.wait_received(10);
        // Its own daemon would hold on to the subnet.
        daemons[1].kill();
        lab.put_peer(&moved);
        wait_until("only the new place is programmed", PATIENCE, || {
            lab.node(1).holds_exactly(std::slice::from_ref(&moved))
        });
        lab.node(2).exec("ip link set eth0 down").unwrap();
        ping.wait_received(10);
        let report = ping.stop();
        println!("{mode}: {report:?}");
        assert_eq!(report.lost, 0, "{report:?}");
    }
}

/// A node with no daemon that answers for a subnet of one pod, with `other` as its only peer.
fn by_hand(node: &Node, own: &Peer, other: &Peer, pod: &str) {
    let (gateway, local) = (other.subnet.network(), node.addr());
    node.netns()
        .ip_batch([
            format!(
                "link add flannel.1 address {} type vxlan id 1 dev eth0 local {local} dstport 8472 nolearning",
                own.mac
            ),
            "link set flannel.1 up".to_owned(),
            format!("addr add {pod}/32 dev lo"),
            format!("neigh add {gateway} lladdr {} dev flannel.1 nud permanent", other.mac),
            format!("route add {} via {gateway} dev flannel.1 onlink", other.subnet),
        ])
        .unwrap();
    node.exec(&format!("bridge fdb add {} dev flannel.1 dst {} self permanent", other.mac, other.public_ip)).unwrap();
}

/// Another network with another VNI, under another prefix.
const OTHER: &str = r#"{"Network":"10.6.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#;

/// The second network's daemon on a node.
fn second(node: &Node, mode: &str) -> Twilld {
    let file = format!("--subnet-file={}", node.run_dir().join("second.env").display());
    let mut daemon = node.twilld(&[mode, "--etcd-prefix=/other/network", &file]);
    daemon.wait_ready();
    daemon
}

#[test]
fn two_networks_on_one_node_leave_each_other_alone() {
    for mode in MODES {
        let lab = Lab::with_nodes(2);
        lab.put_config(NODE_CONFIG);
        lab.put("/other/network/config", OTHER);
        let mut first = lab.start_all(&[mode]);
        let mut others: Vec<Twilld> = lab.nodes().iter().map(|node| second(node, mode)).collect();
        let (node, pods) = (lab.node(1), [lab.node(1).pod(1), lab.node(2).pod(1)]);
        let far = lab.node(2).ip_json("-4 addr show dev flannel.2").unwrap()[0]["addr_info"][0]["local"].clone();
        let over_second = format!("ping -n -c1 -W5 {}", far.as_str().unwrap());
        let both_reach = || {
            pods[0].ping(pods[1].addr()).unwrap();
            wait_until("the second network reaches its other node", PATIENCE, || node.exec(&over_second));
        };
        both_reach();
        wait_until("the first network's peer", PATIENCE, || node.holds(&lab.node(2).as_peer()));
        wait_until("the second network's peer", PATIENCE, || {
            node.exec("ip route show dev flannel.2").is_ok_and(|o| o.contains("via"))
        });
        let states = [node.state().unwrap(), node.state_of("flannel.2").unwrap()];
        let unchanged = |when: &str| {
            wait_until(when, PATIENCE, || node.is_again(&states[0]).and_then(|()| node.is_again(&states[1])));
        };

        assert!(others[0].terminate().status.success());
        unchanged("after the second's stop");
        others[0] = second(&node, mode);
        unchanged("after the second's start");
        first[0].kill();
        unchanged("after the first's kill");
        first[0] = node.twilld(&[mode]);
        first[0].wait_ready();
        unchanged("after the first's start");
        compare(&node);
        unchanged("after a comparison");
        node.exec("ip link del flannel.2").unwrap();
        unchanged("after the second's device was deleted");
        both_reach();
    }
}
