//! Several attachments of one container, several networks on one node, and what flannel's own plugin left.

use std::fs;

use serde_json::{Value, json};

use crate::support::Node;

/// What flannel's plugin (v1.7.1) stored for a pod of the network `cbr0`.
const FLANNELS: &str = r#"{"cniVersion":"0.3.1","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.5.7.0/24"}]],"routes":[{"dst":"10.5.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#;

#[test]
fn networks_and_interfaces_of_one_container_do_not_collide() {
    let node = Node::new();
    let all = [("net", "eth0", 1), ("net", "net1", 2), ("blue", "eth0", 3), ("blue", "net2", 4)];
    for (network, ifname, mark) in all {
        node.call_with("ADD", json!({"name": network, "delegate": {"mark": mark}})).ifname(ifname).ok();
    }
    // In another order than they came, each twice.
    for (network, ifname, mark) in [all[2], all[0], all[3], all[1]] {
        node.call_with("DEL", json!({"name": network})).ifname(ifname).ok();
        assert_eq!(node.seen("DEL").unwrap()["mark"], mark);
        node.call_with("DEL", json!({"name": network})).ifname(ifname).ok();
        assert_eq!(node.seen("DEL"), None);
    }
    assert!(node.stored().is_empty());
}

#[test]
fn what_flannels_plugin_stored_is_found_and_honoured() {
    let node = Node::new();
    fs::create_dir(node.path("data")).unwrap();
    fs::write(node.path("data/c1"), FLANNELS).unwrap();
    let wanted: Value = serde_json::from_str(FLANNELS).unwrap();
    // Another network's DEL leaves it alone.
    node.call("DEL").ok();
    assert_eq!((node.seen("DEL"), node.stored()), (None, vec!["c1".to_string()]));
    // It stays until the delegate succeeded.
    node.delegate("bridge", "exit 1");
    node.call_with("DEL", json!({"name": "cbr0"})).fails();
    assert_eq!(node.stored(), ["c1"]);
    node.delegate("bridge", "");
    let check = json!({"name": "cbr0", "cniVersion": "0.4.0", "prevResult": {}});
    node.lease("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n");
    node.call_with("CHECK", check).ok();
    assert_eq!(node.seen("CHECK").unwrap()["hairpinMode"], true);
    node.seen("DEL");
    node.call_with("DEL", json!({"name": "cbr0", "cniVersion": "0.3.1"})).ok();
    assert_eq!(node.seen("DEL").unwrap(), wanted);
    assert!(node.stored().is_empty());
}

#[test]
fn a_node_may_go_back_to_flannels_plugin() {
    let node = Node::new();
    let stdin = node.conf(json!({"name": "cbr0", "cniVersion": "0.3.1"})).to_string();
    node.lease("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n");
    let delegate = r#""delegate":{"hairpinMode":true,"isDefaultGateway":true},"name""#;
    node.call("ADD").stdin(&stdin.replace("\"name\"", delegate)).ok();
    // Under the name where it looks, to the byte what it would have stored, and behind that a key that bridge ignores.
    let stored = fs::read_to_string(node.path("data/c1")).unwrap();
    let open = FLANNELS.strip_suffix('}').unwrap();
    assert_eq!(stored, format!(r#"{open},"twill.attachment":{{"ifname":"eth0"}}}}"#));
    // Its DEL reads that one file, removes it, and leaves nothing.
    assert_eq!(node.stored(), ["c1"]);
    fs::remove_file(node.path("data/c1")).unwrap();
    node.call_with("DEL", json!({"name": "cbr0"})).ok();
    assert!(node.stored().is_empty());
}

#[test]
fn what_an_earlier_twill_stored_is_taken_down() {
    let node = Node::new();
    fs::create_dir(node.path("data")).unwrap();
    fs::write(node.path("data/c1:cbr0:eth0"), FLANNELS).unwrap();
    fs::hard_link(node.path("data/c1:cbr0:eth0"), node.path("data/c1")).unwrap();
    node.call_with("DEL", json!({"name": "cbr0"})).ok();
    assert_eq!(node.seen("DEL").unwrap(), serde_json::from_str::<Value>(FLANNELS).unwrap());
    assert!(node.stored().is_empty());
}

#[test]
fn an_unreadable_configuration_is_made_anew_from_todays() {
    let node = Node::new();
    node.call("ADD").ok();
    fs::write(node.path("data/c1"), "").unwrap();
    node.call("DEL").ok();
    assert_eq!(node.seen("DEL").unwrap()["type"], "bridge");
    assert!(node.stored().is_empty());

    // JSON, but not for any plugin.
    for spoilt in ["{}", r#"{"name":"net","type":7}"#, r#"{"type":"../sh"}"#] {
        node.call("ADD").ok();
        fs::write(node.path("data/c1"), spoilt).unwrap();
        node.call("DEL").ok();
        assert_eq!(node.seen("DEL").unwrap()["type"], "bridge", "{spoilt}");
        assert!(node.stored().is_empty());
    }

    // Cut by a crash while flannel's plugin wrote it: whose it was can't be told, so it is whoever's asks.
    for cut in ["", &FLANNELS[..40]] {
        fs::write(node.path("data/c1"), cut).unwrap();
        node.delegate("bridge", "exit 1");
        node.call("DEL").fails();
        assert_eq!(node.stored(), ["c1"]);
        node.delegate("bridge", "");
        node.call("DEL").ok();
        assert_eq!(node.seen("DEL").unwrap()["name"], "net");
        assert!(node.stored().is_empty());
    }

    // Nor is there a lease: the pod is gone all the same.
    node.delegate("bridge", "echo '{}'");
    node.call("ADD").ok();
    fs::write(node.path("data/c1"), "{").unwrap();
    fs::remove_file(node.path("subnet.env")).unwrap();
    let outcome = node.call("DEL").run();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.stderr.contains("can't be used"), "{outcome:?}");
    assert!(node.stored().is_empty());
}
