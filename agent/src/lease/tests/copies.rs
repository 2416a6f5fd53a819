//! Copies of our record: under our own key, where they are put back, and under other keys, where ours is written again.

use super::*;
use crate::lease::Defence;
use crate::lease::contest::CALM;
use crate::overlay::alloc::Copied;
use crate::overlay::record::Instance;
use crate::overlay::records::InOurName;

/// Node 1 as the first instance of it.
async fn instance(store: &FakeStore) -> Node {
    let (config, record) =
        (config(9), Record { instance: Some(Instance { id: "boot-1".to_owned(), since: 0 }), ..record(1) });
    let wanted = SubnetRequest::of(&config, &record);
    let known = Known::of(&wanted, store.records().values());
    let held = acquire_telling(store, &wanted, ((&known).into(), 100), &record, TTL, &|_| {}).await.unwrap();
    keep(store, held).await
}

/// A record in our name under this key, written now.
async fn in_our_name(store: &FakeStore, key: &str, is_leased: bool) -> InOurName {
    let lease = if is_leased { store.grant(TTL).await.unwrap().0 } else { 0 };
    store.put(key, &record(1).to_json(), lease);
    let revision = store.records()[key].revision;
    InOurName { key: Some(key.to_owned()), subnet: "10.5.77.0/24".parse().unwrap(), revision, is_leased }
}

#[tokio::test(start_paused = true)]
async fn a_copy_under_our_key_is_put_back_on_our_lease_and_named() {
    let store = FakeStore::new();
    let mut node = instance(&store).await;
    let before = node.stored().unwrap();
    let ours = node.held.record.clone();
    let with = |since: &str| {
        let text = String::from_utf8(ours.to_json()).unwrap();
        let (head, _) = text.split_once(r#","Instance""#).unwrap();
        format!(r#"{head},"Instance":{{"ID":"boot-2"{since}}}}}"#)
    };
    let elsewhere = Record { public_ip: [10, 99, 0, 9].into(), instance: None, ..ours.clone() };
    let foreign = store.grant(TTL).await.unwrap().0;
    let copies = [
        // Before ours, after ours, and what no revision is.
        (with(r#","Since":1"#), 0, "another instance and without a lease"),
        (with(r#","Since":900"#), 0, "another instance and without a lease"),
        (with(r#","Since":-1"#), 0, "our record with other members"),
        (with(r#","Since":-1"#), foreign, "our record with other members"),
        (with(r#","Since":1e23"#), before.lease, "our record with other members"),
        (with(r#","Since":"1""#), 0, "our record with other members"),
        (with(""), before.lease, "our record with other members"),
        (with("").replace("\"boot-2\"", "7"), before.lease, "our record with other members"),
        (with("").replace("boot-2", ""), before.lease, "our record with other members"),
        (String::from_utf8(elsewhere.to_json()).unwrap(), 0, "another public IP, 10.99.0.9 (node node-1)"),
        (String::from_utf8(elsewhere.to_json()).unwrap(), foreign, "another public IP, 10.99.0.9 (node node-1)"),
    ];
    for (value, lease, word) in copies {
        store.put(&node.key(), value.as_bytes(), lease);
        let LeaseEvent::Recreated { found: Some(found), .. } = node.next().await else { panic!("{value}") };
        assert!(found.to_string().contains(word) && found.to_string().contains(&value), "{value}: {found}");
        let now = node.stored().unwrap();
        assert_eq!((&now.value, now.lease), (&before.value, before.lease), "{value} on {lease}");
        sleep(CALM).await;
    }
}

/// We were stopped for longer than our lease lasts, and the subnet was free when the other one took it.
#[tokio::test(start_paused = true)]
async fn a_clone_with_another_address_that_came_after_the_end_of_our_lease_keeps_the_subnet() {
    for deletion_is_heard in [true, false] {
        let store = FakeStore::new();
        let held = instance(&store).await.held;
        let (handle, events) = Keeper::spawn(store.clone(), config(9), held.clone(), TTL, MARGIN);
        let mut node = Node { store: store.clone(), held, handle, events };
        store.expire(node.held.lease.unwrap());
        let gone = node.held.revision + 1;
        let lease = store.grant(TTL).await.unwrap().0;
        let clone = Record { public_ip: [10, 99, 0, 9].into(), instance: None, ..node.held.record.clone() };
        store.put(&node.key(), &clone.to_json(), lease);
        if deletion_is_heard {
            node.handle.seen(Change::Deleted { key: node.key(), revision: gone });
        }
        node.handle.seen(Change::Put(node.stored().unwrap()));
        let lost = timeout(CALM, async { while !matches!(node.next().await, LeaseEvent::Lost { .. }) {} }).await;
        assert!(lost.is_ok());
        assert_eq!(node.stored().unwrap().value, clone.to_json());
    }
}

/// Our key was deleted, and a copy of our record has the subnet under another key.
#[tokio::test(start_paused = true)]
async fn a_copy_in_the_way_is_deleted_if_it_has_no_lease() {
    for is_leased in [false, true] {
        let store = FakeStore::new();
        let mut node = instance(&store).await;
        let other = format!("{}&fc00:0:0:22::-64", node.key());
        let lease = if is_leased { store.grant(TTL).await.unwrap().0 } else { 0 };
        let clone = Record { public_ip: [10, 99, 0, 9].into(), ..node.held.record.clone() };
        store.down();
        store.put(&other, &Record { instance: None, ..clone }.to_json(), lease);
        store.remove(&node.key());
        store.up();
        loop {
            match node.next().await {
                LeaseEvent::Lost { holder } if is_leased => {
                    assert!(holder.contains(&other), "{holder}");
                    break;
                }
                LeaseEvent::Recreated { .. } if !is_leased => {
                    assert!(!store.records().contains_key(&other));
                    break;
                }
                LeaseEvent::Trouble { .. } | LeaseEvent::Recovered | LeaseEvent::Renewed { .. } => {}
                event => panic!("{is_leased}: {event:?}"),
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn against_a_record_in_our_name_ours_is_written_again_unchanged() {
    let store = FakeStore::new();
    let mut node = instance(&store).await;
    let before = node.stored().unwrap();
    let other = in_our_name(&store, "10.5.77.0-24", true).await;
    node.handle.defend(other.clone());
    let LeaseEvent::Recreated { found: Some(found), .. } = node.next().await else { panic!() };
    assert!(found.to_string().contains("10.5.77.0-24") && found.remedy().contains("written again"), "{found}");
    let now = node.stored().unwrap();
    assert!(now.revision > other.revision, "the later one now");
    assert_eq!((now.value, now.lease, now.created), (before.value, before.lease, before.created));
    assert!(store.records().contains_key("10.5.77.0-24"), "the other one is for the operator to delete");
    node.quiet(MARGIN).await;
}

/// A complete read, which has our record looked at, comes right after.
#[tokio::test(start_paused = true)]
async fn a_look_at_our_record_does_not_stand_for_the_write() {
    let store = FakeStore::new();
    let mut node = instance(&store).await;
    let other = in_our_name(&store, "10.5.77.0-24", true).await;
    store.down();
    node.handle.defend(other.clone());
    node.handle.check();
    sleep(Duration::from_secs(1)).await;
    store.up();
    while !matches!(node.next().await, LeaseEvent::Recreated { found: Some(Found::InOurName { .. }), .. }) {}
    assert!(node.stored().unwrap().revision > other.revision);
}

#[tokio::test(start_paused = true)]
async fn a_leased_record_goes_before_a_reservation_until_it_is_deleted() {
    for is_leased in [true, false] {
        let store = FakeStore::new();
        store.put("10.5.7.0-24", br#"{"PublicIP":"10.99.0.1"}"#, 0);
        let mut node = instance(&store).await;
        assert_eq!((node.key().as_str(), node.held.lease), ("10.5.7.0-24", None));
        let other = in_our_name(&store, "10.5.77.0-24", is_leased).await;
        node.handle.defend(other.clone());
        let LeaseEvent::Recreated { found: Some(found), .. } = node.next().await else { panic!() };
        let defence = if is_leased { Defence::Deletes } else { Defence::WritesAgain };
        assert_eq!(found, Found::InOurName { key: "10.5.77.0-24".to_owned(), defence });
        let now = node.stored().unwrap();
        assert!(now.revision > other.revision && now.lease == 0);
        assert_eq!(store.records().contains_key("10.5.77.0-24"), !is_leased);
    }
}

#[tokio::test(start_paused = true)]
async fn a_writer_in_our_name_that_never_rests_is_slowed_counted_and_named() {
    let store = FakeStore::new();
    let mut node = instance(&store).await;
    let mut told = Vec::new();
    let end = tokio::time::Instant::now() + CALM * 3;
    while tokio::time::Instant::now() < end {
        let other = in_our_name(&store, "10.5.77.0-24", true).await;
        node.handle.defend(other);
        sleep(Duration::from_millis(50)).await;
        while let Ok(event) = node.events.try_recv() {
            told.push(event);
        }
    }
    assert!(store.requests(Op::Update) < 400, "{} writes in three minutes", store.requests(Op::Update));
    let fights: Vec<String> = told
        .iter()
        .filter_map(|event| match event {
            LeaseEvent::Fight(FightEvent::Disputed { found, writes, .. }) => {
                assert_eq!((writes.overwritten, writes.deleted), (0, 0));
                Some(found.advice())
            }
            _ => None,
        })
        .collect();
    assert!(fights.len() == 5 && fights.iter().all(|advice| advice.contains("10.5.77.0-24")), "{fights:?}");
    let lines = told.iter().filter(|event| matches!(event, LeaseEvent::Recreated { found: Some(_), .. })).count();
    assert!(lines < 5, "{lines} lines");
}

#[test]
fn what_is_found_says_what_to_do() {
    let copy = Found::copy(Copied::WithAnotherAddress, &record(1), b"{}");
    assert!(copy.advice().contains("10.99.0.1 (node node-1)") && copy.advice().contains("--node-id"));
}
