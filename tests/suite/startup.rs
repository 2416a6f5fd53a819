//! A daemon's start: what it writes, to the byte, and what it says and does when something is missing or wrong.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::Value;
use twill_lab::{Lab, NODE_CONFIG, PREFIX, Peer, Twilld};

/// For states that take milliseconds on an idle machine, and for retries with a backoff of some seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// A lab with one node and the usual config.
fn one_node() -> Lab {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    lab
}

/// Starts a daemon that must end by itself, without success; returns its log.
#[track_caller]
fn must_fail(mut daemon: Twilld) -> String {
    let exit = daemon.wait_exit(PATIENCE);
    let code = exit.status.code();
    assert!(code.is_some_and(|c| c != 0), "it ended with {}, not with an exit code: {}", exit.status, daemon.log());
    daemon.log()
}

/// A config that is wrong until it is mended: the daemon says all of `words` in one line, waits, and goes on.
#[track_caller]
fn waits_for_a_better_config(bad: &str, words: &[&str]) {
    let lab = Lab::with_nodes(1);
    lab.put_config(bad);
    let mut daemon = lab.node(1).twilld(&[]);
    daemon.wait_log(words, PATIENCE);
    assert!(daemon.runs() && !lab.node(1).subnet_file().exists());
    assert_eq!(lab.records(), []);
    lab.put_config(NODE_CONFIG);
    daemon.wait_ready();
}

#[test]
fn the_record_is_flannel_s_to_the_byte() {
    let lab = one_node();
    let _daemon = lab.start_all(&[]);
    let expected = lab.node(1).as_peer();
    let [record] = lab.records().try_into().unwrap();
    assert_eq!(record.key, expected.key());
    // Twill's own fields may follow flannel's, which every agent ignores.
    let flannel_s = expected.record();
    let start = flannel_s.strip_suffix('}').unwrap();
    let rest = record.value.strip_prefix(start).unwrap_or_else(|| panic!("{} is not {flannel_s}", record.value));
    assert!(rest == "}" || rest.starts_with(','), "{}", record.value);
    serde_json::from_str::<Value>(&record.value).unwrap();
    assert_ne!(record.lease, 0, "the record has no lease");
    assert_eq!(lab.lease_ttl(record.lease).unwrap(), Duration::from_secs(86400));
}

#[test]
fn subnet_env_is_flannel_s_to_the_byte() {
    let lab = one_node();
    let _daemon = lab.start_all(&[]);
    let file = lab.node(1).subnet_file();
    let subnet = lab.node(1).as_peer().subnet;
    let gateway = subnet.nth(1).unwrap();
    let expected =
        format!("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET={gateway}/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n");
    assert_eq!(fs::read_to_string(&file).unwrap(), expected);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o644);
    let beside: Vec<_> = fs::read_dir(file.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(beside, ["subnet.env"], "a file made for the atomic write was left");
}

#[test]
fn the_device_is_flannel_s() {
    let lab = one_node();
    let _daemon = lab.start_all(&[]);
    let node = lab.node(1);
    let link = node.ip_json("-d link show dev flannel.1").unwrap();
    let data = &link[0]["linkinfo"]["info_data"];
    assert_eq!(link[0]["mtu"], 1450);
    assert_eq!((&data["id"], &data["link"], &data["port"]), (&1.into(), &"eth0".into(), &8472.into()));
    assert_eq!(data["local"], node.addr().to_string());
    assert_eq!(data["learning"], false);
    let addrs = node.ip_json("-4 addr show dev flannel.1").unwrap();
    let own = &addrs[0]["addr_info"][0];
    let first = node.as_peer().subnet.network().to_string();
    assert_eq!((&own["local"], &own["prefixlen"]), (&first.into(), &32.into()));
}

#[test]
fn subnets_differ_and_lie_in_the_network() {
    let lab = Lab::with_nodes(3);
    lab.put_config(r#"{"Network":"10.6.0.0/16","SubnetLen":26,"SubnetMin":"10.6.3.0","Backend":{"Type":"vxlan"}}"#);
    let _daemons = lab.start_all(&[]);
    let mut subnets: Vec<_> = lab.nodes().iter().map(|n| n.as_peer().subnet).collect();
    subnets.sort();
    subnets.dedup();
    assert_eq!(subnets.len(), 3, "{subnets:?}");
    let min = Ipv4Addr::new(10, 6, 3, 0);
    assert!(subnets.iter().all(|s| s.prefix() == 26 && s.network() >= min), "{subnets:?}");
}

#[test]
fn a_node_that_lost_its_daemon_s_files_keeps_its_subnet() {
    let lab = one_node();
    let mut daemons = lab.start_all(&[]);
    let before = lab.node(1).as_peer();
    assert!(daemons[0].terminate().status.success());
    fs::remove_file(lab.node(1).subnet_file()).unwrap();
    let _daemons = lab.start_all(&[]);
    assert_eq!(lab.node(1).as_peer(), before);
    assert_eq!(lab.records().len(), 1);
}

#[test]
fn no_config_yet_waits_for_it() {
    let lab = Lab::with_nodes(1);
    let mut daemon = lab.node(1).twilld(&[]);
    daemon.wait_log(&["/coreos.com/network/config"], PATIENCE);
    assert!(daemon.runs());
    lab.put_config(NODE_CONFIG);
    daemon.wait_ready();
}

#[test]
fn another_prefix_is_another_network() {
    let lab = one_node();
    lab.put("/other/config", r#"{"Network":"10.7.0.0/16"}"#);
    let mut daemon = lab.node(1).twilld(&["--etcd-prefix=/other"]);
    daemon.wait_ready();
    assert_eq!(lab.records(), []);
    let subnet = lab.node(1).as_peer().subnet.network().to_string();
    assert!(subnet.starts_with("10.7."), "{subnet}");
    assert!(lab.get(&format!("/other/subnets/{subnet}-24")).is_some());
}

#[test]
fn a_config_that_is_not_json() {
    waits_for_a_better_config("{\"Network\": 10.5", &["/coreos.com/network/config"]);
}

#[test]
fn a_config_without_a_network() {
    waits_for_a_better_config(r#"{"Backend":{"Type":"vxlan"}}"#, &["/coreos.com/network/config", "Network"]);
}

#[test]
fn a_config_with_a_wrong_network() {
    waits_for_a_better_config(r#"{"Network":"10.5.0.0/99"}"#, &["Network", "10.5.0.0/99"]);
}

#[test]
fn a_config_with_a_subnet_length_that_does_not_fit() {
    waits_for_a_better_config(r#"{"Network":"10.5.0.0/16","SubnetLen":17}"#, &["SubnetLen", "17", "18"]);
}

#[test]
fn a_config_for_another_backend() {
    let bad = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}}"#;
    waits_for_a_better_config(bad, &["wireguard", "vxlan", "host-gw", "alloc"]);
}

#[test]
fn an_interface_that_is_not_there_ends_it() {
    let lab = one_node();
    let log = must_fail(lab.node(1).twilld(&["--iface=nosuch"]));
    assert!(log.contains("nosuch"), "{log}");
    assert_eq!(lab.records(), [], "a lease was taken for a node that can't serve it");
}

#[test]
fn a_config_that_covers_the_nodes_own_address_is_waited_out_and_says_what_to_change() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let address = node.addr();
    let reason = format!("{address} lies in the network's leased range 10.64.1.0 to 10.127.255.255");
    let expected = format!("Network: 10.64.0.0/10: expected one that leaves out {address}");
    for flag in
        [&format!("--iface={address}"), "--iface=eth0", "--iface-regex=^eth", "--iface-can-reach=10.99.0.1", "-v=0"]
    {
        lab.put_config(r#"{"Network":"10.64.0.0/10"}"#);
        let mut daemon = node.twilld(&[flag, "--peer-mode=all"]);
        let words = [
            "the network config /coreos.com/network/config is not usable on this node",
            &expected,
            &reason,
            "SubnetMin or SubnetMax in the network config",
            "another interface",
        ];
        daemon.wait_log(&words, PATIENCE);
        assert_eq!(lab.records(), [], "a lease was taken for a node that can't serve it");
        let refusal = node.cni("ADD").unwrap_err();
        assert!(refusal.contains(&expected), "{refusal}");
        // Another one that is no better, and none.
        lab.put_config(r#"{"Network":"10.96.0.0/12"}"#);
        daemon.wait_log(&["Network: 10.96.0.0/12: expected one that leaves out"], PATIENCE);
        lab.delete("/coreos.com/network/config");
        daemon.wait_log(&["no network config yet"], PATIENCE);
        assert!(daemon.runs());
        lab.put_config(NODE_CONFIG);
        daemon.wait_ready();
        daemon.terminate();
        lab.delete(&node.as_peer().key());
        fs::remove_file(node.subnet_file()).unwrap();
    }
}

#[test]
fn a_config_that_covers_what_peers_are_told_or_the_base_route_would_is_waited_out() {
    for (flag, config, words) in [
        (
            "--public-ip=10.64.7.7",
            r#"{"Network":"10.64.0.0/16"}"#,
            "the public address 10.64.7.7 lies in the network's",
        ),
        (
            "--peer-mode=on-demand",
            r#"{"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.90.0.0"}"#,
            "10.99.0.11 of eth0 lies in the network 10.0.0.0/8",
        ),
    ] {
        let lab = Lab::with_nodes(1);
        lab.put_config(config);
        let mut daemon = lab.node(1).twilld(&[flag]);
        daemon.wait_log(&["is not usable on this node: Network: 10.", words], PATIENCE);
        assert_eq!(lab.records(), []);
        lab.put_config(NODE_CONFIG);
        daemon.wait_ready();
    }
}

#[test]
fn an_interface_that_leads_back_to_this_host_ends_it() {
    let lab = one_node();
    let log = must_fail(lab.node(1).twilld(&["--iface=lo"]));
    assert!(log.contains("127.0.0.1 is a loopback address"), "{log}");
    assert_eq!(lab.records(), []);
}

#[test]
fn without_net_admin_it_ends_and_says_so() {
    let lab = one_node();
    let unprivileged = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"];
    let log = must_fail(lab.node(1).twilld_under(&unprivileged, &[]));
    assert!(log.contains("NET_ADMIN"), "{log}");
    assert_eq!(lab.records(), []);
}

#[test]
fn an_unknown_flag_ends_it() {
    let lab = one_node();
    let log = must_fail(lab.node(1).twilld(&["--no-such-flag"]));
    assert!(log.contains("--no-such-flag"), "{log}");
}

#[test]
fn an_unknown_peer_mode_ends_it_and_names_the_two() {
    let lab = one_node();
    let log = must_fail(lab.node(1).twilld(&["--peer-mode=some"]));
    assert!(log.contains("on-demand") && log.contains("all"), "{log}");
}

#[test]
fn an_unreachable_etcd_is_waited_for() {
    let lab = one_node();
    lab.etcd().kill();
    let mut daemon = lab.node(1).twilld(&[]);
    daemon.wait_log(&["etcd", "10.99.0.1:2379"], PATIENCE);
    assert!(daemon.runs());
    lab.etcd().start();
    daemon.wait_ready();
}

#[test]
fn a_scheme_that_is_not_etcd_s_is_named_with_what_to_write() {
    let lab = one_node();
    let mut daemon = lab.node(1).twilld(&["--etcd-endpoints=https://10.99.0.1:2379"]);
    daemon
        .wait_log(&["etcd at https://10.99.0.1:2379 does not speak TLS: write http:// in --etcd-endpoints"], PATIENCE);
    assert!(daemon.runs());
}

#[test]
fn a_hung_etcd_is_waited_for() {
    let lab = one_node();
    lab.etcd().pause();
    let mut daemon = lab.node(1).twilld(&[]);
    daemon.wait_log(&["etcd", "10.99.0.1:2379"], PATIENCE);
    lab.etcd().resume();
    daemon.wait_ready();
}

#[test]
fn a_full_network_is_waited_for() {
    let lab = Lab::with_nodes(1);
    lab.put_config(r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.2.0"}"#);
    let taken = [
        Peer::new("10.5.1.0/24", "10.99.1.1", "02:00:00:00:00:01"),
        Peer::new("10.5.2.0/24", "10.99.1.2", "02:00:00:00:00:02"),
    ];
    taken.iter().for_each(|peer| lab.put_peer(peer));
    let mut daemon = lab.node(1).twilld(&[]);
    daemon.wait_log(&["no free subnet"], PATIENCE);
    assert!(daemon.runs());
    lab.delete(&taken[1].key());
    daemon.wait_ready();
    assert_eq!(lab.node(1).as_peer().subnet, taken[1].subnet);
    assert_eq!(lab.get(&taken[0].key()).unwrap().value, taken[0].record());
    assert_eq!(lab.get(&format!("{PREFIX}/subnets/10.5.2.0-24")).unwrap().key, taken[1].key());
}
