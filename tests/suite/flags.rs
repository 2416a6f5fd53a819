//! Flags and variables through the real binary, and what it ends with.

use std::fs;

use twill_lab::{Lab, NODE_CONFIG, Node, PREFIX, Twilld, wait_until};

use crate::PATIENCE;

/// Waits for the end of a daemon that does not come up; its exit code and what it printed.
#[track_caller]
fn ended(mut daemon: Twilld) -> (i32, String) {
    let exit = daemon.wait_exit(PATIENCE);
    (exit.status.code().unwrap_or_else(|| panic!("it ended with {}", exit.status)), daemon.log())
}

/// A lab with one node and the usual config.
fn one_node() -> Lab {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    lab
}

/// Starts a daemon with `args`, waits until it is ready and stops it; what its device hangs on, its local address, and
/// the log.
#[track_caller]
fn underlay(node: &Node, args: &[&str]) -> (String, String, String) {
    let mut daemon = node.twilld(args);
    daemon.wait_ready();
    let link = node.ip_json("-d link show dev flannel.1").unwrap();
    let data = &link[0]["linkinfo"]["info_data"];
    let text = |key: &str| data[key].as_str().unwrap_or_default().to_owned();
    assert!(daemon.terminate().status.success());
    (text("link"), text("local"), daemon.log())
}

#[test]
fn help_shows_the_groups_and_the_exit_codes() {
    let lab = Lab::with_nodes(1);
    let (code, help) = ended(lab.node(1).twilld(&["-help"]));
    assert_eq!(code, 0);
    let mut from = 0;
    for part in ["etcd:", "The interface:", "Masquerade", "Health:", "Twill's own:", "--peer-mode", "Exit codes:"] {
        from += help[from..].find(part).unwrap_or_else(|| panic!("no {part} in its place in\n{help}"));
    }
    for flag in ["--etcd-endpoints", "--iface-can-reach", "--ip-masq-fully-random-disable", "--ip-blackhole-route"] {
        assert!(help.contains(flag), "no {flag} in\n{help}");
    }
    let (code, version) = ended(lab.node(1).twilld(&["-version"]));
    assert!(code == 0 && version.starts_with("twilld "), "{version}");
}

#[test]
fn a_wrong_command_line_ends_it_with_2_and_says_what_is_right() {
    let lab = Lab::with_nodes(1);
    for (arg, words) in [
        ("--etcd-endpoint=http://x", ["--etcd-endpoint", "--etcd-endpoints"]),
        ("--subnet-lease-renew-margin=1440", ["1440", "1..=1439"]),
        ("--public-ip=eth0", ["eth0", "IPv4 address"]),
        ("-healthz-port=http", ["http", "--healthz-port"]),
        ("--iptables-resync=0", ["0", "--iptables-resync"]),
        ("--kube-subnet-mgr", ["--kube-subnet-mgr", "--etcd-endpoints"]),
        ("--ip-masq=maybe", ["--ip-masq", "true or false"]),
    ] {
        let (code, text) = ended(lab.node(1).twilld(&[arg]));
        assert_eq!(code, 2, "{arg}: {text}");
        assert!(words.iter().all(|word| text.contains(word)), "{arg}: {text}");
    }
    let (code, text) = ended(lab.node(1).twilld_under(&["env", "FLANNELD_HEALTHZ_PORT=x"], &[]));
    assert!(code == 2 && text.contains("FLANNELD_HEALTHZ_PORT"), "{text}");
}

#[test]
fn what_it_cannot_do_ends_it_with_1() {
    let lab = one_node();
    let (code, text) = ended(lab.node(1).twilld(&["--iface=nosuch", "--iface-regex=^wl"]));
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("--iface nosuch") && text.contains("--iface-regex ^wl") && text.contains("eth0"), "{text}");
}

#[test]
fn a_lost_subnet_ends_it_with_3() {
    let lab = one_node();
    let [mut daemon] = lab.start_all(&[]).try_into().unwrap();
    let mut other = lab.node(1).as_peer();
    other.public_ip = "10.99.0.77".parse().unwrap();
    lab.take_subnet(&mut daemon, &other);
    assert_eq!(daemon.wait_exit(PATIENCE).status.code(), Some(3), "{}", daemon.log());
    assert!(daemon.log().contains("10.99.0.77"), "{}", daemon.log());
}

#[test]
fn all_of_it_by_variables() {
    let lab = one_node();
    let node = lab.node(1);
    lab.put("/net/config", r#"{"Network":"10.7.0.0/16"}"#);
    let file = node.run_dir().join("other.env");
    let variables = [
        format!("FLANNELD_ETCD_ENDPOINTS={}", lab.etcd().url()),
        "FLANNELD_ETCD_PREFIX=/net".to_owned(),
        format!("FLANNELD_SUBNET_FILE={}", file.display()),
        "FLANNELD_IFACE=eth0".to_owned(),
        "FLANNELD_IFACE_REGEX=".to_owned(),
        "FLANNELD_PUBLIC_IP=192.0.2.7".to_owned(),
        "FLANNELD_IP_MASQ=true".to_owned(),
        "FLANNELD_IP_MASQ_FULLY_RANDOM_DISABLE=1".to_owned(),
        "FLANNELD_IPTABLES_FORWARD_RULES=false".to_owned(),
        "FLANNELD_SUBNET_LEASE_RENEW_MARGIN=120".to_owned(),
        "FLANNELD_PEER_MODE=all".to_owned(),
        "FLANNELD_V=4".to_owned(),
    ];
    // `$0` is the program; the arguments that the lab gives it are left out.
    let line = format!("exec env {} \"$0\"", variables.join(" "));
    let mut daemon = node.twilld_under(&["sh", "-c", &line], &[]);
    daemon.wait_log(&["info ready"], PATIENCE);
    let env = fs::read_to_string(&file).unwrap();
    assert!(env.contains("FLANNEL_NETWORK=10.7.0.0/16") && env.contains("FLANNEL_IPMASQ=true"), "{env}");
    let records = lab.etcdctl(&["get", "--prefix", "/net/subnets/"]).unwrap();
    assert!(records.contains(r#""PublicIP":"192.0.2.7""#), "{records}");
    let rules = node.exec("nft list table ip twill.1").unwrap();
    assert!(rules.contains("masquerade") && !rules.contains("fully-random"), "{rules}");
    assert!(!rules.contains("chain forward"), "{rules}");
    assert_eq!(lab.records(), [], "something was written under {PREFIX}");
}

#[test]
fn a_flag_goes_before_its_variable() {
    let lab = one_node();
    let mut daemon = lab.node(1).twilld_under(
        &["env", "FLANNELD_IFACE=nosuch", "FLANNELD_IP_MASQ=true"],
        &["-iface", "eth0", "--ip-masq=false"],
    );
    daemon.wait_ready();
    assert!(fs::read_to_string(lab.node(1).subnet_file()).unwrap().contains("FLANNEL_IPMASQ=false"));
}

#[test]
fn the_interface_is_chosen_in_flannel_s_order() {
    let lab = one_node();
    let node = lab.node(1);
    node.netns()
        .ip_batch([
            "link add eth1 type veth peer name peer1",
            "link add eth2 type veth peer name peer2",
            "addr add 10.98.1.1/24 dev eth1",
            "addr add 10.98.2.1/24 dev eth2",
            "link set eth1 up",
            "link set peer1 up",
            "link set eth2 up",
            "link set peer2 up",
            "route add default via 10.98.2.9 metric 700",
            "route add 203.0.113.0/24 via 10.98.1.9",
        ])
        .unwrap();
    for (args, link, local, why) in [
        (&[][..], "eth0", "10.99.0.11", "default route, metric 0"),
        (&["--iface=eth2"], "eth2", "10.98.2.1", "--iface eth2"),
        (&["--iface=nosuch", "--iface=10.98.1.1", "--iface=eth2"], "eth1", "10.98.1.1", "--iface 10.98.1.1"),
        (&["--iface-regex=^eth[12]$"], "eth1", "10.98.1.1", "--iface-regex ^eth[12]$"),
        (&["--iface-regex=^wl", r"--iface-regex=^10\.98\.2\."], "eth2", "10.98.2.1", r"--iface-regex ^10\.98\.2\."),
        (&["--iface-regex=eth1", "--iface=eth2"], "eth2", "10.98.2.1", "--iface eth2"),
        (&["--iface-can-reach=203.0.113.7"], "eth1", "10.98.1.1", "--iface-can-reach 203.0.113.7"),
        (&["--iface-can-reach=203.0.113.7", "--iface=eth0"], "eth0", "10.99.0.11", "--iface eth0"),
        (&["--public-ip=10.98.2.1"], "eth2", "10.98.2.1", "--public-ip 10.98.2.1"),
        (&["--public-ip=192.0.2.9"], "eth0", "10.99.0.11", "default route"),
    ] {
        let (found, from, log) = underlay(&node, args);
        assert_eq!((found.as_str(), from.as_str()), (link, local), "{args:?}\n{log}");
        assert!(log.contains(why), "{args:?}: no {why} in\n{log}");
    }
}

#[test]
fn the_same_for_ipv6() {
    let lab = Lab::with_nodes(1);
    lab.put_config(r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00:16::/48"}"#);
    let node = lab.node(1);
    node.netns()
        .ip_batch([
            "link add eth1 type veth peer name peer1",
            "link set eth1 up",
            "link set peer1 up",
            "addr add fd98::1/64 dev eth1 nodad",
            "route add 2001:db8::/32 via fd98::9 dev eth1",
        ])
        .unwrap();
    for (args, local) in [
        (&[][..], "fd99::11"),
        (&["--iface=eth1"], "fd98::1"),
        (&["--iface-regex=^fd98"], "fd98::1"),
        (&["--iface-can-reach=2001:db8::1"], "fd98::1"),
        (&["--public-ipv6=fd98::1"], "fd98::1"),
    ] {
        let mut daemon = node.twilld(args);
        daemon.wait_ready();
        let link = node.ip_json("-d link show dev flannel-v6.1").unwrap();
        assert_eq!(link[0]["linkinfo"]["info_data"]["local6"], local, "{args:?}");
        assert!(daemon.terminate().status.success());
    }
}

#[test]
fn our_own_subnet_can_end_in_a_black_hole() {
    let lab = one_node();
    let node = lab.node(1);
    let mut daemon = node.twilld(&["--ip-blackhole-route"]);
    daemon.wait_ready();
    let subnet = node.as_peer().subnet;
    let holes = || node.exec("ip route show type blackhole").unwrap();
    let expected = format!("blackhole {subnet} proto 116");
    assert!(holes().contains(&expected), "{}", holes());
    node.exec(&format!("ip route del blackhole {subnet} proto 116")).unwrap();
    wait_until("it is put back", PATIENCE, || holes().contains(&expected));
    node.pod(1).exec(&format!("ping -n -c1 -W5 {}", subnet.nth(1).unwrap())).unwrap();
    assert!(daemon.terminate().status.success());
    let mut daemon = node.twilld(&[]);
    daemon.wait_ready();
    assert_eq!(holes(), "", "the route of an earlier run stays");
}

/// As in flannel's manual: the hosts live in the network, outside of what nodes lease.
const WIDE: &str = r#"{"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.90.0.0"}"#;

#[test]
fn hosts_inside_the_network_need_all_peers_programmed() {
    let lab = Lab::with_nodes(2);
    lab.put_config(WIDE);
    let mut daemon = lab.node(1).twilld(&[]);
    daemon.wait_log(&["10.99.0.11 of eth0 lies in the network 10.0.0.0/8", "--peer-mode=all"], PATIENCE);
    assert!(daemon.terminate().status.success());
    let _daemons = lab.start_all(&["--peer-mode=all", "--ip-masq"]);
    let pods = [lab.node(1).pod(1), lab.node(2).pod(1)];
    pods[0].ping(pods[1].addr()).unwrap();
    pods[1].ping(pods[0].addr()).unwrap();
    lab.node(1).exec("ping -n -c1 -W5 10.99.0.12").unwrap();
}

#[test]
fn what_the_kernel_would_refuse_is_named_with_what_was_expected() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    lab.put_config(r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}"#);
    node.exec("ip link set eth0 mtu 1300").unwrap();
    let (code, text) = ended(node.twilld(&[]));
    assert!(code == 1 && text.contains("MTU 1300 of eth0: expected at least 1350"), "{text}");
    node.exec("ip link set eth0 mtu 1350").unwrap();
    let mut daemon = node.twilld(&[]);
    daemon.wait_ready();
    assert_eq!(node.link("flannel-v6.1").unwrap().mtu, 1280);
    assert!(daemon.terminate().status.success());
    // The highest VNI that there is a device name for.
    lab.put_config(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":9999999}}"#);
    let mut daemon = node.twilld(&[]);
    daemon.wait_ready();
    assert!(node.link("flannel.9999999").is_ok());
    assert!(daemon.terminate().status.success());
    lab.put_config(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":10000000}}"#);
    let mut daemon = node.twilld(&[]);
    daemon.wait_log(&["backend.vni: 10000000 is out of range", "from 1 to 9999999"], PATIENCE);
}
