//! alloc: subnets, `subnet.env` and rules, and nothing in the kernel that leads to a peer.

use serde_json::Value;
use twill_lab::{Lab, Node, PREFIX, Pod, Twilld, wait_until};

use crate::PATIENCE;

const ALLOC: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"alloc"}}"#;
const HOST_GW: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;

/// The routes that are Twill's.
fn ours(node: &Node) -> String {
    node.exec("ip route show proto 116").unwrap()
}

#[test]
fn a_node_has_its_subnet_and_somebody_else_carries_the_packets() {
    let (lab, mut daemons, pods) = Lab::running(2, ALLOC, &["--ip-masq"]);
    let (one, two) = (lab.node(1), lab.node(2));
    for record in lab.records() {
        let mut value: Value = serde_json::from_str(&record.value).unwrap();
        let members = value.as_object_mut().unwrap();
        assert!(members.remove("NodeID").is_some() && members.remove("Instance").is_some());
        members.remove("PublicIP").unwrap();
        assert_eq!(value, serde_json::json!({"PublicIPv6": null}), "{}", record.value);
        assert_ne!(record.lease, 0);
    }
    for node in [&one, &two] {
        assert_eq!(node.subnet_env().unwrap().mtu, 1500);
        assert_eq!(ours(node), "");
        assert!(!node.exec("ip -o link").unwrap().contains("flannel"));
        wait_until("the rules are in", PATIENCE, || node.exec("nft list tables").unwrap().contains("ip twill.alloc"));
    }
    // Routes and rules of others are their own matter.
    for (node, peer) in [(&one, &two), (&two, &one)] {
        node.exec(&format!("ip route add {} via {}", peer.leased()[0], peer.addr())).unwrap();
        node.exec(&format!("ip rule add to {} lookup 77 pref 77", peer.leased()[0])).unwrap();
        node.exec(&format!("ip route add {} via {} table 77", peer.leased()[0], peer.addr())).unwrap();
    }
    pods[0].ping(pods[1].addr()).unwrap();

    let before: Vec<_> = [&one, &two].map(Node::leased).into();
    for (daemon, node) in daemons.iter_mut().zip(lab.nodes()) {
        assert!(daemon.terminate().status.success());
        *daemon = node.twilld(&["--ip-masq"]);
        daemon.wait_ready();
    }
    assert_eq!(before, [&one, &two].map(Node::leased), "a restart keeps the subnet");
    assert!(daemons.iter().all(|daemon| daemon.lines(&["before"]).is_empty()), "{}", daemons[0].log());
    pods[1].ping(pods[0].addr()).unwrap();
}

#[test]
fn a_reservation_waits_for_its_node_and_what_host_gw_has_left_goes() {
    let lab = Lab::with_nodes(2);
    lab.put_config(HOST_GW);
    let (one, two) = (lab.node(1), lab.node(2));
    // As flannel's manual has it: an address and no lease.
    let value = format!(r#"{{"PublicIP":"{}","PublicIPv6":null}}"#, two.addr());
    lab.put(&format!("{PREFIX}/subnets/10.5.77.0-24"), &value);
    let daemons = lab.start_all(&[]);
    assert_eq!(two.leased(), ["10.5.77.0/24"]);
    wait_until("node 1 has a route to node 2", PATIENCE, || ours(&one).contains("10.5.77.0/24"));
    let _pods: Vec<Pod> = lab.nodes().iter().map(|node| node.pod(1)).collect();

    lab.put_config(ALLOC);
    for mut daemon in daemons {
        assert!(daemon.terminate().status.success());
    }
    let mut daemons: Vec<Twilld> = lab.nodes().iter().map(|node| node.twilld(&[])).collect();
    daemons.iter_mut().for_each(Twilld::wait_ready);
    assert_eq!(two.leased(), ["10.5.77.0/24"]);
    wait_until("node 1's route is gone", PATIENCE, || ours(&one).is_empty());
}
