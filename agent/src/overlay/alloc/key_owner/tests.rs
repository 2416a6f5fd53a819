//! Every kind of record that may stand under the key of a living holder.

use super::*;
use crate::overlay::record::{Instance, VtepData};

const LEASE: i64 = 7;
/// When our key was created, and when one that was made after ours had gone.
const CREATED: i64 = 20;
const CREATED_AFTER: i64 = 30;

fn config() -> NetworkConfig {
    NetworkConfig::parse(br#"{"Network":"10.5.0.0/16"}"#).unwrap()
}

fn instance(id: &str, since: i64) -> Option<Instance> {
    Some(Instance { id: id.to_owned(), since })
}

fn ours() -> Record {
    let vtep = VtepData { vni: Some(1), mac: "02:00:00:00:00:01".parse().unwrap() };
    let node = Some("me".to_owned());
    Record { ipv4: Some(vtep.into()), node, instance: instance("boot-1", 100), ..Record::vxlan([10, 99, 0, 1].into()) }
}

fn judged(record: &Record, lease: i64) -> KeyOwner {
    judged_by(&ours(), false, record, lease)
}

fn judged_by(ours: &Record, has_ended: bool, record: &Record, lease: i64) -> KeyOwner {
    let (config, addresses) = (config(), [(ours.public_ip, None)]);
    let own_lease = if has_ended { 0 } else { LEASE };
    let holder =
        Holder { config: &config, record: ours, addresses: &addresses, created: CREATED, lease: own_lease, has_ended };
    holder.owner_of(&"10.5.7.0-24".parse().unwrap(), record, (CREATED_AFTER, lease))
}

fn text(value: &str, lease: i64) -> KeyOwner {
    judged(&Record::parse(value.as_bytes()).unwrap(), lease)
}

/// A record as another agent writes it: its public IP, backend and VTEP.
fn value(ip: &str, backend: &str, data: &str) -> String {
    format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"{backend}","BackendData":{data}}}"#)
}

const DATA: &str = r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#;

#[test]
fn only_a_record_that_others_follow_takes_the_subnet() {
    for lease in [0, 8] {
        assert!(matches!(text(&value("10.99.0.3", "vxlan", DATA), lease), KeyOwner::Another(_)));
    }
    assert_eq!(text(&value("10.99.0.3", "vxlan", DATA), LEASE), KeyOwner::OnOurLease);
    for (value, reason) in [
        (r#"{"PublicIP":"1.2.3.4"}"#.to_owned(), "reserved"),
        (r#"{"NodeID":"other"}"#.to_owned(), "reserved"),
        (r#"{"PublicIP":"224.0.0.1"}"#.to_owned(), "remote_not_unicast"),
        ("{}".to_owned(), "incomplete"),
        (value("10.99.0.3", "udp", "{}"), "other_backend"),
        (value("127.0.0.1", "udp", "{}"), "other_backend"),
        (value("224.0.0.1", "vxlan", DATA), "remote_not_unicast"),
        (value("127.0.0.1", "vxlan", DATA), "remote_not_unicast"),
        (value("0.0.0.0", "vxlan", DATA), "remote_not_unicast"),
        (value("255.255.255.255", "vxlan", DATA), "remote_not_unicast"),
        (value("10.99.0.3", "vxlan", "null"), "incomplete"),
        (value("10.99.0.3", "vxlan", r#"{"VNI":2,"VtepMAC":"c6:d2:32:6f:8f:44"}"#), "wrong_vni"),
        (value("10.99.0.3", "vxlan", r#"{"VNI":1,"VtepMAC":"01:d2:32:6f:8f:44"}"#), "mac_not_unicast"),
        (value("10.99.0.3", "vxlan", r#"{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}"#), "mac_not_unicast"),
    ] {
        for lease in [0, LEASE, 8] {
            let KeyOwner::Void(bad) = text(&value, lease) else {
                panic!("{value} on {lease}: {:?}", text(&value, lease))
            };
            assert_eq!(bad.reason(), reason, "{value}");
        }
    }
}

#[test]
fn another_node_s_record_that_was_written_over_ours_takes_nothing() {
    let (config, ours, addresses) = (config(), ours(), [([10, 99, 0, 1].into(), None)]);
    let owner_after = |has_ended, value: &str, lease| {
        let (config, record, addresses, created) = (&config, &ours, &addresses, CREATED);
        let holder = Holder { config, record, addresses, created, lease: LEASE, has_ended };
        let record = Record::parse(value.as_bytes()).unwrap();
        holder.owner_of(&"10.5.7.0-24".parse().unwrap(), &record, (CREATED, lease))
    };
    let owner = |value: &str, lease| owner_after(false, value, lease);
    for lease in [0, 8] {
        assert_eq!(owner(&value("10.99.0.3", "vxlan", DATA), lease), KeyOwner::WrittenOver);
    }
    // Once our lease has ended the subnet was free: a restored etcd counts its revisions anew.
    assert!(matches!(owner_after(true, &value("10.99.0.3", "vxlan", DATA), 8), KeyOwner::Another(_)));
    // Who has our address may take a silent holder's record over.
    let same_address = r#"{"PublicIP":"10.99.0.1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"NodeID":"other"}"#;
    assert!(matches!(owner(same_address, 8), KeyOwner::Another(_)));
}

#[test]
fn what_names_us_is_ours_and_its_lease_counts_where_it_is_sound() {
    for lease in [0, LEASE, 8] {
        assert_eq!(judged(&ours(), lease), KeyOwner::Ours { follow: true });
        let before_instances = Record { instance: None, ..ours() };
        assert_eq!(judged(&before_instances, lease), KeyOwner::Ours { follow: true });
        let spoilt = Record { ipv4: None, ..ours() };
        assert_eq!(judged(&spoilt, lease), KeyOwner::Ours { follow: false });
    }
    // Reservations as an operator writes them, for our address and for our id; with a lease they are none.
    for reservation in [r#"{"PublicIP":"10.99.0.1"}"#, r#"{"NodeID":"me"}"#] {
        assert_eq!(text(reservation, 0), KeyOwner::Ours { follow: true }, "{reservation}");
    }
    assert!(matches!(text(r#"{"PublicIP":"10.99.0.1"}"#, 8), KeyOwner::Void(_)));
    // Edited by hand, or forged: the address is another, yet the instance is ours.
    let moved = Record { public_ip: [10, 99, 0, 3].into(), ..ours() };
    for lease in [0, LEASE, 8] {
        assert_eq!(judged(&moved, lease), KeyOwner::Ours { follow: false });
    }
}

#[test]
fn another_agent_with_our_address_is_told_by_its_mac() {
    let flannel = |mac: &str| value("10.99.0.1", "vxlan", &format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#));
    for lease in [0, LEASE, 8] {
        assert_eq!(text(&flannel("c6:d2:32:6f:8f:44"), lease), KeyOwner::SameAddress);
    }
    // Where we have no node id either, the ids are not the same: there is none.
    for ids in [ours().instance, None] {
        let ours = Record { node: None, instance: ids.clone(), ..ours() };
        for lease in [0, LEASE, 8] {
            let theirs = Record::parse(flannel("c6:d2:32:6f:8f:44").as_bytes()).unwrap();
            assert_eq!(judged_by(&ours, false, &theirs, lease), KeyOwner::SameAddress, "{ids:?} {lease}");
            assert_eq!(judged_by(&ours, false, &ours, lease), KeyOwner::Ours { follow: true }, "{ids:?} {lease}");
        }
        let earlier = Record::parse(flannel("02:00:00:00:00:01").as_bytes()).unwrap();
        assert_eq!(judged_by(&ours, false, &earlier, 0), KeyOwner::Ours { follow: true });
    }
    // A record of our own device, as an earlier flannel here left it: made a reservation by hand.
    assert_eq!(text(&flannel("02:00:00:00:00:01"), 0), KeyOwner::Ours { follow: true });
    assert_eq!(text(&flannel("02:00:00:00:00:01"), 8), KeyOwner::Ours { follow: false });
}

#[test]
fn of_two_clones_exactly_one_goes_on() {
    let clone = |since| Record { instance: instance("boot-2", since), ..ours() };
    assert_eq!(judged(&clone(200), LEASE), KeyOwner::Later);
    assert_eq!(judged(&clone(50), LEASE), KeyOwner::Another(Relation::Instance));
    // Ours has ended, and the other one holds the subnet by its own.
    assert_eq!(judged(&clone(200), 8), KeyOwner::Another(Relation::Instance));
    for (one, other) in [(100, 200), (200, 100), (100, 100)] {
        let records = [Record { instance: instance("boot-1", one), ..ours() }, clone(other)];
        let goes_on = |ours: &Record, theirs: &Record| judged_by(ours, false, theirs, LEASE) == KeyOwner::Later;
        assert_ne!(goes_on(&records[0], &records[1]), goes_on(&records[1], &records[0]), "{one} {other}");
    }
    // With a reservation there is no lease to tell them by.
    let goes_on = |theirs: &Record| judged_as_reservation(theirs, 0);
    assert_eq!(goes_on(&clone(200)), KeyOwner::Later);
    assert_eq!(goes_on(&clone(50)), KeyOwner::Another(Relation::Instance));
}

fn judged_as_reservation(record: &Record, lease: i64) -> KeyOwner {
    let (config, ours) = (config(), ours());
    let addresses = [(ours.public_ip, None)];
    let holder =
        Holder { config: &config, record: &ours, addresses: &addresses, created: CREATED, lease: 0, has_ended: false };
    holder.owner_of(&"10.5.7.0-24".parse().unwrap(), record, (CREATED_AFTER, lease))
}

#[test]
fn a_copy_of_our_record_takes_nothing_while_our_lease_lives() {
    let mac = "02:00:00:00:00:33".parse().unwrap();
    let other_mac = Some(VtepData { vni: Some(1), mac }.into());
    for ids in [instance("boot-2", 0), instance("boot-2", 900), None] {
        let copy = Record { instance: ids.clone(), ..ours() };
        if ids.is_some() {
            // Whatever the numbers say: it has lost its lease.
            assert_eq!(judged(&copy, 0), KeyOwner::Copy(Copied::WithoutLease));
        }
        for ipv4 in [copy.ipv4.clone(), other_mac.clone()] {
            let elsewhere = Record { public_ip: [10, 99, 0, 3].into(), ipv4, ..copy.clone() };
            for lease in [0, 8] {
                assert_eq!(judged(&elsewhere, lease), KeyOwner::Copy(Copied::WithAnotherAddress), "{ids:?}");
                assert_eq!(judged_as_reservation(&elsewhere, lease), KeyOwner::Copy(Copied::WithAnotherAddress));
            }
            assert_eq!(judged(&elsewhere, LEASE), KeyOwner::OnOurLease);
            // The subnet was free.
            assert!(matches!(judged_by(&ours(), true, &elsewhere, 8), KeyOwner::Another(_)));
        }
    }
}

#[test]
fn our_record_with_an_instance_that_cannot_be_read_is_ours_and_keeps_its_lease() {
    let spoilt = Record { instance: None, has_bad_instance: true, ..ours() };
    for lease in [0, LEASE, 8] {
        assert_eq!(judged(&spoilt, lease), KeyOwner::Ours { follow: false });
    }
}

#[test]
fn an_address_that_no_node_can_have_takes_nothing() {
    for ip in ["10.5.7.1", "10.5.77.3", "0.1.2.3"] {
        for lease in [0, 8] {
            assert!(matches!(text(&value(ip, "vxlan", DATA), lease), KeyOwner::Void(_)), "{ip}");
        }
    }
}

#[test]
fn after_the_end_of_our_lease_a_reservation_and_a_clone_have_the_subnet() {
    let reserved = Record::parse(br#"{"PublicIP":"10.99.0.3"}"#).unwrap();
    assert!(matches!(judged_by(&ours(), true, &reserved, 0), KeyOwner::Another(_)));
    let clone = Record { instance: instance("boot-2", 200), ..ours() };
    assert_eq!(judged_by(&ours(), true, &clone, 0), KeyOwner::Another(Relation::Instance));
    let junk = Record::parse(b"{}").unwrap();
    assert!(matches!(judged_by(&ours(), true, &junk, 0), KeyOwner::Void(_)), "nobody has it");
}

#[test]
fn a_stranger_with_our_address_has_it_by_a_lease_of_its_own() {
    let stranger = Record { node: Some("other".to_owned()), instance: instance("boot-9", 1), ..ours() };
    assert_eq!(judged(&stranger, 8), KeyOwner::Another(Relation::Stranger));
    assert_eq!(judged(&stranger, LEASE), KeyOwner::OnOurLease);
}

#[test]
fn a_reservation_is_for_a_host_or_a_node() {
    let config = config();
    let held = |value: &str, lease| {
        hold(&config, &"10.5.7.0-24".parse().unwrap(), &Record::parse(value.as_bytes()).unwrap(), lease)
    };
    for good in [r#"{"PublicIP":"1.2.3.4"}"#, r#"{"PublicIPv6":"fd99::1"}"#, r#"{"NodeID":"other"}"#] {
        assert_eq!(held(good, 0), Hold::Reserved, "{good}");
        assert!(matches!(held(good, 1), Hold::Void(_)), "{good}");
    }
    for bad in ["{}", r#"{"PublicIP":"224.0.0.1"}"#, r#"{"PublicIP":"127.0.0.1"}"#, r#"{"PublicIPv6":"ff02::1"}"#] {
        assert!(matches!(held(bad, 0), Hold::Void(_)), "{bad}");
    }
}

#[test]
fn ids_tell_machines_apart() {
    let with = |node: Option<&str>, id: Option<&str>| Record {
        node: node.map(str::to_owned),
        instance: id.and_then(|id| instance(id, 1)),
        ..Record::vxlan([10, 99, 0, 1].into())
    };
    let me = (Some("me"), Some("boot-1"));
    for (node, id, expected) in [
        (Some("me"), Some("boot-1"), Relation::Same),
        (Some("me"), Some("boot-2"), Relation::Instance),
        (Some("me"), None, Relation::Same),
        (Some("other"), None, Relation::Stranger),
        (Some("other"), Some("boot-2"), Relation::Stranger),
        // Our own record of before --node-id was changed.
        (Some("other"), Some("boot-1"), Relation::Same),
        (None, None, Relation::Same),
        (None, Some("boot-2"), Relation::Instance),
    ] {
        assert_eq!(relation(me, &with(node, id)), expected, "{node:?} {id:?}");
    }
    // Without a machine-id the instance still tells.
    assert_eq!(relation((None, Some("boot-1")), &with(None, Some("boot-2"))), Relation::Instance);
    assert_eq!(relation((None, None), &with(Some("other"), Some("boot-2"))), Relation::Same);
}
