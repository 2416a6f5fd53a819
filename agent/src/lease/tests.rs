//! Races, losses and outages, on the model store and tokio's paused clock.

use std::net::Ipv4Addr;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::*;
use crate::overlay::record::VtepData;
use crate::overlay::{MacAddr, NetworkConfig};
use crate::store::fake::{FakeStore, Op};
use crate::store::{Change, StoreEvent};

mod clones;
mod contested;
mod copies;
mod doubled;
mod families;
mod restored;
mod trouble;

const MARGIN: Duration = Duration::from_secs(3_600);

fn config(subnets: u8) -> NetworkConfig {
    let text = format!(r#"{{"Network":"10.5.0.0/16","SubnetMax":"10.5.{subnets}.0"}}"#);
    NetworkConfig::parse(text.as_bytes()).unwrap()
}

fn record(node: u8) -> Record {
    let ipv4 = Some(VtepData { vni: Some(1), mac: MacAddr([2, 0, 0, 0, 0, node]) }.into());
    Record { ipv4, node: Some(format!("node-{node}")), ..Record::vxlan(Ipv4Addr::new(10, 99, 0, node)) }
}

async fn acquire_as(store: &FakeStore, config: &NetworkConfig, node: u8) -> Result<Held, AcquireError> {
    acquire_from(store, config, node, &store.records()).await
}

async fn acquire_from(
    store: &FakeStore,
    config: &NetworkConfig,
    node: u8,
    records: &BTreeMap<String, RawRecord>,
) -> Result<Held, AcquireError> {
    let record = record(node);
    let wanted = SubnetRequest::of(config, &record);
    acquire(store, &wanted, &Known::of(&wanted, records.values()), &record, TTL).await
}

/// A node that holds a subnet and hears of its own key, as the event loop arranges it.
struct Node {
    store: FakeStore,
    held: Held,
    handle: KeeperHandle,
    events: mpsc::Receiver<LeaseEvent>,
}

async fn keep(store: &FakeStore, held: Held) -> Node {
    let (handle, events) = Keeper::spawn(store.clone(), config(9), held.clone(), TTL, MARGIN);
    let (mut follow, told) = (store.follow(), handle.clone());
    while follow.recv().await.is_some_and(|event| !matches!(event, StoreEvent::Listed { .. } | StoreEvent::Down { .. }))
    {
    }
    tokio::spawn(async move {
        while let Some(event) = follow.recv().await {
            match event {
                StoreEvent::Changes(changes) => changes.into_iter().for_each(|change| told.seen(change)),
                StoreEvent::Listed { .. } => told.check(),
                _ => {}
            }
        }
    });
    Node { store: store.clone(), held, handle, events }
}

async fn node(store: &FakeStore, number: u8) -> Node {
    let held = acquire_as(store, &config(9), number).await.unwrap();
    keep(store, held).await
}

impl Node {
    fn key(&self) -> String {
        self.held.key.to_string()
    }

    async fn next(&mut self) -> LeaseEvent {
        self.events.recv().await.unwrap()
    }

    /// No event for this long.
    async fn quiet(&mut self, time: Duration) {
        let event = timeout(time, self.events.recv()).await;
        assert!(event.is_err(), "{event:?}");
    }

    fn stored(&self) -> Option<RawRecord> {
        self.store.records().remove(&self.key())
    }
}

/// All nodes start at once, on one listing; what each got, and the keys in the store.
async fn race(subnets: u8, nodes: u8) -> (FakeStore, Vec<Result<Held, AcquireError>>) {
    let store = FakeStore::new();
    let tasks: Vec<_> = (1..=nodes)
        .map(|node| {
            let store = store.clone();
            tokio::spawn(async move { acquire_from(&store, &config(subnets), node, &BTreeMap::new()).await })
        })
        .collect();
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.unwrap());
    }
    (store, results)
}

#[tokio::test(start_paused = true)]
async fn fifty_nodes_share_fifty_subnets() {
    let (store, results) = race(50, 50).await;
    let keys: BTreeSet<_> = results.into_iter().map(|held| held.unwrap().key).collect();
    assert_eq!((keys.len(), store.records().len(), store.leases().len()), (50, 50, 50));
}

#[tokio::test(start_paused = true)]
async fn the_fifty_first_node_is_told_and_leaves_no_lease_behind() {
    let (store, results) = race(50, 51).await;
    let (held, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!((held.len(), store.records().len(), store.leases().len()), (50, 50, 50));
    let error = refused[0].as_ref().unwrap_err();
    assert_eq!(error.to_string(), "no free subnet: every /24 that 10.5.0.0/16 gives out is held");
}

#[tokio::test(start_paused = true)]
async fn a_restart_takes_over_without_a_write() {
    let store = FakeStore::new();
    let first = acquire_as(&store, &config(9), 1).await.unwrap();
    let again = acquire_as(&store, &config(9), 1).await.unwrap();
    assert_eq!(first, again);
    assert_eq!((store.requests(Op::Update), store.requests(Op::Grant), store.leases().len()), (0, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_changed_record_is_written_on_the_lease_it_has() {
    let store = FakeStore::new();
    let first = acquire_as(&store, &config(9), 1).await.unwrap();
    let mut moved = record(1);
    moved.public_ipv6 = Some("fd99::1".parse().unwrap());
    let config = config(9);
    let wanted = SubnetRequest::of(&config, &moved);
    let again = acquire(&store, &wanted, &Known::of(&wanted, store.records().values()), &moved, TTL).await.unwrap();
    assert_eq!((again.key, again.lease), (first.key, first.lease));
    assert_eq!(store.records()[&first.key.to_string()].value, moved.to_json());
}

#[tokio::test(start_paused = true)]
async fn a_reservation_stays_one_and_keeps_its_comment() {
    let store = FakeStore::new();
    store.put("10.5.7.0-24", br#"{"PublicIP":"10.99.0.1","Comment":"rack 3"}"#, 0);
    let mut node = node(&store, 1).await;
    assert_eq!((node.held.key.to_string().as_str(), node.held.lease), ("10.5.7.0-24", None));
    let stored = node.stored().unwrap();
    assert_eq!((stored.lease, store.leases().len()), (0, 0));
    assert!(String::from_utf8(stored.value).unwrap().ends_with(r#","NodeID":"node-1","Comment":"rack 3"}"#));
    node.quiet(TTL * 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_too_short_is_not_inherited() {
    let store = FakeStore::new();
    let short = store.grant(Duration::from_secs(60)).await.unwrap();
    store.put("10.5.7.0-24", br#"{"PublicIP":"10.99.0.1"}"#, short.0);
    let held = acquire_as(&store, &config(9), 1).await.unwrap();
    assert_eq!(held.key.to_string(), "10.5.7.0-24");
    assert_ne!(held.lease, Some(short));
    sleep(Duration::from_secs(120)).await;
    assert_eq!(store.records().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_own_record_that_does_not_fit_is_deleted() {
    let store = FakeStore::new();
    store.put("10.6.7.0-24", br#"{"PublicIP":"10.99.0.1"}"#, 0);
    let held = acquire_as(&store, &config(9), 1).await.unwrap();
    assert_eq!(store.records().into_keys().collect::<Vec<_>>(), [held.key.to_string()]);
}

#[tokio::test(start_paused = true)]
async fn every_call_may_fail_and_every_answer_get_lost() {
    for op in [Op::Record, Op::Grant, Op::KeepAlive, Op::Create, Op::Update, Op::Delete] {
        for lose in [false, true] {
            let store = FakeStore::new();
            let old = store.grant(TTL).await.unwrap();
            store.put("10.6.7.0-24", &record(1).to_json(), 0);
            store.put("10.5.3.0-24", br#"{"PublicIP":"10.99.0.2"}"#, old.0);
            let fault = |store: &FakeStore| if lose { store.lose_answers(op, 3) } else { store.fail_next(op, 3) };
            fault(&store);
            let new = acquire_as(&store, &config(9), 1).await.unwrap();
            fault(&store);
            let taken = acquire_as(&store, &config(9), 2).await.unwrap();
            assert_eq!(taken.key.to_string(), "10.5.3.0-24");
            let records = store.records();
            assert_eq!(records.len(), 2, "{op:?}");
            for held in [new, taken] {
                let stored = &records[&held.key.to_string()];
                assert_eq!((stored.revision, stored.lease), (held.revision, held.lease.unwrap().0), "{op:?}");
                assert_eq!(stored.value, held.record.to_json());
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_ends_before_it_is_used_is_replaced() {
    let store = FakeStore::new();
    store.fail_next(Op::Create, 4);
    let ending = store.clone();
    let task = tokio::spawn(async move { acquire_as(&ending, &config(9), 1).await });
    sleep(Duration::from_millis(50)).await;
    store.expire(store.leases()[0]);
    let held = task.await.unwrap().unwrap();
    assert_eq!(Some(store.leases()[0]), held.lease);
}

#[tokio::test(start_paused = true)]
async fn renewal_is_one_keep_alive_when_the_margin_is_left() {
    let store = FakeStore::new();
    let mut node = node(&store, 1).await;
    let before = store.records();
    node.quiet(TTL - MARGIN - Duration::from_secs(1)).await;
    assert_eq!(store.requests(Op::KeepAlive), 0);
    for renewals in 1..=3 {
        assert_eq!(node.next().await, LeaseEvent::Renewed { left: TTL });
        assert_eq!(store.requests(Op::KeepAlive), renewals);
    }
    assert_eq!(store.records(), before, "a renewal writes nothing");
    node.handle.stop();
    assert_eq!(node.events.recv().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_fails_is_tried_again_before_the_end() {
    let store = FakeStore::new();
    let mut node = node(&store, 1).await;
    store.fail_next(Op::KeepAlive, 20);
    assert!(matches!(node.next().await, LeaseEvent::Trouble { .. }));
    assert_eq!(node.next().await, LeaseEvent::Renewed { left: TTL });
    assert_eq!(node.next().await, LeaseEvent::Recovered);
    assert!(node.stored().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_deleted_record_is_made_again_at_once_on_the_same_lease() {
    let store = FakeStore::new();
    let mut node = node(&store, 1).await;
    store.remove(&node.key());
    let LeaseEvent::Recreated { revision, lease, .. } = node.next().await else { panic!() };
    assert_eq!((node.stored().unwrap().revision, lease), (revision, node.held.lease));
    node.quiet(MARGIN).await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_reservation_comes_back_with_a_lease() {
    let store = FakeStore::new();
    store.put("10.5.7.0-24", &record(1).to_json(), 0);
    let mut node = node(&store, 1).await;
    store.remove(&node.key());
    let LeaseEvent::Recreated { lease, .. } = node.next().await else { panic!() };
    assert_eq!(node.stored().unwrap().lease, lease.unwrap().0);
    assert!(matches!(node.next().await, LeaseEvent::Renewed { .. }));
}

#[tokio::test(start_paused = true)]
async fn an_outage_longer_than_the_lease_ends_with_a_new_one() {
    let store = FakeStore::new();
    let mut node = node(&store, 1).await;
    store.down();
    sleep(TTL * 2).await;
    assert!(node.stored().is_none());
    store.up();
    assert!(matches!(node.next().await, LeaseEvent::Trouble { .. }));
    let LeaseEvent::Recreated { lease, .. } = node.next().await else { panic!() };
    assert_ne!(lease, node.held.lease);
    assert_eq!(node.next().await, LeaseEvent::Recovered);
    assert_eq!(store.leases(), [lease.unwrap()]);
    assert!(matches!(node.next().await, LeaseEvent::Renewed { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_subnet_that_went_to_another_is_lost() {
    let store = FakeStore::new();
    let mut node = node(&store, 1).await;
    store.remove(&node.key());
    store.put(&node.key(), &record(2).to_json(), 0);
    assert_eq!(node.next().await, LeaseEvent::Lost { holder: "10.99.0.2 (node node-2)".to_owned() });
    assert_eq!(node.events.recv().await, None);
    assert_eq!(node.stored().unwrap().value, record(2).to_json(), "the other's record is left alone");
}

#[tokio::test(start_paused = true)]
async fn a_subnet_that_another_took_during_an_outage_is_lost_without_an_orphan() {
    let store = FakeStore::new();
    let node = node(&store, 1).await;
    store.down();
    sleep(TTL * 2).await;
    store.put(&node.key(), br#"{"PublicIP":"10.99.0.2"}"#, 0);
    // The keeper finds out by itself: its own listener may be slower.
    node.handle.stop();
    let mut node = keep(&store, node.held.clone()).await;
    sleep(TTL).await;
    store.up();
    assert!(matches!(node.next().await, LeaseEvent::Trouble { .. }));
    assert_eq!(node.next().await, LeaseEvent::Lost { holder: "10.99.0.2".to_owned() });
    sleep(Duration::from_secs(60)).await;
    assert_eq!(store.leases(), []);
}

#[tokio::test(start_paused = true)]
async fn a_subnet_that_another_took_with_a_lease_of_its_own_leaves_no_lease_of_ours() {
    let store = FakeStore::new();
    let mut node = node(&store, 1).await;
    let its = store.grant(TTL).await.unwrap();
    store.remove(&node.key());
    store.put(&node.key(), &record(2).to_json(), its.0);
    assert!(matches!(node.next().await, LeaseEvent::Lost { .. }));
    assert_eq!(store.leases(), [its]);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_names_nobody_is_spoilt_and_one_of_our_id_is_ours() {
    let store = FakeStore::new();
    let mut node = node(&store, 1).await;
    for spoilt in [r#"{}"#, r#"{"PublicIP":"0.0.0.0"}"#, r#"{"NodeID":"node-1"}"#] {
        store.put(&node.key(), spoilt.as_bytes(), node.held.lease.unwrap().0);
        let event = node.next().await;
        assert!(matches!(event, LeaseEvent::Recreated { .. }), "{spoilt}: {event:?}");
        assert_eq!(node.stored().unwrap().value, node.held.record.to_json());
    }
}

#[tokio::test(start_paused = true)]
async fn another_node_with_our_address_is_another() {
    let store = FakeStore::new();
    let mut node = node(&store, 1).await;
    let double = Record { node: Some("node-2".to_owned()), ..record(1) };
    store.put(&node.key(), &double.to_json(), 0);
    assert_eq!(node.next().await, LeaseEvent::Lost { holder: "10.99.0.1 (node node-2)".to_owned() });
}

#[tokio::test(start_paused = true)]
async fn a_spoilt_record_is_repaired_on_its_lease() {
    let store = FakeStore::new();
    let mut node = node(&store, 1).await;
    store.put(&node.key(), b"junk", 0);
    let LeaseEvent::Recreated { lease, .. } = node.next().await else { panic!() };
    assert_eq!(lease, node.held.lease);
    let stored = node.stored().unwrap();
    assert_eq!((stored.value, Some(LeaseId(stored.lease))), (node.held.record.to_json(), lease));
}

#[tokio::test(start_paused = true)]
async fn a_record_made_a_reservation_becomes_one() {
    let store = FakeStore::new();
    let mut node = node(&store, 1).await;
    store.put(&node.key(), &node.held.record.to_json(), 0);
    assert_eq!(node.next().await, LeaseEvent::Rehung { lease: None });
    node.quiet(TTL * 2).await;
    assert_eq!(node.stored().unwrap().lease, 0);
}

#[tokio::test(start_paused = true)]
async fn publishing_is_conditional_and_survives_conflicts() {
    let store = FakeStore::new();
    let node = node(&store, 1).await;
    // Somebody touched our record, and the watch hasn't told yet.
    node.handle.stop();
    store.put(&node.key(), br#"{"PublicIP":"10.99.0.1","NodeID":"node-1"}"#, node.held.lease.unwrap().0);
    let mut node = keep(&store, node.held.clone()).await;
    let moved = Record { public_ip: Ipv4Addr::new(10, 99, 7, 7), ..record(1) };
    store.lose_answers(Op::Update, 2);
    node.handle.publish(moved.clone());
    assert!(matches!(node.next().await, LeaseEvent::Trouble { .. } | LeaseEvent::Published { .. }));
    sleep(Duration::from_secs(10)).await;
    assert_eq!(node.stored().unwrap().value, moved.to_json());
    assert_eq!(node.stored().unwrap().lease, node.held.lease.unwrap().0);
}

#[tokio::test(start_paused = true)]
async fn changes_of_other_keys_and_old_ones_mean_nothing() {
    let store = FakeStore::new();
    let mut node = node(&store, 1).await;
    node.handle.seen(Change::Deleted { key: "10.5.99.0-24".to_owned(), revision: 1_000 });
    node.handle.seen(Change::Deleted { key: node.key(), revision: node.held.revision - 1 });
    node.quiet(MARGIN).await;
    assert_eq!((store.requests(Op::Create), store.requests(Op::KeepAlive)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn keeping_survives_every_fault() {
    for op in [Op::Record, Op::Grant, Op::KeepAlive, Op::Create, Op::Update] {
        for lose in [false, true] {
            let store = FakeStore::new();
            let mut node = node(&store, 1).await;
            if lose {
                store.lose_answers(op, 4)
            } else {
                store.fail_next(op, 4)
            };
            store.remove(&node.key());
            sleep(TTL / 2).await;
            assert_eq!(node.stored().unwrap().value, node.held.record.to_json(), "{op:?}");
            store.expire(store.leases()[0]);
            sleep(TTL / 2).await;
            let moved = Record { public_ip: Ipv4Addr::new(10, 99, 7, 7), ..record(1) };
            node.handle.publish(moved.clone());
            sleep(TTL * 2).await;
            let stored = node.stored().unwrap();
            assert_eq!(stored.value, moved.to_json(), "{op:?}");
            assert_eq!(store.leases(), [LeaseId(stored.lease)], "{op:?}: one lease, and the record hangs on it");
            while let Ok(event) = node.events.try_recv() {
                assert!(!matches!(event, LeaseEvent::Lost { .. }), "{op:?}");
            }
        }
    }
}
