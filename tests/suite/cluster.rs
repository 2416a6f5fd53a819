//! A running network: what pods reach, what the kernel holds, what etcd says, through changes, restarts and kills.
//!
//! How a daemon starts and what it does with bad input is in `startup.rs`.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::net::Ipv4Addr;
use std::time::Duration;

use twill_lab::{Lab, NODE_CONFIG, Node, Peer, Pod, Twilld, first_address, wait_until};

const ALL: &[&str] = &["--peer-mode=all"];
const ON_DEMAND: &[&str] = &["--peer-mode=on-demand"];

/// For states that take milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The other nodes as peers.
fn others(lab: &Lab, node: &Node) -> Vec<Peer> {
    lab.nodes().iter().filter(|n| n.index() != node.index()).map(Node::as_peer).collect()
}

#[track_caller]
fn ping_all_to_all(pods: &[Pod]) {
    for from in pods {
        for to in pods {
            from.ping(to.addr()).unwrap();
        }
    }
}

#[track_caller]
fn wait_exactly(node: &Node, peers: &[Peer]) {
    let what = format!("node {} holds exactly {peers:?}", node.index());
    wait_until(&what, PATIENCE, || node.holds_exactly(peers));
}

/// An address that no pod has, in a peer's subnet.
fn somewhere_in(peer: &Peer) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(first_address(peer.subnet)) + 77)
}

/// A peer that is only a record, in a subnet that no node of the lab gets (they take one of the first hundred).
fn recorded_peer() -> Peer {
    Peer::new("10.5.200.0/24", "10.99.1.200", "02:00:00:00:00:c8")
}

#[test]
fn all_mode_three_nodes_reach_each_other() {
    let (lab, _daemons, pods) = Lab::running(3, NODE_CONFIG, ALL);
    for node in lab.nodes() {
        wait_exactly(node, &others(&lab, node));
    }
    ping_all_to_all(&pods);
}

#[test]
fn on_demand_three_nodes_reach_each_other() {
    let (lab, _daemons, pods) = Lab::running(3, NODE_CONFIG, &[]);
    ping_all_to_all(&pods);
    for node in lab.nodes() {
        wait_exactly(node, &others(&lab, node));
    }
}

#[test]
fn on_demand_the_kernel_holds_the_used_peers_only() {
    let (lab, _daemons, pods) = Lab::running(3, NODE_CONFIG, ON_DEMAND);
    for node in lab.nodes() {
        node.holds_exactly(&[]).unwrap();
    }
    pods[0].ping(pods[1].addr()).unwrap();
    // The answer was node 2's first packet to node 1.
    wait_exactly(&lab.node(1), &[lab.node(2).as_peer()]);
    wait_exactly(&lab.node(2), &[lab.node(1).as_peer()]);
    lab.node(3).holds_exactly(&[]).unwrap();
}

#[test]
fn on_demand_other_pods_of_a_used_peer_add_nothing() {
    let (lab, _daemons, pods) = Lab::running(2, NODE_CONFIG, ON_DEMAND);
    let second = lab.node(2).pod(2);
    pods[0].ping(pods[1].addr()).unwrap();
    let peers = [lab.node(2).as_peer()];
    wait_exactly(&lab.node(1), &peers);
    let before = lab.node(1).routes();
    pods[0].ping(second.addr()).unwrap();
    lab.node(1).holds_exactly(&peers).unwrap();
    assert_eq!(lab.node(1).routes(), before);
}

#[test]
fn on_demand_the_base_route_covers_the_network() {
    let (lab, _daemons, _pods) = Lab::running(1, NODE_CONFIG, ON_DEMAND);
    let node = lab.node(1);
    let own = first_address(node.as_peer().subnet);
    let base = format!("10.5.0.0/16 dev flannel.1 proto 116 scope link src {own}");
    let routes: Vec<String> = node.routes().iter().map(ToString::to_string).collect();
    assert!(routes.contains(&base), "no {base} in {routes:#?}");
}

#[test]
fn a_peer_s_route_has_a_metric_of_its_own() {
    let (lab, _daemons, _pods) = Lab::running(3, NODE_CONFIG, ALL);
    wait_exactly(&lab.node(1), &others(&lab, &lab.node(1)));
    let mut metrics: Vec<_> = lab.node(1).peer_routes().iter().map(|r| r.metric).collect();
    metrics.dedup();
    assert!(metrics.len() == 2 && metrics.iter().all(Option::is_some), "{metrics:?}");
}

#[test]
fn an_l2_miss_is_repaired() {
    let (lab, _daemons, pods) = Lab::running(2, NODE_CONFIG, ON_DEMAND);
    let (node, peer) = (lab.node(1), lab.node(2).as_peer());
    pods[0].ping(pods[1].addr()).unwrap();
    wait_exactly(&node, std::slice::from_ref(&peer));
    node.exec(&format!("bridge fdb del {} dev flannel.1 dst {} self", peer.mac, peer.public_ip)).unwrap();
    // The packet that misses is dropped by the kernel, so the first ping or two may stay unanswered.
    wait_until("the ping works again", PATIENCE, || pods[0].exec(&format!("ping -n -c1 -W1 {}", pods[1].addr())));
    wait_exactly(&node, &[peer]);
}

#[test]
fn all_mode_a_record_put_changed_and_deleted_shows_in_the_kernel() {
    let (lab, _daemons, _pods) = Lab::running(2, NODE_CONFIG, ALL);
    let (node, neighbour) = (lab.node(1), lab.node(2).as_peer());
    let peer = recorded_peer();
    lab.put_peer(&peer);
    wait_exactly(&node, &[neighbour.clone(), peer.clone()]);
    let moved = Peer::new("10.5.200.0/24", "10.99.1.201", "02:00:00:00:00:c9");
    lab.put_peer(&moved);
    wait_exactly(&node, &[neighbour.clone(), moved.clone()]);
    let only_the_host = Peer::new("10.5.200.0/24", "10.99.1.202", "02:00:00:00:00:c9");
    lab.put_peer(&only_the_host);
    wait_exactly(&node, &[neighbour.clone(), only_the_host]);
    lab.delete(&peer.key());
    wait_exactly(&node, &[neighbour]);
}

#[test]
fn on_demand_a_used_peer_follows_its_record() {
    let (lab, _daemons, pods) = Lab::running(1, NODE_CONFIG, ON_DEMAND);
    let node = lab.node(1);
    let peer = recorded_peer();
    lab.put_peer(&peer);
    wait_until("a packet programs the peer", PATIENCE, || {
        pods[0].send(somewhere_in(&peer));
        node.holds_exactly(std::slice::from_ref(&peer))
    });
    let moved = Peer::new("10.5.200.0/24", "10.99.1.201", "02:00:00:00:00:c9");
    lab.put_peer(&moved);
    wait_exactly(&node, &[moved]);
    lab.delete(&peer.key());
    wait_exactly(&node, &[]);
}

#[test]
fn on_demand_an_unused_peer_s_record_changes_nothing() {
    let (lab, mut daemons, _pods) = Lab::running(1, NODE_CONFIG, ON_DEMAND);
    let peer = recorded_peer();
    lab.put_peer(&peer);
    daemons[0].wait_log(&["peer joined", "10.5.200.0/24"], PATIENCE);
    lab.node(1).holds_exactly(&[]).unwrap();
    lab.delete(&peer.key());
    daemons[0].wait_log(&["peer left", "10.5.200.0/24"], PATIENCE);
    lab.node(1).holds_exactly(&[]).unwrap();
}

#[test]
fn a_bad_record_harms_nobody_else() {
    let (lab, _daemons, pods) = Lab::running(2, NODE_CONFIG, ALL);
    lab.put("/coreos.com/network/subnets/10.5.201.0-24", "{broken");
    lab.put("/coreos.com/network/subnets/junk", "{}");
    let peer = recorded_peer();
    lab.put_peer(&peer);
    wait_exactly(&lab.node(1), &[lab.node(2).as_peer(), peer]);
    pods[0].ping(pods[1].addr()).unwrap();
}

/// Restarts node 1's daemon by `stop` under a running ping in each direction.
fn restart_loses_nothing(args: &[&str], stop: fn(&mut Twilld)) {
    let (lab, mut daemons, pods) = Lab::running(2, NODE_CONFIG, args);
    pods[0].ping(pods[1].addr()).unwrap();
    let node = lab.node(1);
    wait_exactly(&node, &[lab.node(2).as_peer()]);
    let before = (node.link("flannel.1").unwrap(), record_of(&lab, &node));

    let pings = [pods[0].ping_running(pods[1].addr(), 20), pods[1].ping_running(pods[0].addr(), 20)];
    pings.iter().for_each(|ping| ping.wait_received(5));
    stop(&mut daemons[0]);
    pings.iter().for_each(|ping| ping.wait_received(10));
    daemons[0] = node.twilld(args);
    daemons[0].wait_ready();
    pings.iter().for_each(|ping| ping.wait_received(10));
    for ping in pings {
        let report = ping.stop();
        assert_eq!(report.lost, 0, "{report:?}");
    }

    wait_exactly(&node, &[lab.node(2).as_peer()]);
    let after = (node.link("flannel.1").unwrap(), record_of(&lab, &node));
    assert_eq!(after.0, before.0, "the device is the same");
    assert_eq!((&after.1.0, &after.1.1), (&before.1.0, &before.1.1), "the record is the same");
    assert_eq!(after.1.2, before.1.2, "nobody deleted the record in between");
}

/// Key, value and revision of creation of a node's record.
fn record_of(lab: &Lab, node: &Node) -> (String, String, i64) {
    let record = lab.get(&node.as_peer().key()).unwrap();
    (record.key, record.value, record.create_revision)
}

fn terminate(daemon: &mut Twilld) {
    let exit = daemon.terminate();
    assert!(exit.status.success(), "{}", exit.status);
}

#[test]
fn on_demand_a_restart_loses_no_packet() {
    restart_loses_nothing(ON_DEMAND, terminate);
}

#[test]
fn all_mode_a_restart_loses_no_packet() {
    restart_loses_nothing(ALL, terminate);
}

#[test]
fn on_demand_a_kill_loses_no_packet() {
    restart_loses_nothing(ON_DEMAND, Twilld::kill);
}

#[test]
fn all_mode_a_kill_loses_no_packet() {
    restart_loses_nothing(ALL, Twilld::kill);
}

#[test]
fn a_record_that_came_while_the_daemon_was_dead_is_programmed() {
    let (lab, mut daemons, _pods) = Lab::running(1, NODE_CONFIG, ALL);
    let (stays, goes) = (recorded_peer(), Peer::new("10.5.210.0/24", "10.99.1.210", "02:00:00:00:00:d2"));
    lab.put_peer(&goes);
    wait_exactly(&lab.node(1), std::slice::from_ref(&goes));
    daemons[0].kill();
    lab.delete(&goes.key());
    lab.put_peer(&stays);
    daemons[0] = lab.node(1).twilld(ALL);
    wait_exactly(&lab.node(1), &[stays]);
}

#[test]
fn on_demand_a_clean_stop_leaves_every_peer_programmed() {
    let (lab, mut daemons, pods) = Lab::running(3, NODE_CONFIG, ON_DEMAND);
    let node = lab.node(1);
    node.holds_exactly(&[]).unwrap();
    let env = std::fs::read(node.subnet_file()).unwrap();
    let (device, record) = (node.link("flannel.1").unwrap(), record_of(&lab, &node));

    let exit = daemons[0].terminate();
    assert!(exit.status.success(), "{}", exit.status);
    // Two seconds is the promise; the machine may be busy with other tests.
    assert!(exit.took < Duration::from_secs(10), "the stop took {:?}", exit.took);

    node.holds_exactly(&others(&lab, &node)).unwrap();
    assert_eq!(node.link("flannel.1").unwrap(), device);
    assert_eq!(record_of(&lab, &node), record);
    assert_eq!(std::fs::read(node.subnet_file()).unwrap(), env);
    ping_all_to_all(&pods);
}

#[test]
fn a_clean_stop_can_leave_the_kernel_as_it_is() {
    let (lab, mut daemons, _pods) = Lab::running(2, NODE_CONFIG, &["--program-all-on-exit=false"]);
    assert!(daemons[0].terminate().status.success());
    lab.node(1).holds_exactly(&[]).unwrap();
}

#[test]
fn sigint_is_a_clean_stop_too() {
    let (lab, mut daemons, _pods) = Lab::running(2, NODE_CONFIG, ON_DEMAND);
    daemons[0].signal(nix::sys::signal::Signal::SIGINT);
    assert!(daemons[0].wait_exit(PATIENCE).status.success());
    lab.node(1).holds_exactly(&others(&lab, &lab.node(1))).unwrap();
}

#[test]
fn the_network_goes_on_while_etcd_is_gone_and_after() {
    let (lab, mut daemons, pods) = Lab::running(2, NODE_CONFIG, ON_DEMAND);
    lab.etcd().kill();
    // Known records serve; nothing is asked of etcd for a packet.
    pods[0].ping(pods[1].addr()).unwrap();
    lab.etcd().start();
    let peer = recorded_peer();
    lab.put_peer(&peer);
    daemons[0].wait_log(&["peer joined", "10.5.200.0/24"], PATIENCE);
    assert!(daemons.iter_mut().all(Twilld::runs));
}
