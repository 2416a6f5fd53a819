//! What is reserved for whom, and what stands in the way, on the model store.

use super::*;
use crate::store::fake::{FakeStore, Op};

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0"}"#;
const HELD: &str = r#"{"PublicIP":"10.99.0.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"NodeID":"worker-2"}"#;

fn store() -> FakeStore {
    let store = FakeStore::new();
    store.set_config(Some(CONFIG.as_bytes()));
    store
}

async fn listing(store: &FakeStore) -> Listing {
    crate::leases::Asked::new(&[], std::time::Duration::from_secs(10)).read(store).await.unwrap()
}

async fn reserve_for(store: &FakeStore, subnet: &str, whom: Whom) -> Result<String, String> {
    reserve(store, &listing(store).await, subnet, &whom).await.map_err(|refusal| refusal.to_string())
}

async fn release_it(store: &FakeStore, subnet: &str, force: bool) -> Result<String, String> {
    release(store, &listing(store).await, subnet, force).await.map_err(|refusal| refusal.to_string())
}

fn ip(text: &str) -> Whom {
    Whom::Address(text.parse().unwrap())
}

fn value(store: &FakeStore, key: &str) -> (String, i64) {
    let raw = store.records().remove(key).unwrap();
    (String::from_utf8(raw.value).unwrap(), raw.lease)
}

#[tokio::test(start_paused = true)]
async fn made_ahead_it_says_whose_it_is_and_nothing_else() {
    let store = store();
    let said = reserve_for(&store, "10.5.7.0/24", ip("10.99.0.1")).await.unwrap();
    assert_eq!(said, "10.5.7.0/24 is reserved for 10.99.0.1");
    assert_eq!(value(&store, "10.5.7.0-24"), (r#"{"PublicIP":"10.99.0.1","PublicIPv6":null}"#.to_owned(), 0));
    let said = reserve_for(&store, "10.5.8.0-24", Whom::Node("worker-3".to_owned())).await.unwrap();
    assert_eq!(said, "10.5.8.0/24 is reserved for node worker-3");
    let by_id = r#"{"PublicIP":"0.0.0.0","PublicIPv6":null,"NodeID":"worker-3"}"#;
    assert_eq!(value(&store, "10.5.8.0-24"), (by_id.to_owned(), 0));

    let again = reserve_for(&store, "10.5.7.0/24", ip("10.99.0.1")).await.unwrap();
    assert_eq!(again, "10.5.7.0/24 is reserved for 10.99.0.1 already");
    let other = reserve_for(&store, "10.5.7.0/24", ip("10.99.0.3")).await.unwrap_err();
    assert_eq!(other, "10.5.7.0/24 is reserved for 10.99.0.1");
    let second = reserve_for(&store, "10.5.9.0/24", ip("10.99.0.1")).await.unwrap_err();
    assert_eq!(second, "10.99.0.1 has a reservation already: 10.5.7.0/24; release that one first");
    assert_eq!(
        release_it(&store, "10.5.7.0/24", false).await.unwrap(),
        "10.5.7.0/24 is free again; it was reserved for 10.99.0.1"
    );
    assert!(!store.records().contains_key("10.5.7.0-24"));
}

#[tokio::test(start_paused = true)]
async fn a_living_node_is_named_and_its_subnet_left_alone() {
    let store = store();
    let lease = store.grant(TTL).await.unwrap();
    store.put("10.5.7.0-24", HELD.as_bytes(), lease.0);
    let before = store.records();
    let refused = reserve_for(&store, "10.5.7.0/24", ip("10.99.0.1")).await.unwrap_err();
    assert_eq!(refused, "10.5.7.0/24 is held by 10.99.0.2 (node worker-2)");
    let refused = release_it(&store, "10.5.7.0/24", false).await.unwrap_err();
    assert!(refused.starts_with("10.5.7.0/24 is not reserved: 10.99.0.2 (node worker-2) holds it"), "{refused}");
    assert_eq!(store.records(), before);
    let said = reserve_for(&store, "10.5.8.0/24", ip("10.99.0.2")).await.unwrap();
    assert!(said.ends_with("; it goes on with 10.5.7.0/24 until it starts without its subnet.env"), "{said}");
    release_it(&store, "10.5.7.0/24", true).await.unwrap();
    assert!(!store.records().contains_key("10.5.7.0-24"));
}

#[tokio::test(start_paused = true)]
async fn a_lease_becomes_a_reservation_and_a_lease_again() {
    for whom in [Whom::Holder, ip("10.99.0.2"), Whom::Node("worker-2".to_owned())] {
        let store = store();
        let lease = store.grant(TTL).await.unwrap();
        store.put("10.5.7.0-24", HELD.as_bytes(), lease.0);
        let said = reserve_for(&store, "10.5.7.0/24", whom).await.unwrap();
        assert_eq!(said, "10.5.7.0/24 is reserved for 10.99.0.2 (node worker-2), which holds it");
        assert_eq!(value(&store, "10.5.7.0-24"), (HELD.to_owned(), 0));
        let said = release_it(&store, "10.5.7.0/24", false).await.unwrap();
        let expected =
            "10.5.7.0/24 is no longer reserved; 10.99.0.2 (node worker-2) keeps it while it renews its lease";
        assert_eq!(said, expected);
        let (same, lease) = value(&store, "10.5.7.0-24");
        assert_eq!((same.as_str(), store.leases().contains(&LeaseId(lease))), (HELD, true));
    }
    let free = reserve_for(&store(), "10.5.7.0/24", Whom::Holder).await.unwrap_err();
    assert_eq!(free, "nobody holds 10.5.7.0/24: say for whom it is, with --public-ip or --node");
}

#[tokio::test(start_paused = true)]
async fn a_subnet_that_does_not_fit_is_refused() {
    for (subnet, expected) in [
        (
            "10.5.7.0",
            "\"10.5.7.0\" is not a subnet: expected one as in 10.5.7.0/24, with two families as in 10.5.7.0/24,fc00:0:0:7::/64",
        ),
        (
            "10.5.7.1/24",
            "\"10.5.7.1/24\" is not a subnet: expected one as in 10.5.7.0/24, with two families as in 10.5.7.0/24,fc00:0:0:7::/64",
        ),
        ("10.5.7.0/25", "10.5.7.0/25 has the wrong length: the network's subnets are /24"),
        ("10.6.7.0/24", "10.6.7.0/24 is outside the network 10.5.0.0/16"),
        (
            "10.5.100.0/24",
            "10.5.100.0/24 is not between SubnetMin 10.5.1.0 and SubnetMax 10.5.99.0: no node would take it",
        ),
        ("10.5.7.0/24,fc00::/64", "the network has no IPv6 side"),
        ("fc00::/64", "name the subnet's IPv4 side as well"),
    ] {
        assert_eq!(reserve_for(&store(), subnet, ip("10.99.0.1")).await.unwrap_err(), expected);
    }
    let none = reserve_for(&FakeStore::new(), "10.5.7.0/24", ip("10.99.0.1")).await.unwrap_err();
    assert_eq!(none, "there is no network config");
    let none = release_it(&store(), "10.5.7.0/24", false).await.unwrap_err();
    assert_eq!(none, "nobody holds 10.5.7.0/24, and it is not reserved");
}

#[tokio::test(start_paused = true)]
async fn what_overlaps_is_in_the_way() {
    let store = store();
    store.put("10.5.0.0-20", HELD.as_bytes(), 0);
    let refused = reserve_for(&store, "10.5.7.0/24", ip("10.99.0.1")).await.unwrap_err();
    assert_eq!(refused, "10.5.0.0/20 is held by 10.99.0.2 (node worker-2)");
    store.put("10.5.50.0-24", b"junk", 0);
    let refused = reserve_for(&store, "10.5.50.0/24", ip("10.99.0.1")).await.unwrap_err();
    let unreadable = "the record of 10.5.50.0/24 can't be read; `twill release --force` deletes it all the same";
    assert_eq!(refused, unreadable);
    assert_eq!(release_it(&store, "10.5.50.0/24", false).await.unwrap_err(), unreadable);
    let said = release_it(&store, "10.5.50.0/24", true).await.unwrap();
    assert_eq!(said, "10.5.50.0/24 is free again; its record could not be read");
}

#[tokio::test(start_paused = true)]
async fn whose_a_deleted_record_was_is_said_as_it_is() {
    let store = store();
    let lease = store.grant(TTL).await.unwrap().0;
    for (value, lease, force, said) in [
        (r#"{"NodeID":"worker-3"}"#, 0, false, "it was reserved for node worker-3"),
        (r#"{"PublicIP":"0.0.0.0","NodeID":"worker-3"}"#, 0, true, "it was reserved for node worker-3"),
        ("{}", 0, false, "it was reserved for nobody"),
        (r#"{"PublicIP":"0.0.0.0","NodeID":""}"#, 0, false, "it was reserved for nobody"),
        ("{}", lease, true, "its record named nobody"),
        ("junk", 0, true, "its record could not be read"),
        (HELD, 0, true, "10.99.0.2 (node worker-2) makes its record anew if it is alive and holds that subnet"),
    ] {
        store.put("10.5.7.0-24", value.as_bytes(), lease);
        let heard = release_it(&store, "10.5.7.0/24", force).await.unwrap();
        assert_eq!(heard, format!("10.5.7.0/24 is free again; {said}"), "{value}");
    }
}

#[tokio::test(start_paused = true)]
async fn both_families_are_one_reservation() {
    let store = FakeStore::new();
    store.set_config(Some(br#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}"#));
    reserve_for(&store, "10.5.7.0/24", ip("10.99.0.1")).await.unwrap();
    reserve_for(&store, "10.5.8.0/24,fc00:0:0:99::/64", ip("10.99.0.2")).await.unwrap();
    let keys: Vec<_> = store.records().into_keys().collect();
    assert_eq!(keys, ["10.5.7.0-24&fc00:0:0:7::-64", "10.5.8.0-24&fc00:0:0:99::-64"]);
    let refused = reserve_for(&store, "10.5.9.0/24,fc00:0:0:99::/64", ip("10.99.0.3")).await.unwrap_err();
    assert_eq!(refused, "10.5.8.0/24,fc00:0:0:99::/64 is held by 10.99.0.2");
    assert!(reserve_for(&store, "10.5.9.0/24", ip("fd99::1")).await.is_err());
    release_it(&store, "10.5.7.0/24", false).await.unwrap();
    release_it(&store, "fc00:0:0:99::/64", false).await.unwrap();
    assert!(store.records().is_empty());

    store.set_config(Some(br#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48"}"#));
    reserve_for(&store, "fc00:0:0:7::/64", ip("fd99::1")).await.unwrap();
    assert_eq!(value(&store, "0.0.0.0-0&fc00:0:0:7::-64").0, r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd99::1"}"#);
}

#[tokio::test(start_paused = true)]
async fn what_changes_meanwhile_is_not_overwritten() {
    let store = store();
    let before = listing(&store).await;
    store.put("10.5.7.0-24", HELD.as_bytes(), 0);
    let refused = reserve(&store, &before, "10.5.7.0/24", &ip("10.99.0.1")).await.unwrap_err();
    assert!(matches!(refused, Refusal::Changed(_)));
    let before = listing(&store).await;
    store.put("10.5.7.0-24", HELD.as_bytes(), 0);
    assert!(matches!(release(&store, &before, "10.5.7.0/24", false).await, Err(Refusal::Changed(_))));
    assert!(store.leases().is_empty(), "the lease that was not used is gone");
    store.lose_answers(Op::Update, 1);
    assert!(matches!(release(&store, &listing(&store).await, "10.5.7.0/24", false).await, Err(Refusal::Store(_))));
    assert!(value(&store, "10.5.7.0-24").1 != 0, "the record did not go with a lease that was revoked too soon");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_names_no_subnet_is_deleted_by_itself_or_as_it_is_shown() {
    let store = store();
    let long = "x".repeat(400);
    let keys = ["junk", "a\n\u{1b}[2J b", "10.5.7.0-024", "10.5.7.1-24", "config", &long, ""];
    for key in keys {
        store.put(key, b"{}", 0);
    }
    store.put("10.5.7.0-24", HELD.as_bytes(), 7);
    for (given, shown) in [
        ("junk", "junk"),
        ("a\\n\\u{1b}[2J b", "a\\n\\u{1b}[2J b"),
        ("10.5.7.0-024", "10.5.7.0-024"),
        ("10.5.7.1-24", "10.5.7.1-24"),
        ("\"\"", ""),
        (&format!("{}...\\x20(400\\x20bytes)", "x".repeat(120)), &format!("{}... (400 bytes)", "x".repeat(120))),
    ] {
        let refused = release_it(&store, given, false).await.unwrap_err();
        assert_eq!(refused, format!("the key {shown} names no subnet, so no node uses its record; --force deletes it"));
        let said = release_it(&store, given, true).await.unwrap();
        assert_eq!(said, format!("the key {shown}, which named no subnet, is deleted"));
    }
    assert_eq!(store.records().into_keys().collect::<Vec<_>>(), ["10.5.7.0-24", "config"]);
    for twin in ["y", "z"] {
        store.put(&format!("{}{}", "x".repeat(399), twin), b"{}", 0);
    }
    let shown = format!("{}... (400 bytes)", "x".repeat(120));
    let refused = release_it(&store, &shown, true).await.unwrap_err();
    assert_eq!(refused, format!("2 keys are shown as {shown}: delete the right one with etcdctl del"));

    let before = listing(&store).await;
    store.put("config", b"{1}", 0);
    assert!(matches!(release(&store, &before, "config", true).await, Err(Refusal::Changed(_))));
}

#[tokio::test(start_paused = true)]
async fn of_two_records_of_one_subnet_the_key_tells_which() {
    let store = store();
    for key in ["10.5.7.0-24", "10.5.7.0-24&fc00:0:0:7::-64"] {
        store.put(key, HELD.as_bytes(), 7);
    }
    release_it(&store, "10.5.7.0/24,fc00:0:0:7::/64", true).await.unwrap();
    assert_eq!(store.records().into_keys().collect::<Vec<_>>(), ["10.5.7.0-24"]);
    store.put("10.5.7.0-24&fc00:0:0:7::-64", HELD.as_bytes(), 7);
    release_it(&store, "10.5.7.0-24", true).await.unwrap();
    assert_eq!(store.records().into_keys().collect::<Vec<_>>(), ["10.5.7.0-24&fc00:0:0:7::-64"]);
}
