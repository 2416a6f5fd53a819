//! Each step of "getting a lease", and that allocation never overlaps.

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;
use crate::overlay::record::Instance;

fn config(text: &str) -> NetworkConfig {
    NetworkConfig::parse(text.as_bytes()).unwrap()
}

fn small() -> NetworkConfig {
    config(r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.4.0"}"#)
}

fn key(text: &str) -> SubnetKey {
    text.parse().unwrap()
}

fn wanted<'a>(config: &'a NetworkConfig) -> SubnetRequest<'a> {
    SubnetRequest {
        config,
        public_ip: Some(Ipv4Addr::new(10, 99, 0, 1)),
        public_ipv6: None,
        previous: None,
        node: Some("me"),
        instance: Some("boot-1"),
    }
}

fn seen(text: &str, ip: &str, node: Option<&str>) -> KnownRecord {
    let record = Record { node: node.map(str::to_owned), ..Record::vxlan(ip.parse().unwrap()) };
    KnownRecord { key: key(text), record: Some(record), revision: 7, lease: 3, is_void: false }
}

fn plan(wanted: &SubnetRequest<'_>, records: &[KnownRecord]) -> Plan {
    decide(wanted, records, std::iter::empty(), &mut SmallRng::seed_from_u64(1))
}

#[track_caller]
fn created(wanted: &SubnetRequest<'_>, records: &[KnownRecord]) -> SubnetKey {
    match plan(wanted, records).decision {
        Decision::Create { key } => key,
        other => panic!("{other:?}"),
    }
}

#[test]
fn our_own_record_is_taken_over() {
    let config = small();
    let records = [seen("10.5.1.0-24", "10.99.0.2", None), seen("10.5.2.0-24", "10.99.0.1", None)];
    let decision = Decision::TakeOver { key: key("10.5.2.0-24"), revision: 7, lease: 3 };
    assert_eq!(plan(&wanted(&config), &records), Plan { stale: vec![], decision });
}

#[test]
fn the_previous_one_of_two_own_records_wins_then_a_reservation() {
    let config = small();
    let reserved = KnownRecord { lease: 0, ..seen("10.5.3.0-24", "10.99.0.1", None) };
    let records = [seen("10.5.1.0-24", "10.99.0.1", None), reserved, seen("10.5.4.0-24", "10.99.0.1", Some("me"))];
    let chosen = |wanted: &SubnetRequest<'_>| match plan(wanted, &records).decision {
        Decision::TakeOver { key, lease, .. } => (key.to_string(), lease),
        other => panic!("{other:?}"),
    };
    assert_eq!(chosen(&wanted(&config)), ("10.5.3.0-24".to_owned(), 0));
    // With their leases the other nodes would follow them instead of the reservation.
    assert_eq!(plan(&wanted(&config), &records).stale, [(key("10.5.1.0-24"), 7), (key("10.5.4.0-24"), 7)]);
    let wanted = SubnetRequest { previous: Some(key("10.5.4.0-24")), ..wanted(&config) };
    assert_eq!(chosen(&wanted), ("10.5.4.0-24".to_owned(), 3));
    assert_eq!(plan(&wanted, &records).stale, []);
}

#[test]
fn an_own_record_that_does_not_fit_goes_first() {
    let config = small();
    let records = [seen("10.5.9.0-24", "10.99.0.1", None), seen("10.5.1.0-25", "10.99.0.1", None)];
    let plan = plan(&wanted(&config), &records);
    assert_eq!(plan.stale, vec![(key("10.5.9.0-24"), 7), (key("10.5.1.0-25"), 7)]);
    assert!(matches!(plan.decision, Decision::Create { .. }));
}

#[test]
fn a_second_node_with_our_address_is_named() {
    let config = small();
    let records = [seen("10.5.2.0-24", "10.99.0.1", Some("other"))];
    let doubled = Decision::Doubled { key: key("10.5.2.0-24"), relation: Relation::Stranger };
    assert_eq!(plan(&wanted(&config), &records), Plan { stale: vec![], decision: doubled });
    let nameless = SubnetRequest { node: None, ..wanted(&config) };
    assert!(matches!(plan(&nameless, &records).decision, Decision::TakeOver { .. }));
}

#[test]
fn another_instance_of_this_machine_is_asked_and_our_own_is_not() {
    let config = small();
    let written_by = |id: &str| {
        let mut seen = seen("10.5.2.0-24", "10.99.0.1", Some("me"));
        if let Some(record) = &mut seen.record {
            record.instance = Some(Instance { id: id.to_owned(), since: 3 });
        }
        [seen]
    };
    let doubled = Decision::Doubled { key: key("10.5.2.0-24"), relation: Relation::Instance };
    assert_eq!(plan(&wanted(&config), &written_by("boot-0")).decision, doubled);
    assert!(matches!(plan(&wanted(&config), &written_by("boot-1")).decision, Decision::TakeOver { .. }));
    let unknown = SubnetRequest { instance: None, ..wanted(&config) };
    assert!(matches!(plan(&unknown, &written_by("boot-0")).decision, Decision::TakeOver { .. }));
    // Our address has changed since our own instance wrote it.
    let moved = SubnetRequest { public_ip: Some(Ipv4Addr::new(10, 99, 0, 9)), ..wanted(&config) };
    assert!(matches!(plan(&moved, &written_by("boot-1")).decision, Decision::TakeOver { .. }));
    assert!(matches!(plan(&moved, &written_by("boot-0")).decision, Decision::Create { .. }));
}

#[test]
fn the_previous_subnet_is_taken_back_from_a_record_that_no_node_follows() {
    let config = small();
    let wanted = SubnetRequest { previous: Some(key("10.5.3.0-24")), ..wanted(&config) };
    let void = KnownRecord { record: None, is_void: true, ..seen("10.5.3.0-24", "10.99.0.2", None) };
    let restore = Decision::Restore { key: key("10.5.3.0-24"), revision: 7 };
    assert_eq!(plan(&wanted, std::slice::from_ref(&void)).decision, restore);
    // Not where another record has the subnet, and not where we have one of our own.
    let both = [void.clone(), seen("10.5.3.0-25", "10.99.0.2", None)];
    assert_ne!(created(&wanted, &both), key("10.5.3.0-24"));
    let own = [void, seen("10.5.2.0-24", "10.99.0.1", Some("me"))];
    assert!(matches!(plan(&wanted, &own).decision, Decision::TakeOver { .. }));
}

#[test]
fn the_previous_subnet_if_it_is_free_and_fits() {
    let config = small();
    let wanted = SubnetRequest { previous: Some(key("10.5.3.0-24")), ..wanted(&config) };
    assert_eq!(created(&wanted, &[]), key("10.5.3.0-24"));
    let held = [seen("10.5.3.0-24", "10.99.0.2", None)];
    assert_ne!(created(&wanted, &held), key("10.5.3.0-24"));
    let unfit = SubnetRequest { previous: Some(key("10.5.9.0-24")), ..wanted };
    assert_ne!(created(&unfit, &[]), key("10.5.9.0-24"));
}

#[test]
fn a_family_that_is_new_keeps_the_old_ones_subnet() {
    let dual = config(r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}"#);
    let wanted = wanted(&dual);
    let records = [seen("10.5.7.0-24", "10.99.0.1", None)];
    assert_eq!(plan(&wanted, &records).stale.len(), 1);
    assert_eq!(created(&wanted, &records), key("10.5.7.0-24&fc00:0:0:7::-64"));
}

#[test]
fn ipv6_only_nodes_are_told_apart_by_their_ipv6_address() {
    let config = config(r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48"}"#);
    let own: Ipv6Addr = "fd99::1".parse().unwrap();
    let wanted = SubnetRequest { public_ip: None, public_ipv6: Some(own), ..wanted(&config) };
    let with = |text: &str, ip: &str| {
        let record = Record { public_ipv6: Some(ip.parse().unwrap()), ..Record::vxlan(Ipv4Addr::UNSPECIFIED) };
        KnownRecord { key: key(text), record: Some(record), revision: 1, lease: 1, is_void: false }
    };
    let other = with("0.0.0.0-0&fc00:0:0:5::-64", "fd99::2");
    assert!(matches!(plan(&wanted, std::slice::from_ref(&other)).decision, Decision::Create { .. }));
    let records = [other, with("0.0.0.0-0&fc00:0:0:6::-64", "fd99::1")];
    let Decision::TakeOver { key: taken, .. } = plan(&wanted, &records).decision else { panic!() };
    assert_eq!(taken, key("0.0.0.0-0&fc00:0:0:6::-64"));
}

#[test]
fn whatever_overlaps_is_held() {
    let config = small();
    let unreadable = KnownRecord { record: None, ..seen("10.5.1.0-24", "10.99.0.2", None) };
    let records = [unreadable, seen("10.5.2.128-25", "10.99.0.2", None), seen("10.5.4.0-22", "10.99.0.3", None)];
    assert_eq!(created(&wanted(&config), &records), key("10.5.3.0-24"));
    let full = [records.as_slice(), &[seen("10.5.3.0-24", "10.99.0.4", None)]].concat();
    let network = "10.5.0.0/16".parse().unwrap();
    assert_eq!(plan(&wanted(&config), &full).decision, Decision::NoFreeSubnet { network });
}

#[test]
fn lost_races_are_held() {
    let config = small();
    let taken = [key("10.5.1.0-24"), key("10.5.2.0-24"), key("10.5.4.0-24")];
    let plan = decide(&wanted(&config), &[], taken.iter().copied(), &mut SmallRng::seed_from_u64(1));
    assert_eq!(plan.decision, Decision::Create { key: key("10.5.3.0-24") });
}

#[test]
fn the_choice_is_among_the_first_hundred() {
    let config = config(r#"{"Network":"10.0.0.0/8"}"#);
    let family = config.ipv4.unwrap();
    let mut random = SmallRng::seed_from_u64(1);
    let mut chosen = std::collections::BTreeSet::new();
    for _ in 0..2_000 {
        match decide(&wanted(&config), &[], std::iter::empty(), &mut random).decision {
            Decision::Create { key } => chosen.insert(family.index(&key.ipv4.unwrap().into())),
            other => panic!("{other:?}"),
        };
    }
    assert_eq!((chosen.len(), chosen.first().copied(), chosen.last().copied()), (100, Some(1), Some(100)));
}

#[test]
fn the_ends_of_the_address_space_are_no_trap() {
    let config = config(
        r#"{"Network":"255.255.0.0/16","SubnetMin":"255.255.255.0","EnableIPv6":true,"IPv6Network":"ffff:ffff:ffff::/48","IPv6SubnetMin":"ffff:ffff:ffff:ffff::"}"#,
    );
    let wanted = wanted(&config);
    assert_eq!(created(&wanted, &[]), key("255.255.255.0-24&ffff:ffff:ffff:ffff::-64"));
    let network = "255.255.0.0/16".parse().unwrap();
    let full = [seen("255.255.255.0-24", "10.99.0.2", None)];
    assert_eq!(plan(&wanted, &full).decision, Decision::NoFreeSubnet { network });
    let full = [seen("10.0.0.0-24&ffff:ffff:ffff:ffff::-64", "10.99.0.2", None)];
    let network = "ffff:ffff:ffff::/48".parse().unwrap();
    assert_eq!(plan(&wanted, &full).decision, Decision::NoFreeSubnet { network });
}

proptest! {
    #[test]
    fn nothing_is_ever_given_twice(held in proptest::collection::vec((0u32..0x1000, 20u8..=28), 0..60), seed: u64) {
        let config = config(r#"{"Network":"10.5.0.0/20","SubnetLen":25}"#);
        let family = config.ipv4.unwrap();
        let mut records: Vec<KnownRecord> = held.iter().map(|(offset, len)| {
            let text = format!("{}-{len}", Ipv4Addr::from_bits(0x0a05_0000 + offset));
            KnownRecord { key: SubnetKey::occupied(&text).unwrap(), record: None, revision: 1, lease: 1, is_void: false }
        }).collect();
        let overlaps = |subnet: &IpNetwork, records: &[KnownRecord]| records.iter().any(|seen| {
            let IpNetwork::V4(subnet) = *subnet else { panic!() };
            seen.key.ipv4.unwrap().overlaps(subnet)
        });
        let mut random = SmallRng::seed_from_u64(seed);
        loop {
            match decide(&wanted(&config), &records, std::iter::empty(), &mut random).decision {
                Decision::Create { key } => {
                    let subnet = key.ipv4.unwrap().into();
                    prop_assert!(family.fits(&subnet) && !overlaps(&subnet, &records));
                    records.push(KnownRecord { key, record: None, revision: 1, lease: 1, is_void: false });
                }
                Decision::NoFreeSubnet { .. } => break,
                other => panic!("{other:?}"),
            }
        }
        for index in 1..32 {
            prop_assert!(overlaps(&family.nth(index).unwrap(), &records), "a free subnet was not found");
        }
    }
}
