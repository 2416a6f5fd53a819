//! Somebody breaks what Twill keeps in the kernel: it is mended at once, long before the comparison of each minute.
//!
//! Each test breaks one thing under a running ping, in each mode, and waits for the kernel to be what it was. Standard
//! output says how long that took and what the ping lost (`cargo test --test drift -- --nocapture`).

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use twill_lab::{Lab, NODE_CONFIG, Node, Peer, Pod, State, Twilld, wait_until};

const MODES: [&str; 2] = ["--peer-mode=all", "--peer-mode=on-demand"];
/// For states that take milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// How soon everything is right again, also on a busy machine: the timer would take up to 60 s.
const MENDED: Duration = Duration::from_secs(10);
/// Between two packets of the running ping.
const PING_MS: u32 = 20;
/// The most that it may lose: two seconds. An idle machine loses none or one.
const LOST: u32 = 2_000 / PING_MS;

/// Two nodes that reach each other, and what node 1's kernel then holds.
struct Pair {
    lab: Lab,
    daemons: Vec<Twilld>,
    pods: [Pod; 2],
    peer: Peer,
    before: State,
}

impl Pair {
    fn new(mode: &str) -> Self {
        let lab = Lab::with_nodes(2);
        lab.put_config(NODE_CONFIG);
        let daemons = lab.start_all(&[mode]);
        let pods = [lab.node(1).pod(1), lab.node(2).pod(1)];
        pods[0].ping(pods[1].addr()).unwrap();
        let (node, peer) = (lab.node(1), lab.node(2).as_peer());
        wait_until("node 1 holds node 2", PATIENCE, || node.holds_exactly(std::slice::from_ref(&peer)));
        let before = node.state().unwrap();
        Self { lab, daemons, pods, peer, before }
    }

    fn node(&self) -> Node {
        self.lab.node(1)
    }

    /// Does something to node 1 under a ping; returns what the ping lost.
    fn mends(&self, what: &str, harm: impl FnOnce(&Node)) -> u32 {
        let (node, ping) = (self.node(), self.pods[0].ping_running(self.pods[1].addr(), PING_MS));
        ping.wait_received(5);
        harm(&node);
        let start = Instant::now();
        wait_until(&format!("mended: {what}"), MENDED, || node.is_again(&self.before));
        wait_until("a port of no device, and its other settings are right", MENDED, || is_right(&node));
        let took = start.elapsed();
        ping.wait_received(5);
        let report = ping.stop();
        println!("{what}: mended in {took:?}, {} packets of {} lost", report.lost, report.sent);
        assert!(report.lost <= LOST, "{what}: {report:?}");
        report.lost
    }
}

/// Whether the device's settings are what the daemon makes them, apart from those in [`State`].
fn is_right(node: &Node) -> Result<(), String> {
    let shown = &node.ip_json("-d link show flannel.1").map_err(|error| format!("{error:#}"))?[0];
    let flags = shown["flags"].to_string();
    let vxlan = &shown["linkinfo"]["info_data"];
    let is_right = shown["master"].is_null()
        && shown["proto_down"].as_bool() != Some(true)
        && !flags.contains("NOARP")
        && vxlan["ttl"].as_u64().unwrap_or_default() == 0
        && vxlan["df"].as_str().unwrap_or("unset") == "unset";
    if is_right { Ok(()) } else { Err(shown.to_string()) }
}

/// Runs command lines on node 1, in each mode; `{mac}`, `{subnet}`, `{gateway}` and `{host}` are the peer's.
fn mended(commands: &[&str]) -> u32 {
    let mut lost = 0;
    for mode in MODES {
        let pair = Pair::new(mode);
        let lines: Vec<String> = commands.iter().map(|line| filled(line, &pair.peer)).collect();
        lost += pair.mends(&format!("{mode}: {}", lines.join("; ")), |node| {
            lines.iter().for_each(|line| run(node, line));
        });
    }
    lost
}

fn filled(line: &str, peer: &Peer) -> String {
    let line = line.replace("{mac}", &peer.mac).replace("{host}", &peer.public_ip.to_string());
    line.replace("{subnet}", &peer.subnet.to_string()).replace("{gateway}", &peer.subnet.network().to_string())
}

/// Runs a command that must work, but for one thing: `flush` says so when somebody refills the table under its hands.
fn run(node: &Node, line: &str) {
    match node.exec(line) {
        Err(error) if !format!("{error:#}").contains("bailing out") => panic!("{line}: {error:#}"),
        _ => {}
    }
}

#[test]
fn a_deleted_peer_route_comes_back() {
    mended(&["ip route del {subnet}"]);
}

#[test]
fn a_deleted_neighbour_comes_back() {
    mended(&["ip neigh del {gateway} dev flannel.1"]);
}

#[test]
fn a_neighbour_with_another_mac_is_set_right() {
    mended(&["ip neigh replace {gateway} lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent"]);
}

#[test]
fn a_neighbour_that_would_age_is_set_right() {
    mended(&["ip neigh replace {gateway} lladdr {mac} dev flannel.1 nud reachable"]);
}

#[test]
fn a_deleted_fdb_row_comes_back() {
    mended(&["bridge fdb del {mac} dev flannel.1 dst {host} self"]);
}

#[test]
fn an_fdb_row_with_another_host_is_set_right() {
    mended(&["bridge fdb replace {mac} dev flannel.1 dst 10.99.1.99 self permanent"]);
}

#[test]
fn a_second_host_for_a_mac_goes() {
    mended(&["bridge fdb append {mac} dev flannel.1 dst 10.99.1.99 self permanent"]);
}

#[test]
fn rows_that_nobody_asked_for_go() {
    let lost = mended(&[
        "bridge fdb add 02:00:00:00:00:98 dev flannel.1 dst 10.99.1.98 self permanent",
        "ip neigh add 10.5.222.0 lladdr 02:00:00:00:00:98 dev flannel.1 nud permanent",
        "ip route add 10.5.222.0/24 via 10.5.222.0 dev flannel.1 onlink proto 116",
    ]);
    assert_eq!(lost, 0);
}

#[test]
fn all_neighbours_flushed_come_back() {
    mended(&["ip neigh flush dev flannel.1 nud all"]);
}

#[test]
fn the_whole_fdb_flushed_comes_back() {
    mended(&["bridge fdb flush dev flannel.1 self permanent"]);
}

#[test]
fn all_tables_flushed_come_back() {
    mended(&[
        "ip route flush dev flannel.1",
        "ip neigh flush dev flannel.1 nud all",
        "bridge fdb flush dev flannel.1 self permanent",
    ]);
}

#[test]
fn all_routes_flushed_come_back() {
    mended(&["ip route flush dev flannel.1"]);
}

#[test]
fn the_base_route_comes_back() {
    let pair = Pair::new("--peer-mode=on-demand");
    let lost = pair.mends("base route", |node| run(node, "ip route del 10.5.0.0/16"));
    assert_eq!(lost, 0, "the peer's own route serves");
}

#[test]
fn a_deleted_address_comes_back() {
    mended(&["ip addr flush dev flannel.1"]);
}

#[test]
fn another_address_goes() {
    mended(&["ip addr add 10.5.99.1/24 dev flannel.1"]);
}

#[test]
fn the_device_set_down_comes_up_with_everything() {
    mended(&["ip link set flannel.1 down"]);
}

#[test]
fn the_device_set_down_and_up_has_everything() {
    mended(&["ip link set flannel.1 down", "ip link set flannel.1 up"]);
}

#[test]
fn the_device_keeps_its_mac() {
    mended(&["ip link set flannel.1 address 02:00:00:00:00:97"]);
}

#[test]
fn the_device_keeps_its_mtu() {
    mended(&["ip link set flannel.1 mtu 1300"]);
}

/// Without ARP no packet asks for a peer. The peer that is there has permanent rows; another one comes by a packet.
#[test]
fn the_device_keeps_arp_on() {
    for mode in MODES {
        let pair = Pair::new(mode);
        pair.mends(&format!("{mode}: arp off"), |node| run(node, "ip link set flannel.1 arp off"));
        let peer = recorded(130);
        pair.lab.put_peer(&peer);
        wait_until("a new peer is reached", MENDED, || {
            pair.pods[0].send(std::net::Ipv4Addr::from(u32::from(peer.subnet.network()) + 5));
            pair.node().holds_exactly(&[pair.peer.clone(), peer.clone()])
        });
    }
}

#[test]
fn the_device_keeps_its_carrier() {
    mended(&["ip link set flannel.1 protodown on"]);
}

/// Outer packets with a TTL of 1 reach no host behind a router.
#[test]
fn the_device_keeps_its_ttl() {
    mended(&["ip link set flannel.1 type vxlan ttl 1", "ip link set flannel.1 type vxlan df set"]);
}

/// A bridge would get all that the device receives.
#[test]
fn the_device_is_no_port_of_another_one() {
    mended(&["ip link add br9 type bridge", "ip link set br9 up", "ip link set flannel.1 master br9"]);
    let mut pair = Pair::new(MODES[0]);
    run(&pair.node(), "ip link add br9 type bridge");
    run(&pair.node(), "ip link set flannel.1 master br9");
    let words = ["another program changed or deleted the device", "a port of br9 (bridge)"];
    pair.daemons[0].wait_log(&words, PATIENCE);
    wait_until("it is a port no more", MENDED, || {
        pair.node().ip_json("link show flannel.1").unwrap()[0]["master"].is_null()
    });
}

#[test]
fn a_deleted_device_comes_back_with_its_mac_and_everything() {
    mended(&["ip link del flannel.1"]);
}

#[test]
fn a_renamed_device_comes_back_under_its_name() {
    // Linux renames devices that are up since 6.2.
    mended(&["ip link set flannel.1 name other"]);
}

#[test]
fn a_device_of_another_kind_in_our_place_is_left_alone_and_ours_follows_it() {
    let mut pair = Pair::new("--peer-mode=all");
    let node = pair.node();
    // The daemon would be there first.
    pair.daemons[0].signal(Signal::SIGSTOP);
    node.netns().ip_batch(["link del flannel.1", "link add flannel.1 type bridge"]).unwrap();
    pair.daemons[0].signal(Signal::SIGCONT);
    pair.daemons[0].wait_log(&["flannel.1", "bridge"], PATIENCE);
    let kind = node.ip_json("-d link show flannel.1").unwrap()[0]["linkinfo"]["info_kind"].clone();
    assert_eq!(kind, "bridge", "somebody else's device is not ours to remove");
    node.exec("ip link del flannel.1").unwrap();
    wait_until("the device is back", MENDED, || node.is_again(&pair.before));
    pair.pods[0].ping(pair.pods[1].addr()).unwrap();
}

#[test]
fn a_hundred_peers_are_back_after_each_way_to_lose_them() {
    for mode in MODES {
        let pair = Pair::new(mode);
        let node = pair.node();
        let peers: Vec<Peer> = (110..=209).map(recorded).collect();
        peers.iter().for_each(|peer| pair.lab.put_peer(peer));
        let all: Vec<Peer> = peers.iter().cloned().chain([pair.peer.clone()]).collect();
        wait_until("all are programmed", PATIENCE, || {
            if mode == "--peer-mode=on-demand" {
                // A packet for a subnet that is not known yet is refused.
                let pod = |peer: &Peer| std::net::Ipv4Addr::from(u32::from(peer.subnet.network()) + 5);
                peers.iter().for_each(|peer| pair.pods[0].send(pod(peer)));
            }
            node.holds_exactly(&all)
        });
        let pair = Pair { before: node.state().unwrap(), ..pair };
        for line in [
            "ip link del flannel.1",
            "ip link set flannel.1 down",
            "ip route flush dev flannel.1",
            "ip neigh flush dev flannel.1 nud all",
        ] {
            pair.mends(&format!("{mode}, 101 peers: {line}"), |node| run(node, line));
        }
    }
}

/// A peer that is only a record. From 110 on: nodes take one of the first hundred subnets that are free.
fn recorded(n: u8) -> Peer {
    Peer::new(&format!("10.5.{n}.0/24"), &format!("10.99.1.{n}"), &format!("02:00:00:00:01:{n:02x}"))
}
