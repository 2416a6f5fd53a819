//! The lab itself, with no twilld: the kernel state is written by hand, as flannel >= 0.9 leaves it.
//!
//! When these fail the machine or the lab is at fault, and the other suites' failures mean little.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use twill_lab::{Lab, Node, Options, PREFIX, Peer, Pod, wait_until};

/// What twilld does for a node, done by hand: device, address, subnet.env.
fn join(node: &Node, subnet: &str) -> Peer {
    let first = subnet.split('/').next().unwrap();
    let addr = node.addr();
    node.exec(&format!("ip link add flannel.1 type vxlan id 1 dev eth0 local {addr} dstport 8472 nolearning")).unwrap();
    node.exec(&format!("ip addr add {first}/32 dev flannel.1")).unwrap();
    node.exec("ip link set flannel.1 up").unwrap();
    let gateway = subnet.replace(".0/", ".1/");
    let mtu = node.link("flannel.1").unwrap().mtu;
    let env =
        format!("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET={gateway}\nFLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=false\n");
    fs::write(node.subnet_file(), env).unwrap();
    node.as_peer()
}

/// Programs a peer by hand.
fn program(node: &Node, peer: &Peer) {
    let Peer { subnet, public_ip, mac } = peer;
    let first = subnet.network();
    for line in [
        format!("bridge fdb replace {mac} dev flannel.1 dst {public_ip} self permanent"),
        format!("ip neigh replace {first} lladdr {mac} dev flannel.1 nud permanent"),
        format!("ip route replace {subnet} via {first} dev flannel.1 onlink proto 116 metric 52"),
    ] {
        node.exec(&line).unwrap();
    }
}

/// Two nodes that reach each other, a pod in each.
fn two_nodes(lab: &Lab) -> (Pod, Pod) {
    let peers = [join(&lab.node(1), "10.5.52.0/24"), join(&lab.node(2), "10.5.53.0/24")];
    program(&lab.node(1), &peers[1]);
    program(&lab.node(2), &peers[0]);
    (lab.node(1).pod(1), lab.node(2).pod(1))
}

/// The namespaces of this process's lab that the name belongs to.
fn namespaces_like(name: &str) -> Vec<String> {
    let (lab, _) = name.rsplit_once('-').unwrap();
    let entries = fs::read_dir("/run/netns").unwrap();
    let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.starts_with(&format!("{lab}-"))).collect()
}

#[test]
fn pods_of_two_nodes_ping_and_the_kernel_is_read_right() {
    let lab = Lab::with_nodes(2);
    let (one, two) = two_nodes(&lab);
    one.ping(two.addr()).unwrap();
    two.ping(one.addr()).unwrap();
    lab.node(1).holds_exactly(&[lab.node(2).as_peer()]).unwrap();
    lab.node(2).holds(&lab.node(1).as_peer()).unwrap();
    assert_eq!(one.addr().to_string(), "10.5.52.2");
    let error = lab.node(1).holds_exactly(&[]).unwrap_err().to_string();
    assert!(error.starts_with("FDB rows are"), "{error}");
    let mtu = one.exec("ip link show eth0").unwrap();
    assert!(mtu.contains("mtu 1450"), "{mtu}");
}

#[test]
fn a_pod_outside_the_records_does_not_answer() {
    let lab = Lab::with_nodes(2);
    let (one, _two) = two_nodes(&lab);
    let error = one.exec("ping -n -c1 -W1 10.5.99.2").unwrap_err().to_string();
    assert!(error.contains("1 packets transmitted, 0 received"), "{error}");
}

#[test]
fn a_running_ping_counts_what_is_lost() {
    let lab = Lab::with_nodes(2);
    let (one, two) = two_nodes(&lab);
    let ping = one.ping_running(two.addr(), 20);
    ping.wait_received(5);
    let whole = ping.stop();
    assert!(whole.lost == 0 && whole.sent >= 5, "{whole:?}");

    let peer = lab.node(2).as_peer();
    let ping = one.ping_running(two.addr(), 20);
    ping.wait_received(2);
    lab.node(1).exec(&format!("bridge fdb del {} dev flannel.1 dst {}", peer.mac, peer.public_ip)).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    program(&lab.node(1), &peer);
    ping.wait_received(2);
    let holed = ping.stop();
    assert!(holed.lost > 0 && holed.sent == holed.received + holed.lost, "{holed:?}");
}

#[test]
fn etcd_keeps_keys_over_kill_and_pause() {
    let lab = Lab::with_nodes(1);
    assert_eq!(lab.get(&format!("{PREFIX}/config")), None);
    lab.put_config("not\n\"json\"");
    let written = lab.get(&format!("{PREFIX}/config")).unwrap();
    assert_eq!((written.value.as_str(), written.lease), ("not\n\"json\"", 0));

    let peer = Peer::new("10.5.200.0/24", "10.99.0.200", "02:00:00:00:00:c8");
    lab.put_peer(&peer);
    lab.etcd().kill();
    assert!(lab.etcdctl(&["get", "x"]).is_err());
    lab.etcd().start();
    assert_eq!(lab.records().iter().map(|kv| kv.key.as_str()).collect::<Vec<_>>(), [peer.key()]);

    lab.etcd().pause();
    assert!(lab.etcdctl(&["get", "x"]).is_err());
    lab.etcd().resume();
    wait_until("etcd serves again", Duration::from_secs(20), || lab.etcdctl(&["get", "x"]));
    lab.delete(&peer.key());
    assert_eq!(lab.records(), []);

    let lease = lab.etcdctl(&["lease", "grant", "86400"]).unwrap();
    let id = i64::from_str_radix(lease.split(' ').nth(1).unwrap(), 16).unwrap();
    assert_eq!(lab.lease_ttl(id).unwrap(), Duration::from_secs(86400));
}

#[test]
fn the_fabric_has_the_mtu_and_both_families() {
    let lab = Lab::with(Options { nodes: 2, mtu: 9000 });
    assert_eq!(lab.node(1).link("eth0").unwrap().mtu, 9000);
    let (node, other) = (lab.node(1), lab.node(2));
    for addr in ["10.99.0.1", "fd99::1", &other.addr().to_string(), &other.addr6().to_string()] {
        node.exec(&format!("ping -n -c1 -W5 {addr}")).unwrap();
    }
    assert_eq!(node.netns().enter(|| fs::read_to_string("/proc/sys/net/ipv4/ip_forward")).unwrap().unwrap(), "1\n");
}

#[test]
fn nothing_is_left_behind_also_after_a_panic() {
    let left = std::thread::spawn(|| {
        let lab = Lab::with_nodes(2);
        let _pods = two_nodes(&lab);
        let name = lab.node(1).netns().name().to_string();
        // The fabric, two nodes and two pods.
        assert_eq!(namespaces_like(&name).len(), 5);
        std::panic::panic_any((name, lab.node(1).run_dir().parent().unwrap().to_path_buf()));
    })
    .join()
    .unwrap_err();
    let (name, dir) = left.downcast_ref::<(String, PathBuf)>().unwrap();
    assert_eq!(namespaces_like(name), Vec::<String>::new());
    assert!(!dir.exists(), "{} is still there", dir.display());
}

#[test]
fn a_command_that_fails_says_why() {
    let lab = Lab::with_nodes(1);
    let error = lab.node(1).exec("ip link show nosuch").unwrap_err().to_string();
    assert!(error.contains("`ip link show nosuch` ended with") && error.contains("does not exist"), "{error}");
    let error = lab.node(1).exec("no-such-program").unwrap_err().to_string();
    assert!(error.contains("not installed"), "{error}");
}

#[test]
fn the_machine_s_own_namespace_is_not_touched() {
    // In a namespace of its own, so that other programs of this machine can't disturb the comparison.
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let links = || fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let before = links();
        let lab = Lab::with_nodes(2);
        let _pods = two_nodes(&lab);
        assert_eq!(links(), before);
    })
    .join()
    .unwrap();
}
