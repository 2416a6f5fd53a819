//! Every flag through the real binary, as a flag and as a variable: a value that is not the default, and what it does.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use twill_lab::{Lab, NODE_CONFIG, Node, PREFIX, Peer, Twilld, wait_until};

use crate::PATIENCE;

/// A flag with a value, and how that shows.
struct Case {
    flag: &'static str,
    /// `RUN` stands for the node's directory, `ETCD` for etcd's URL.
    value: &'static str,
    /// Flags without which it would not show.
    with: &'static str,
    /// What runs the daemon, if anything.
    under: &'static str,
    prepare: fn(&Lab),
    shows: fn(&Lab, &mut Twilld),
}

/// Certificates are for https; the last of repeated endpoints counts.
const HTTPS: &str = "--etcd-endpoints=https://10.99.0.1:2379";

const CASES: [Case; 30] = [
    Case { value: "ETCD", shows: ready, ..case("etcd-endpoints") },
    Case { value: "/other", prepare: other_prefix, shows: serves_other_prefix, ..case("etcd-prefix") },
    Case {
        value: "/nonexistent/ca.pem",
        with: HTTPS,
        shows: |_, daemon| says(daemon, "/nonexistent/ca.pem"),
        ..case("etcd-cafile")
    },
    Case {
        value: "/nonexistent/cert.pem",
        with: HTTPS,
        shows: |_, daemon| says(daemon, "/nonexistent/cert.pem"),
        ..case("etcd-certfile")
    },
    Case {
        value: "/nonexistent/key.pem",
        with: HTTPS,
        shows: |_, daemon| says(daemon, "/nonexistent/key.pem"),
        ..case("etcd-keyfile")
    },
    Case { value: "root", with: "--etcd-password=secret", prepare: log_in, shows: ready, ..case("etcd-username") },
    Case { value: "secret", with: "--etcd-username=root", prepare: log_in, shows: ready, ..case("etcd-password") },
    Case { value: "eth1", prepare: eth1, shows: over_eth1, ..case("iface") },
    Case { value: r"^10\.98\.", prepare: eth1, shows: over_eth1, ..case("iface-regex") },
    Case { value: "203.0.113.7", prepare: eth1, shows: over_eth1, ..case("iface-can-reach") },
    Case { value: "192.0.2.7", shows: |lab, _| recorded(lab, r#""PublicIP":"192.0.2.7""#), ..case("public-ip") },
    Case {
        value: "2001:db8::7",
        prepare: dual_stack,
        shows: |lab, _| recorded(lab, r#""PublicIPv6":"2001:db8::7""#),
        ..case("public-ipv6")
    },
    Case {
        value: "RUN/other.env",
        shows: |lab, _| wait_until("the file", PATIENCE, || lab.node(1).run_dir().join("other.env").exists()),
        ..case("subnet-file")
    },
    // What it does takes a minute at least; that it is read shows by its limit.
    Case { value: "1440", shows: |_, daemon| refused(daemon, "1..=1439"), ..case("subnet-lease-renew-margin") },
    Case {
        value: "true",
        shows: |lab, daemon| {
            ready(lab, daemon);
            assert!(lab.node(1).exec("ip route show type blackhole").unwrap().contains("proto 116"));
        },
        ..case("ip-blackhole-route")
    },
    Case {
        value: "true",
        shows: |lab, daemon| {
            ready(lab, daemon);
            assert!(rules(&lab.node(1)).contains("masquerade fully-random"));
            assert!(fs::read_to_string(lab.node(1).subnet_file()).unwrap().contains("FLANNEL_IPMASQ=true"));
        },
        ..case("ip-masq")
    },
    Case {
        value: "true",
        with: "--ip-masq",
        shows: |lab, daemon| {
            ready(lab, daemon);
            let rules = rules(&lab.node(1));
            assert!(rules.contains("masquerade") && !rules.contains("fully-random"), "{rules}");
        },
        ..case("ip-masq-fully-random-disable")
    },
    Case {
        value: "false",
        with: "--ip-masq",
        shows: |lab, daemon| {
            ready(lab, daemon);
            assert!(!rules(&lab.node(1)).contains("chain forward"));
        },
        ..case("iptables-forward-rules")
    },
    Case { value: "86400", with: "--ip-masq", under: DEAF, shows: not_mended, ..case("iptables-resync") },
    Case { value: "127.0.0.2", with: "--healthz-port=10250", shows: |lab, _| health(lab, 10250), ..case("healthz-ip") },
    Case { value: "10251", with: "--healthz-ip=127.0.0.2", shows: |lab, _| health(lab, 10251), ..case("healthz-port") },
    Case { value: "4", shows: |_, daemon| says(daemon, "debug"), ..case("v") },
    Case {
        value: "json",
        shows: |_, daemon| says(daemon, r#","level":"info","message":"ready","#),
        ..case("log-format")
    },
    Case {
        value: "all",
        prepare: one_peer,
        shows: |lab, daemon| {
            ready(lab, daemon);
            wait_until("nobody asks for it", PATIENCE, || lab.node(1).holds(&peer()));
        },
        ..case("peer-mode")
    },
    Case { value: "1s", prepare: one_peer, shows: leaves_when_idle, ..case("peer-idle-timeout") },
    Case {
        value: "false",
        prepare: one_peer,
        shows: |lab, daemon| {
            ready(lab, daemon);
            assert!(daemon.terminate().status.success());
            lab.node(1).holds_exactly(&[]).unwrap();
        },
        ..case("program-all-on-exit")
    },
    // What it does takes another daemon (takeover.rs); that it is read shows by what it refuses.
    Case { value: "soon", shows: |_, daemon| refused(daemon, "expected a time"), ..case("takeover-timeout") },
    Case { value: "rack7-host3", shows: |lab, _| recorded(lab, "rack7-host3"), ..case("node-id") },
    // Of flannel's that are not ours: one that is refused, one that changes nothing.
    Case { value: "true", shows: |_, daemon| refused(daemon, "makes no sense here"), ..case("kube-subnet-mgr") },
    Case { value: "flannel.alpha.coreos.com", shows: ready, ..case("kube-annotation-prefix") },
];

const fn case(flag: &'static str) -> Case {
    Case { flag, value: "", with: "", under: "", prepare: |_| {}, shows: |_, _| {} }
}

/// The rules' thread believes that it listens and hears nothing: no setsockopt takes effect, so it joins no group, however
/// often it opens its socket.
const DEAF: &str = "strace -D -f -qq -o /dev/null -e inject=setsockopt:retval=0:when=1+";

/// Starts the daemon with a case's flag, or its variable, and nothing else of it.
fn start(node: &Node, etcd: &str, case: &Case, as_variable: bool) -> Twilld {
    let run = node.run_dir().display().to_string();
    let value = case.value.replace("RUN", &run).replace("ETCD", etcd);
    let needed = [
        ("etcd-endpoints", etcd.to_owned()),
        ("subnet-file", node.subnet_file().display().to_string()),
        ("node-id", "node1".to_owned()),
    ];
    let needed = needed.iter().filter(|(flag, _)| *flag != case.flag).map(|(flag, value)| format!("--{flag}={value}"));
    let needed: Vec<String> = needed.collect();
    let (env, flag) = if as_variable {
        (format!("env 'FLANNELD_{}={value}'", case.flag.to_uppercase().replace('-', "_")), String::new())
    } else {
        (String::new(), format!("'-{}={value}'", case.flag))
    };
    // `$0` is the program; the arguments that the lab gives it are left out.
    let line = format!("exec {} {env} \"$0\" {} {} {flag}", case.under, needed.join(" "), case.with);
    node.twilld_under(&["sh", "-c", &line], &[])
}

fn run(cases: &[Case]) {
    for case in cases {
        for as_variable in [false, true] {
            println!("{} as a {}", case.flag, if as_variable { "variable" } else { "flag" });
            let lab = Lab::with_nodes(1);
            lab.put_config(NODE_CONFIG);
            (case.prepare)(&lab);
            let mut daemon = start(&lab.node(1), lab.etcd().url(), case, as_variable);
            (case.shows)(&lab, &mut daemon);
        }
    }
}

#[test]
fn each_flag_and_each_variable_does_what_it_says_1() {
    run(&CASES[..14]);
}

#[test]
fn each_flag_and_each_variable_does_what_it_says_2() {
    run(&CASES[14..]);
}

#[test]
fn no_flag_is_left_out() {
    let lab = Lab::with_nodes(1);
    let mut daemon = lab.node(1).twilld(&["--help"]);
    daemon.wait_exit(PATIENCE);
    let help = daemon.log();
    let words = help.split([' ', '\n', '=', ',', '[']).filter_map(|word| word.strip_prefix("--"));
    let known = |flag: &str| ["help", "version"].contains(&flag) || CASES.iter().any(|case| case.flag == flag);
    let mut flags: Vec<&str> = words.filter(|flag| flag.starts_with(|c: char| c.is_ascii_lowercase())).collect();
    assert!(flags.len() > 20, "{help}");
    flags.retain(|flag| !known(flag.trim_end_matches([';', '.', ')', ':'])));
    assert!(flags.is_empty(), "no case for {flags:?}");
}

fn ready(_: &Lab, daemon: &mut Twilld) {
    daemon.wait_log(&["info ready"], PATIENCE);
}

fn says(daemon: &mut Twilld, words: &str) {
    daemon.wait_log(&[words], PATIENCE);
}

fn refused(daemon: &mut Twilld, words: &str) {
    assert_eq!(daemon.wait_exit(PATIENCE).status.code(), Some(2));
    assert!(daemon.log().contains(words), "{}", daemon.log());
}

fn recorded(lab: &Lab, words: &str) {
    wait_until(words, PATIENCE, || lab.records().iter().any(|record| record.value.contains(words)));
}

fn rules(node: &Node) -> String {
    node.exec("nft list table ip twill.1").unwrap()
}

fn other_prefix(lab: &Lab) {
    lab.put("/other/config", r#"{"Network":"10.7.0.0/16"}"#);
}

fn serves_other_prefix(lab: &Lab, daemon: &mut Twilld) {
    ready(lab, daemon);
    assert!(lab.etcdctl(&["get", "--prefix", "/other/subnets/"]).unwrap().contains("/other/subnets/10.7."));
    assert!(lab.records().is_empty(), "something was written under {PREFIX}");
}

fn log_in(lab: &Lab) {
    for args in [&["user", "add", "root:secret"][..], &["user", "grant-role", "root", "root"], &["auth", "enable"]] {
        lab.etcdctl(args).unwrap();
    }
}

fn dual_stack(lab: &Lab) {
    lab.put_config(r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}"#);
}

fn eth1(lab: &Lab) {
    lab.node(1)
        .netns()
        .ip_batch([
            "link add eth1 type veth peer name peer1",
            "addr add 10.98.1.1/24 dev eth1",
            "link set eth1 up",
            "link set peer1 up",
            "route add 203.0.113.0/24 via 10.98.1.9",
        ])
        .unwrap();
}

fn over_eth1(lab: &Lab, daemon: &mut Twilld) {
    ready(lab, daemon);
    let link = lab.node(1).ip_json("-d link show dev flannel.1").unwrap();
    assert_eq!(link[0]["linkinfo"]["info_data"]["link"], "eth1");
}

/// A peer that is only a record.
fn peer() -> Peer {
    Peer::new("10.5.200.0/24", "10.99.1.200", "02:00:00:00:00:c8")
}

fn one_peer(lab: &Lab) {
    lab.put_peer(&peer());
}

fn leaves_when_idle(lab: &Lab, daemon: &mut Twilld) {
    ready(lab, daemon);
    let node = lab.node(1);
    let mut ping = node.netns().command("ping").unwrap();
    ping.args(["-n", "-c1", "-W0.1", "10.5.200.7"]).output().unwrap();
    wait_until("it was asked for", PATIENCE, || daemon.log().contains("10.5.200.0/24") || node.holds(&peer()).is_ok());
    wait_until("it has left", PATIENCE, || node.holds_exactly(&[]));
}

fn not_mended(lab: &Lab, daemon: &mut Twilld) {
    ready(lab, daemon);
    let node = lab.node(1);
    node.exec("nft flush ruleset").unwrap();
    // By default it would look after five seconds.
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(node.exec("nft list ruleset").unwrap(), "");
}

fn health(lab: &Lab, port: u16) {
    let ask = |address: &'static str| {
        let asked = move || -> std::io::Result<String> {
            let mut stream = TcpStream::connect((address, port))?;
            write!(stream, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        lab.node(1).netns().enter(asked).unwrap()
    };
    wait_until("/healthz", PATIENCE, || ask("127.0.0.2").is_ok_and(|answer| answer.contains("200 OK")));
    ask("10.99.0.11").unwrap_err();
}

#[test]
fn what_is_no_text_is_named() {
    let lab = Lab::with_nodes(1);
    for line in [r#"exec "$0" "--iface=$(printf '\377')""#, r#"FLANNELD_IFACE="$(printf '\377')" exec "$0""#] {
        let mut daemon = lab.node(1).twilld_under(&["sh", "-c", line], &[]);
        assert_eq!(daemon.wait_exit(PATIENCE).status.code(), Some(2), "{}", daemon.log());
        let log = daemon.log();
        assert!(log.contains("UTF-8") && (log.contains("argument 1") || log.contains("FLANNELD_IFACE")), "{log}");
    }
}

#[test]
fn twill_takes_the_last_endpoints_and_no_public_ip_that_nobody_can_send_to() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let twill = |args: &[&str]| {
        let mut command: Command = lab.node(1).netns().command(twill_lab::program("twill").unwrap()).unwrap();
        let output = command.args(args).output().unwrap();
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).join("");
        (output.status.code(), text)
    };
    let last = format!("--etcd-endpoints={}", lab.etcd().url());
    let (code, text) = twill(&["leases", "--etcd-endpoints=http://127.0.0.1:1", &last]);
    assert_eq!(code, Some(0), "{text}");
    for ip in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::1"] {
        let (code, text) = twill(&["reserve", "10.5.7.0/24", "--public-ip", ip, &last]);
        assert!(code == Some(2) && text.contains(ip) && text.contains("other nodes reach"), "{ip}: {text}");
    }
}
