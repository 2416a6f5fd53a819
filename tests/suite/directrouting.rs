//! DirectRouting: no tunnel to hosts on the same segment, a tunnel across a router, and another decision when routes
//! change.

use std::time::Duration;

use twill_lab::{Lab, Node, Peer, Pod, wait_until};

use crate::PATIENCE;

const DIRECT: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"vxlan","DirectRouting":true}}"#;

/// A peer that is only a record; its host would be on the nodes' segment.
fn recorded(public_ip: &str) -> Peer {
    Peer::new("10.5.200.0/24", public_ip, "02:00:00:00:00:c8")
}

/// The routes to a peer's subnet, without their metric.
fn routes_to(node: &Node, peer: &Peer) -> Vec<String> {
    let to = peer.subnet.to_string();
    node.routes().iter().filter(|route| route.dst == to).map(ToString::to_string).collect()
}

#[track_caller]
fn await_direct(node: &Node, peer: &Peer) {
    let expected = [format!("{} via {} dev eth0 proto 116", peer.subnet, peer.public_ip)];
    wait_until(&format!("node {} routes {} directly", node.index(), peer.subnet), PATIENCE, || {
        let (routes, fdb) = (routes_to(node, peer), node.fdb());
        let right = routes == expected && fdb.iter().all(|row| row.mac != peer.mac);
        if right { Ok(()) } else { Err(format!("{routes:?}, {fdb:?}")) }
    });
}

#[track_caller]
fn await_tunnel(node: &Node, peer: &Peer) {
    wait_until(&format!("node {} has a tunnel to {}", node.index(), peer.subnet), PATIENCE, || {
        node.holds(peer).map_err(|e| format!("{e:#}"))?;
        let routes = routes_to(node, peer);
        if routes.len() == 1 { Ok(()) } else { Err(format!("{routes:?}")) }
    });
}

#[track_caller]
fn ping_all_to_all(pods: &[Pod]) {
    for from in pods {
        for to in pods.iter().flat_map(Pod::addrs) {
            from.ping(to).unwrap();
        }
    }
}

/// Puts a router between two nodes: the fabric.
fn part(one: &Node, two: &Node) {
    one.exec(&format!("ip route add {} via 10.99.0.1", two.addr())).unwrap();
    two.exec(&format!("ip route add {} via 10.99.0.1", one.addr())).unwrap();
}

#[test]
fn on_a_shared_segment_there_is_no_tunnel() {
    for args in [&["--peer-mode=all"], &["--peer-mode=on-demand"]] {
        let (lab, _daemons, pods) = Lab::running(3, DIRECT, args);
        for node in lab.nodes() {
            for peer in lab.nodes().iter().filter(|peer| peer.index() != node.index()) {
                await_direct(node, &peer.as_peer());
            }
        }
        ping_all_to_all(&pods);
        assert!(lab.nodes().iter().all(|node| node.fdb().is_empty()), "{args:?}: a tunnel was made");
    }
}

#[test]
fn across_a_router_there_is_a_tunnel_until_the_routes_change() {
    let lab = Lab::with_nodes(3);
    lab.put_config(DIRECT);
    let (one, two, three) = (lab.node(1), lab.node(2), lab.node(3));
    part(&one, &three);
    let _daemons = lab.start_all(&["--peer-mode=all"]);
    let pods: Vec<Pod> = lab.nodes().iter().map(|node| node.pod(1)).collect();
    await_tunnel(&one, &three.as_peer());
    await_tunnel(&three, &one.as_peer());
    await_direct(&one, &two.as_peer());
    ping_all_to_all(&pods);

    one.exec(&format!("ip route del {}", three.addr())).unwrap();
    await_direct(&one, &three.as_peer());
    ping_all_to_all(&pods);
    part_again(&one, &two);
    await_tunnel(&one, &two.as_peer());
    ping_all_to_all(&pods);
}

/// Like [`part`] on the first node alone: each decides for its own way.
fn part_again(one: &Node, two: &Node) {
    one.exec(&format!("ip route add {} via 10.99.0.1", two.addr())).unwrap();
}

#[test]
fn a_direct_peer_follows_its_record() {
    for args in [&["--peer-mode=all"], &["--peer-mode=on-demand"]] {
        let (lab, _daemons, _pods) = Lab::running(1, DIRECT, args);
        let node = lab.node(1);
        let peer = recorded("10.99.1.200");
        lab.put_peer(&peer);
        await_direct(&node, &peer);
        let moved = recorded("10.99.1.201");
        lab.put_peer(&moved);
        await_direct(&node, &moved);
        // Behind the default route's gateway.
        let far = recorded("192.0.2.1");
        lab.put_peer(&far);
        if args[0].ends_with("all") {
            await_tunnel(&node, &far);
        } else {
            wait_until("no route is left", PATIENCE, || routes_to(&node, &far).is_empty());
        }
        lab.put_peer(&peer);
        await_direct(&node, &peer);
        lab.delete(&peer.key());
        wait_until("the route is gone", PATIENCE, || routes_to(&node, &peer).is_empty());
    }
}

#[test]
fn flannel_s_own_direct_routes_are_taken_over_and_ours_go_when_it_is_switched_off() {
    let lab = Lab::with_nodes(1);
    lab.put_config(DIRECT);
    let node = lab.node(1);
    let peer = recorded("10.99.1.200");
    lab.put_peer(&peer);
    node.exec("ip route add 10.5.200.0/24 via 10.99.1.200").unwrap();
    // Not flannel's: its gateway is no peer's host.
    node.exec("ip route add 10.5.201.0/24 via 10.99.1.99").unwrap();
    let mut daemon = node.twilld(&[]);
    daemon.wait_ready();
    await_direct(&node, &peer);
    assert!(daemon.terminate().status.success());
    lab.put_config(twill_lab::NODE_CONFIG);
    let mut daemon = node.twilld(&["--peer-mode=all"]);
    daemon.wait_ready();
    await_tunnel(&node, &peer);
    assert!(node.exec("ip route").unwrap().contains("10.5.201.0/24 via 10.99.1.99"), "a stranger's route is gone");
}

#[test]
fn both_families() {
    let (lab, _daemons, pods) = Lab::running(2, DUAL, &[]);
    let (one, two) = (lab.node(1), lab.node(2));
    await_direct(&one, &two.as_peer());
    let subnet6 = two.leased().into_iter().find(|subnet| subnet.contains(':')).unwrap();
    let expected = format!("{subnet6} via {} dev eth0 proto 116", two.addr6());
    wait_until(&expected, PATIENCE, || one.exec("ip -6 route").is_ok_and(|routes| routes.contains(&expected)));
    ping_all_to_all(&pods);
    assert_eq!(one.exec("bridge fdb show dev flannel-v6.1").unwrap().matches(" dst ").count(), 0);
}

/// The routes to an IPv6 subnet.
fn routes6_to(node: &Node, subnet: &str) -> Vec<String> {
    let routes = node.exec("ip -6 route show proto 116").unwrap();
    routes.lines().filter(|route| route.starts_with(subnet)).map(str::to_owned).collect()
}

#[test]
fn ipv6_across_a_router_has_a_tunnel_until_the_routes_change() {
    let lab = Lab::with_nodes(2);
    lab.put_config(DUAL);
    let (one, two) = (lab.node(1), lab.node(2));
    for (node, other) in [(&one, &two), (&two, &one)] {
        node.exec(&format!("ip -6 route add {} via fd99::1", other.addr6())).unwrap();
    }
    let _daemons = lab.start_all(&["--peer-mode=all"]);
    let pods: Vec<Pod> = lab.nodes().iter().map(|node| node.pod(1)).collect();
    let subnet = two.leased().into_iter().find(|subnet| subnet.contains(':')).unwrap();
    let tunnels = |node: &Node| node.exec("bridge fdb show dev flannel-v6.1").unwrap().matches(" dst ").count();
    let await_way = |through: &str, count: usize| {
        wait_until(&format!("{subnet} through {through}"), PATIENCE, || {
            let (routes, found) = (routes6_to(&one, &subnet), tunnels(&one));
            let right = routes.len() == 1 && routes[0].contains(through) && found == count;
            if right { Ok(()) } else { Err(format!("{routes:?}, {found} tunnels")) }
        });
    };
    let direct = format!("via {} dev eth0", two.addr6());
    await_way("dev flannel-v6.1", 1);
    // The other family has its own way.
    await_direct(&one, &two.as_peer());
    ping_all_to_all(&pods);
    for _ in 0..2 {
        one.exec(&format!("ip -6 route del {}", two.addr6())).unwrap();
        await_way(&direct, 0);
        ping_all_to_all(&pods);
        one.exec(&format!("ip -6 route add {} via fd99::1", two.addr6())).unwrap();
        await_way("dev flannel-v6.1", 1);
        ping_all_to_all(&pods);
    }
}

#[test]
fn a_change_between_direct_and_tunnel_cuts_nobody_off() {
    let (lab, _daemons, pods) = Lab::running(2, DIRECT, &["--peer-mode=all"]);
    let (one, two) = (lab.node(1), lab.node(2));
    await_direct(&one, &two.as_peer());
    let ping = pods[0].ping_running(pods[1].addr(), 20);
    ping.wait_received(10);
    for _ in 0..3 {
        one.exec(&format!("ip route add {} via 10.99.0.1", two.addr())).unwrap();
        await_tunnel(&one, &two.as_peer());
        ping.wait_received(10);
        one.exec(&format!("ip route del {}", two.addr())).unwrap();
        await_direct(&one, &two.as_peer());
        ping.wait_received(10);
    }
    assert_eq!(ping.stop().lost, 0);
}

/// Packets that come to our device although their peer has a direct route: from a socket that is bound to the device.
#[test]
fn packets_that_a_direct_route_does_not_take_leave_nothing_on_our_device() {
    let (lab, daemons, pods) = Lab::running(2, DIRECT, &["--peer-mode=on-demand"]);
    let (one, two) = (lab.node(1), lab.node(2));
    await_direct(&one, &two.as_peer());
    for target in [pods[1].addr(), two.as_peer().subnet.network()] {
        // The answer comes in through another device.
        assert!(one.exec(&format!("ping -n -c1 -W1 -I flannel.1 {target}")).is_err());
    }
    wait_until("nothing is left on the device", PATIENCE, || {
        let (fdb, neighbours) = (one.fdb(), one.exec("ip neigh show dev flannel.1").unwrap());
        if fdb.is_empty() && neighbours.is_empty() { Ok(()) } else { Err(format!("{fdb:?} {neighbours}")) }
    });
    await_direct(&one, &two.as_peer());
    pods[0].ping(pods[1].addr()).unwrap();
    assert!(daemons[0].lines(&["contradicted the records"]).is_empty(), "{}", daemons[0].log());
}

/// A link that goes down takes the direct routes with it, and the kernel tells nothing of that.
#[test]
fn a_link_that_was_down_for_a_moment_gets_its_direct_routes_back() {
    for args in [&["--peer-mode=all"], &["--peer-mode=on-demand"]] {
        let (lab, daemons, pods) = Lab::running(2, DIRECT, args);
        let (one, two) = (lab.node(1), lab.node(2));
        await_direct(&one, &two.as_peer());
        for _ in 0..5 {
            one.netns()
                .ip_batch(["link set eth0 down", "link set eth0 up", "route replace default via 10.99.0.1"])
                .unwrap();
            wait_until("an answer", PATIENCE, || pods[0].exec(&format!("ping -n -c1 -W0.5 {}", pods[1].addr())));
            await_direct(&one, &two.as_peer());
        }
        assert!(daemons[0].lines(&["contradicted the records"]).is_empty(), "{}", daemons[0].log());
    }
}

/// The same of a link that carries no tunnel: the daemon is told that it is back by its own route alone. Long before the next
/// comparison, which comes once a minute.
#[test]
fn a_second_link_that_was_down_for_a_moment_gets_its_direct_routes_back() {
    const SOON: Duration = Duration::from_secs(20);
    let (lab, _daemons, _pods) = Lab::running(1, DIRECT, &["--peer-mode=all"]);
    let node = lab.node(1);
    let second = ["link add nic1 type veth peer name wire", "link set wire up", "addr add 10.98.0.1/24 dev nic1"];
    node.netns().ip_batch(second).unwrap();
    node.netns().ip_batch(["link set nic1 up"]).unwrap();
    let peer = recorded("10.98.0.50");
    lab.put_peer(&peer);
    let expected = [format!("{} via {} dev nic1 proto 116", peer.subnet, peer.public_ip)];
    let await_route = || {
        wait_until("the route through the second link", SOON, || {
            let routes = routes_to(&node, &peer);
            if routes == expected { Ok(()) } else { Err(format!("{routes:?}")) }
        });
    };
    await_route();
    for _ in 0..4 {
        node.netns().ip_batch(["link set nic1 down", "link set nic1 up"]).unwrap();
        await_route();
    }
}
