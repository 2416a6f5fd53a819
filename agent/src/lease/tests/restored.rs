//! A store that is back at an earlier state, revisions included.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_restored_store_has_our_record_again_whatever_its_revisions() {
    let store = FakeStore::new();
    let empty = store.snapshot();
    store.put("10.5.99.0-24", b"{}", 0);
    let mut node = node(&store, 1).await;
    let with_ours = store.snapshot();
    store.put(&node.key(), &node.held.record.to_json(), node.held.lease.unwrap().0);
    // Emptied: the record comes back on a lease of the new history.
    store.restore(&empty);
    let LeaseEvent::Recreated { revision, lease, .. } = node.next().await else { panic!() };
    assert!(revision < node.held.revision);
    assert_eq!(store.leases(), [lease.unwrap()]);
    assert_eq!(node.stored().unwrap().lease, lease.unwrap().0);
    while let Ok(event) = timeout(Duration::from_secs(1), node.events.recv()).await {
        assert!(matches!(event, Some(LeaseEvent::Renewed { .. })), "{event:?}");
    }
    // Back to an earlier state that has it: it is taken as it is, on the lease of then, which is kept.
    store.restore(&with_ours);
    let before = node.stored().unwrap();
    sleep(TTL * 2).await;
    assert_eq!(node.stored(), Some(before));
}

#[tokio::test(start_paused = true)]
async fn a_restored_store_in_which_another_has_our_subnet_ends_the_keeper() {
    let store = FakeStore::new();
    let key = acquire_as(&store, &config(1), 2).await.unwrap().key.to_string();
    let then = store.snapshot();
    store.remove(&key);
    let held = acquire_as(&store, &config(1), 1).await.unwrap();
    let mut node = keep(&store, held).await;
    assert_eq!(node.key(), key);
    store.restore(&then);
    assert_eq!(node.next().await, LeaseEvent::Lost { holder: "10.99.0.2 (node node-2)".to_owned() });
}
