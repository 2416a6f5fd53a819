//! The way back to flannel: what flanneld looks at before it keeps a device that is there.

use serde_json::Value;
use twill_lab::{Lab, NODE_CONFIG, Node};

/// What flanneld compares of a VXLAN device with the one that it would make
/// (<https://github.com/flannel-io/flannel/blob/v0.28.9/pkg/backend/vxlan/device.go>, vxlanLinksIncompat).
fn compared(node: &Node, device: &str) -> Vec<Value> {
    let link = node.ip_json(&format!("-d link show {device}")).unwrap();
    let data = &link[0]["linkinfo"]["info_data"];
    ["id", "link", "local", "port", "learning", "l2miss", "gbp", "group"].map(|key| data[key].clone()).to_vec()
}

#[test]
fn with_all_peers_programmed_the_device_is_flannel_s_to_the_flag() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    let mut daemon = node.twilld(&["--peer-mode=all"]);
    daemon.wait_ready();
    let ours = compared(&node, "flannel.1");
    assert!(daemon.terminate().status.success());
    node.exec("ip link del flannel.1").unwrap();
    // As flanneld makes it: netlink.Vxlan{VxlanId, VtepDevIndex, SrcAddr, Learning: false}, the kernel's own port.
    node.exec("ip link add flannel.1 type vxlan id 1 dev eth0 local 10.99.0.11 dstport 8472 nolearning").unwrap();
    assert_eq!(ours, compared(&node, "flannel.1"));
}

#[test]
fn on_demand_a_device_that_flannel_made_stays_and_one_of_twill_s_own_asks_for_macs() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    node.exec("ip link add flannel.1 type vxlan id 1 dev eth0 local 10.99.0.11 dstport 8472 nolearning").unwrap();
    let index = node.ip_json("link show flannel.1").unwrap()[0]["ifindex"].clone();
    let mut daemon = node.twilld(&[]);
    daemon.wait_ready();
    assert_eq!(node.ip_json("link show flannel.1").unwrap()[0]["ifindex"], index, "flannel's device was made anew");
    assert!(daemon.terminate().status.success());
    node.exec("ip link del flannel.1").unwrap();
    let mut daemon = node.twilld(&[]);
    daemon.wait_ready();
    let link = node.ip_json("-d link show flannel.1").unwrap();
    assert_eq!(link[0]["linkinfo"]["info_data"]["l2miss"], true);
}
