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

/// The lines by which a daemon says that the other nodes don't reach it.
fn cut_off(daemon: &Twilld) -> Vec<String> {
    daemon.lines(&["not ready", "follow it instead of ours"])
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
        daemons[0].wait_log(&["record ignored", "10.5.222.0-24", &why], PATIENCE);
        let why = format!("the VTEP's MAC {} of 10.99.1.222 is our own", victim.mac);
        daemons[1].wait_log(&["record ignored", "10.5.222.0-24", &why], PATIENCE);
        // Once more, and by a daemon that hears of both at once, in the order of their keys.
        lab.put_peer(&Peer { public_ip: "10.99.1.223".parse().unwrap(), ..thief.clone() });
        lab.put_peer(&thief);
        daemons[0].kill();
        daemons[0] = lab.node(1).twilld(&[mode]);
        daemons[0].wait_ready();
        daemons[0].wait_log(&["record ignored", "10.5.222.0-24", &second], PATIENCE);
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

/// A node whose subnet is reserved for it has a record without a lease, and keeps its place all the same.
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
    daemons[0].wait_log(&["record ignored", "10.5.222.0-24", "10.5.120.0/24"], PATIENCE);
    caught_up(&lab, &mut daemons[1], 230);
    assert!(cut_off(&daemons[1]).is_empty(), "{}", daemons[1].log());
    pods[0].ping(pods[1].addr()).unwrap();
    lab.delete(&Peer::new("10.5.230.0/24", "10.99.1.99", "02:00:00:00:01:e6").key());

    // Its record is made anew, and so is the later one.
    lab.delete(&victim.key());
    let claim = format!(
        "the record of 10.5.222.0/24 with the public IP 10.99.1.222 claims our VTEP's MAC {}, and the other nodes follow it instead of ours",
        victim.mac
    );
    daemons[1].wait_log(&["not ready", &claim], PATIENCE);
    daemons[0].wait_log(&["peer left", "10.5.120.0/24"], PATIENCE);
    daemons[0].wait_log(&["peer joined", "10.5.222.0/24"], PATIENCE);
    wait_until("node 1 follows the leased one", PATIENCE, || lab.node(1).holds_exactly(std::slice::from_ref(&thief)));
    let before = daemons[1].lines(&[" ready"]).len();
    // So is a daemon that starts now: it gets its subnet and its MAC, and finds both claimed.
    daemons[1].terminate();
    daemons[1] = lab.node(2).twilld(&[ALL]);
    daemons[1].wait_log(&["record ignored", "10.5.222.0-24", "is our own"], PATIENCE);
    assert!(before > 0 && daemons[1].lines(&["INFO", "ready"]).is_empty(), "{}", daemons[1].log());

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
    daemons[0].wait_log(&["record ignored", &said], PATIENCE);
    let said = format!("{} of 10.99.1.222 overlaps our own subnet", victim.subnet);
    daemons[1].wait_log(&["record ignored", &said], PATIENCE);
    // A part of it, which no node of Twill's follows.
    let part = format!("{}-25", thief.key().trim_end_matches("-24"));
    put_leased(&lab, &part, &thief.record());
    daemons[1]
        .wait_log(&["record ignored", "-25", "overlaps our own subnet", "flannel nodes send traffic to it"], PATIENCE);
    // Its address alone: two subnets behind one host.
    let guest = Peer::new("10.5.223.0/24", "10.99.0.12", "02:00:00:00:02:23");
    lab.put_peer(&guest);
    daemons[1].wait_log(&["record ignored", "10.5.223.0-24", "the public IP of 10.99.0.12 is our own"], PATIENCE);
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
        let said = daemons[1].lines(&["record ignored", &before.mac, "is our own"]);
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
    daemons[1].wait_log(&["record ignored", &format!("the VTEP's MAC {mac} of 10.99.1.222 is our own")], PATIENCE);
    daemons[0].wait_log(&["record ignored", &format!("the VTEP's MAC {mac} is also that of")], PATIENCE);
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
    // Against a leased record in its own name a node writes its own record again.
    put_leased(&lab, key, &value.replace("fd99::222", "fd99::12"));
    daemons[1].wait_log(&["another record in our name is newer than ours", "10.5.222.0-24&fc00:0:0:de::-64"], PATIENCE);
    wait_until("node 1 reaches node 2 over IPv6 again", PATIENCE, || {
        let fdb = lab.node(1).exec("bridge fdb show dev flannel-v6.1")?;
        anyhow::ensure!(fdb.contains(&format!("{mac} dst fd99::12")), "{fdb}");
        lab.node(1).exec(&ping)
    });
}

/// What a node's record says now, with Twill's own members.
fn value_of(lab: &Lab, peer: &Peer) -> String {
    lab.get(&peer.key()).unwrap().value
}

/// A key that no node has.
const FREE: &str = "/coreos.com/network/subnets/10.5.222.0-24";

/// Forged, or forgotten: whoever put it there need not be that node.
#[test]
fn a_record_in_a_living_nodes_name_without_a_lease_harms_nobody() {
    for mode in MODES {
        let (lab, mut daemons, pods) = pair(mode);
        let victim = lab.node(2).as_peer();
        let ping = pods[0].ping_running(pods[1].addr(), 10);
        ping.wait_received(5);
        for value in [value_of(&lab, &victim), victim.record()] {
            lab.put(FREE, &value);
            daemons[0].wait_log(&["record ignored", "10.5.222.0-24", "whose record takes precedence"], PATIENCE);
            daemons[1].wait_log(&["record ignored", "10.5.222.0-24", "is our own"], PATIENCE);
        }
        // And for a daemon that reads both at once.
        daemons[0].kill();
        daemons[0] = lab.node(1).twilld(&[mode]);
        daemons[0].wait_ready();
        caught_up(&lab, &mut daemons[0], 230);
        caught_up(&lab, &mut daemons[1], 231);
        ping.wait_received(5);
        assert_eq!(ping.stop().lost, 0, "{mode}");
        assert!(cut_off(&daemons[1]).is_empty(), "{}", daemons[1].log());
    }
}

#[test]
fn against_a_leased_record_in_its_own_name_a_node_writes_its_own_again() {
    for mode in MODES {
        let (lab, mut daemons, pods) = pair(mode);
        let victim = lab.node(2).as_peer();
        let before = lab.get(&victim.key()).unwrap();
        // The second one's key names a family that the network doesn't have.
        for (key, value) in [(FREE.to_owned(), before.value.clone()), (format!("{FREE}&fc00::-64"), victim.record())] {
            put_leased(&lab, &key, &value);
            let name = key.rsplit('/').next().unwrap();
            daemons[1].wait_log(&["another record in our name is newer than ours", &format!("{name} with")], PATIENCE);
            wait_until("its own record is the newer one", PATIENCE, || {
                let (own, other) = (lab.get(&victim.key()).unwrap(), lab.get(&key).unwrap());
                assert_eq!((&own.value, own.lease), (&before.value, before.lease));
                own.mod_revision > other.mod_revision
            });
            is_followed(&lab, &victim, "again");
            pods[0].ping(pods[1].addr()).unwrap();
        }
        // Again and again: slowed, counted and named.
        let called = "in our name again and again: delete that key";
        wait_until("it is called what it is", PATIENCE, || {
            put_leased(&lab, FREE, &before.value);
            !daemons[1].lines(&[called, "10.5.222.0-24"]).is_empty()
        });
        daemons[1].wait_log(&["not ready", called], PATIENCE);
        let from = lab.get(&victim.key()).unwrap().mod_revision;
        let more = 100;
        (0..more).for_each(|_| put_leased(&lab, FREE, &before.value));
        is_followed(&lab, &victim, "after a fight");
        let written = lab.get(&victim.key()).unwrap().mod_revision - from - more;
        assert!(written < more / 2, "{written} writes against {more}");
        assert!(daemons[1].lines(&["written again"]).len() < 10, "{}", daemons[1].log());
        pods[0].ping(pods[1].addr()).unwrap();
    }
}

/// A reservation can't be made to go before a lease by writing it again.
#[test]
fn a_leased_record_in_the_name_of_a_node_with_a_reservation_is_deleted() {
    let lab = Lab::with_nodes(2);
    lab.put_config(NODE_CONFIG);
    lab.put("/coreos.com/network/subnets/10.5.120.0-24", r#"{"PublicIP":"10.99.0.12","PublicIPv6":null}"#);
    let mut daemons = lab.start_all(&[ALL]);
    let victim = lab.node(2).as_peer();
    assert_eq!(victim.subnet.to_string(), "10.5.120.0/24");
    put_leased(&lab, FREE, &value_of(&lab, &victim));
    wait_until("it is gone", PATIENCE, || lab.get(FREE).is_none());
    daemons[1].wait_log(&["goes before our reservation; it is deleted", "10.5.222.0-24"], PATIENCE);
    is_followed(&lab, &victim, "again");
}

/// The node's record of before goes on for a day.
#[test]
fn a_node_that_moves_to_a_reserved_subnet_is_followed_at_once() {
    let (lab, mut daemons, _) = pair(ALL);
    let before = lab.node(2).as_peer();
    daemons[1].terminate();
    std::fs::remove_file(lab.node(2).subnet_file()).unwrap();
    lab.put("/coreos.com/network/subnets/10.5.120.0-24", r#"{"PublicIP":"10.99.0.12","PublicIPv6":null}"#);
    daemons[1] = lab.node(2).twilld(&[ALL]);
    daemons[1].wait_ready();
    let now = lab.node(2).as_peer();
    assert!(now.mac == before.mac && now.subnet.to_string() == "10.5.120.0/24", "{now:?}");
    daemons[1].wait_log(&["deleted our record, since another subnet is reserved for this node"], PATIENCE);
    assert!(lab.get(&before.key()).is_none());
    is_followed(&lab, &now, "under the reserved subnet");
}

#[test]
fn a_record_whose_public_ip_no_node_can_have_is_ignored_and_takes_no_subnet() {
    let (lab, mut daemons, pods) = pair(ALL);
    let victim = lab.node(2).as_peer();
    let own = victim.subnet.network().to_string();
    for (number, ip) in ["10.5.77.3", "0.1.2.3", &own, "10.5.150.9"].into_iter().enumerate() {
        let why =
            if ip.starts_with("0.") { "is not a host's address" } else { "are reached through the tunnel itself" };
        let mac = format!("02:00:00:00:03:{number:02x}");
        let bad = Peer::new(&format!("10.5.{}.0/24", 240 + number), ip, &mac);
        lab.put_peer(&bad);
        for daemon in &mut daemons {
            daemon.wait_log(&["record ignored", &format!("10.5.{}.0-24", 240 + number), ip, why], PATIENCE);
        }
        // Under the key of a living node.
        let before = lab.get(&victim.key()).unwrap();
        put_leased(&lab, &victim.key(), &Peer { subnet: victim.subnet, ..bad }.record());
        daemons[1].wait_log(&["written again", ip, why], PATIENCE);
        wait_until("it is put back", PATIENCE, || {
            lab.get(&victim.key()).is_some_and(|now| (&now.value, now.lease) == (&before.value, before.lease))
        });
    }
    is_followed(&lab, &victim, "and no other");
    pods[0].ping(pods[1].addr()).unwrap();
}

/// A record that was forged, restored from a backup, or edited by hand.
#[test]
fn a_copy_of_a_nodes_record_under_its_key_is_put_back_and_named() {
    let (lab, mut daemons, _pods) = Lab::running(1, NODE_CONFIG, &[ALL]);
    let before = lab.get(&lab.node(1).as_peer().key()).unwrap();
    let grant = lab.etcdctl(&["lease", "grant", "3600"]).unwrap();
    let foreign = format!("--lease={}", grant.split_whitespace().nth(1).unwrap());
    let foreign = foreign.as_str();
    let (head, _) = before.value.split_once(r#","Instance""#).unwrap();
    let with = |instance: &str| format!(r#"{head},"Instance":{instance}}}"#);
    let moved = with(r#"{"ID":"00000000-1","Since":1}"#).replace("10.99.0.11", "10.99.1.9");
    let (spoilt, elsewhere) = ("our record with other members", "with our node id and another public IP, 10.99.1.9");
    for (value, flag, word) in [
        (with(r#"{"ID":"00000000-1","Since":1}"#), "--lease=0", "with another instance and without a lease"),
        (with(r#"{"ID":"00000000-1","Since":-1}"#), "--lease=0", spoilt),
        (with(r#"{"ID":"00000000-1","Since":1e23}"#), foreign, spoilt),
        (with(r#"{"ID":"00000000-1","Since":"1"}"#), "--lease=0", spoilt),
        (with(r#"{"ID":"00000000-1"}"#), "--ignore-lease", spoilt),
        (with(r#"{"ID":7,"Since":1}"#), "--lease=0", spoilt),
        (with(r#"{"ID":"","Since":1}"#), foreign, spoilt),
        (moved.clone(), "--lease=0", elsewhere),
        (moved, foreign, elsewhere),
    ] {
        // Each by itself: what comes again and again is counted.
        daemons[0].terminate();
        daemons[0] = lab.node(1).twilld(&[ALL]);
        daemons[0].wait_ready();
        lab.etcdctl(&["put", flag, "--", &before.key, &value]).unwrap();
        daemons[0].wait_log(&["our record was gone or changed, written again", word], PATIENCE);
        let now = lab.get(&before.key).unwrap();
        assert!(daemons[0].runs() && (&now.value, now.lease) == (&before.value, before.lease), "{value}: {now:?}");
    }
}
