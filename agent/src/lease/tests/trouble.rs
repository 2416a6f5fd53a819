//! When trouble with the lease ends, and when it does not.

use super::*;

#[tokio::test(start_paused = true)]
async fn trouble_ends_when_the_watch_shows_that_the_write_was_done() {
    let store = FakeStore::new();
    let mut node = node(&store, 1).await;
    store.lose_answers(Op::Update, 1);
    node.handle.publish(Record { public_ip: Ipv4Addr::new(10, 99, 7, 7), ..record(1) });
    let mut events = [node.next().await, node.next().await, node.next().await];
    events.sort_by_key(|event| format!("{event:?}"));
    let [LeaseEvent::Published { .. }, LeaseEvent::Recovered, LeaseEvent::Trouble { .. }] = events else {
        panic!("{events:?}")
    };
    // So the next one is said again.
    store.fail_next(Op::KeepAlive, 1);
    assert!(matches!(node.next().await, LeaseEvent::Trouble { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_renewal_is_no_end_of_trouble_while_the_record_is_missing() {
    let store = FakeStore::new();
    let mut node = node(&store, 1).await;
    store.fail_next(Op::Create, 1_000_000);
    store.remove(&node.key());
    assert!(matches!(node.next().await, LeaseEvent::Trouble { .. }));
    node.quiet(TTL).await;
    assert!(node.stored().is_none());
}

#[tokio::test(start_paused = true)]
async fn trouble_with_another_reason_is_told_again_after_a_while() {
    let store = FakeStore::new();
    let mut node = node(&store, 1).await;
    store.fail_next(Op::Update, 1_000_000);
    node.handle.publish(Record { public_ip: Ipv4Addr::new(10, 99, 7, 7), ..record(1) });
    let LeaseEvent::Trouble { reason } = node.next().await else { panic!() };
    assert!(reason.starts_with("Update"), "{reason}");
    node.quiet(MARGIN / 2).await;
    store.fail_next(Op::Create, 1_000_000);
    store.remove(&node.key());
    let LeaseEvent::Trouble { reason } = node.next().await else { panic!() };
    assert!(reason.starts_with("Create"), "{reason}");
    node.quiet(MARGIN / 4).await;
}
