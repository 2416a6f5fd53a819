//! Somebody else has the UDP port, the VNI or the name of the device: the start names who, and leaves nothing behind.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn6, bind, setsockopt, socket, sockopt};
use twill_lab::{Lab, NODE_CONFIG, Node};

const PATIENCE: Duration = Duration::from_secs(30);
const BOTH: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}"#;

fn lab(config: &str) -> (Lab, Node) {
    let lab = Lab::with_nodes(1);
    lab.put_config(config);
    let node = lab.node(1);
    (lab, node)
}

/// Starts a daemon that can't go on, and checks that its last words have all of `words`.
#[track_caller]
fn refuses(node: &Node, words: &[&str]) {
    let mut daemon = node.twilld(&[]);
    assert_eq!(daemon.wait_exit(PATIENCE).status.code(), Some(1), "{}", daemon.log());
    let log = daemon.log();
    let last = log.lines().rfind(|line| line.contains("ERROR")).unwrap_or(&log);
    assert!(words.iter().all(|word| last.contains(word)), "{words:?} in: {last}");
}

/// No device of ours was left.
#[track_caller]
fn left_nothing(node: &Node) {
    let links = node.exec("ip -o link show type vxlan").unwrap();
    assert!(!links.contains("flannel"), "{links}");
}

/// The test's own process, as the holder of a socket is named.
fn this_process() -> String {
    format!("pid {}, ", std::process::id())
}

#[test]
fn a_device_in_external_mode_is_named_before_a_subnet_is_leased() {
    let (lab, node) = lab(NODE_CONFIG);
    node.exec("ip link add vx0 type vxlan external dstport 8472").unwrap();
    node.exec("ip link set vx0 up").unwrap();
    refuses(&node, &["UDP port 8472 is held by vx0, a VXLAN device in external mode", "Backend.Port"]);
    left_nothing(&node);
    assert_eq!(lab.records(), []);
    // On another port, or gone, it is in nobody's way.
    node.exec("ip link del vx0").unwrap();
    node.exec("ip link add vx0 type vxlan external dstport 4789").unwrap();
    node.exec("ip link set vx0 up").unwrap();
    node.twilld(&[]).wait_ready();
}

#[test]
fn a_device_with_other_options_is_named() {
    let (_lab, node) = lab(NODE_CONFIG);
    node.exec("ip link add vx0 type vxlan id 7 dev eth0 dstport 8472 gbp").unwrap();
    node.exec("ip link set vx0 up").unwrap();
    refuses(&node, &["UDP port 8472 is held by vx0, a VXLAN device with another `gbp`"]);
    left_nothing(&node);
}

#[test]
fn one_that_shares_the_port_is_in_nobody_s_way() {
    let (_lab, node) = lab(NODE_CONFIG);
    node.exec("ip link add vx0 type vxlan id 7 dev eth0 dstport 8472").unwrap();
    node.exec("ip link set vx0 up").unwrap();
    node.twilld(&[]).wait_ready();
}

#[test]
fn the_holder_of_our_vni_is_named_before_a_subnet_is_leased() {
    let (lab, node) = lab(NODE_CONFIG);
    node.exec("ip link add vx0 type vxlan id 1 dev eth0 dstport 8472").unwrap();
    refuses(&node, &["cannot create flannel.1: vx0 has VNI 1 and port 8472 already"]);
    left_nothing(&node);
    assert_eq!(lab.records(), []);
}

#[test]
fn a_device_of_another_kind_with_our_name_is_named_before_a_subnet_is_leased() {
    let (lab, node) = lab(NODE_CONFIG);
    node.exec("ip link add flannel.1 type bridge").unwrap();
    refuses(&node, &["flannel.1 is a bridge device, not vxlan"]);
    assert_eq!(lab.records(), []);
}

#[test]
fn a_process_with_a_socket_on_the_port_is_named() {
    let (_lab, node) = lab(NODE_CONFIG);
    for address in ["0.0.0.0:8472", "127.0.0.1:8472", "[::]:8472"] {
        let address: SocketAddr = address.parse().unwrap();
        let holder = node.netns().enter(|| UdpSocket::bind(address)).unwrap().unwrap();
        refuses(&node, &[&format!("UDP port 8472 is held by a UDP socket on {address} ({}", this_process())]);
        left_nothing(&node);
        drop(holder);
    }
    node.twilld(&[]).wait_ready();
}

#[test]
fn a_device_that_was_there_before_stays() {
    let (_lab, node) = lab(NODE_CONFIG);
    let mut daemon = node.twilld(&[]);
    daemon.wait_ready();
    daemon.kill();
    let before = node.link("flannel.1").unwrap().ifindex;
    node.exec("ip link set flannel.1 down").unwrap();
    let holder = node.netns().enter(|| UdpSocket::bind("0.0.0.0:8472")).unwrap().unwrap();
    refuses(&node, &["UDP port 8472 is held by a UDP socket"]);
    assert_eq!(node.link("flannel.1").unwrap().ifindex, before);
    drop(holder);
    node.twilld(&[]).wait_ready();
    assert_eq!(node.link("flannel.1").unwrap().ifindex, before);
}

#[test]
fn of_two_devices_neither_is_left_when_the_second_cannot_be_set_up() {
    let (_lab, node) = lab(BOTH);
    // On the port of the IPv6 device only.
    let holder = node.netns().enter(|| {
        let holder = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&holder, sockopt::Ipv6V6Only, &true).unwrap();
        let any: std::net::SocketAddrV6 = "[::]:8472".parse().unwrap();
        bind(std::os::fd::AsRawFd::as_raw_fd(&holder), &SockaddrIn6::from(any)).unwrap();
        holder
    });
    let holder = holder.unwrap();
    refuses(&node, &["cannot set up flannel-v6.1", "a UDP socket on [::]:8472"]);
    left_nothing(&node);
    drop(holder);
    node.twilld(&[]).wait_ready();
}

#[test]
fn one_that_takes_the_port_while_we_run_is_named_and_waited_for() {
    let (_lab, node) = lab(NODE_CONFIG);
    let mut daemon = node.twilld(&[]);
    daemon.wait_ready();
    node.exec("ip link set flannel.1 down").ok();
    // Whoever is first has it: the daemon sets the device up again at once.
    let mut holder = None;
    while holder.is_none() {
        node.exec("ip link del flannel.1").ok();
        holder = node.netns().enter(|| UdpSocket::bind("0.0.0.0:8472").ok()).unwrap();
    }
    daemon.wait_log(&["cannot set up flannel.1", "held by a UDP socket on 0.0.0.0:8472", &this_process()], PATIENCE);
    drop(holder);
    twill_lab::wait_until("the device is up", PATIENCE, || {
        node.link("flannel.1").is_ok_and(|link| link.flags.iter().any(|flag| flag == "UP"))
    });
    assert!(daemon.runs());
}
