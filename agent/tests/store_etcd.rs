//! The store against a real etcd: what is read, what is heard of, and what faults do to it.
//!
//! No test measures time; each waits for what must happen, with a generous limit.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its tests do")]
#![allow(dead_code, reason = "the server's helpers are shared with other tests")]

mod etcd_server;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use etcd_server::{Etcd, Release, next, on_each_etcd, until};
use nix::sys::signal::Signal;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use twill_agent::lease::{self, AcquireError, Held};
use twill_agent::overlay::NetworkConfig;
use twill_agent::overlay::alloc::SubnetRequest;
use twill_agent::overlay::record::{Record, VtepData};
use twill_agent::store::etcd::EtcdStore;
use twill_agent::store::{Change, LeaseId, RawRecord, Store, StoreEvent, Written};

/// Record keys that sort as they are numbered.
fn key(number: usize) -> String {
    format!("10.{}.{}.0-24", number / 100 + 100, number % 100 + 100)
}

async fn fill(store: &EtcdStore, number: usize) {
    let mut tasks = JoinSet::new();
    for n in 0..number {
        let store = store.clone();
        tasks.spawn(async move { store.create(&key(n), b"{}", None).await.unwrap() });
        if tasks.len() >= 64 {
            tasks.join_next().await;
        }
    }
    tasks.join_all().await;
}

/// A complete read: pages, the records in them, and its revision.
async fn listing(events: &mut mpsc::Receiver<StoreEvent>) -> (usize, BTreeMap<String, RawRecord>, i64) {
    let (mut pages, mut records) = (0, BTreeMap::new());
    assert_eq!(next(events).await, StoreEvent::Listing);
    loop {
        match next(events).await {
            StoreEvent::Page(page) => {
                pages += 1;
                records.extend(page.into_iter().map(|record| (record.key.clone(), record)));
            }
            StoreEvent::Listed { revision } => return (pages, records, revision),
            StoreEvent::Config(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// The changes up to one of `last`; anything but changes is out of place.
async fn changes(events: &mut mpsc::Receiver<StoreEvent>, last: &str) -> Vec<Change> {
    let mut seen = Vec::new();
    loop {
        match next(events).await {
            StoreEvent::Changes(changes) => seen.extend(changes),
            other => panic!("{other:?} before {last}"),
        }
        let is_last = |change: &Change| match change {
            Change::Put(record) => record.key == last,
            Change::Deleted { key, .. } => key == last,
        };
        if seen.iter().any(is_last) {
            return seen;
        }
    }
}

/// What is said when the server goes: once, and nothing else.
async fn down(events: &mut mpsc::Receiver<StoreEvent>) {
    let event = next(events).await;
    assert!(matches!(event, StoreEvent::Down { .. }), "{event:?}");
}

fn record(node: u8) -> Record {
    let vtep = VtepData { vni: Some(1), mac: "c6:d2:32:6f:8f:44".parse().unwrap() };
    Record { ipv4: Some(vtep.into()), ..Record::vxlan(Ipv4Addr::new(192, 168, 64, node)) }
}

async fn acquire(
    store: &EtcdStore,
    config: &str,
    record: &Record,
    records: &BTreeMap<String, RawRecord>,
) -> Result<Held, AcquireError> {
    let config = NetworkConfig::parse(config.as_bytes()).unwrap();
    let wanted = SubnetRequest::of(&config, record);
    let known = lease::Known::of(&wanted, records.values());
    lease::acquire(store, &wanted, &known, record, lease::TTL).await
}

async fn reads_in_pages_then_hears_of_each_change(release: Release) {
    let etcd = Etcd::start(release);
    let store = etcd.store();
    fill(&store, 2_500).await;
    etcd.ctl(&["put", "/coreos.com/network/subnetsx", "not ours"]);
    let requests = || etcd.counter("grpc_server_msg_received_total", &[]);
    let before = requests();
    let mut events = store.follow();
    let (pages, records, revision) = listing(&mut events).await;
    assert_eq!((pages, records.len()), (3, 2_500));
    assert!(records.values().all(|record| record.revision <= revision));

    etcd.ctl(&["put", &Etcd::key("10.5.1.0-24"), "x"]);
    assert!(matches!(&changes(&mut events, "10.5.1.0-24").await[..], [Change::Put(put)] if put.value == b"x"));
    etcd.ctl(&["del", &Etcd::key("10.5.1.0-24")]);
    assert!(matches!(changes(&mut events, "10.5.1.0-24").await[..], [Change::Deleted { .. }]));
    let lease = store.grant(Duration::from_secs(1)).await.unwrap();
    store.create("10.5.2.0-24", b"y", Some(lease)).await.unwrap();
    assert!(matches!(&changes(&mut events, "10.5.2.0-24").await[..], [Change::Put(put)] if put.lease == lease.0));
    assert!(matches!(changes(&mut events, "10.5.2.0-24").await[..], [Change::Deleted { .. }]));
    etcd.ctl(&["put", "/coreos.com/network/config", "{}"]);
    assert_eq!(next(&mut events).await, StoreEvent::Config(Some(b"{}".to_vec())));
    etcd.ctl(&["del", "/coreos.com/network/config"]);
    assert_eq!(next(&mut events).await, StoreEvent::Config(None));

    // Three pages, the watch's two requests, grant and create; etcdctl's four are one each.
    assert_eq!(requests() - before, 3 + 2 + 2 + 4);
}

async fn a_change_is_heard_wherever_it_falls_between_read_and_watch(release: Release) {
    let etcd = Etcd::start(release);
    let store = etcd.store();
    let writer = store.clone();
    let writing = tokio::spawn(async move { fill(&writer, 1_500).await });
    let mut events = store.follow();
    let (_, mut seen, _) = listing(&mut events).await;
    while seen.len() < 1_500 {
        let StoreEvent::Changes(changes) = next(&mut events).await else { panic!() };
        for change in changes {
            let Change::Put(put) = change else { panic!() };
            assert!(seen.insert(put.key.clone(), put).is_none(), "heard twice");
        }
    }
    writing.await.unwrap();
}

async fn an_answer_too_large_is_asked_for_in_parts(release: Release) {
    let etcd = Etcd::start(release);
    let store = etcd.store();
    let large = vec![b'x'; 1 << 20];
    for n in 0..6 {
        store.create(&key(n), &large, None).await.unwrap();
    }
    let mut events = store.follow();
    let (_, records, _) = listing(&mut events).await;
    assert_eq!(records.len(), 6);
    store.create("10.5.1.0-24", &large, None).await.unwrap();
    changes(&mut events, "10.5.1.0-24").await;
}

async fn a_restart_loses_no_change_and_reads_nothing_again(release: Release) {
    let mut etcd = Etcd::start(release);
    let store = etcd.store();
    store.create("10.5.1.0-24", b"x", None).await.unwrap();
    let mut events = store.follow();
    listing(&mut events).await;
    for round in 0..3 {
        etcd.kill();
        down(&mut events).await;
        let missed = format!("10.6.{round}.0-24");
        etcd.aside(|etcd| {
            etcd.ctl(&["put", &Etcd::key(&missed), "x"]);
            etcd.ctl(&["del", &Etcd::key(&missed)]);
        });
        etcd.restart();
        let mut heard = Vec::new();
        for event in until(&mut events, |event| *event == StoreEvent::Up).await {
            match event {
                StoreEvent::Changes(changes) => heard.extend(changes),
                StoreEvent::Up => {}
                other => panic!("{other:?}"),
            }
        }
        while heard.len() < 2 {
            let StoreEvent::Changes(changes) = next(&mut events).await else { panic!() };
            heard.extend(changes);
        }
        assert!(
            matches!(&heard[..], [Change::Put(put), Change::Deleted { key, .. }] if put.key == missed && *key == missed)
        );
    }
}

async fn a_compaction_beyond_what_was_heard_starts_the_read_over(release: Release) {
    let mut etcd = Etcd::start(release);
    let store = etcd.store();
    store.create("10.5.1.0-24", b"x", None).await.unwrap();
    let mut events = store.follow();
    listing(&mut events).await;
    etcd.kill();
    down(&mut events).await;
    etcd.aside(|etcd| {
        etcd.ctl(&["del", &Etcd::key("10.5.1.0-24")]);
        etcd.ctl(&["put", &Etcd::key("10.5.2.0-24"), "y"]);
        etcd.ctl(&["put", &Etcd::key("10.5.2.0-24"), "z"]);
        let answer = etcd.ctl(&["get", "x", "-w", "json"]);
        let revision = answer.split("\"revision\":").nth(1).unwrap().split(',').next().unwrap();
        etcd.ctl(&["compact", revision]);
    });
    etcd.restart();
    let (_, records, _) = listing(&mut events).await;
    assert_eq!(records.into_keys().collect::<Vec<_>>(), ["10.5.2.0-24"]);
    assert_eq!(next(&mut events).await, StoreEvent::Up);
    etcd.ctl(&["put", &Etcd::key("10.5.3.0-24"), "x"]);
    changes(&mut events, "10.5.3.0-24").await;
}

async fn an_etcd_that_lost_its_data_is_read_again(release: Release) {
    let mut etcd = Etcd::start(release);
    let store = etcd.store();
    fill(&store, 20).await;
    let mut events = store.follow();
    listing(&mut events).await;
    etcd.kill();
    down(&mut events).await;
    etcd.wipe();
    etcd.restart();
    let (_, records, _) = listing(&mut events).await;
    assert!(records.is_empty());
    assert_eq!(next(&mut events).await, StoreEvent::Up);
}

async fn an_etcd_that_begins_anew_is_another_however_much_it_was_written_to(release: Release) {
    let mut etcd = Etcd::start(release);
    // Each start has a term of its own, and the new one will have two.
    for _ in 0..3 {
        etcd.kill();
        etcd.restart();
    }
    let store = etcd.store();
    store.create("10.5.1.0-24", b"x", None).await.unwrap();
    let mut events = store.follow();
    let (.., revision) = listing(&mut events).await;
    etcd.kill();
    down(&mut events).await;
    etcd.wipe();
    etcd.aside(|etcd| {
        for _ in 0..revision + 10 {
            etcd.ctl(&["put", &Etcd::key("10.5.2.0-24"), "y"]);
        }
    });
    etcd.restart();
    let (_, records, _) = listing(&mut events).await;
    assert_eq!(records.into_keys().collect::<Vec<_>>(), ["10.5.2.0-24"]);
}

async fn a_compaction_of_what_was_heard_costs_no_second_read(release: Release) {
    let mut etcd = Etcd::start(release);
    let store = etcd.store();
    etcd.ctl(&["put", "/coreos.com/network/config", "1"]);
    let mut events = store.follow();
    listing(&mut events).await;
    // The config is not heard of for long.
    let mut last = String::new();
    for n in 0..5 {
        last = key(n);
        etcd.ctl(&["put", &Etcd::key(&last), "x"]);
    }
    let heard = changes(&mut events, &last).await;
    let Some(Change::Put(RawRecord { revision, .. })) = heard.last() else { panic!("{heard:?}") };
    etcd.ctl(&["compact", &revision.to_string()]);
    etcd.kill();
    down(&mut events).await;
    etcd.aside(|etcd| {
        etcd.ctl(&["put", &Etcd::key("10.5.9.0-24"), "x"]);
        for config in ["2", "3"] {
            etcd.ctl(&["put", "/coreos.com/network/config", config]);
        }
    });
    etcd.restart();
    assert_eq!(next(&mut events).await, StoreEvent::Config(Some(b"3".to_vec())), "what was missed, and no read of all");
    // What comes by the one watch may come before the other one is there.
    let is_heard = |event: &StoreEvent| matches!(event, StoreEvent::Changes(changes) if matches!(&changes[..], [Change::Put(put)] if put.key == "10.5.9.0-24"));
    let rest = [next(&mut events).await, next(&mut events).await];
    assert!(rest.contains(&StoreEvent::Up) && rest.iter().any(is_heard), "{rest:?}");
    etcd.ctl(&["put", "/coreos.com/network/config", "4"]);
    assert_eq!(next(&mut events).await, StoreEvent::Config(Some(b"4".to_vec())));
    etcd.ctl(&["del", "/coreos.com/network/config"]);
    assert_eq!(next(&mut events).await, StoreEvent::Config(None));
}

async fn an_etcd_without_auth_takes_whoever_logs_in(release: Release) {
    let etcd = Etcd::start(release);
    let mut options = etcd.options();
    (options.username, options.password) = (Some("root".to_owned()), Some("secret".to_owned()));
    let store = EtcdStore::connect(options).unwrap();
    assert_eq!(store.config().await.unwrap(), None);
    let mut events = store.follow();
    listing(&mut events).await;
    // From then on it logs in.
    etcd.ctl(&["user", "add", "root:secret"]);
    etcd.ctl(&["user", "grant-role", "root", "root"]);
    etcd.ctl(&["auth", "enable"]);
    while store.create("10.5.1.0-24", b"x", None).await.is_err() {}
    until(&mut events, |event| matches!(event, StoreEvent::Changes(_))).await;
    etcd.ctl(&["--user", "root:secret", "auth", "disable"]);
    while store.create("10.5.2.0-24", b"x", None).await.is_err() {}
}

async fn a_hung_server_is_noticed_and_heard_again(release: Release) {
    let etcd = Etcd::start(release);
    let store = etcd.store();
    let mut events = store.follow();
    listing(&mut events).await;
    etcd.signal(Signal::SIGSTOP);
    down(&mut events).await;
    assert!(store.config().await.unwrap_err().is_transient());
    etcd.signal(Signal::SIGCONT);
    assert_eq!(next(&mut events).await, StoreEvent::Up);
    etcd.ctl(&["put", &Etcd::key("10.5.1.0-24"), "x"]);
    changes(&mut events, "10.5.1.0-24").await;
}

async fn a_server_that_comes_late_is_waited_for(release: Release) {
    let mut etcd = Etcd::start(release);
    etcd.kill();
    let store = etcd.store();
    let mut events = store.follow();
    down(&mut events).await;
    etcd.restart();
    listing(&mut events).await;
    assert_eq!(next(&mut events).await, StoreEvent::Up);
}

async fn one_dead_endpoint_of_two_fails_nothing(release: Release) {
    let (etcd, mut dead) = (Etcd::start(release), Etcd::start(release));
    dead.kill();
    let mut options = etcd.options();
    options.endpoints.push(dead.url());
    // The first endpoint is chosen at random.
    for n in 0..10 {
        let store = EtcdStore::connect(options.clone()).unwrap();
        assert_eq!(store.config().await.unwrap(), None);
        assert!(matches!(store.create(&key(n), b"x", None).await.unwrap(), Written::At(_)));
    }
}

async fn the_record_is_as_flannel_writes_it_and_hangs_on_a_day(release: Release) {
    let etcd = Etcd::start(release);
    let store = etcd.store();
    let config = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.52.0","SubnetMax":"10.5.52.0"}"#;
    let held = acquire(&store, config, &record(3), &BTreeMap::new()).await.unwrap();
    let shown = etcd.ctl(&["get", "--prefix", "/coreos.com/network"]);
    let golden = "/coreos.com/network/subnets/10.5.52.0-24\n\
        {\"PublicIP\":\"192.168.64.3\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\"BackendData\":{\"VNI\":1,\"VtepMAC\":\"c6:d2:32:6f:8f:44\"}}\n";
    assert_eq!(shown, golden);
    let id = format!("{:x}", held.lease.unwrap().0);
    let lease = etcd.ctl(&["lease", "timetolive", "--keys", &id]);
    assert!(lease.contains("granted with TTL(86400s)"), "{lease}");
    assert!(lease.contains("attached keys([/coreos.com/network/subnets/10.5.52.0-24])"), "{lease}");
}

async fn leases_are_renewed_without_an_event_and_end(release: Release) {
    let etcd = Etcd::start(release);
    let store = etcd.store();
    let day = Duration::from_secs(86_400);
    let lease = store.grant(day).await.unwrap();
    store.create("10.5.1.0-24", b"x", Some(lease)).await.unwrap();
    let mut events = store.follow();
    listing(&mut events).await;
    let renewals = || etcd.counter("grpc_server_msg_received_total", &["LeaseKeepAlive"]);
    let before = renewals();
    for _ in 0..3 {
        assert_eq!(store.keep_alive(lease).await.unwrap(), Some(day));
    }
    assert_eq!(renewals() - before, 3, "a request each");
    // Another process, as after a restart, doesn't know the TTL and asks.
    assert_eq!(etcd.store().keep_alive(lease).await.unwrap(), Some(day));
    etcd.ctl(&["put", &Etcd::key("10.5.9.0-24"), "mark"]);
    assert_eq!(changes(&mut events, "10.5.9.0-24").await.len(), 1, "no event but the mark");

    store.revoke(lease).await.unwrap();
    assert_eq!(store.record("10.5.1.0-24").await.unwrap(), None);
    store.revoke(lease).await.unwrap();
    assert_eq!(store.keep_alive(lease).await.unwrap(), None);
    let error = store.create("10.5.1.0-24", b"x", Some(lease)).await.unwrap_err();
    assert!(!error.is_transient(), "{error}");
    assert_eq!(store.keep_alive(LeaseId(7)).await.unwrap(), None);
}

async fn writes_are_conditional(release: Release) {
    let etcd = Etcd::start(release);
    let store = etcd.store();
    let Written::At(first) = store.create("10.5.1.0-24", b"1", None).await.unwrap() else { panic!() };
    for held in ["10.5.1.0-24", "10.5.1.0-24&fc00:0:0:1::-64"] {
        assert_eq!(store.create(held, b"2", None).await.unwrap(), Written::Conflict, "{held}");
    }
    assert_eq!(store.update("10.5.1.0-24", b"2", None, first + 5).await.unwrap(), Written::Conflict);
    let Written::At(second) = store.update("10.5.1.0-24", b"2", None, first).await.unwrap() else { panic!() };
    assert_eq!(store.record("10.5.1.0-24").await.unwrap().unwrap().revision, second);
    assert_eq!(store.delete("10.5.1.0-24", first).await.unwrap(), Written::Conflict);
    assert!(matches!(store.delete("10.5.1.0-24", second).await.unwrap(), Written::At(_)));
    assert!(matches!(store.create("10.5.1.0-24&fc00::-64", b"", None).await.unwrap(), Written::At(_)));
    assert_eq!(store.create("10.5.1.0-24", b"", None).await.unwrap(), Written::Conflict);
    for free in ["0.0.0.0-0&fc00::-64", "0.0.0.0-0&fc00:0:0:1::-64", "10.5.1.0-240"] {
        assert!(matches!(store.create(free, b"", None).await.unwrap(), Written::At(_)), "{free}");
    }
}

async fn a_role_for_the_prefix_is_enough_and_less_is_explained(release: Release) {
    let etcd = Etcd::start(release);
    etcd.node_role(&["--user", "node"], "secret\n");
    // Another network's, from a prefix as twilld takes it.
    etcd.node_role(&["--prefix", "other//net/", "--role", "other"], "");
    assert!(etcd.ctl(&["role", "get", "other"]).contains("(prefix /other/net/subnets/)"));
    etcd.node_role(&["--prefix", "/", "--role", "top"], "");
    let top = etcd.ctl(&["role", "get", "top"]);
    assert!(top.contains("\t/config\n") && top.contains("(prefix /subnets/)"), "{top}");
    // Again, with nothing on its standard input: what is there stays.
    for _ in 0..5 {
        etcd.node_role(&["--user", "node"], "");
    }
    for user in ["root", "nobody", "half", "other-half"] {
        etcd.ctl(&["user", "add", &format!("{user}:secret")]);
    }
    let whole = ["--prefix=true", "/coreos.com/network/subnets/"].as_slice();
    for (role, keys) in [("half", whole), ("other-half", &["/coreos.com/network/config"])] {
        etcd.ctl(&["role", "add", role]);
        etcd.ctl(&[&["role", "grant-permission", role, "readwrite"], keys].concat());
        etcd.ctl(&["user", "grant-role", role, role]);
    }
    etcd.ctl(&["user", "grant-role", "root", "root"]);
    etcd.ctl(&["auth", "enable"]);
    let as_user = |user: &str, password: &str| {
        let mut options = etcd.options();
        (options.username, options.password) = (Some(user.to_owned()), Some(password.to_owned()));
        EtcdStore::connect(options).unwrap()
    };

    let store = as_user("node", "secret");
    let mut events = store.follow();
    listing(&mut events).await;
    let config = r#"{"Network":"10.5.0.0/16"}"#;
    let held = acquire(&store, config, &record(3), &BTreeMap::new()).await.unwrap();
    changes(&mut events, &held.key.to_string()).await;
    assert!(store.keep_alive(held.lease.unwrap()).await.unwrap().is_some());

    let error = as_user("nobody", "secret").create("10.5.1.0-24", b"", None).await.unwrap_err();
    let needed = "the user needs a role with readwrite permission on /coreos.com/network/subnets/10.5.1.0-24";
    assert!(error.to_string().ends_with(needed), "{error}");
    let mut events = as_user("nobody", "secret").follow();
    let StoreEvent::Down { reason } = next(&mut events).await else { panic!() };
    let needed = "the user needs a role with read permission on ";
    let both = "/coreos.com/network/config and /coreos.com/network/subnets/";
    assert!(reason.ends_with(&format!("{needed}{both}")), "{reason}");
    for (user, missing) in [("half", "/coreos.com/network/config"), ("other-half", "/coreos.com/network/subnets/")] {
        let mut events = as_user(user, "secret").follow();
        let StoreEvent::Down { reason } = next(&mut events).await else { panic!() };
        assert!(reason.starts_with(&format!("read {missing}: ")), "{reason}");
        assert!(reason.ends_with(&format!("{needed}{missing}")), "{reason}");
    }
    let error = as_user("node", "wrong").config().await.unwrap_err();
    assert!(error.to_string().contains("invalid user ID or password"), "{error}");
    let error = etcd.store().config().await.unwrap_err();
    assert!(error.to_string().contains("user name is empty"), "{error}");
}

on_each_etcd!(
    reads_in_pages_then_hears_of_each_change,
    a_change_is_heard_wherever_it_falls_between_read_and_watch,
    an_answer_too_large_is_asked_for_in_parts,
    a_restart_loses_no_change_and_reads_nothing_again,
    a_compaction_beyond_what_was_heard_starts_the_read_over,
    an_etcd_that_lost_its_data_is_read_again,
    an_etcd_that_begins_anew_is_another_however_much_it_was_written_to,
    a_compaction_of_what_was_heard_costs_no_second_read,
    an_etcd_without_auth_takes_whoever_logs_in,
    a_hung_server_is_noticed_and_heard_again,
    a_server_that_comes_late_is_waited_for,
    one_dead_endpoint_of_two_fails_nothing,
    the_record_is_as_flannel_writes_it_and_hangs_on_a_day,
    leases_are_renewed_without_an_event_and_end,
    writes_are_conditional,
    a_role_for_the_prefix_is_enough_and_less_is_explained,
);
