//! Two records claim one MAC or one subnet: which of them the nodes follow, and what the node hears whose MAC it is.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::time::Duration;

use twill_lab::{Lab, NODE_CONFIG, Peer, Pod, Twilld, wait_until};

/// For states that take milliseconds on an idle machine, and for retries with a backoff of some seconds.
const PATIENCE: Duration = Duration::from_secs(60);
const ALL: &str = "--peer-mode=all";
const MODES: [&str; 2] = [ALL, "--peer-mode=on-demand"];

/// Writes a record as a node does that lives, with a lease.
fn put_leased(lab: &Lab, key: &str, value: &str) {
    let granted = lab.etcdctl(&["lease", "grant", "3600"]).unwrap();
    let id = granted.split_whitespace().nth(1).unwrap();
    lab.etcdctl(&["put", &format!("--lease={id}"), "--", key, value]).unwrap();
}

/// The lines of a log with all of these words.
fn lines(daemon: &Twilld, words: &[&str]) -> Vec<String> {
    let log = daemon.log();
    log.lines().filter(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned).collect()
}

/// The lines by which a daemon says that the other nodes don't reach it.
fn cut_off(daemon: &Twilld) -> Vec<String> {
    lines(daemon, &["not ready", "follow it instead of ours"])
}

/// A record of a node that is not there, with this node's MAC.
fn thief(of: &Peer) -> Peer {
    Peer::new("10.5.222.0/24", "10.99.1.222", &of.mac)
}

/// Two nodes whose pods reach each other.
fn pair(mode: &str) -> (Lab, Vec<Twilld>, Vec<Pod>) {
    let (lab, daemons, pods) = Lab::running(2, NODE_CONFIG, &[mode]);
    pods[0].ping(pods[1].addr()).unwrap();
    (lab, daemons, pods)
}

/// Waits until a daemon has taken in all that etcd has by now.
fn caught_up(lab: &Lab, daemon: &mut Twilld, marker: u8) {
    lab.put_peer(&Peer::new(&format!("10.5.{marker}.0/24"), "10.99.1.99", &format!("02:00:00:00:01:{marker:02x}")));
    daemon.wait_log(&["peer joined", &format!("10.5.{marker}.0/24")], PATIENCE);
}

#[test]
fn a_newcomer_with_the_mac_of_a_living_node_cuts_nobody_off() {
    for (mode, leased) in [(MODES[0], false), (MODES[1], false), (MODES[0], true)] {
        let (lab, mut daemons, pods) = pair(mode);
        let (victim, second) = (lab.node(2).as_peer(), lab.node(2).leased().join(""));
        let thief = thief(&victim);
        let ping = pods[0].ping_running(pods[1].addr(), 10);
        ping.wait_received(5);
        if leased {
            put_leased(&lab, &thief.key(), &thief.record());
        } else {
            lab.put_peer(&thief);
        }
        let why = format!("the VTEP's MAC {} is also that of {second}, whose record takes precedence", victim.mac);
        daemons[0].wait_log(&["record kept out", "10.5.222.0-24", &why], PATIENCE);
        let why = format!("the VTEP's MAC {} of 10.99.1.222 is our own", victim.mac);
        daemons[1].wait_log(&["record kept out", "10.5.222.0-24", &why], PATIENCE);
        // Once more, and by a daemon that hears of both at once, in the order of their keys.
        lab.put_peer(&Peer { public_ip: "10.99.1.223".parse().unwrap(), ..thief.clone() });
        lab.put_peer(&thief);
        daemons[0].kill();
        daemons[0] = lab.node(1).twilld(&[mode]);
        daemons[0].wait_ready();
        daemons[0].wait_log(&["record kept out", "10.5.222.0-24", &second], PATIENCE);
        caught_up(&lab, &mut daemons[0], 230);
        caught_up(&lab, &mut daemons[1], 231);
        ping.wait_received(5);
        let report = ping.stop();
        assert_eq!(report.lost, 0, "{mode}, leased {leased}: {report:?}");
        assert!(lab.node(1).fdb().iter().all(|row| row.dst.to_string() != "10.99.1.222"), "{:?}", lab.node(1).fdb());
        assert!(cut_off(&daemons[1]).is_empty(), "{}", daemons[1].log());
        lab.delete(&thief.key());
        caught_up(&lab, &mut daemons[0], 232);
        pods[0].ping(pods[1].addr()).unwrap();
    }
}

/// A subnet that was set aside for a node has no lease, and its record may be somebody's who is long gone.
#[test]
fn a_node_whose_record_the_others_do_not_follow_is_not_ready_and_says_which_they_follow() {
    let lab = Lab::with_nodes(2);
    lab.put_config(NODE_CONFIG);
    lab.put("/coreos.com/network/subnets/10.5.120.0-24", r#"{"PublicIP":"10.99.0.12","PublicIPv6":null}"#);
    let mut daemons = lab.start_all(&[ALL]);
    let pods = [lab.node(1).pod(1), lab.node(2).pod(1)];
    pods[0].ping(pods[1].addr()).unwrap();
    let victim = lab.node(2).as_peer();
    assert_eq!(victim.subnet.to_string(), "10.5.120.0/24");
    let thief = thief(&victim);
    put_leased(&lab, &thief.key(), &thief.record());
    let claim = format!(
        "the record of 10.5.222.0/24 with the public IP 10.99.1.222 claims our VTEP's MAC {}, and the other nodes follow it instead of ours",
        victim.mac
    );
    daemons[1].wait_log(&["not ready", &claim], PATIENCE);
    daemons[0].wait_log(&["peer dropped", "10.5.120.0/24", "10.5.222.0/24"], PATIENCE);
    wait_until("node 1 follows the leased one", PATIENCE, || lab.node(1).holds_exactly(std::slice::from_ref(&thief)));
    let before = lines(&daemons[1], &[" ready"]).len();
    // So is a daemon that starts now: it gets its subnet and its MAC, and finds both claimed.
    daemons[1].terminate();
    daemons[1] = lab.node(2).twilld(&[ALL]);
    daemons[1].wait_log(&["record kept out", "10.5.222.0-24", "is our own"], PATIENCE);
    assert!(before > 0 && lines(&daemons[1], &["INFO", "ready"]).is_empty(), "{}", daemons[1].log());

    lab.delete(&thief.key());
    daemons[1].wait_ready();
    wait_until("node 1 follows node 2 again", PATIENCE, || lab.node(1).holds_exactly(std::slice::from_ref(&victim)));
    pods[0].ping(pods[1].addr()).unwrap();
}

#[test]
fn another_key_for_a_living_nodes_subnet_changes_nothing_and_is_named_there() {
    let (lab, mut daemons, pods) = pair(ALL);
    let victim = lab.node(2).as_peer();
    let ping = pods[0].ping_running(pods[1].addr(), 10);
    ping.wait_received(5);
    // As a node of both families would write it, which flannel creates without a look at the other key.
    let thief =
        Peer { public_ip: "10.99.1.222".parse().unwrap(), mac: "02:00:00:00:02:22".to_owned(), ..victim.clone() };
    let dual = format!("{}&fc00:0:0:22::-64", thief.key());
    put_leased(&lab, &dual, &thief.record());
    let said = format!("{} is also the subnet of another key, of 10.99.0.12", victim.subnet);
    daemons[0].wait_log(&["record kept out", &said], PATIENCE);
    let said = format!("{} of 10.99.1.222 overlaps our own subnet", victim.subnet);
    daemons[1].wait_log(&["record kept out", &said], PATIENCE);
    // A part of it, which no node of Twill's follows.
    let part = format!("{}-25", thief.key().trim_end_matches("-24"));
    put_leased(&lab, &part, &thief.record());
    daemons[1]
        .wait_log(&["record kept out", "-25", "overlaps our own subnet", "flannel nodes send traffic to it"], PATIENCE);
    // Its address alone: two subnets behind one host.
    let guest = Peer::new("10.5.223.0/24", "10.99.0.12", "02:00:00:00:02:23");
    lab.put_peer(&guest);
    daemons[1].wait_log(&["record kept out", "10.5.223.0-24", "the public IP of 10.99.0.12 is our own"], PATIENCE);
    wait_until("node 1 holds both", PATIENCE, || lab.node(1).holds_exactly(&[victim.clone(), guest.clone()]));
    ping.wait_received(5);
    assert_eq!(ping.stop().lost, 0);
    caught_up(&lab, &mut daemons[1], 230);
    assert!(cut_off(&daemons[1]).is_empty(), "{}", daemons[1].log());
}

/// Gives node 2 this address in place of that one, takes its subnet.env away and starts its daemon anew; returns it as a peer.
fn starts_elsewhere(lab: &Lab, daemons: &mut [Twilld], mode: &str, from: &str, to: &str) -> Peer {
    let node = lab.node(2);
    daemons[1].terminate();
    let lines = [
        format!("addr del {from}/16 dev eth0"),
        format!("addr add {to}/16 dev eth0"),
        "route replace default via 10.99.0.1".to_owned(),
    ];
    node.netns().ip_batch(lines).unwrap();
    std::fs::remove_file(node.subnet_file()).unwrap();
    daemons[1] = node.twilld(&[mode]);
    daemons[1].wait_ready();
    let subnet = node.subnet_env().unwrap().subnet.unwrap();
    Peer::new(&format!("{}/24", subnet.network()), to, &node.link("flannel.1").unwrap().mac)
}

/// Its record under the old address lives on for a day, with the MAC of the device that both have.
#[test]
fn a_node_that_comes_back_with_another_address_and_subnet_and_its_old_mac_is_followed_at_once() {
    for mode in MODES {
        let (lab, mut daemons, _) = pair(mode);
        let before = lab.node(2).as_peer();
        let away = starts_elsewhere(&lab, &mut daemons, mode, "10.99.0.12", "10.99.0.42");
        assert!(away.mac == before.mac && away.subnet != before.subnet, "{away:?} {before:?}");
        assert!(lab.get(&before.key()).is_some_and(|record| record.lease != 0), "the old record is there");
        let said = lines(&daemons[1], &["record kept out", &before.mac, "is our own"]);
        assert!(!said.is_empty(), "{}", daemons[1].log());
        is_followed(&lab, &away, "with another address");
        // Back again, where its old record says all that it should: it is written again all the same.
        let back = starts_elsewhere(&lab, &mut daemons, mode, "10.99.0.42", "10.99.0.12");
        assert_eq!(back, before);
        is_followed(&lab, &back, "back again");
        assert!(cut_off(&daemons[1]).is_empty(), "{}", daemons[1].log());
    }
}

/// Node 1 reaches this peer, and holds no other.
#[track_caller]
fn is_followed(lab: &Lab, peer: &Peer, when: &str) {
    wait_until(&format!("node 1 reaches node 2 {when}"), PATIENCE, || {
        lab.node(1).exec(&format!("ping -n -c1 -W1 {}", peer.subnet.network()))?;
        lab.node(1).holds_exactly(std::slice::from_ref(peer))
    });
}

/// A node has a MAC for each family, and is cut off in one of them where only that one is claimed.
#[test]
fn the_mac_of_the_second_family_is_guarded_like_the_first() {
    let config = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"vxlan"}}"#;
    let lab = Lab::with_nodes(2);
    lab.put_config(config);
    let mut daemons = lab.start_all(&[ALL]);
    let mac = lab.node(2).link("flannel-v6.1").unwrap().mac;
    let value = format!(
        r#"{{"PublicIP":"10.99.1.222","PublicIPv6":"fd99::222","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:02:22"}},"BackendV6Data":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    );
    let key = "/coreos.com/network/subnets/10.5.222.0-24&fc00:0:0:de::-64";
    lab.put(key, &value);
    daemons[1].wait_log(&["record kept out", &format!("the VTEP's MAC {mac} of 10.99.1.222 is our own")], PATIENCE);
    daemons[0].wait_log(&["record kept out", &format!("the VTEP's MAC {mac} is also that of")], PATIENCE);
    wait_until("node 1 has the FDB row of node 2", PATIENCE, || {
        let fdb = lab.node(1).exec("bridge fdb show dev flannel-v6.1")?;
        anyhow::ensure!(fdb.contains(&format!("{mac} dst fd99::12")) && !fdb.contains("fd99::222"), "{fdb}");
        anyhow::Ok(())
    });
    let far =
        lab.node(2).ip_json("-6 addr show dev flannel-v6.1 scope global").unwrap()[0]["addr_info"][0]["local"].clone();
    let ping = format!("ping -n -c1 -W1 {}", far.as_str().unwrap());
    wait_until("node 1 reaches node 2 over IPv6", PATIENCE, || lab.node(1).exec(&ping));
    assert!(cut_off(&daemons[1]).is_empty(), "{}", daemons[1].log());
}
