//! The model behaves as etcd does where the tests that use it rely on it.

use super::*;

const TTL: Duration = Duration::from_secs(60);

fn drain(events: &mut mpsc::Receiver<StoreEvent>) -> Vec<StoreEvent> {
    std::iter::from_fn(|| events.try_recv().ok()).collect()
}

#[tokio::test(start_paused = true)]
async fn conditional_writes() {
    let store = FakeStore::new();
    assert_eq!(store.create("a", b"1", None).await.unwrap(), Written::At(2));
    assert_eq!(store.create("a", b"2", None).await.unwrap(), Written::Conflict);
    assert_eq!(store.update("a", b"3", None, 1).await.unwrap(), Written::Conflict);
    assert_eq!(store.update("a", b"3", None, 2).await.unwrap(), Written::At(3));
    assert_eq!(store.delete("a", 2).await.unwrap(), Written::Conflict);
    assert_eq!(store.delete("a", 3).await.unwrap(), Written::At(4));
    assert_eq!(store.record("a").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn keys_with_one_ipv4_side_exclude_each_other() {
    let store = FakeStore::new();
    assert_eq!(store.create("10.5.1.0-24&fc00::-64", b"", None).await.unwrap(), Written::At(2));
    for held in ["10.5.1.0-24", "10.5.1.0-24&fc00:0:0:1::-64"] {
        assert_eq!(store.create(held, b"", None).await.unwrap(), Written::Conflict, "{held}");
    }
    assert_eq!(store.create("0.0.0.0-0&fc00::-64", b"", None).await.unwrap(), Written::At(3));
    assert_eq!(store.create("0.0.0.0-0&fc00:0:0:1::-64", b"", None).await.unwrap(), Written::At(4));
}

#[tokio::test(start_paused = true)]
async fn leases_end_with_their_keys_unless_renewed() {
    let store = FakeStore::new();
    let lease = store.grant(TTL).await.unwrap();
    store.create("a", b"1", Some(lease)).await.unwrap();
    tokio::time::sleep(TTL * 2 / 3).await;
    assert_eq!(store.keep_alive(lease).await.unwrap(), Some(TTL));
    tokio::time::sleep(TTL * 2 / 3).await;
    assert!(store.record("a").await.unwrap().is_some());
    tokio::time::sleep(TTL).await;
    assert_eq!(store.record("a").await.unwrap(), None);
    assert_eq!(store.keep_alive(lease).await.unwrap(), None);
    assert!(!store.create("a", b"1", Some(lease)).await.unwrap_err().is_transient());
}

#[tokio::test(start_paused = true)]
async fn followers_hear_everything_once() {
    let store = FakeStore::new();
    store.put("a", b"1", 0);
    let mut events = store.follow();
    let a = store.records()["a"].clone();
    let listing =
        [StoreEvent::Listing, StoreEvent::Config(None), StoreEvent::Page(vec![a]), StoreEvent::Listed { revision: 2 }];
    assert_eq!(drain(&mut events), listing);

    store.down();
    store.remove("a");
    assert!(matches!(drain(&mut events)[..], [StoreEvent::Down { .. }]));
    store.up();
    let deleted = StoreEvent::Changes(vec![Change::Deleted { key: "a".to_owned(), revision: 3 }]);
    assert_eq!(drain(&mut events), [deleted, StoreEvent::Up]);

    store.down();
    store.compact();
    store.up();
    let [StoreEvent::Down { .. }, ref rest @ ..] = drain(&mut events)[..] else { panic!() };
    assert_eq!(
        rest,
        [StoreEvent::Listing, StoreEvent::Config(None), StoreEvent::Listed { revision: 3 }, StoreEvent::Up]
    );
}

#[tokio::test(start_paused = true)]
async fn faults_are_as_many_as_asked() {
    let store = FakeStore::new();
    store.fail_next(Op::Create, 1);
    assert!(store.create("a", b"1", None).await.unwrap_err().is_transient());
    assert_eq!(store.records().len(), 0);
    store.lose_answers(Op::Create, 1);
    assert!(store.create("a", b"1", None).await.is_err());
    assert_eq!(store.records().len(), 1);
    assert_eq!(store.create("a", b"1", None).await.unwrap(), Written::Conflict);
    assert_eq!(store.requests(Op::Create), 3);
}
