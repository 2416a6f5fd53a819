//! Whose a subnet is: our record overwritten, two machines as one, and a `subnet.env` whose subnet is another node's.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use twill_lab::{KeyValue, Lab, NODE_CONFIG, PREFIX, Peer, Twilld, wait_until};

/// For states that take milliseconds on an idle machine, and for retries with a backoff of some seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// The record of another agent.
macro_rules! vxlan {
    ($ip:literal, $vni:literal, $mac:literal) => {
        concat!(
            r#"{"PublicIP":""#,
            $ip,
            r#"","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":"#,
            $vni,
            r#","VtepMAC":""#,
            $mac,
            r#""}}"#
        )
    };
}

/// What no node follows, and a word of the reason that the log gives.
const VOID: [(&str, &str); 15] = [
    (r#"{"PublicIP":"1.2.3.4"}"#, "reserved for 1.2.3.4"),
    (r#"{"PublicIP":"224.0.0.1"}"#, "224.0.0.1 is not a host's address"),
    (r#"{"PublicIP":"127.0.0.1","BackendType":"udp"}"#, "udp"),
    ("junk", "not a JSON object"),
    ("{}", "no PublicIP"),
    ("null", "not a JSON object"),
    ("[]", "not a JSON object"),
    (r#"{"NodeID":"other"}"#, "reserved for node other"),
    (r#"{"PublicIP":"10.99.1.9","BackendType":"wireguard"}"#, "wireguard"),
    (r#"{"PublicIP":"10.99.1.9","BackendType":"vxlan"}"#, "no BackendData"),
    (vxlan!("224.0.0.1", 1, "02:00:00:00:00:09"), "224.0.0.1 is not a host's address"),
    (vxlan!("0.0.0.0", 1, "02:00:00:00:00:09"), "0.0.0.0 is not a host's address"),
    (vxlan!("10.99.1.9", 7, "02:00:00:00:00:09"), "the VNI is 7, not 1"),
    (vxlan!("10.99.1.9", 1, "01:00:5e:00:00:09"), "not a unicast address"),
    (vxlan!("10.99.1.9", 1, "00:00:00:00:00:00"), "not a unicast address"),
];

/// The only record that there is.
#[track_caller]
fn record(lab: &Lab) -> KeyValue {
    let [record] = lab.records().try_into().unwrap();
    record
}

/// Waits until etcd has the record as it was, on the lease it had.
#[track_caller]
fn wait_back(lab: &Lab, before: &KeyValue) {
    wait_until("the record is back", PATIENCE, || {
        lab.get(&before.key).is_some_and(|now| (&now.value, now.lease) == (&before.value, before.lease))
    });
}

/// The log of each daemon, for the one who reads what a test shows.
fn show(name: &str, daemons: &[&Twilld]) {
    for (number, daemon) in daemons.iter().enumerate() {
        println!("--- {name}: daemon {}\n{}", number + 1, daemon.log());
    }
}

#[test]
fn our_record_overwritten_by_what_no_node_follows_is_put_back_and_named() {
    let (lab, mut daemons, pods) = Lab::running(2, NODE_CONFIG, &["--peer-mode=all"]);
    let (key, env) = (lab.node(1).as_peer().key(), fs::read(lab.node(1).subnet_file()).unwrap());
    let before = lab.get(&key).unwrap();
    for (value, word) in VOID {
        // Each by itself: what comes again and again is counted.
        daemons[0].terminate();
        daemons[0] = lab.node(1).twilld(&["--peer-mode=all"]);
        daemons[0].wait_ready();
        lab.put(&key, value);
        wait_back(&lab, &before);
        let shown = value.replace('"', r#"\""#);
        daemons[0].wait_log(&["our record was gone or changed, written again", word, &shown], PATIENCE);
    }
    let lease = format!("--lease={:x}", before.lease);
    lab.etcdctl(&["put", &lease, &key, vxlan!("10.99.1.9", 1, "02:00:00:00:00:09")]).unwrap();
    wait_back(&lab, &before);
    daemons[0].wait_log(&["hangs on our own lease"], PATIENCE);
    assert!(daemons.iter_mut().all(Twilld::runs));
    assert_eq!(fs::read(lab.node(1).subnet_file()).unwrap(), env);
    wait_until("the peer is there", PATIENCE, || lab.node(2).holds_exactly(&[lab.node(1).as_peer()]));
    pods[1].ping(pods[0].addr()).unwrap();
    show("overwritten", &[&daemons[0]]);
}

#[test]
fn what_was_overwritten_while_the_daemon_could_not_hear_is_put_back_too() {
    let (lab, mut daemons, _pods) = Lab::running(1, NODE_CONFIG, &[]);
    let before = record(&lab);
    for (value, _) in [VOID[0], VOID[1], VOID[2], VOID[3]] {
        daemons[0].signal(Signal::SIGSTOP);
        lab.put(&before.key, value);
        daemons[0].signal(Signal::SIGCONT);
        wait_back(&lab, &before);
    }
    // With etcd away in between, and at a start.
    daemons[0].signal(Signal::SIGSTOP);
    lab.put(&before.key, VOID[1].0);
    lab.etcd().kill();
    daemons[0].signal(Signal::SIGCONT);
    daemons[0].wait_log(&["etcd does not answer"], PATIENCE);
    lab.etcd().start();
    wait_back(&lab, &before);
    for (value, _) in [VOID[1], VOID[2], VOID[3]] {
        daemons[0].terminate();
        lab.put(&before.key, value);
        daemons[0] = lab.node(1).twilld(&[]);
        daemons[0].wait_log(&["an unusable record has the key of our last subnet"], PATIENCE);
        daemons[0].wait_ready();
        let now = record(&lab);
        assert_eq!(now.key, before.key, "{value}");
        assert!(now.lease != 0 && now.value.contains("VtepMAC"), "{now:?}");
    }
}

#[test]
fn somebody_who_writes_our_record_again_and_again_is_slowed_counted_and_called_what_it_is() {
    let (lab, mut daemons, _pods) = Lab::running(1, NODE_CONFIG, &[]);
    let before = record(&lab);
    // As a flanneld elsewhere that was given our address.
    let flannel = vxlan!("10.99.0.11", 1, "02:00:00:00:00:09");
    let grant = lab.etcdctl(&["lease", "grant", "3600"]).unwrap();
    let lease = format!("--lease={}", grant.split_whitespace().nth(1).unwrap());
    let write = || drop(lab.etcdctl(&["put", &lease, &before.key, flannel]).unwrap());
    write();
    wait_back(&lab, &before);
    daemons[0].wait_log(
        &[
            "written again",
            "our public IP 10.99.0.11 and another MAC, 02:00:00:00:00:09; it has no node id, so flanneld wrote it",
        ],
        PATIENCE,
    );
    let called = "another agent with our public IP 10.99.0.11 writes our record: give one of them another address";
    wait_until("it is called what it is", PATIENCE, || {
        write();
        !daemons[0].lines(&[called]).is_empty()
    });
    let revision = lab.get(&before.key).unwrap().mod_revision;
    let more = 200;
    (0..more).for_each(|_| write());
    wait_back(&lab, &before);
    let written = lab.get(&before.key).unwrap().mod_revision - revision - more;
    assert!(written < more / 4, "{written} writes against {more}");
    assert!(daemons[0].lines(&[called]).len() < 10 && daemons[0].lines(&["written again"]).len() < 10);
    daemons[0].wait_log(&["not ready", "record: another agent with our public IP"], PATIENCE);
    assert!(daemons[0].runs());
    show("flannel elsewhere", &[&daemons[0]]);
}

/// Two machines with one node id and one public IP.
fn clones(lab: &Lab) -> [Vec<String>; 2] {
    let address = format!("--public-ip={}", lab.node(1).addr());
    [vec!["--node-id=image-7".to_owned()], vec!["--node-id=image-7".to_owned(), address]]
}

fn start(lab: &Lab, n: usize) -> Twilld {
    let args = &clones(lab)[n - 1];
    lab.node(n).twilld(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The instance in a record.
fn instance(record: &KeyValue) -> String {
    let value: serde_json::Value = serde_json::from_str(&record.value).unwrap();
    value["Instance"]["ID"].as_str().unwrap().to_owned()
}

#[test]
fn the_later_of_two_clones_ends_and_both_are_named() {
    let lab = Lab::with_nodes(2);
    lab.put_config(NODE_CONFIG);
    let mut first = start(&lab, 1);
    first.wait_ready();
    let before = record(&lab);
    // The image had the first one's subnet.env too.
    fs::copy(lab.node(1).subnet_file(), lab.node(2).subnet_file()).unwrap();
    let mut second = start(&lab, 2);
    assert_eq!(second.wait_exit(PATIENCE).status.code(), Some(1));
    let said = second.lines(&["two machines have the public IP 10.99.0.11 and the node id image-7"]);
    assert!(
        said.len() == 1 && said[0].contains(&instance(&before)) && said[0].contains("is alive and holds"),
        "{said:?}"
    );
    wait_back(&lab, &before);
    assert!(!lab.node(2).subnet_file().exists() && lab.node(2).link("flannel.1").is_err());
    let refusal = lab.node(2).cni("ADD").unwrap_err();
    assert!(refusal.contains("two machines have the public IP 10.99.0.11"), "{refusal}");
    first.wait_log(&["another machine started with our public IP", "image-7 instance "], PATIENCE);
    // A plain restart of the first asks nobody and writes nothing.
    let before = record(&lab);
    first.terminate();
    first = start(&lab, 1);
    first.wait_ready();
    assert_eq!(first.lines(&["asking"]), [] as [String; 0]);
    assert_eq!(record(&lab), before);
    assert!(first.runs());
    show("clones", &[&first, &second]);
}

#[test]
fn a_clone_that_took_over_from_one_that_was_stopped_ends_when_that_goes_on() {
    let lab = Lab::with_nodes(2);
    lab.put_config(NODE_CONFIG);
    let mut first = start(&lab, 1);
    first.wait_ready();
    let before = record(&lab);
    first.signal(Signal::SIGSTOP);
    let mut second = start(&lab, 2);
    second.wait_ready();
    assert_ne!(instance(&record(&lab)), instance(&before));
    first.signal(Signal::SIGCONT);
    assert_eq!(second.wait_exit(PATIENCE).status.code(), Some(3));
    second.wait_log(&["another node holds our subnet", &instance(&before), "was there before this one"], PATIENCE);
    wait_back(&lab, &before);
    first.wait_log(&["written again", "the record of a clone of this machine", "which came later"], PATIENCE);
    assert!(!lab.node(2).subnet_file().exists());
    // What the supervisor starts again asks, and is refused.
    let mut again = start(&lab, 2);
    assert_eq!(again.wait_exit(PATIENCE).status.code(), Some(1));
    wait_back(&lab, &before);
    assert!(first.runs());
    show("cut off", &[&first, &second, &again]);
}

#[test]
fn a_machine_that_was_booted_has_its_subnet_and_mac_after_some_seconds() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let mut daemon = start(&lab, 1);
    daemon.wait_ready();
    let (own, before) = (lab.node(1).as_peer(), record(&lab));
    daemon.kill();
    fs::remove_file(lab.node(1).subnet_file()).unwrap();
    lab.node(1).exec("ip link del flannel.1").unwrap();
    let lease = format!("--lease={:x}", before.lease);
    let earlier = before.value.replace(&instance(&before), "00000000-1");
    lab.etcdctl(&["put", &lease, &before.key, &earlier]).unwrap();
    daemon = start(&lab, 1);
    daemon.wait_log(&["is from before the last boot, or a clone wrote it", "wait=3s", "00000000-1"], PATIENCE);
    daemon.wait_ready();
    assert_eq!(lab.node(1).as_peer(), own);
    let now = record(&lab);
    assert_eq!((now.key.as_str(), now.lease, instance(&now)), (before.key.as_str(), before.lease, instance(&before)));
    show("booted", &[&daemon]);
}

#[test]
fn what_flannel_left_is_taken_over_without_a_question() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let flannels = Peer::new("10.5.77.0/24", "10.99.0.11", "02:00:00:00:00:4d");
    lab.put_peer(&flannels);
    let mut daemon = lab.node(1).twilld(&[]);
    daemon.wait_ready();
    assert_eq!(lab.node(1).as_peer(), flannels, "subnet and MAC");
    assert_eq!(daemon.lines(&["asking"]), [] as [String; 0]);
}

#[test]
fn an_address_that_changed_between_two_runs_costs_no_subnet() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let mut daemon = lab.node(1).twilld(&[]);
    daemon.wait_ready();
    let before = record(&lab);
    daemon.terminate();
    lab.node(1).exec("ip addr add 10.99.7.7/16 dev eth0").unwrap();
    daemon = lab.node(1).twilld(&["--iface=10.99.7.7"]);
    daemon.wait_ready();
    let now = record(&lab);
    assert_eq!((&now.key, now.lease), (&before.key, before.lease));
    assert!(now.value.starts_with(r#"{"PublicIP":"10.99.7.7""#), "{}", now.value);
}

/// A network of one subnet, a node that had it, and its daemon gone.
fn alone() -> (Lab, Peer) {
    let lab = Lab::with_nodes(1);
    lab.put_config(r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.1.0"}"#);
    let mut daemon = lab.node(1).twilld(&[]);
    daemon.wait_ready();
    daemon.terminate();
    lab.node(1).cni("ADD").unwrap();
    let own = lab.node(1).as_peer();
    (lab, own)
}

/// ADD fails, and says all of these.
#[track_caller]
fn refuses(lab: &Lab, words: &[&str]) {
    wait_until("ADD is refused", PATIENCE, || lab.node(1).cni("ADD").is_err());
    let refusal = lab.node(1).cni("ADD").unwrap_err();
    assert!(words.iter().all(|word| refusal.contains(word)), "{words:?}: {refusal}");
    assert!(!lab.node(1).subnet_file().exists());
}

/// Another node gets the subnet while our node is off.
fn another(own: &Peer) -> Peer {
    Peer { public_ip: "10.99.1.200".parse().unwrap(), mac: "02:00:00:00:00:c8".to_owned(), ..own.clone() }
}

#[test]
fn a_subnet_that_is_another_nodes_is_withdrawn_though_no_other_is_free() {
    let (lab, own) = alone();
    lab.put_peer(&another(&own));
    let mut daemon = lab.node(1).twilld(&[]);
    daemon.wait_log(&["no free subnet"], PATIENCE);
    refuses(
        &lab,
        &["this node cannot keep its last subnet 10.5.1.0/24", "public IP 10.99.1.200 holds", "no free subnet"],
    );
    assert_eq!(daemon.lines(&["subnet.env withdrawn"]).len(), 1, "{}", daemon.log());
    // When the other one lets go it is ours again.
    lab.delete(&own.key());
    daemon.wait_ready();
    assert_eq!(lab.node(1).as_peer().subnet, own.subnet);
    lab.node(1).cni("ADD").unwrap();
}

#[test]
fn a_subnet_that_went_to_another_node_while_etcd_was_away_is_withdrawn() {
    let (lab, own) = alone();
    lab.put_peer(&another(&own));
    lab.etcd().kill();
    let mut daemon = lab.node(1).twilld(&[]);
    daemon.wait_log(&["etcd", "10.99.0.1:2379"], PATIENCE);
    // Nothing says yet that it is another's.
    lab.node(1).cni("ADD").unwrap();
    lab.etcd().start();
    refuses(&lab, &["public IP 10.99.1.200 holds"]);
    assert!(daemon.runs());
}

#[test]
fn a_subnet_that_is_reserved_for_another_node_is_withdrawn() {
    let (lab, own) = alone();
    lab.put(&own.key(), r#"{"PublicIP":"10.99.1.200"}"#);
    let mut daemon = lab.node(1).twilld(&[]);
    refuses(&lab, &["this node cannot keep its last subnet 10.5.1.0/24", "no free subnet"]);
    assert!(daemon.runs());
}

#[test]
fn a_subnet_whose_holder_is_asked_whether_it_lives_is_withdrawn_until_that_is_known() {
    let (lab, own) = alone();
    let key = own.key();
    let record = lab.get(&key).unwrap().value;
    lab.put(&key, &record.replace("node1", "other").replace(r#""ID":""#, r#""ID":"other-"#));
    let mut daemon = lab.node(1).twilld(&[]);
    daemon.wait_log(&["asking whether that node is alive"], PATIENCE);
    refuses(&lab, &["its record has our public IP and the ids of another machine"]);
    wait_until("the silence is long enough", PATIENCE * 2, || lab.node(1).subnet_file().exists());
    daemon.wait_ready();
    lab.node(1).cni("ADD").unwrap();
}

#[test]
fn a_subnet_that_does_not_fit_the_config_any_more_is_withdrawn() {
    let (lab, _own) = alone();
    lab.put_config(r#"{"Network":"10.6.0.0/16","SubnetMin":"10.6.1.0","SubnetMax":"10.6.1.0"}"#);
    lab.put(&format!("{PREFIX}/subnets/10.6.1.0-24"), vxlan!("10.99.1.200", 1, "02:00:00:00:00:c8"));
    let mut daemon = lab.node(1).twilld(&[]);
    refuses(&lab, &["this node cannot keep its last subnet 10.5.1.0/24", "does not fit the network config"]);
    assert!(daemon.runs());
    lab.delete(&format!("{PREFIX}/subnets/10.6.1.0-24"));
    daemon.wait_ready();
    lab.node(1).cni("ADD").unwrap();
}

/// Configs that no node starts with; the last one only this node doesn't.
const UNUSABLE: [&str; 4] = [
    r#"{"Network":"#,
    r#"{"Network":"10.5.0.0/99"}"#,
    r#"{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}}"#,
    r#"{"Network":"10.0.0.0/8"}"#,
];

#[test]
fn a_subnet_that_is_another_nodes_is_withdrawn_though_there_is_no_config() {
    let (lab, own) = alone();
    lab.delete(&own.key());
    lab.put_peer(&another(&own));
    lab.delete(&format!("{PREFIX}/config"));
    let mut daemon = lab.node(1).twilld(&[]);
    refuses(
        &lab,
        &["no network config yet", "this node cannot keep its last subnet 10.5.1.0/24", "public IP 10.99.1.200 holds"],
    );
    assert_eq!(daemon.lines(&["subnet.env withdrawn"]).len(), 1, "{}", daemon.log());
    // The node has it again when the other one has let go.
    lab.delete(&own.key());
    lab.put_config(r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.1.0"}"#);
    daemon.wait_ready();
    assert_eq!(lab.node(1).as_peer().subnet, own.subnet);
    lab.node(1).cni("ADD").unwrap();
}

#[test]
fn a_subnet_that_is_another_nodes_is_withdrawn_though_the_config_is_unusable() {
    for config in UNUSABLE {
        let (lab, own) = alone();
        lab.put_peer(&another(&own));
        lab.put_config(config);
        let mut daemon = lab.node(1).twilld(&[]);
        refuses(&lab, &["is not usable", "public IP 10.99.1.200 holds 10.5.1.0/24"]);
        assert!(daemon.runs());
    }
}

#[test]
fn a_subnet_that_another_node_takes_while_a_config_is_waited_for_is_withdrawn() {
    let (lab, own) = alone();
    lab.delete(&format!("{PREFIX}/config"));
    let mut daemon = lab.node(1).twilld(&[]);
    daemon.wait_log(&["no network config yet"], PATIENCE);
    // Its own record, and what no node would follow, say nothing of the kind.
    lab.node(1).cni("ADD").unwrap();
    // (Which VNI is the network's, only a config tells.)
    for (value, _) in VOID.iter().filter(|(_, why)| !why.contains("VNI")) {
        lab.put(&own.key(), value);
    }
    lab.put(&format!("{PREFIX}/subnets/10.5.2.0-24"), vxlan!("10.99.1.201", 1, "02:00:00:00:00:c9"));
    lab.put_peer(&another(&own));
    refuses(&lab, &["no network config yet", "public IP 10.99.1.200 holds"]);
}
