//! Nodes against a real etcd: all at once, with reservations, with one address, with a lease of seconds; and what a start
//! costs.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its tests do")]
#![allow(dead_code, reason = "the server's helpers are shared with other tests")]

mod etcd_server;

use std::collections::BTreeSet;
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use etcd_server::agents::{join, record};
use etcd_server::{Etcd, LIMIT, Release, on_each_etcd, until};
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinSet;
use twill_agent::lease::{self, AcquireError, Held, Keeper, KeeperHandle, LeaseEvent};
use twill_agent::overlay::NetworkConfig;
use twill_agent::overlay::alloc::SubnetRequest;
use twill_agent::overlay::record::{Family, Record};
use twill_agent::store::etcd::EtcdStore;
use twill_agent::store::{Change, LeaseId, Store, StoreEvent, Written};

fn config(last: usize) -> NetworkConfig {
    NetworkConfig::parse(format!(r#"{{"Network":"10.5.0.0/16","SubnetMax":"10.5.{last}.0"}}"#).as_bytes()).unwrap()
}

/// Says it where it is seen also when the test passes.
fn say(text: &str) {
    std::io::stdout().write_all(text.as_bytes()).unwrap();
}

/// All nodes at the same moment, each with a connection of its own: what each got, and the time it took them all.
async fn race(etcd: &Etcd, nodes: usize, subnets: usize) -> (Vec<Result<Held, AcquireError>>, Duration) {
    let mut all = JoinSet::new();
    let began = Instant::now();
    for node in 1..=nodes {
        let store = etcd.store();
        all.spawn(async move { join(&store, &config(subnets), &record(node)).await.1 });
    }
    let results = tokio::time::timeout(LIMIT * 2, all.join_all()).await.unwrap();
    (results, began.elapsed())
}

async fn fifty_nodes_at_once_have_fifty_subnets(release: Release) {
    let etcd = Etcd::start(release);
    let (results, took) = race(&etcd, 50, 50).await;
    let keys: BTreeSet<_> = results.into_iter().map(|held| held.unwrap().key).collect();
    assert_eq!(keys.len(), 50);
    say(&format!("{release:?}: 50 nodes that start at once on 50 subnets have them after {took:?}\n"));
    // Three seconds are the promise, on a machine with nothing else to do.
    assert!(took < LIMIT, "{took:?}");
    assert!(etcd.ctl(&["lease", "list"]).starts_with("found 50 leases"), "a grant that nobody needed is left");
}

/// etcd keeps nodes apart by their IPv4 subnets only.
async fn nodes_at_once_in_both_families_meet_in_neither(release: Release) {
    let etcd = Etcd::start(release);
    let config = br#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48",
        "IPv6SubnetMin":"fc00:0:0:1::","IPv6SubnetMax":"fc00:0:0:20::"}"#;
    let config = NetworkConfig::parse(config).unwrap();
    let mut all = JoinSet::new();
    for node in 1..=20 {
        let (store, config) = (etcd.store(), config.clone());
        all.spawn(async move { join(&store, &config, &record(node)).await.1.unwrap().key });
    }
    let keys = tokio::time::timeout(LIMIT * 2, all.join_all()).await.unwrap();
    let distinct: [BTreeSet<_>; 2] =
        [Family::V4, Family::V6].map(|family| keys.iter().filter_map(|key| key.side(family)).collect());
    assert_eq!(distinct.map(|side| side.len()), [20, 20], "{keys:?}");
    let stored: BTreeSet<_> =
        etcd.ctl(&["get", "--prefix", "--keys-only", &Etcd::key("")]).split_whitespace().map(str::to_owned).collect();
    assert_eq!(stored, keys.iter().map(|key| Etcd::key(&key.to_string())).collect());
    assert!(etcd.ctl(&["lease", "list"]).starts_with("found 20 leases"));
}

async fn the_fifty_first_of_fifty_is_told(release: Release) {
    let etcd = Etcd::start(release);
    let (results, _) = race(&etcd, 51, 50).await;
    let keys: BTreeSet<_> = results.iter().flatten().map(|held| held.key).collect();
    let refused: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    assert!(matches!(refused[..], [AcquireError::NoFreeSubnet { .. }]), "{refused:?}");
    assert_eq!(keys.len(), 50);
    assert!(etcd.ctl(&["lease", "list"]).starts_with("found 50 leases"), "a grant that nobody needed is left");
}

async fn a_start_costs_a_request_for_a_thousand_records(release: Release) {
    let etcd = Etcd::start(release);
    let filler = etcd.store();
    let mut filled = 0;
    for (node, number) in [(1, 0), (2, 900), (3, 4_500)] {
        while filled < number {
            let key = format!("10.{}.{}.0-24", 6 + filled / 200, filled % 200);
            assert!(matches!(filler.create(&key, b"{}", None).await.unwrap(), Written::At(_)));
            filled += 1;
        }
        let requests = || etcd.counter("grpc_server_msg_received_total", &[]);
        let before = requests();
        let store = etcd.store();
        let (mut mirror, held) = join(&store, &config(99), &record(node)).await;
        let held = held.unwrap();
        let key = held.key.to_string();
        mirror.until("our own record", LIMIT, |mirror| mirror.table.contains_key(&key)).await;
        let cost = requests() - before;
        say(&format!("{release:?}: a start with {number} records costs {cost} requests\n"));
        assert!(cost <= number / 1_000 + 6, "{cost} requests for {number} records");

        let (before, revision) = (requests(), mirror.revision());
        assert!(store.keep_alive(held.lease.unwrap()).await.unwrap().is_some());
        assert_eq!(requests() - before, 1, "a renewal");
        mirror.settle(Duration::from_millis(300)).await;
        assert_eq!(mirror.revision(), revision, "a renewal is no event");
        drop(mirror);
        let again = etcd.store();
        let before = requests();
        let (_mirror, held) = join(&again, &config(99), &record(node)).await;
        assert_eq!(held.unwrap().key.to_string(), key);
        let cost = requests() - before;
        say(&format!("{release:?}: a restart with {number} records costs {cost} requests\n"));
        assert!(cost <= number / 1_000 + 6, "{cost} requests for {number} records");
    }
}

/// The operator's command: what it printed, or what it complained of.
fn twill(etcd: &Etcd, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_twill"));
    let output = command.args([&format!("--etcd-endpoints={}", etcd.url())]).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim().to_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// `twill leases`: its exit code and the table.
fn leases(etcd: &Etcd) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_twill"));
    let output = command.args([&format!("--etcd-endpoints={}", etcd.url()), "leases"]).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

/// The line of a subnet in `twill leases`, with single spaces.
fn line(etcd: &Etcd, subnet: &str) -> String {
    let text = leases(etcd).1;
    let line = text.lines().find(|line| line.starts_with(subnet)).unwrap_or_else(|| panic!("no {subnet} in {text}"));
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Keeps what is held, with the ears that the event loop would be.
async fn keep(store: &EtcdStore, held: Held, ttl: Duration) -> (KeeperHandle, Receiver<LeaseEvent>) {
    let mut events = store.follow();
    until(&mut events, |event| matches!(event, StoreEvent::Listed { .. })).await;
    let (keeper, lease) = Keeper::spawn(store.clone(), config(99), held, ttl, ttl / 2);
    let told = keeper.clone();
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            match event {
                StoreEvent::Changes(changes) => changes.into_iter().for_each(|change| told.seen(change)),
                StoreEvent::Listed { .. } => told.check(),
                _ => {}
            }
        }
    });
    (keeper, lease)
}

async fn heard(lease: &mut Receiver<LeaseEvent>) -> LeaseEvent {
    tokio::time::timeout(LIMIT, lease.recv()).await.unwrap().unwrap()
}

async fn a_reservation_waits_for_its_node_and_stays_one(release: Release) {
    let etcd = Etcd::start(release);
    etcd.ctl(&["put", "/coreos.com/network/config", r#"{"Network":"10.5.0.0/16"}"#]);
    let said = twill(&etcd, &["reserve", "10.5.200.0/24", "--public-ip=10.99.0.1"]).unwrap();
    assert_eq!(said, "10.5.200.0/24 is reserved for 10.99.0.1");
    twill(&etcd, &["reserve", "10.5.201.0/24", "--node", "node-2"]).unwrap();
    assert_eq!(line(&etcd, "10.5.200.0/24"), "10.5.200.0/24 10.99.0.1 - - - reservation reserved, not used yet");
    assert_eq!(line(&etcd, "10.5.201.0/24"), "10.5.201.0/24 - - - node-2 reservation reserved, not used yet");

    let store = etcd.store();
    for (node, subnet) in [(1, "10.5.200.0-24"), (2, "10.5.201.0-24")] {
        let held = join(&store, &config(250), &record(node)).await.1.unwrap();
        assert_eq!((held.key.to_string().as_str(), held.lease), (subnet, None));
        let raw = store.record(subnet).await.unwrap().unwrap();
        assert_eq!((raw.value, raw.lease), (record(node).to_json(), 0));
    }
    assert_eq!(line(&etcd, "10.5.200.0/24"), "10.5.200.0/24 10.99.0.1 vxlan 02:00:00:00:00:01 node-1 reservation ok");

    let held = join(&store, &config(250), &record(3)).await.1.unwrap();
    let (_keeper, mut lease) = keep(&store, held.clone(), lease::TTL).await;
    let subnet = held.key.ipv4.unwrap().to_string();
    let refused = twill(&etcd, &["reserve", &subnet, "--public-ip=10.99.0.9"]).unwrap_err();
    assert_eq!(refused, format!("twill: {} is held by 10.99.0.3 (node node-3)", held.key.slashed()));
    let refused = twill(&etcd, &["release", &subnet]).unwrap_err();
    assert!(refused.contains("is not reserved: 10.99.0.3 (node node-3) holds it"), "{refused}");
    // Reserved and released under a running node, which never loses it.
    twill(&etcd, &["reserve", &subnet]).unwrap();
    assert_eq!(heard(&mut lease).await, LeaseEvent::Rehung { lease: None });
    twill(&etcd, &["release", &subnet]).unwrap();
    let LeaseEvent::Rehung { lease: Some(LeaseId(id)) } = heard(&mut lease).await else { panic!() };
    assert!(matches!(heard(&mut lease).await, LeaseEvent::Renewed { left } if left == lease::TTL));
    assert_eq!(store.record(&held.key.to_string()).await.unwrap().unwrap().lease, id);
    assert!(etcd.ctl(&["lease", "list"]).starts_with("found 1 leases"), "the lease of before is gone");

    twill(&etcd, &["reserve", "10.5.210.0/24", "--public-ip=10.99.0.10"]).unwrap();
    twill(&etcd, &["release", "10.5.210.0/24"]).unwrap();
    assert_eq!(store.record("10.5.210.0-24").await.unwrap(), None);
    let refused = twill(&etcd, &["reserve", "10.6.1.0/24", "--public-ip=10.99.0.10"]).unwrap_err();
    assert_eq!(refused, "twill: 10.6.1.0/24 is outside the network 10.5.0.0/16");
}

async fn leases_names_a_refusal_at_once_and_what_is_ignored(release: Release) {
    let etcd = Etcd::start(release);
    etcd.ctl(&["put", "/coreos.com/network/config", r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7}}"#]);
    etcd.ctl(&["put", &Etcd::key("10.5.1.0-24"), std::str::from_utf8(&record(1).to_json()).unwrap()]);
    assert!(line(&etcd, "10.5.1.0/24").ends_with("node-1 no-lease ignored: the VNI is 1, not 7"));
    for words in ["user add root:secret", "user grant-role root root", "user add nobody:secret", "auth enable"] {
        etcd.ctl(&words.split(' ').collect::<Vec<_>>());
    }
    for (user, password, words) in [
        ("root", "wrong", "invalid user ID or password"),
        ("nobody", "secret", "the user needs a role with read permission on /coreos.com/network/config and "),
    ] {
        let began = Instant::now();
        let login = [format!("--etcd-username={user}"), format!("--etcd-password={password}")];
        let refused = twill(&etcd, &[&login[0], &login[1], "leases"]).unwrap_err();
        // Where that takes etcd more than a second, a line before says that there is no answer yet.
        let refusal = refused.lines().last().unwrap();
        assert!(refusal.starts_with("twill: etcd refuses: read ") && refusal.contains(words), "{refused}");
        assert!(began.elapsed() < Duration::from_secs(8), "not after the wait for an etcd that is away");
    }
    let ignored = twill(&etcd, &["--etcd-username=root", "--etcd-password=secret", "leases"]).unwrap_err();
    assert_eq!(ignored, "twill: records that every node ignores: 1 with another VNI");
}

async fn two_living_nodes_with_one_address_are_both_named(release: Release) {
    let etcd = Etcd::start(release);
    let store = etcd.store();
    let held = join(&store, &config(99), &record(1)).await.1.unwrap();
    let (_keeper, mut lease) = keep(&store, held.clone(), lease::TTL).await;
    let stranger = Record { node: Some("stranger".to_owned()), ..record(1) };
    let error = join(&etcd.store(), &config(99), &stranger).await.1.unwrap_err();
    let expected = format!(
        "two nodes have the public IP 10.99.0.1: this one is stranger, the other one, node-1, is alive and holds {}",
        held.key
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!(heard(&mut lease).await, LeaseEvent::Claimed { by: "stranger".to_owned(), times: 1 });
    assert!(matches!(heard(&mut lease).await, LeaseEvent::Recreated { .. }));
    assert_eq!(store.record(&held.key.to_string()).await.unwrap().unwrap().value, held.record.to_json());
}

async fn a_lease_of_seconds_is_kept_and_ends_without_its_keeper(release: Release) {
    let (etcd, ttl) = (Etcd::start(release), Duration::from_secs(4));
    let (store, record, config) = (etcd.store(), record(1), config(99));
    let wanted = SubnetRequest::of(&config, &record);
    let held = lease::acquire(&store, &wanted, &lease::Known::default(), &record, ttl).await.unwrap();
    let key = held.key.to_string();
    let mut watch = etcd_server::mirror::Mirror::new(store.follow()).await;
    let (keeper, mut lease) = keep(&store, held, ttl).await;
    for _ in 0..4 {
        assert_eq!(heard(&mut lease).await, LeaseEvent::Renewed { left: ttl });
    }
    let kept = store.record(&key).await.unwrap().unwrap();
    assert_eq!(kept.revision, watch.table[&key].revision, "a renewal writes nothing");
    // It ends under a living node, as after an outage longer than itself.
    etcd.ctl(&["lease", "revoke", &format!("{:x}", kept.lease)]);
    loop {
        match heard(&mut lease).await {
            LeaseEvent::Recreated { .. } => break,
            event => assert!(matches!(event, LeaseEvent::Renewed { .. }), "{event:?}"),
        }
    }
    let again = store.record(&key).await.unwrap().unwrap();
    assert_ne!(again.lease, kept.lease);
    keeper.stop();
    watch.until("its end", LIMIT, |mirror| mirror.revision() > again.revision && mirror.table.is_empty()).await;
}

/// `store` shows the record as `held` has it, on a lease that lives.
async fn is_there(store: &EtcdStore, held: &Held) -> bool {
    let Some(raw) = store.record(&held.key.to_string()).await.unwrap() else { return false };
    raw.value == held.record.to_json() && store.keep_alive(LeaseId(raw.lease)).await.unwrap().is_some()
}

async fn a_wiped_or_restored_etcd_has_our_record_again(release: Release) {
    let mut etcd = Etcd::start(release);
    let store = etcd.store();
    etcd.save();
    etcd.ctl(&["put", "x", "so that our record's revision is later than any of the etcd that comes"]);
    etcd.ctl(&["put", "x", "y"]);
    let held = join(&store, &config(99), &record(1)).await.1.unwrap();
    let (_keeper, mut lease) = keep(&store, held.clone(), lease::TTL).await;
    for (come, what) in [(Etcd::wipe as fn(&Etcd), "wiped"), (Etcd::restore, "restored")] {
        etcd.kill();
        come(&etcd);
        etcd.restart();
        while !matches!(heard(&mut lease).await, LeaseEvent::Recreated { .. }) {}
        assert!(is_there(&store, &held).await, "{what}");
        let raw = store.record(&held.key.to_string()).await.unwrap().unwrap();
        assert!(raw.revision < held.revision, "{what}");
    }
    // A snapshot in which another node has the subnet.
    let key = Etcd::key(&held.key.to_string());
    etcd.ctl(&["del", &key]);
    while !matches!(heard(&mut lease).await, LeaseEvent::Recreated { .. }) {}
    etcd.kill();
    etcd.restore();
    etcd.aside(|etcd| drop(etcd.ctl(&["put", &key, std::str::from_utf8(&record(2).to_json()).unwrap()])));
    etcd.restart();
    loop {
        match heard(&mut lease).await {
            LeaseEvent::Lost { holder } => break assert_eq!(holder, "10.99.0.2 (node node-2)"),
            event => assert!(!matches!(event, LeaseEvent::Recreated { .. }), "{event:?}"),
        }
    }
}

async fn a_subnet_that_another_took_with_a_lease_of_its_own_leaves_none_of_ours(release: Release) {
    let etcd = Etcd::start(release);
    let store = etcd.store();
    let held = join(&store, &config(99), &record(1)).await.1.unwrap();
    let (_keeper, mut lease) = keep(&store, held.clone(), lease::TTL).await;
    let its = store.grant(lease::TTL).await.unwrap();
    let (key, id) = (Etcd::key(&held.key.to_string()), format!("{:x}", its.0));
    // Nothing of the keeper's runs before the next await.
    etcd.ctl(&["del", &key]);
    etcd.ctl(&["put", "--lease", &id, &key, std::str::from_utf8(&record(2).to_json()).unwrap()]);
    assert!(matches!(heard(&mut lease).await, LeaseEvent::Lost { .. }));
    let leases = etcd.ctl(&["lease", "list"]);
    assert!(leases.starts_with("found 1 leases") && leases.contains(&id), "{leases}");
}

async fn a_subnet_that_another_took_under_another_key_is_lost(release: Release) {
    let etcd = Etcd::start(release);
    let store = etcd.store();
    let held = join(&store, &config(99), &record(1)).await.1.unwrap();
    let (keeper, mut lease) =
        Keeper::spawn(store.clone(), config(99), held.clone(), lease::TTL, Duration::from_secs(60));
    let (key, other) = (held.key.to_string(), format!("{}&fc00:0:0:22::-64", held.key));
    etcd.ctl(&["put", &Etcd::key(&other), std::str::from_utf8(&record(2).to_json()).unwrap()]);
    etcd.ctl(&["del", &Etcd::key(&key)]);
    keeper.seen(Change::Deleted { key, revision: held.revision + 2 });
    let expected = LeaseEvent::Lost { holder: format!("10.99.0.2 (node node-2), under the key {other}") };
    assert_eq!(heard(&mut lease).await, expected);
}

on_each_etcd!(
    fifty_nodes_at_once_have_fifty_subnets,
    nodes_at_once_in_both_families_meet_in_neither,
    the_fifty_first_of_fifty_is_told,
    a_start_costs_a_request_for_a_thousand_records,
    a_reservation_waits_for_its_node_and_stays_one,
    leases_names_a_refusal_at_once_and_what_is_ignored,
    two_living_nodes_with_one_address_are_both_named,
    a_lease_of_seconds_is_kept_and_ends_without_its_keeper,
    a_wiped_or_restored_etcd_has_our_record_again,
    a_subnet_that_another_took_with_a_lease_of_its_own_leaves_none_of_ours,
    a_subnet_that_another_took_under_another_key_is_lost,
);
