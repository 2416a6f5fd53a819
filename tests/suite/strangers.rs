//! Rows of other programs that lead a peer's packets astray: on our device they go at once, elsewhere they are named.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::net::Ipv4Addr;
use std::time::Duration;

use twill_lab::{Lab, NODE_CONFIG, Node, Peer, Pod, State, Twilld, wait_until};

#[path = "strangers_rules.rs"]
mod rules;

const MODES: [&str; 2] = ["--peer-mode=all", "--peer-mode=on-demand"];
/// For states that take milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// How soon everything is right again, also on a busy machine: the comparison of each minute would take up to 60 s.
const MENDED: Duration = Duration::from_secs(15);

/// What contradicts the records on our device; `{subnet}`, `{gateway}`, `{pod}`, `{mac}` and `{host}` are the peer's, `{own}`
/// is a pod of this node.
const ON_OUR_DEVICE: [&str; 19] = [
    "ip route replace {subnet} via 10.5.250.0 dev flannel.1 onlink",
    "ip route replace {subnet} via 10.5.250.0 dev flannel.1 onlink metric 7 proto static",
    "ip route append {subnet} via 10.5.250.0 dev flannel.1 onlink proto kernel metric 20000",
    "ip route replace {subnet} dev flannel.1 proto static",
    "ip route replace {pod}/32 via 10.5.250.0 dev flannel.1 onlink",
    "ip route replace {pod}/32 dev flannel.1 proto bird",
    "ip route replace {gateway}/25 via 10.5.250.0 dev flannel.1 onlink proto bgp metric 5",
    "ip route replace 10.5.0.0/17 via 10.5.250.0 dev flannel.1 onlink",
    "ip route replace 10.5.0.0/16 via 10.5.250.0 dev flannel.1 onlink metric 0",
    "ip route replace {own}/32 dev flannel.1 proto static",
    "ip neigh replace {pod} lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent",
    "ip neigh replace {pod} lladdr 02:00:00:00:00:99 dev flannel.1 nud noarp",
    "ip neigh replace {pod} lladdr 02:00:00:00:00:99 dev flannel.1 nud reachable",
    "ip neigh replace {gateway} lladdr 02:00:00:00:00:99 dev flannel.1 nud noarp",
    "bridge fdb append {mac} dev flannel.1 dst 10.99.1.99 self permanent",
    "bridge fdb replace {mac} dev flannel.1 dst 10.99.1.99 self dynamic",
    "bridge fdb replace {mac} dev flannel.1 dst {host} port 4790 self permanent",
    "bridge fdb append {mac} dev flannel.1 dst {host} port 4791 self permanent",
    "bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 10.99.1.99 self permanent",
];

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
        let (lab, daemons, pods) = Lab::running(2, NODE_CONFIG, &[mode]);
        let pods: [Pod; 2] = pods.try_into().unwrap();
        pods[0].ping(pods[1].addr()).unwrap();
        let (node, peer) = (lab.node(1), lab.node(2).as_peer());
        wait_until("node 1 holds node 2", PATIENCE, || node.holds_exactly(std::slice::from_ref(&peer)));
        let before = node.state().unwrap();
        let said = daemons[0].lines(&["contradicted the records"]);
        assert!(said.is_empty(), "what we write ourselves is no stranger's: {said:?}");
        Self { lab, daemons, pods, peer, before }
    }

    fn node(&self) -> Node {
        self.lab.node(1)
    }

    fn filled(&self, line: &str) -> String {
        let Peer { subnet, public_ip, mac } = &self.peer;
        line.replace("{mac}", mac)
            .replace("{host}", &public_ip.to_string())
            .replace("{subnet}", &subnet.to_string())
            .replace("{gateway}", &subnet.network().to_string())
            .replace("{pod}", &self.pods[1].addr().to_string())
            .replace("{own}", &self.pods[0].addr().to_string())
    }

    #[track_caller]
    fn run(&self, line: &str) {
        let line = self.filled(line);
        self.node().exec(&line).unwrap_or_else(|error| panic!("{line}: {error:#}"));
    }

    /// All is as before, and the pods reach each other both ways.
    #[track_caller]
    fn is_mended(&self, what: &str) {
        wait_until(&format!("mended: {}", self.filled(what)), MENDED, || self.node().is_again(&self.before));
        self.pods[0].ping(self.pods[1].addr()).unwrap();
        self.pods[1].ping(self.pods[0].addr()).unwrap();
    }

    fn restart(&mut self, mode: &str) {
        self.daemons[0] = self.node().twilld(&[mode]);
    }
}

#[test]
fn what_contradicts_the_records_on_our_device_goes_at_once() {
    for mode in MODES {
        let mut pair = Pair::new(mode);
        for line in ON_OUR_DEVICE {
            pair.run(line);
            pair.is_mended(line);
        }
        for (what, row) in [
            ("a route", "{subnet} via 10.5.250.0 dev flannel.1 onlink proto boot metric 0"),
            ("a neighbour", "{pod} dev flannel.1 lladdr 02:00:00:00:00:99"),
            ("an FDB row", "{mac} dev flannel.1 dst 10.99.1.99"),
        ] {
            let words = format!("{what} of another program contradicted the records, mended");
            let row = pair.filled(row);
            pair.daemons[0].wait_log(&[&words, &row], PATIENCE);
            let warned = pair.daemons[0].lines(&["WARN", &words]);
            let counted = pair.daemons[0].lines(&["WARN", "more times"]);
            assert!(
                warned.len() <= ON_OUR_DEVICE.len() && counted.len() <= ON_OUR_DEVICE.len(),
                "{warned:?} {counted:?}"
            );
        }
        assert!(pair.daemons[0].runs());
    }
}

#[test]
fn what_came_while_no_daemon_ran_is_gone_when_the_next_one_is_ready() {
    for mode in MODES {
        let mut pair = Pair::new(mode);
        for line in ON_OUR_DEVICE {
            pair.daemons[0].kill();
            pair.run(line);
            pair.restart(mode);
            pair.daemons[0].wait_ready();
            pair.is_mended(line);
        }
    }
}

#[test]
fn on_demand_a_row_that_waits_for_the_first_packet_goes_too() {
    let (lab, mut daemons, pods) = Lab::running(2, NODE_CONFIG, &[MODES[1]]);
    let (node, peer, far) = (lab.node(1), lab.node(2).as_peer(), pods[1].addr());
    for line in [
        format!("ip neigh add {far} lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent"),
        format!("ip route add {} via 10.5.250.0 dev flannel.1 onlink", peer.subnet),
        format!("bridge fdb add {} dev flannel.1 dst 10.99.1.99 self dynamic", peer.mac),
    ] {
        node.exec(&line).unwrap();
        wait_until(&format!("gone: {line}"), MENDED, || {
            let rows = format!("{:?} {:?} {:?}", node.neighbours(), node.peer_routes(), node.fdb());
            held(!["00:00:99", "10.5.250.0", "10.99.1.99"].iter().any(|wrong| rows.contains(wrong)), rows)
        });
    }
    pods[0].ping(far).unwrap();
    node.holds_exactly(std::slice::from_ref(&peer)).unwrap();
    assert!(daemons.iter_mut().all(Twilld::runs));
}

/// What a wait asks for, and what there is instead.
fn held(holds: bool, instead: impl std::fmt::Debug) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{instead:?}")) }
}

#[test]
fn what_is_left_alone_in_an_unleased_block_goes_when_its_record_comes() {
    for mode in MODES {
        let mut pair = Pair::new(mode);
        let rows = [
            "ip route add 10.5.241.7/32 via 10.5.241.9 dev flannel.1 onlink proto static",
            "ip neigh add 10.5.241.9 lladdr 02:00:00:00:09:01 dev flannel.1 nud permanent",
        ];
        rows.iter().for_each(|line| pair.run(line));
        // Another row is mended meanwhile, so the daemon has seen these.
        pair.run(ON_OUR_DEVICE[0]);
        pair.daemons[0].wait_log(&["contradicted the records", "10.5.250.0"], PATIENCE);
        let shown = |pair: &Pair| {
            let shown = pair.node().exec("ip route show").unwrap() + &pair.node().exec("ip neigh show").unwrap();
            [shown.contains("10.5.241.7 via 10.5.241.9"), shown.contains("10.5.241.9 dev flannel.1")]
        };
        assert_eq!(shown(&pair), [true; 2]);
        let newcomer = Peer::new("10.5.241.0/24", "10.99.1.241", "02:00:00:00:01:f1");
        pair.lab.put_peer(&newcomer);
        wait_until("they are gone", MENDED, || held(shown(&pair) == [false; 2], shown(&pair)));
        pair.pods[0].send(Ipv4Addr::new(10, 5, 241, 7));
        wait_until("the peer is programmed", PATIENCE, || {
            pair.pods[0].send(Ipv4Addr::new(10, 5, 241, 7));
            pair.node().holds_exactly(&[pair.peer.clone(), newcomer.clone()])
        });
    }
}

/// Somebody puts a row back as often as it is removed.
#[test]
fn a_fight_is_few_lines_and_ends_as_the_records_want_it() {
    let pair = Pair::new(MODES[0]);
    let line = pair.filled("route replace {subnet} via 10.5.250.0 dev flannel.1 onlink");
    for _ in 0..20 {
        pair.node().netns().ip_batch(std::iter::repeat_n(line.clone(), 20)).unwrap();
    }
    pair.is_mended("a fight");
    let said = pair.daemons[0].lines(&["WARN", "contradicted the records"]);
    assert!((1..=6).contains(&said.len()), "{} lines: {said:?}", said.len());
}

/// What goes before our route to a peer and is not on our device: the command, how the log names it, and in which modes it
/// goes before.
const ELSEWHERE: [(&str, &str, &str, &[usize]); 7] = [
    (
        "{subnet} via 10.99.0.1 dev eth0 proto static",
        "peer {subnet}",
        "{subnet} via 10.99.0.1 dev eth0 proto static metric 0",
        &[0, 1],
    ),
    ("{pod}/32 dev eth0 metric 9000", "peer {subnet}", "{pod}/32 dev eth0 proto boot metric 9000", &[0, 1]),
    ("unreachable {pod}/32", "peer {subnet}", "unreachable {pod}/32 proto boot metric 0", &[0, 1]),
    ("blackhole {subnet} metric 3", "peer {subnet}", "blackhole {subnet} proto boot metric 3", &[0, 1]),
    ("prohibit {subnet} proto bgp", "peer {subnet}", "prohibit {subnet} proto bgp metric 0", &[0, 1]),
    ("throw {subnet}", "peer {subnet}", "throw {subnet} proto boot metric 0", &[0, 1]),
    (
        "10.5.0.0/17 via 10.99.0.1 dev eth0",
        "peers in 10.5.0.0/17",
        "10.5.0.0/17 via 10.99.0.1 dev eth0 proto boot metric 0",
        &[1],
    ),
];

#[test]
fn a_route_elsewhere_that_goes_before_ours_is_named_and_left_and_the_node_is_not_ready() {
    for (number, mode) in MODES.into_iter().enumerate() {
        let mut pair = Pair::new(mode);
        for (route, part, shown, modes) in ELSEWHERE {
            pair.run(&format!("ip route add {route}"));
            let named = pair.filled(&format!("{part}: a route of another program, `{shown}`, goes before ours"));
            if !modes.contains(&number) {
                pair.run(&format!("ip route del {route}"));
                assert!(pair.daemons[0].lines(&[&named]).is_empty());
                continue;
            }
            pair.daemons[0].wait_log(&["WARN", "not ready", &named], PATIENCE);
            // As a daemon that starts has it.
            pair.daemons[0].kill();
            pair.restart(mode);
            pair.daemons[0].wait_log(&["WARN", &named], PATIENCE);
            assert!(pair.daemons[0].lines(&["INFO", " ready"]).is_empty(), "{}", pair.daemons[0].log());
            pair.run(&format!("ip route del {route}"));
            pair.daemons[0].wait_ready();
            pair.is_mended(route);
        }
    }
}

#[test]
fn a_route_elsewhere_that_takes_nothing_from_a_peer_is_no_matter() {
    for mode in MODES {
        let mut pair = Pair::new(mode);
        for route in [
            // To the very host, without a tunnel.
            "{subnet} via {host} dev eth0 metric 5",
            // Behind ours.
            "{subnet} via 10.99.0.1 dev eth0 metric 40000",
            // Nobody's, a larger net's, and this node's own pods'.
            "10.5.243.0/24 via 10.99.0.1 proto static",
            "10.0.0.0/8 via 10.99.0.1",
            "{own}/32 dev cni0",
            "unreachable 10.6.0.0/16",
        ] {
            pair.run(&format!("ip route add {route}"));
        }
        // Its record comes: now it is somebody's.
        let newcomer = Peer::new("10.5.243.0/24", "10.99.1.243", "02:00:00:00:01:f3");
        assert!(pair.daemons[0].lines(&["goes before ours"]).is_empty(), "{}", pair.daemons[0].log());
        pair.lab.put_peer(&newcomer);
        pair.daemons[0]
            .wait_log(&["not ready", "peer 10.5.243.0/24", "10.5.243.0/24 via 10.99.0.1 dev eth0"], PATIENCE);
        let named = pair.daemons[0].lines(&["goes before ours"]);
        assert!(named.iter().all(|line| line.contains("10.5.243.0/24")), "{named:?}");
        let ready = pair.daemons[0].lines(&["INFO", " ready"]).len();
        pair.lab.delete(&newcomer.key());
        wait_until("ready again", PATIENCE, || held(pair.daemons[0].lines(&["INFO", " ready"]).len() > ready, ()));
        pair.pods[0].ping(pair.pods[1].addr()).unwrap();
    }
}

/// A node that has lost its subnet keeps the pods' bridge with an address of it, until its operator removes that.
#[test]
fn the_bridge_of_a_former_subnet_is_named_and_does_not_keep_a_node_from_being_ready() {
    let mut pair = Pair::new(MODES[1]);
    for (address, shown, blocks) in [("{gateway}/24", "{subnet}", false), ("{gateway}/25", "{gateway}/25", true)] {
        pair.run("ip link add br9 type bridge");
        pair.run("ip link set br9 up");
        pair.run(&format!("ip addr add {address} dev br9"));
        let named = pair.filled(&format!(
            "peer {{subnet}}: a route of an address of this host, `{shown} dev br9 proto kernel metric 0`, goes before ours"
        ));
        let advice = if blocks { "give it a higher metric" } else { "once its pods are gone: ip link del br9" };
        pair.daemons[0].wait_log(&["WARN", &named, advice], PATIENCE);
        if blocks {
            pair.daemons[0].wait_log(&["not ready", &named], PATIENCE);
        }
        pair.daemons[0].kill();
        pair.restart(MODES[1]);
        pair.daemons[0].wait_log(&["WARN", &named], PATIENCE);
        if !blocks {
            pair.daemons[0].wait_ready();
        }
        pair.run("ip link del br9");
        pair.daemons[0].wait_ready();
        pair.pods[0].ping(pair.pods[1].addr()).unwrap();
    }
}

/// What is no bridge of pods was never ours: an address on it takes the peer's packets, and this node cannot run pods.
#[test]
fn an_address_of_a_peer_s_subnet_on_another_device_is_named_and_the_node_is_not_ready() {
    let on_eth0 = ["ip addr add {pod}/24 dev eth0", "ip addr del {pod}/24 dev eth0"];
    let on_a_bridge_of_hosts = [
        "ip tuntap add tap9 mode tap",
        "ip link add br9 type bridge",
        "ip link set tap9 master br9",
        "ip link set br9 up",
        "ip addr add {pod}/24 dev br9",
        "ip link del br9",
    ];
    for (mode, device, lines) in
        [(MODES[0], "eth0", &on_eth0[..]), (MODES[1], "eth0", &on_eth0), (MODES[0], "br9", &on_a_bridge_of_hosts)]
    {
        let mut pair = Pair::new(mode);
        let (undo, harm) = lines.split_last().unwrap();
        harm.iter().for_each(|line| pair.run(line));
        let named = pair.filled(&format!(
            "peer {{subnet}}: a route of an address of this host, `{{subnet}} dev {device} proto kernel metric 0`, goes before ours"
        ));
        pair.daemons[0].wait_log(&["WARN not ready", &named], PATIENCE);
        pair.run(undo);
        wait_until("ready again", PATIENCE, || {
            let last = pair.daemons[0].lines(&["ready"]).pop().unwrap();
            held(!last.contains("not ready"), last)
        });
        pair.pods[0].ping(pair.pods[1].addr()).unwrap();
    }
}

/// The second family has its own device, tables and metrics.
#[test]
fn ipv6_is_guarded_like_ipv4() {
    let config = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"vxlan"}}"#;
    for mode in MODES {
        let (lab, mut daemons, pods) = Lab::running(2, config, &[mode]);
        let (node, far) = (lab.node(1), pods[1].addr6().unwrap());
        pods[0].ping(far).unwrap();
        let subnet = lab.node(2).subnet_env().unwrap().ipv6_subnet.unwrap();
        let (net, mac) = (format!("{}/64", subnet.network()), lab.node(2).link("flannel-v6.1").unwrap().mac);
        let before = node.state_of("flannel-v6.1").unwrap();
        for line in [
            format!("ip -6 route replace {net} via fc00:0:0:fafa:: dev flannel-v6.1 onlink metric 1"),
            format!("ip -6 route append {net} via fc00:0:0:fafa:: dev flannel-v6.1 onlink metric 900"),
            format!("ip -6 route replace {far}/128 dev flannel-v6.1 proto static"),
            "ip -6 route replace fc00::/52 via fc00:0:0:fafa:: dev flannel-v6.1 onlink".to_owned(),
            format!("ip -6 neigh replace {far} lladdr 02:00:00:00:00:99 dev flannel-v6.1 nud permanent"),
            format!("bridge fdb append {mac} dev flannel-v6.1 dst fd99::99 self permanent"),
            "bridge fdb append 00:00:00:00:00:00 dev flannel-v6.1 dst fd99::99 self permanent".to_owned(),
        ] {
            node.exec(&line).unwrap_or_else(|error| panic!("{line}: {error:#}"));
            wait_until(&format!("mended: {line}"), MENDED, || node.is_again(&before));
            pods[0].ping(far).unwrap();
        }
        node.exec(&format!("ip -6 route add {net} via fd99::1 dev eth0 metric 3")).unwrap();
        let named = format!("peer {net}: a route of another program, `{net} via fd99::1 dev eth0 proto boot metric 3`");
        daemons[0].wait_log(&["not ready", &named], PATIENCE);
        node.exec(&format!("ip -6 route del {net} via fd99::1 dev eth0 metric 3")).unwrap();
        wait_until("ready again", PATIENCE, || {
            let last = daemons[0].lines(&["ready"]).pop().unwrap();
            held(!last.contains("not ready"), last)
        });
        pods[0].ping(far).unwrap();
    }
}
