//! A daemon's words are the operator's: nothing in the log is in a form of the program's own, and a name that somebody gave an
//! interface is a name.

use twill_lab::{Lab, NODE_CONFIG, wait_until};

use super::{PATIENCE, assert_clean};

#[test]
fn no_line_of_a_long_life_shows_the_program_s_own_words() {
    let (lab, mut daemons, pods) = Lab::running(2, NODE_CONFIG, &["-v=6", "--peer-idle-timeout=2s", "--ip-masq"]);
    pods[0].ping(pods[1].addr()).unwrap();
    let node = lab.node(1);
    pods[0].ping("10.5.77.7".parse::<std::net::Ipv4Addr>().unwrap()).unwrap_err();
    node.exec("ip link set flannel.1 mtu 1300").unwrap();
    daemons[0].wait_log(&["the daemon restored it", "mtu"], PATIENCE);
    node.exec("ip link del flannel.1").unwrap();
    wait_until("the device is back", PATIENCE, || node.link("flannel.1"));
    wait_until("the pods reach each other again", PATIENCE, || pods[0].ping(pods[1].addr()));
    let own = node.as_peer();
    lab.delete(&own.key());
    wait_until("the record is back", PATIENCE, || lab.get(&own.key()));
    // A lease of another life, and a reservation of it.
    let (key, value) = (own.key(), lab.get(&own.key()).unwrap().value);
    lab.put_raw(key.rsplit('/').next().unwrap().as_bytes(), value.as_bytes());
    lab.etcd().kill();
    daemons[0].wait_log(&["etcd does not answer"], PATIENCE);
    lab.etcd().start();
    daemons[0].wait_log(&["etcd answers again"], PATIENCE);
    // Another address of the node.
    node.netns().sysctl("ipv4/conf/eth0/promote_secondaries", "1").unwrap();
    node.exec("ip addr add 10.99.7.7/16 dev eth0").unwrap();
    node.exec(&format!("ip addr del {}/16 dev eth0", node.addr())).unwrap();
    daemons[0].wait_log(&["our record follows"], PATIENCE);
    assert!(daemons[0].terminate().status.success());
    let log = daemons[0].log();
    assert_clean(&log);
    for line in log.lines() {
        assert_eq!(debug_form(line), None, "{line}");
    }
}

/// A word of the program's own in a line: `Created([])`, `Some(3)`, `PutFdb(Fdb { .. })`, `mode=OnDemand`, `["a"]`.
fn debug_form(line: &str) -> Option<&str> {
    let is_type = |word: &str| {
        let camel = word.chars().next().is_some_and(|c| c.is_ascii_uppercase())
            && word.contains(|c: char| c.is_ascii_lowercase());
        camel && word.chars().all(|c| c.is_ascii_alphanumeric())
    };
    let brackets = ["[\"", "[\\\"", "[]", "None"].into_iter().find(|form| line.contains(form));
    let values = line.split([' ', '"']).filter_map(|word| word.split_once('=')).map(|(_, value)| value);
    let values = values.filter(|value| is_type(value) && value.chars().filter(char::is_ascii_uppercase).count() > 1);
    let calls = line.match_indices(['(', '{']).filter_map(|(at, _)| {
        let word = line[..at].trim_end().rsplit([' ', '=', '(', '"', '[']).next()?;
        (is_type(word) && (line[..at].ends_with(word) || line[at..].starts_with("{ "))).then_some(word)
    });
    brackets.or(values.chain(calls).next())
}

#[test]
fn the_program_s_own_words_are_known() {
    for bad in ["made=Created([])", "mode=OnDemand", "first=PutFdb(Fdb { mac: x })", "a=Some(3)", "x=[\"a\"]", "k=None"]
    {
        assert!(debug_form(bad).is_some(), "{bad}");
    }
    for good in [
        "ready peers=1",
        "INFO the device (flannel.1) is up why=\"default route (metric 0)\"",
        "record={\"PublicIP\":\"x\"}",
    ] {
        assert_eq!(debug_form(good), None, "{good}");
    }
}

#[test]
fn an_interface_s_name_clears_no_terminal() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    // The kernel takes any name without a slash, a colon or white space.
    let name = "x\u{1b}[2J\u{202e}y";
    node.netns().run(&["ip", "link", "add", name, "type", "veth", "peer", "name", "other"]).unwrap();
    let mut daemon = node.twilld(&["--iface=nosuch"]);
    assert_eq!(daemon.wait_exit(PATIENCE).status.code(), Some(1));
    assert!(daemon.log().contains("x\\u{1b}[2J\\u{202e}y"), "{}", daemon.log());
    assert_clean(&daemon.log());
    let status = std::fs::read_to_string(node.subnet_file().with_extension("env.status")).unwrap();
    assert!(status.contains("x\\u{1b}[2J\\u{202e}y") && status.lines().count() == 1, "{status:?}");
    node.netns().run(&["ip", "addr", "add", "10.98.0.1/24", "dev", name]).unwrap();
    // Without its other end it has no carrier.
    ["other", name].iter().for_each(|end| drop(node.netns().run(&["ip", "link", "set", end, "up"]).unwrap()));
    let mut daemon = node.twilld(&["--iface=10.98.0.1", "-v=1"]);
    daemon.wait_ready();
    assert_clean(&daemon.log());
}
