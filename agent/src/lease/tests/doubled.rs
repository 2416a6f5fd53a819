//! One public IP and two node ids; one node id and two public IPs; a subnet under two keys.

use super::*;
use crate::lease::claim::CLAIM_WAIT;
use crate::overlay::record::{Instance, SubnetKey};

/// Node 1's address with another id.
fn as_node(id: &str) -> Record {
    Record { node: Some(id.to_owned()), ..record(1) }
}

/// What the node `id` gets with node 1's address.
async fn come(store: &FakeStore, id: &str) -> Result<Held, AcquireError> {
    let (config, record) = (config(9), as_node(id));
    let wanted = SubnetRequest::of(&config, &record);
    acquire(store, &wanted, &Known::of(&wanted, store.records().values()), &record, TTL).await
}

#[tokio::test(start_paused = true)]
async fn two_living_nodes_with_one_address_are_both_named() {
    let store = FakeStore::new();
    let mut first = node(&store, 1).await;
    let error = come(&store, "stranger").await.unwrap_err();
    let expected = format!(
        "two nodes have the public IP 10.99.0.1: this one is stranger, the other one, node-1, is alive and holds {}",
        first.key()
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!(first.next().await, LeaseEvent::Claimed { by: "stranger".to_owned(), times: 1 });
    assert!(matches!(first.next().await, LeaseEvent::Recreated { .. }));
    assert_eq!(first.stored().unwrap().value, first.held.record.to_json(), "the question is taken out again");
    assert_eq!(store.leases(), [first.held.lease.unwrap()]);
}

#[tokio::test(start_paused = true)]
async fn a_living_node_is_waited_for_while_its_store_hangs() {
    let store = FakeStore::new();
    let mut first = node(&store, 1).await;
    let asking = store.clone();
    let task = tokio::spawn(async move { come(&asking, "stranger").await });
    while !String::from_utf8(first.stored().unwrap().value).unwrap().contains("ClaimedBy") {
        tokio::task::yield_now().await;
    }
    // Nobody reaches the store for longer than the answer may take: that is no silence.
    store.fail_next(Op::Update, 3);
    store.down();
    sleep(CLAIM_WAIT * 3).await;
    store.up();
    assert!(matches!(task.await.unwrap(), Err(AcquireError::Doubled { .. })));
    while first.stored().unwrap().value != first.held.record.to_json() {
        first.next().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_installed_anew_has_its_subnet_again() {
    for lease in [true, false] {
        let store = FakeStore::new();
        let lease = if lease { store.grant(TTL).await.unwrap().0 } else { 0 };
        let earlier = Record { extra: vec![("Comment".to_owned(), "rack 3".into())], ..as_node("before") };
        store.put("10.5.7.0-24", &earlier.to_json(), lease);
        let began = tokio::time::Instant::now();
        let held = come(&store, "after").await.unwrap();
        assert!(began.elapsed() >= CLAIM_WAIT);
        assert_eq!(held.key.to_string(), "10.5.7.0-24");
        // A reservation stays one; else the lease is another one, and that of before is gone.
        assert_eq!(held.lease.is_none(), lease == 0);
        assert_eq!(store.leases(), Vec::from_iter(held.lease));
        assert!(!store.leases().contains(&LeaseId(lease)));
        let expected = Record { node: Some("after".to_owned()), ..earlier };
        assert_eq!(store.records()["10.5.7.0-24"].value, expected.to_json());
        // The machine of before, if it is there after all, is the one that is refused now.
        let _keeping = keep(&store, held).await;
        assert!(matches!(come(&store, "before").await, Err(AcquireError::Doubled { .. })));
    }
}

#[tokio::test(start_paused = true)]
async fn a_question_that_was_left_behind_does_no_harm() {
    let store = FakeStore::new();
    let value = br#"{"PublicIP":"10.99.0.1","PublicIPv6":null,"NodeID":"node-1","ClaimedBy":"stranger"}"#;
    store.put("10.5.7.0-24", value, 0);
    let held = acquire_as(&store, &config(9), 1).await.unwrap();
    assert_eq!(held.record.extra, []);
    assert!(!String::from_utf8(store.records()["10.5.7.0-24"].value.clone()).unwrap().contains("ClaimedBy"));
}

#[tokio::test(start_paused = true)]
async fn a_clone_with_our_id_and_another_address_has_a_subnet_of_its_own() {
    let store = FakeStore::new();
    let mut first = node(&store, 1).await;
    let clone = Record { node: Some("node-1".to_owned()), ..record(2) };
    let taken = store.records().into_keys().next().unwrap();
    assert_ne!(acquire_as(&store, &config(9), 2).await.unwrap().key.to_string(), taken);
    // Not ours, while our lease lives.
    store.put(&first.key(), &clone.to_json(), 0);
    let LeaseEvent::Recreated { found: Some(found), .. } = first.next().await else { panic!() };
    assert!(found.to_string().contains("another public IP, 10.99.0.2 (node node-1)"), "{found}");
    assert_eq!(first.stored().unwrap().value, first.held.record.to_json());
}

#[tokio::test(start_paused = true)]
async fn a_reservation_for_a_node_id_is_found_and_filled_in() {
    let store = FakeStore::new();
    store.put("10.5.7.0-24", br#"{"PublicIP":"0.0.0.0","PublicIPv6":null,"NodeID":"node-1"}"#, 0);
    let other = acquire_as(&store, &config(9), 2).await.unwrap();
    assert_ne!(other.key.to_string(), "10.5.7.0-24");
    let held = acquire_as(&store, &config(9), 1).await.unwrap();
    assert_eq!((held.key.to_string().as_str(), held.lease), ("10.5.7.0-24", None));
    assert_eq!(store.records()["10.5.7.0-24"].value, record(1).to_json());
}

#[tokio::test(start_paused = true)]
async fn a_subnet_that_another_took_under_another_key_is_lost() {
    let store = FakeStore::new();
    let mut first = node(&store, 1).await;
    let key: SubnetKey = first.held.key;
    let other = format!("{key}&fc00:0:0:22::-64");
    store.down();
    store.put(&other, &record(2).to_json(), 0);
    store.remove(&first.key());
    store.up();
    let expected = format!("10.99.0.2 (node node-2), under the key {other}");
    assert_eq!(first.next().await, LeaseEvent::Lost { holder: expected });
    assert_eq!(first.events.recv().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_reservation_under_another_key_is_named_and_outlived() {
    let store = FakeStore::new();
    let mut first = node(&store, 1).await;
    let reserved = format!("{}&fc00:0:0:22::-64", first.key());
    store.down();
    store.put(&reserved, br#"{"PublicIP":"10.99.0.2"}"#, 0);
    store.remove(&first.key());
    store.up();
    let LeaseEvent::Trouble { reason } = first.next().await else { panic!() };
    assert_eq!(reason, format!("create {}: {reserved} stands in the way", first.key()));
    store.remove(&reserved);
    assert!(matches!(first.next().await, LeaseEvent::Recreated { .. }));
    assert_eq!(first.next().await, LeaseEvent::Recovered);
}

#[tokio::test(start_paused = true)]
async fn junk_under_another_key_of_our_subnet_is_removed() {
    for (side, junk) in [("fc00:0:0:22::-64", "junk"), ("fc00:0:0:22::-64", r#"{"PublicIP":"224.0.0.1"}"#), ("x", "{}")]
    {
        let store = FakeStore::new();
        let mut first = node(&store, 1).await;
        let other = format!("{}&{side}", first.key());
        store.down();
        store.put(&other, junk.as_bytes(), 0);
        store.remove(&first.key());
        store.up();
        let LeaseEvent::Recreated { found: Some(found), .. } = first.next().await else { panic!() };
        let found = found.to_string();
        assert!(found.contains(&other) && found.contains(junk), "{found}");
        assert_eq!(store.records().into_keys().collect::<Vec<_>>(), [first.key()]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_nothing_hangs_on_any_more_is_revoked() {
    let store = FakeStore::new();
    let mut first = node(&store, 1).await;
    store.put(&first.key(), &first.held.record.to_json(), 0);
    assert_eq!(first.next().await, LeaseEvent::Rehung { lease: None });
    sleep(Duration::from_secs(1)).await;
    assert_eq!(store.leases(), []);
    let new = store.grant(TTL).await.unwrap();
    store.put(&first.key(), &first.held.record.to_json(), new.0);
    assert_eq!(first.next().await, LeaseEvent::Rehung { lease: Some(new) });
    assert!(matches!(first.next().await, LeaseEvent::Renewed { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_answers_slowly_does_not_keep_a_subnet_for_a_node_that_is_gone() {
    for slow in [1_200, 5_000] {
        let store = FakeStore::new();
        store.put("10.5.7.0-24", &as_node("before").to_json(), 0);
        store.slow(Duration::from_millis(slow));
        let held = timeout(CLAIM_WAIT * 8, come(&store, "after")).await.expect("a subnet").unwrap();
        assert_eq!(held.key.to_string(), "10.5.7.0-24");
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_of_slow_answers_is_not_silence() {
    let store = FakeStore::new();
    store.put("10.5.7.0-24", &as_node("before").to_json(), 0);
    store.slow(Duration::from_secs(5));
    let (began, looks) = (tokio::time::Instant::now(), store.requests(Op::Record));
    timeout(CLAIM_WAIT * 10, come(&store, "after")).await.expect("a subnet").unwrap();
    let looks = store.requests(Op::Record) - looks;
    assert!(began.elapsed() > CLAIM_WAIT * 4 && looks > 20, "{:?}, {looks} looks", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_ids_of_another_machine_are_shown_short_and_printable() {
    let store = FakeStore::new();
    let id = format!("\u{1b}[2J{}", "x".repeat(2_000));
    let config = config(9);
    for instance in [None, Some(Instance { id: id.clone(), since: 0 })] {
        let node = if instance.is_some() { "node-1" } else { &id };
        let theirs = Record { instance, ..as_node(node) };
        let wanted = SubnetRequest::of(&config, &theirs);
        let _keeping = keep(&store, acquire(&store, &wanted, &Known::default(), &theirs, TTL).await.unwrap()).await;
        let ours = Record { instance: Some(Instance { id: "boot-1".to_owned(), since: 0 }), ..record(1) };
        let wanted = SubnetRequest::of(&config, &ours);
        let known = Known::of(&wanted, store.records().values());
        let error = acquire(&store, &wanted, &known, &ours, TTL).await.unwrap_err().to_string();
        assert!(error.len() < 1_000 && !error.contains(char::is_control), "{error}");
        store.remove(&known.own.keys().next().unwrap().clone());
    }
}

/// Why the subnet 10.5.7.0/24 is given up by node 1.
async fn given_up(store: &FakeStore, config: &NetworkConfig) -> String {
    let (record, told) = (record(1), std::sync::Mutex::new(Vec::new()));
    let wanted = SubnetRequest { previous: Some("10.5.7.0-24".parse().unwrap()), ..SubnetRequest::of(config, &record) };
    let known = Known::of(&wanted, store.records().values());
    let tell = |progress: Progress<'_>| {
        if let Progress::PreviousGivenUp(why) = progress {
            told.lock().unwrap().push(why.to_owned());
        }
    };
    let _ = acquire_telling(store, &wanted, ((&known).into(), 1), &record, TTL, &tell).await;
    told.into_inner().unwrap().remove(0)
}

#[tokio::test(start_paused = true)]
async fn the_true_reason_is_told_why_a_free_subnet_is_given_up() {
    let store = FakeStore::new();
    store.put("10.5.9.0-24", &as_node("stranger").to_json(), 0);
    let why = given_up(&store, &config(9)).await;
    assert!(why.contains("10.5.7.0/24") && why.contains("10.5.9.0-24 has our public IP"), "{why}");
}
