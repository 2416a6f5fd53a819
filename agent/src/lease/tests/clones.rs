//! Machines that share node id and public IP, told apart by their instances.

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::*;
use crate::lease::claim::INSTANCE_WAIT;
use crate::overlay::record::Instance;

/// Node 1 as this instance of it.
fn instance(id: &str) -> Record {
    Record { instance: Some(Instance { id: id.to_owned(), since: 0 }), ..record(1) }
}

/// What an instance gets, and how long it took.
async fn come(store: &FakeStore, id: &str) -> (Result<Held, AcquireError>, Duration) {
    come_as(store, &instance(id)).await
}

async fn come_as(store: &FakeStore, record: &Record) -> (Result<Held, AcquireError>, Duration) {
    let config = config(9);
    let wanted = SubnetRequest::of(&config, record);
    let began = tokio::time::Instant::now();
    let (known, since) = (Known::of(&wanted, store.records().values()), 1);
    let held = acquire_telling(store, &wanted, ((&known).into(), since), record, TTL, &|_| {}).await;
    (held, began.elapsed())
}

fn is_short(took: Duration) -> bool {
    took >= INSTANCE_WAIT && took < INSTANCE_WAIT + Duration::from_secs(1)
}

#[tokio::test(start_paused = true)]
async fn the_later_of_two_clones_is_refused_and_both_are_named() {
    let store = FakeStore::new();
    let mut first = keep(&store, come(&store, "boot-1").await.0.unwrap()).await;
    for _ in 0..3 {
        let (refused, took) = come(&store, "boot-2").await;
        let expected = format!(
            "two machines have the public IP 10.99.0.1 and the node id node-1: this one is the instance boot-2, the other one, boot-1, is alive and holds {}; give one of them",
            first.key()
        );
        let refused = refused.unwrap_err();
        assert!(refused.to_string().starts_with(&expected), "{refused}");
        assert!(took < INSTANCE_WAIT, "{took:?}: an answer ends the wait");
        assert_eq!(first.stored().unwrap().value, first.held.record.to_json());
    }
    assert_eq!(first.next().await, LeaseEvent::Claimed { by: "node-1 instance boot-2".to_owned(), times: 1 });
    assert!(matches!(first.next().await, LeaseEvent::Recreated { found: None, .. }));
    assert_eq!(store.leases(), [first.held.lease.unwrap()]);
}

#[tokio::test(start_paused = true)]
async fn a_plain_restart_waits_for_nothing_and_writes_nothing() {
    let store = FakeStore::new();
    let first = come(&store, "boot-1").await.0.unwrap();
    let (again, took) = come(&store, "boot-1").await;
    assert_eq!((again.unwrap(), took), (first, Duration::ZERO));
    assert_eq!((store.requests(Op::Update), store.requests(Op::Grant)), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_boot_has_its_subnet_after_some_seconds_on_the_same_lease() {
    for reserved in [false, true] {
        let store = FakeStore::new();
        if reserved {
            store.put("10.5.7.0-24", br#"{"PublicIP":"10.99.0.1"}"#, 0);
        }
        let before = come(&store, "boot-1").await.0.unwrap();
        let (after, took) = come(&store, "boot-2").await;
        let after = after.unwrap();
        assert!(is_short(took), "{took:?}");
        assert_eq!((after.key, after.lease), (before.key, before.lease));
        let since = |held: &Held| held.record.instance.as_ref().map(|instance| instance.since);
        assert!(since(&after) > since(&before));
        // And once more without a wait.
        assert_eq!(come(&store, "boot-2").await, (Ok(after), Duration::ZERO));
    }
}

#[tokio::test(start_paused = true)]
async fn records_without_an_instance_are_taken_over_as_ever() {
    for earlier in [
        String::from_utf8(record(1).to_json()).unwrap(),
        r#"{"PublicIP":"10.99.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#.to_owned(),
        r#"{"PublicIP":"10.99.0.1"}"#.to_owned(),
    ] {
        let store = FakeStore::new();
        let lease = store.grant(TTL).await.unwrap();
        store.put("10.5.7.0-24", earlier.as_bytes(), lease.0);
        let (held, took) = come(&store, "boot-1").await;
        let held = held.unwrap();
        assert_eq!((held.key.to_string().as_str(), held.lease, took), ("10.5.7.0-24", Some(lease), Duration::ZERO));
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_without_a_node_id_is_told_apart_too() {
    let store = FakeStore::new();
    let nameless = |id: &str| Record { node: None, ..instance(id) };
    let first = keep(&store, come_as(&store, &nameless("boot-1")).await.0.unwrap()).await;
    let refused = come_as(&store, &nameless("boot-2")).await.0.unwrap_err();
    assert!(matches!(&refused, AcquireError::Cloned { other, .. } if other == "boot-1"), "{refused}");
    assert_eq!(first.stored().unwrap().value, first.held.record.to_json());
}

/// A keeper whom nobody tells anything: cut off from etcd.
fn cut_off(store: &FakeStore, held: Held) -> Node {
    let (handle, events) = Keeper::spawn(store.clone(), config(9), held.clone(), TTL, MARGIN);
    Node { store: store.clone(), held, handle, events }
}

#[tokio::test(start_paused = true)]
async fn a_clone_that_took_over_from_one_that_was_cut_off_ends_when_that_is_back() {
    let store = FakeStore::new();
    let mut first = cut_off(&store, come(&store, "boot-1").await.0.unwrap());
    let mut second = keep(&store, come(&store, "boot-2").await.0.unwrap()).await;
    assert_eq!(second.stored().unwrap().value, second.held.record.to_json());
    first.handle.check();
    let LeaseEvent::Recreated { found: Some(found), .. } = first.next().await else { panic!() };
    assert!(found.to_string().contains("instance boot-2, which came later"), "{found}");
    let LeaseEvent::Lost { holder } = second.next().await else { panic!() };
    let expected = "10.99.0.1 (node node-1), the instance boot-1, which has our node id and public IP and was there before this one";
    assert_eq!(holder, expected);
    let writes = store.requests(Op::Update);
    first.quiet(MARGIN).await;
    assert_eq!((store.requests(Op::Update), store.leases()), (writes, vec![first.held.lease.unwrap()]));
    assert_eq!(first.stored().unwrap().value, first.held.record.to_json());
}

#[tokio::test(start_paused = true)]
async fn one_that_was_cut_off_for_longer_than_its_lease_ends_itself() {
    let store = FakeStore::new();
    let mut first = cut_off(&store, come(&store, "boot-1").await.0.unwrap());
    store.expire(first.held.lease.unwrap());
    let held = come(&store, "boot-2").await.0.unwrap();
    // It happens to get the same subnet.
    let key = first.key();
    store.remove(&held.key.to_string());
    store.put(&key, &held.record.to_json(), held.lease.unwrap().0);
    first.handle.check();
    assert!(matches!(first.next().await, LeaseEvent::Lost { .. }));
    assert_eq!(store.records()[&key].value, held.record.to_json());
}

/// Instances come, go, are cut off and come back in any order: they never write over each other without end, and of those
/// that all hear each other one at the most remains.
#[tokio::test(start_paused = true)]
async fn clones_never_fight_without_end() {
    for seed in 0..60 {
        let (store, mut random) = (FakeStore::new(), SmallRng::seed_from_u64(seed));
        let mut living: Vec<Node> = Vec::new();
        for _ in 0..12 {
            let id = ["boot-1", "boot-2", "boot-3"].choose(&mut random).unwrap();
            living.retain_mut(|node| !node.has_lost());
            let runs = |node: &Node| node.held.record.instance.as_ref().is_some_and(|instance| instance.id == *id);
            match living.iter().position(runs) {
                Some(at) if random.random() => living.remove(at).handle.stop(),
                Some(at) => living[at].handle.check(),
                None => {
                    let Ok(held) = come(&store, id).await.0 else { continue };
                    let node = if random.random() { keep(&store, held).await } else { cut_off(&store, held) };
                    living.push(node);
                }
            }
            sleep(Duration::from_millis(random.random_range(0..5_000))).await;
        }
        for _ in 0..4 {
            living.iter().for_each(|node| node.handle.check());
            sleep(Duration::from_secs(120)).await;
        }
        living.retain_mut(|node| !node.has_lost());
        assert!(living.len() <= 1, "seed {seed}: {} go on", living.len());
        let writes = store.requests(Op::Update);
        living.iter().for_each(|node| node.handle.check());
        sleep(Duration::from_secs(600)).await;
        assert_eq!(store.requests(Op::Update), writes, "seed {seed}");
        for node in &living {
            assert_eq!(node.stored().unwrap().value, node.held.record.to_json(), "seed {seed}");
        }
    }
}

impl Node {
    /// Whether the keeper has ended since it was last looked at.
    fn has_lost(&mut self) -> bool {
        loop {
            match self.events.try_recv() {
                Ok(LeaseEvent::Lost { .. }) | Err(mpsc::error::TryRecvError::Disconnected) => return true,
                Ok(_) => {}
                Err(mpsc::error::TryRecvError::Empty) => return false,
            }
        }
    }
}
