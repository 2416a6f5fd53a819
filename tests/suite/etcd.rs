//! What happens in etcd to a running daemon: its record goes, another takes it, etcd goes away, the config changes, two
//! nodes have one address.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::fs;
use std::time::Duration;

use twill_lab::{Lab, NODE_CONFIG, Peer, Twilld, wait_until};

/// For states that take milliseconds on an idle machine, and for retries with a backoff of some seconds.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_record_that_is_deleted_comes_back() {
    let (lab, mut daemons, pods) = Lab::running(2, NODE_CONFIG, &["--peer-mode=all"]);
    pods[0].ping(pods[1].addr()).unwrap();
    let (key, subnet) = (lab.node(1).as_peer().key(), lab.node(1).as_peer().subnet.to_string());
    let before = lab.get(&key).unwrap();
    lab.delete(&key);
    let again = wait_until("the record is back", PATIENCE, || lab.get(&key));
    assert_eq!((again.value, again.lease), (before.value, before.lease));
    daemons[0].wait_log(&["our record was gone or changed, written again"], PATIENCE);
    daemons[1].wait_log(&["peer left", &subnet], PATIENCE);
    wait_until("the peer is back", PATIENCE, || lab.node(2).holds_exactly(&[lab.node(1).as_peer()]));
    pods[1].ping(pods[0].addr()).unwrap();
    assert!(daemons.iter_mut().all(Twilld::runs));
}

#[test]
fn a_subnet_that_another_node_takes_ends_the_daemon_which_names_it() {
    let (lab, mut daemons, _pods) = Lab::running(1, NODE_CONFIG, &[]);
    let own = lab.node(1).as_peer();
    let thief = Peer { public_ip: "10.99.1.200".parse().unwrap(), mac: "02:00:00:00:00:c8".to_owned(), ..own };
    lab.take_subnet(&mut daemons[0], &thief);
    assert_eq!(daemons[0].wait_exit(PATIENCE).status.code(), Some(3));
    let said = daemons[0].lines(&["another node holds our subnet"]);
    assert!(!said.is_empty() && said.iter().all(|line| line.contains("10.99.1.200")), "{said:?}");
    assert_eq!(lab.get(&thief.key()).unwrap().value, thief.record(), "the other's record is left alone");

    // No pod may have an address of that subnet, until the node has one again.
    let refusal = lab.node(1).cni("ADD").unwrap_err();
    assert!(refusal.contains("subnet.env: no such file or directory (twilld last reported: "), "{refusal}");
    assert!(refusal.contains("another node holds the subnet that this one had: 10.99.1.200"), "{refusal}");
    daemons[0] = lab.node(1).twilld(&[]);
    daemons[0].wait_ready();
    lab.node(1).cni("ADD").unwrap();
}

#[test]
fn a_wrong_password_is_what_the_cni_plugin_names() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    for words in ["user add root:secret", "user grant-role root root", "auth enable"] {
        lab.etcdctl(&words.split(' ').collect::<Vec<_>>()).unwrap();
    }
    let mut daemon = lab.node(1).twilld(&["--etcd-username=root", "--etcd-password=wrong"]);
    daemon.wait_log(&["invalid user ID or password"], PATIENCE);
    for verb in ["ADD", "STATUS"] {
        let refusal = lab.node(1).cni(verb).unwrap_err();
        assert!(
            refusal.contains("twilld last reported: ") && refusal.contains("invalid user ID or password"),
            "{refusal}"
        );
    }
    assert!(daemon.runs());
}

#[test]
fn a_role_without_write_permission_is_what_the_cni_plugin_names() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    for words in [
        "user add root:secret",
        "user grant-role root root",
        "user add node:secret",
        "role add reader",
        "role grant-permission reader read --prefix=true /coreos.com/network/",
        "user grant-role node reader",
        "auth enable",
    ] {
        lab.etcdctl(&words.split(' ').collect::<Vec<_>>()).unwrap();
    }
    let mut daemon = lab.node(1).twilld(&["--etcd-username=node", "--etcd-password=secret"]);
    daemon.wait_log(&["etcd fails while this node gets its lease"], PATIENCE);
    let refusal = lab.node(1).cni("ADD").unwrap_err();
    let needed = "the user needs a role with readwrite permission on /coreos.com/network/subnets/";
    assert!(refusal.contains("twilld last reported: ") && refusal.contains(needed), "{refusal}");
    lab.etcdctl(&[
        "--user=root:secret",
        "role",
        "grant-permission",
        "reader",
        "readwrite",
        "--prefix=true",
        "/coreos.com/network/subnets/",
    ])
    .unwrap();
    daemon.wait_ready();
    daemon.wait_log(&["etcd works again"], PATIENCE);
    lab.node(1).cni("ADD").unwrap();
}

#[test]
fn a_config_that_changes_on_the_way_to_a_subnet_is_followed() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let earlier = format!(r#"{{"PublicIP":"{}","NodeID":"before"}}"#, lab.node(1).addr());
    lab.put("/coreos.com/network/subnets/10.5.7.0-24", &earlier);
    let mut daemon = lab.node(1).twilld(&["--node-id=after"]);
    daemon.wait_log(&["asking whether that node is alive", "node before"], PATIENCE);
    lab.put_config(r#"{"Network":"10.6.0.0/16","Backend":{"Type":"vxlan"}}"#);
    // The question has half a minute for its answer.
    wait_until("the silence is long enough", PATIENCE * 2, || lab.node(1).subnet_file().exists());
    daemon.wait_ready();
    let own = lab.node(1).as_peer();
    assert!(own.subnet.to_string().starts_with("10.6."), "{own:?}");
    let keys: Vec<_> = lab.records().into_iter().map(|kv| kv.key).collect();
    assert_eq!(keys, [own.key()], "the record of the network of before is gone");
}

#[test]
fn a_config_that_changes_while_no_subnet_is_free_is_followed() {
    let lab = Lab::with_nodes(1);
    lab.put_config(r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.1.0"}"#);
    lab.put_peer(&Peer::new("10.5.1.0/24", "10.99.1.200", "02:00:00:00:00:c8"));
    let mut daemon = lab.node(1).twilld(&["--peer-mode=all"]);
    daemon.wait_log(&["no free subnet"], PATIENCE);
    lab.put_config(r#"{"Network":"#);
    daemon.wait_log(&["the network config", "is not usable"], PATIENCE);
    lab.put_config(r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.9.0","Backend":{"Type":"vxlan","VNI":7}}"#);
    daemon.wait_ready();
    assert!(lab.node(1).link("flannel.7").is_ok(), "all of the new config counts");
    assert_eq!(lab.records().len(), 2);
    assert_eq!(daemon.lines(&["beginning again"]).len(), 1, "{}", daemon.log());
}

/// The data plane while etcd is away by `go` until `come`; the daemon's log of it.
fn outage(go: fn(&Lab), come: fn(&Lab)) -> Vec<String> {
    let (lab, mut daemons, pods) = Lab::running(2, NODE_CONFIG, &["--peer-mode=all"]);
    pods[0].ping(pods[1].addr()).unwrap();
    let ping = pods[0].ping_running(pods[1].addr(), 20);
    ping.wait_received(5);
    let before = daemons[0].log().lines().count();
    go(&lab);
    daemons[0].wait_log(&["etcd does not answer", "the data plane goes on"], PATIENCE);
    ping.wait_received(100);
    come(&lab);
    daemons[0].wait_log(&["etcd answers again"], PATIENCE);
    // What comes after it is heard.
    lab.put_peer(&Peer::new("10.5.200.0/24", "10.99.1.200", "02:00:00:00:00:c8"));
    daemons[0].wait_log(&["peer joined", "10.5.200.0/24"], PATIENCE);
    let report = ping.stop();
    assert_eq!(report.lost, 0, "{report:?}");
    for (text, count) in [("etcd does not answer", 1), ("etcd answers again", 1), ("reading all records", 0)] {
        assert_eq!(daemons[0].lines(&[text]).len(), count, "{text}: {}", daemons[0].log());
    }
    daemons[0].log().lines().skip(before).map(str::to_owned).collect()
}

#[test]
fn an_etcd_that_is_gone_for_a_while_costs_no_packet_and_two_lines() {
    let log = outage(|lab| lab.etcd().kill(), |lab| lab.etcd().start());
    println!("{}", log.join("\n"));
}

#[test]
fn an_etcd_that_hangs_for_a_while_costs_no_packet_and_two_lines() {
    let log = outage(|lab| lab.etcd().pause(), |lab| lab.etcd().resume());
    println!("{}", log.join("\n"));
}

#[test]
fn a_wiped_or_restored_etcd_has_our_record_again_at_once() {
    let (lab, mut daemons, pods) = Lab::running(2, NODE_CONFIG, &["--peer-mode=all"]);
    pods[0].ping(pods[1].addr()).unwrap();
    let values = |lab: &Lab| lab.records().into_iter().map(|kv| (kv.key, kv.value)).collect::<Vec<_>>();
    let before = values(&lab);
    // Every record hangs on a lease that is there.
    let is_back = || values(&lab) == before && lab.records().iter().all(|kv| lab.lease_ttl(kv.lease).is_ok());

    lab.etcd().kill();
    lab.etcd().wipe();
    lab.etcd().start();
    lab.put_config(NODE_CONFIG);
    wait_until("the records are in the new etcd", PATIENCE, || is_back().then_some(()));
    wait_until("the peer is back", PATIENCE, || pods[1].ping(pods[0].addr()));

    lab.etcd().save();
    for number in 0..20 {
        lab.put("/elsewhere", &number.to_string());
    }
    // Written once more after the snapshot: the daemons know a later revision than it has.
    let keys: Vec<_> = before.iter().map(|(key, _)| key.clone()).collect();
    keys.iter().for_each(|key| lab.delete(key));
    wait_until("the records are made again", PATIENCE, || is_back().then_some(()));
    lab.etcd().kill();
    lab.etcd().restore();
    lab.etcd().start();
    for daemon in &mut daemons {
        wait_until("the restored etcd was read", PATIENCE, || {
            (daemon.lines(&["reading all records again"]).len() == 2).then_some(())
        });
    }
    wait_until("the records of then are kept", PATIENCE, || is_back().then_some(()));
    // It still is heard of: revisions of the new history count.
    let key = lab.node(1).as_peer().key();
    lab.delete(&key);
    wait_until("the record is back", PATIENCE, || is_back().then_some(()));
    pods[0].ping(pods[1].addr()).unwrap();
    assert!(daemons.iter_mut().all(Twilld::runs));
}

#[test]
fn a_changed_network_config_is_said_and_left_alone_until_the_restart() {
    let (lab, mut daemons, _pods) = Lab::running(1, NODE_CONFIG, &[]);
    let node = lab.node(1);
    let (env, device, record) = (fs::read(node.subnet_file()).unwrap(), node.link("flannel.1").unwrap(), lab.records());
    for (config, words) in [
        (r#"{"Network":"10.6.0.0/16","Backend":{"Type":"vxlan"}}"#, ["the network config was changed", "10.6.0.0/16"]),
        (r#"{"Network":"#, ["the network config was changed", r#"{"Network":"#]),
    ] {
        lab.put_config(config);
        daemons[0].wait_log(&words, PATIENCE);
    }
    lab.delete("/coreos.com/network/config");
    daemons[0].wait_log(&["the network config was deleted"], PATIENCE);
    // A peer that comes now is one of the network that the daemon knows.
    let peer = Peer::new("10.5.200.0/24", "10.99.1.200", "02:00:00:00:00:c8");
    lab.put_peer(&peer);
    daemons[0].wait_log(&["peer joined", "10.5.200.0/24"], PATIENCE);
    lab.delete(&peer.key());
    daemons[0].wait_log(&["peer left", "10.5.200.0/24"], PATIENCE);
    assert_eq!(fs::read(node.subnet_file()).unwrap(), env);
    assert_eq!((node.link("flannel.1").unwrap(), lab.records()), (device, record));

    lab.put_config(r#"{"Network":"10.6.0.0/16","Backend":{"Type":"vxlan"}}"#);
    assert!(daemons[0].terminate().status.success());
    daemons[0] = node.twilld(&[]);
    daemons[0].wait_ready();
    let subnet = node.as_peer().subnet.to_string();
    assert!(subnet.starts_with("10.6."), "{subnet}");
    assert_eq!(lab.records().len(), 1, "the record that doesn't fit any more is gone");
}

#[test]
fn the_second_node_with_one_public_ip_is_refused_with_both_names() {
    let lab = Lab::with_nodes(2);
    lab.put_config(NODE_CONFIG);
    let mut first = lab.node(1).twilld(&["--node-id=rack-1"]);
    first.wait_ready();
    let address = format!("--public-ip={}", lab.node(1).addr());
    let mut second = lab.node(2).twilld(&["--node-id=rack-2", &address]);
    let exit = second.wait_exit(PATIENCE);
    assert_eq!(exit.status.code(), Some(1));
    let said = second.lines(&["two nodes have the public IP"]);
    let words = ["10.99.0.11", "this one is rack-2", "the other one, rack-1, is alive"];
    assert!(said.len() == 1 && words.iter().all(|word| said[0].contains(word)), "{}", second.log());
    assert!(first.runs());
    let record = lab.get(&lab.node(1).as_peer().key()).unwrap().value;
    assert!(record.contains(r#","NodeID":"rack-1","Instance":{"ID":""#), "{record}");
    assert!(!lab.node(2).subnet_file().exists());
    assert!(lab.node(2).link("flannel.1").is_err(), "nothing was made for it");
}

#[test]
fn a_node_that_was_installed_anew_has_its_subnet_back() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let mut daemon = lab.node(1).twilld(&["--node-id=before"]);
    daemon.wait_ready();
    let before = lab.node(1).as_peer();
    daemon.kill();
    fs::remove_file(lab.node(1).subnet_file()).unwrap();
    lab.node(1).exec("ip link del flannel.1").unwrap();
    // The machine was booted too.
    let [record] = lab.records().try_into().unwrap();
    lab.put(&record.key, &record.value.replace(r#""Instance":{"ID":""#, r#""Instance":{"ID":"before-"#));

    let mut daemon = lab.node(1).twilld(&["--node-id=after"]);
    daemon.wait_log(&["asking whether that node is alive", "node before"], PATIENCE);
    // It has half a minute for its answer.
    let ready = || lab.node(1).subnet_file().exists();
    wait_until("the silence is long enough", PATIENCE * 2, ready);
    daemon.wait_ready();
    assert_eq!(lab.node(1).as_peer(), before, "the subnet, and the MAC");
    let [record] = lab.records().try_into().unwrap();
    assert!(record.value.contains(r#","NodeID":"after","Instance":{"ID":""#), "{}", record.value);
    assert!(!record.value.contains("before"), "{}", record.value);
}
