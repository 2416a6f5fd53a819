//! Others write under our key: what can take our subnet and what is put back, and that a fight stays slow.

use super::*;
use crate::lease::contest::{CALM, harm};

/// A record as another agent writes it.
fn value(ip: &str, backend: &str, data: &str) -> String {
    format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"{backend}","BackendData":{data}}}"#)
}

const DATA: &str = r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#;

/// What no node follows, and a word of the reason.
fn void() -> Vec<(String, &'static str)> {
    vec![
        ("junk".to_owned(), "not a JSON object"),
        (String::new(), "not a JSON object"),
        ("null".to_owned(), "not a JSON object"),
        ("[1,2]".to_owned(), "not a JSON object"),
        ("{}".to_owned(), "no PublicIP"),
        (r#"{"PublicIP":"1.2.3.4"}"#.to_owned(), "reserved for 1.2.3.4"),
        (r#"{"NodeID":"node-2"}"#.to_owned(), "reserved for node node-2"),
        (r#"{"PublicIP":"224.0.0.1"}"#.to_owned(), "224.0.0.1"),
        (r#"{"PublicIP":7}"#.to_owned(), "PublicIP"),
        (value("127.0.0.1", "udp", "{}"), "udp"),
        (value("10.99.0.2", "host-gw", "{}"), "host-gw"),
        (value("224.0.0.1", "vxlan", DATA), "224.0.0.1"),
        (value("127.0.0.1", "vxlan", DATA), "127.0.0.1"),
        (value("0.0.0.0", "vxlan", DATA), "0.0.0.0"),
        (value("255.255.255.255", "vxlan", DATA), "255.255.255.255"),
        (value("10.99.0.2", "vxlan", "null"), "BackendData"),
        (value("10.99.0.2", "vxlan", r#"{"VNI":7,"VtepMAC":"c6:d2:32:6f:8f:44"}"#), "VNI is 7"),
        (value("10.99.0.2", "vxlan", r#"{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}"#), "01:00:5e:00:00:01"),
        (value("10.99.0.2", "vxlan", r#"{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}"#), "00:00:00:00:00:00"),
    ]
}

#[tokio::test(start_paused = true)]
async fn what_no_node_follows_is_put_back_at_once_under_our_lease_and_named() {
    let store = FakeStore::new();
    let mut node = node(&store, 1).await;
    let (ours, foreign) = (node.held.lease.unwrap().0, store.grant(TTL).await.unwrap().0);
    let before = node.stored().unwrap();
    for (value, word) in void() {
        for lease in [0, ours, foreign] {
            store.put(&node.key(), value.as_bytes(), lease);
            let written = tokio::time::Instant::now();
            let LeaseEvent::Recreated { found: Some(found), .. } = node.next().await else { panic!("{value}") };
            let found = found.to_string();
            assert!(found.contains(word) && found.contains(&value), "{value}: {found}");
            let now = node.stored().unwrap();
            assert_eq!((&now.value, now.lease), (&before.value, before.lease), "{value} on {lease}");
            assert!(written.elapsed() < Duration::from_millis(1));
            // Not yet a fight.
            sleep(CALM).await;
        }
    }
    // Of another node, and good, but on our own lease.
    store.put(&node.key(), value("10.99.0.2", "vxlan", DATA).as_bytes(), ours);
    let LeaseEvent::Recreated { found: Some(found), .. } = node.next().await else { panic!() };
    assert!(found.to_string().contains("hangs on our own lease"), "{found}");
    // With a lease of its own, but written over ours.
    sleep(CALM).await;
    store.put(&node.key(), value("10.99.0.2", "vxlan", DATA).as_bytes(), foreign);
    let LeaseEvent::Recreated { found: Some(found), .. } = node.next().await else { panic!() };
    assert!(found.to_string().contains("was written over ours"), "{found}");
    let now = node.stored().unwrap();
    assert_eq!((&now.value, now.lease), (&before.value, before.lease));
    // Where ours had gone it has the subnet.
    store.remove(&node.key());
    store.put(&node.key(), value("10.99.0.2", "vxlan", DATA).as_bytes(), foreign);
    assert_eq!(node.next().await, LeaseEvent::Lost { holder: "10.99.0.2".to_owned() });
}

#[tokio::test(start_paused = true)]
async fn what_no_node_follows_is_put_back_after_an_outage_too() {
    for (value, _) in void() {
        for lost in [false, true] {
            let store = FakeStore::new();
            let mut node = node(&store, 1).await;
            store.down();
            if lost {
                store.expire(node.held.lease.unwrap());
            }
            let (_, is_reservation) =
                (store.put(&node.key(), value.as_bytes(), 0), value.contains("1.2.3.4") || value.contains("NodeID"));
            store.up();
            loop {
                match node.next().await {
                    // The subnet was free, and somebody set it aside.
                    LeaseEvent::Lost { .. } if lost && is_reservation => break,
                    LeaseEvent::Recreated { .. } if !(lost && is_reservation) => {
                        let now = node.stored().unwrap();
                        assert_eq!(now.value, node.held.record.to_json());
                        assert_ne!(now.lease, 0, "{value}");
                        break;
                    }
                    LeaseEvent::Trouble { .. } | LeaseEvent::Recovered | LeaseEvent::Renewed { .. } => {}
                    event => panic!("{value} {lost}: {event:?}"),
                }
            }
        }
    }
}

/// The events of a time, without those of the lease.
async fn events(node: &mut Node, time: Duration) -> Vec<LeaseEvent> {
    let mut heard = Vec::new();
    let _ = timeout(time, async {
        while let Some(event) = node.events.recv().await {
            heard.push(event);
        }
    })
    .await;
    heard
}

/// How often others wrote, for each line of a fight.
fn fights(heard: &[LeaseEvent]) -> Vec<Writes> {
    let writes = heard.iter().filter_map(|event| match event {
        LeaseEvent::Fight(FightEvent::Disputed { writes, .. }) => Some(*writes),
        _ => None,
    });
    writes.collect()
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_never_rests_costs_few_writes_and_a_line_a_minute() {
    let store = FakeStore::new();
    let mut node = node(&store, 1).await;
    let (writer, key) = (store.clone(), node.key());
    let writing = tokio::spawn(async move {
        for _ in 0..18_000 {
            writer.put(&key, b"junk", 0);
            sleep(Duration::from_millis(10)).await;
        }
    });
    let heard = events(&mut node, Duration::from_secs(180)).await;
    writing.abort();
    let requests = store.requests(Op::Update) + store.requests(Op::Record);
    assert!(requests < 600, "{requests} requests in three minutes");
    let fights = fights(&heard);
    // At first, after ten seconds, twenty, forty, and a minute.
    assert!(fights.len() == 5 && fights[4].overwritten > 5_000, "{fights:?}");
    let told = heard.iter().filter(|event| matches!(event, LeaseEvent::Recreated { found: Some(_), .. })).count();
    assert!(told < 5, "{told} lines for the same thing");
    // It ends when the other one does.
    let after = events(&mut node, CALM * 2).await;
    assert_eq!(after.last(), Some(&LeaseEvent::Fight(FightEvent::Over)), "{after:?}");
    assert_eq!(node.stored().unwrap().value, node.held.record.to_json());
    store.put(&node.key(), b"junk", 0);
    assert!(matches!(node.next().await, LeaseEvent::Recreated { found: Some(_), .. }), "told anew");
}

/// A flannel, or an older Twill, elsewhere with our public IP.
#[tokio::test(start_paused = true)]
async fn an_agent_with_our_public_ip_is_called_what_it_is() {
    let store = FakeStore::new();
    let mut node = node(&store, 1).await;
    let flannel = value("10.99.0.1", "vxlan", DATA);
    let (lease, mut follow, other, key) = (store.grant(TTL).await.unwrap(), store.follow(), store.clone(), node.key());
    store.put(&key, flannel.as_bytes(), lease.0);
    let LeaseEvent::Recreated { found: Some(found), lease: ours, .. } = node.next().await else { panic!() };
    let words = ["our public IP 10.99.0.1 and another MAC", "c6:d2:32:6f:8f:44", "flanneld"];
    assert!(words.iter().all(|word| found.to_string().contains(word)), "{found}");
    assert_eq!(ours, node.held.lease, "not on the other's lease");
    // One that answers each write with one of its own.
    let fighting = tokio::spawn(async move {
        while let Some(event) = follow.recv().await {
            let StoreEvent::Changes(changes) = event else { continue };
            let is_ours = |change: &Change| matches!(change, Change::Put(raw) if raw.value != flannel.as_bytes());
            if changes.iter().any(is_ours) {
                other.put(&key, flannel.as_bytes(), lease.0);
            }
        }
    });
    let minutes = 10;
    let heard = events(&mut node, CALM * minutes).await;
    fighting.abort();
    let last = heard.iter().rev().find_map(|event| match event {
        LeaseEvent::Fight(FightEvent::Disputed { found, writes, .. }) => Some((found, *writes)),
        _ => None,
    });
    let (found, writes) = last.unwrap();
    assert!(found.advice().starts_with("another agent with our public IP 10.99.0.1 writes our record"));
    assert!((60..=125).contains(&writes.overwritten), "{writes:?} in a minute");
    assert!(store.requests(Op::Update) < 125 * minutes);
}

#[tokio::test(start_paused = true)]
async fn somebody_who_deletes_our_record_again_and_again_is_slowed_too() {
    let store = FakeStore::new();
    let mut node = node(&store, 1).await;
    let (other, key) = (store.clone(), node.key());
    let deleting = tokio::spawn(async move {
        loop {
            other.remove(&key);
            sleep(Duration::from_millis(10)).await;
        }
    });
    let heard = events(&mut node, CALM).await;
    deleting.abort();
    assert!(store.requests(Op::Create) < 200, "{}", store.requests(Op::Create));
    let fight = heard.iter().find(|event| matches!(event, LeaseEvent::Fight(FightEvent::Disputed { .. })));
    let Some(LeaseEvent::Fight(FightEvent::Disputed { found: Found::Nothing, .. })) = fight else {
        panic!("{heard:?}")
    };
    sleep(CALM).await;
    assert_eq!(node.stored().unwrap().value, node.held.record.to_json());
}

/// So many forged records, fifty a second, these by turns. Returns what was heard meanwhile.
async fn forge(node: &mut Node, times: usize, values: &[Vec<u8>]) -> Vec<LeaseEvent> {
    let (lease, mut heard) = (node.store.grant(TTL).await.unwrap().0, Vec::new());
    for value in values.iter().cycle().take(times) {
        heard.extend(events(node, Duration::from_millis(20)).await);
        node.store.put(&node.key(), value, lease);
    }
    heard
}

#[tokio::test(start_paused = true)]
async fn a_second_after_the_last_forged_write_our_record_stands_again() {
    let store = FakeStore::new();
    let mut node = node(&store, 1).await;
    let elsewhere = Record { public_ip: [10, 99, 0, 77].into(), ..record(1) }.to_json();
    let mut heard = Vec::new();
    for _ in 0..20 {
        heard.extend(forge(&mut node, 150, std::slice::from_ref(&elsewhere)).await);
        heard.extend(events(&mut node, Duration::from_millis(1_001)).await);
        assert_eq!(node.stored().unwrap().value, node.held.record.to_json());
    }
    let harmful: Vec<_> =
        heard.iter().filter(|event| matches!(event, LeaseEvent::Fight(FightEvent::Harmful { .. }))).collect();
    assert_eq!(harmful.len(), 1);
    let heard = events(&mut node, harm::CALM).await;
    assert!(heard.contains(&LeaseEvent::Fight(FightEvent::Harmless)), "{heard:?}");
}

#[tokio::test(start_paused = true)]
async fn what_others_write_is_named_once_each_and_counted_by_kind() {
    let store = FakeStore::new();
    let mut node = node(&store, 1).await;
    let [one, other] = [77, 78].map(|last| Record { public_ip: [10, 99, 0, last].into(), ..record(1) }.to_json());
    let mut heard = forge(&mut node, 400, std::slice::from_ref(&one)).await;
    for _ in 0..2 {
        store.remove(&node.key());
        heard.extend(forge(&mut node, 50, &[one.clone(), other.clone()]).await);
    }
    heard.extend(events(&mut node, CALM * 2).await);
    let also: Vec<_> = heard
        .iter()
        .filter_map(|event| match event {
            LeaseEvent::Fight(FightEvent::AlsoFound { found }) => Some(found.to_string()),
            _ => None,
        })
        .collect();
    assert!(also.len() == 2 && also[0].contains("deleted") && also[1].contains("10.99.0.78"), "{also:?}");
    let fights = fights(&heard);
    let (overwritten, deleted): (Vec<u64>, Vec<u64>) =
        fights.iter().map(|writes| (writes.overwritten, writes.deleted)).unzip();
    assert_eq!((overwritten.iter().sum::<u64>(), deleted.iter().sum::<u64>()), (500, 2), "{fights:?}");
    assert!(fights.len() <= 3 && fights.iter().all(|writes| writes.not_shown == 0), "{fights:?}");
}

#[tokio::test(start_paused = true)]
async fn members_that_no_node_reads_are_put_back_and_harm_nobody() {
    let store = FakeStore::new();
    let mut node = node(&store, 1).await;
    let spoilt = Record { extra: vec![("Comment".to_owned(), "x".into())], ..record(1) }.to_json();
    let mut heard = forge(&mut node, 150, &[spoilt]).await;
    heard.extend(events(&mut node, CALM * 2).await);
    assert!(!fights(&heard).is_empty(), "{heard:?}");
    assert!(!heard.iter().any(|event| matches!(event, LeaseEvent::Fight(FightEvent::Harmful { .. }))), "{heard:?}");
    assert_eq!(node.stored().unwrap().value, node.held.record.to_json());
}

#[tokio::test(start_paused = true)]
async fn a_question_is_answered_soon_in_the_middle_of_a_fight_and_told_once() {
    let store = FakeStore::new();
    let mut node = node(&store, 1).await;
    for _ in 0..200 {
        store.put(&node.key(), b"junk", 0);
        sleep(Duration::from_millis(100)).await;
    }
    let mut asked = node.held.record.clone();
    asked.extra.push(("ClaimedBy".to_owned(), "stranger".into()));
    events(&mut node, Duration::from_millis(1)).await;
    for _ in 0..3 {
        store.put(&node.key(), &asked.to_json(), node.held.lease.unwrap().0);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(node.stored().unwrap().value, node.held.record.to_json(), "answered within a second");
    }
    let heard = events(&mut node, Duration::from_secs(1)).await;
    let claims = heard.iter().filter(|event| matches!(event, LeaseEvent::Claimed { .. })).count();
    assert_eq!(claims, 1, "{heard:?}");
}

#[tokio::test(start_paused = true)]
async fn questions_of_several_in_turn_are_counted_and_told_once_a_minute() {
    let store = FakeStore::new();
    let mut node = node(&store, 1).await;
    let (asking, key, value) = (store.clone(), node.key(), node.held.record.clone());
    let lease = node.held.lease.unwrap().0;
    let asking = tokio::spawn(async move {
        for turn in 0..1_800 {
            let mut asked = value.clone();
            asked.extra.push(("ClaimedBy".to_owned(), format!("stranger-{}", turn % 7).into()));
            asking.put(&key, &asked.to_json(), lease);
            sleep(Duration::from_millis(100)).await;
        }
    });
    let heard = events(&mut node, Duration::from_secs(300)).await;
    asking.await.unwrap();
    let told: Vec<_> = heard.iter().filter(|event| matches!(event, LeaseEvent::Claimed { .. })).collect();
    assert!((3..=5).contains(&told.len()), "{told:?}");
    let all: u64 =
        told.iter().map(|event| if let LeaseEvent::Claimed { times, .. } = event { *times } else { 0 }).sum();
    assert_eq!(all, 1_800, "each question is told or counted");
    assert!(store.requests(Op::Update) < 800, "{}", store.requests(Op::Update));
    assert_eq!(node.stored().unwrap().value, node.held.record.to_json());
}

/// What a node gets that had 10.5.7.0/24 before, where this stands under its key; and how long it took.
async fn start_over(store: &FakeStore, value: &str, lease: i64) -> (Held, Duration) {
    store.put("10.5.7.0-24", value.as_bytes(), lease);
    let (config, record) = (config(9), record(1));
    let previous = Some("10.5.7.0-24".parse().unwrap());
    let wanted = SubnetRequest { previous, ..SubnetRequest::of(&config, &record) };
    let began = tokio::time::Instant::now();
    let known = Known::of(&wanted, store.records().values());
    let held = acquire(store, &wanted, &known, &record, TTL).await.unwrap();
    (held, began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_start_takes_its_subnet_back_from_what_no_node_follows() {
    for (value, _) in void() {
        for leased in [false, true] {
            let store = FakeStore::new();
            let lease = if leased { store.grant(TTL).await.unwrap().0 } else { 0 };
            let (held, took) = start_over(&store, &value, lease).await;
            // A reservation hangs on no lease, and is respected by whoever holds nothing.
            let is_reservation = !leased && (value.contains("1.2.3.4") || value.contains("NodeID"));
            let is_previous = held.key.to_string() == "10.5.7.0-24";
            assert_eq!(is_previous, !is_reservation, "{value} {leased}");
            assert!(held.lease.is_some_and(|ours| ours.0 != lease), "{value}: a lease of our own");
            assert!(took < Duration::from_secs(5), "{took:?}");
            assert_eq!(store.records()[&held.key.to_string()].value, held.record.to_json());
        }
    }
    let store = FakeStore::new();
    let lease = store.grant(TTL).await.unwrap();
    let (held, _) = start_over(&store, &value("10.99.0.2", "vxlan", DATA), lease.0).await;
    assert_ne!(held.key.to_string(), "10.5.7.0-24", "another node has it");
}

#[tokio::test(start_paused = true)]
async fn a_start_leaves_a_subnet_to_its_living_holder_whose_record_was_spoilt() {
    let store = FakeStore::new();
    let config = config(9);
    let (other, previous) = (record(2), Some("10.5.7.0-24".parse().unwrap()));
    let wanted = SubnetRequest { previous, ..SubnetRequest::of(&config, &other) };
    let held = acquire(&store, &wanted, &Known::default(), &other, TTL).await.unwrap();
    let holder = keep(&store, held).await;
    let (held, _) = start_over(&store, "junk", 0).await;
    assert_ne!(held.key, holder.held.key);
    assert_eq!(holder.stored().unwrap().value, other.to_json());
}
