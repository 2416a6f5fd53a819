use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

mod many;

/// A record of subnet `subnet` under one of several keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Written {
    /// 0: none, as with a backend that has no devices.
    mac: u8,
    host: u8,
    created: i64,
    revision: i64,
    is_leased: bool,
    /// 0: none.
    node: u8,
}

impl Written {
    fn has_mac_of(&self, other: &Self) -> bool {
        self.mac != 0 && self.mac == other.mac
    }
}

type At = (u8, u32);

fn place((subnet, key): At) -> Place {
    (format!("10.5.{subnet}.0/24").parse().unwrap(), Source(key))
}

fn claim(written: &Written) -> Claim {
    let Written { mac, host, created, revision, is_leased, node } = *written;
    let endpoint =
        Endpoint { mac: (mac != 0).then_some(MacAddr([2, 0, 0, 0, 0, mac])), remote: [10, 99, 0, host].into() };
    let node = (node != 0).then(|| format!("node-{node}"));
    Claim { endpoint, standing: Standing::new(created, revision, is_leased, node.as_deref()) }
}

fn put(peers: &mut Peers, at: At, written: &Written) -> Vec<Delta> {
    let (subnet, source) = place(at);
    peers.put(subnet, source, claim(written))
}

fn counting(peers: &Peers) -> BTreeMap<IpNetwork, Endpoint> {
    peers.iter().map(|(subnet, peer)| (*subnet, peer.endpoint)).collect()
}

/// Which records count, by the rules as they are told to people.
fn that_count(records: &BTreeMap<At, Written>) -> BTreeSet<At> {
    let rivals =
        |(a, one): (&At, &Written), (b, other): (&At, &Written)| a != b && (a.0 == b.0 || one.has_mac_of(other));
    let same_node = |one: &Written, other: &Written| {
        let nameless = |written: &Written| written.node == 0 && written.is_leased;
        one.host == other.host
            || one.node != 0 && one.node == other.node
            || one.has_mac_of(other) && nameless(one) && nameless(other)
    };
    let mut ranked: Vec<_> = records
        .iter()
        .map(|(at, one)| {
            let later = |(b, other): &(&At, &Written)| {
                rivals((at, one), (b, other))
                    && same_node(one, other)
                    && (other.is_leased, other.revision) > (one.is_leased, one.revision)
            };
            let may_be_anybodys = !one.is_leased && one.node == 0;
            (records.iter().any(|other| later(&other)), may_be_anybodys, one.created, *at)
        })
        .collect();
    ranked.sort_unstable();
    let mut count: BTreeSet<At> = BTreeSet::new();
    for (.., at) in ranked {
        if !count.iter().any(|other| rivals((&at, &records[&at]), (other, &records[other]))) {
            count.insert(at);
        }
    }
    count
}

/// Two nodes, the first of which was there first, with one MAC.
fn pair() -> [(At, Written); 2] {
    let first = Written { mac: 1, host: 1, created: 5, revision: 50, is_leased: true, node: 1 };
    [((1, 0), first), ((2, 0), Written { host: 2, created: 9, revision: 90, node: 2, ..first })]
}

/// Which subnet holds the MAC, whatever the order in which the two are heard of.
#[track_caller]
fn winner(records: [(At, Written); 2]) -> u8 {
    let [forward, backward] = [[0, 1], [1, 0]].map(|order| {
        let mut peers = Peers::default();
        order.into_iter().for_each(|index: usize| drop(put(&mut peers, records[index].0, &records[index].1)));
        assert_eq!(peers.len(), 1, "one MAC, one peer");
        counting(&peers)
    });
    assert_eq!(forward, backward, "whatever the order");
    let at = records.iter().find(|(at, _)| forward.contains_key(&place(*at).0)).unwrap().0;
    at.0
}

#[test]
fn a_peer_costs_no_more_than_it_did() {
    // There are a hundred thousand of them.
    assert_eq!(size_of::<(IpNetwork, Peer)>(), 72);
}

#[test]
fn of_two_nodes_the_one_that_was_there_first_counts_unless_it_may_be_anybodys() {
    for leased in [[true, true], [true, false], [false, true], [false, false]] {
        let [mut first, mut second] = pair();
        (first.1.is_leased, second.1.is_leased) = (leased[0], leased[1]);
        // Without a lease its subnet is reserved for it.
        assert_eq!(winner([first, second]), 1, "{leased:?}");
        // The one that was there first has been written since, as flannel does at each renewal.
        first.1.revision = 900;
        assert_eq!(winner([first, second]), 1, "{leased:?}");
        // The newcomer is none of Twill's, or none that says who it is.
        second.1.node = 0;
        assert_eq!(winner([first, second]), 1, "{leased:?}");
        // Nor is the first.
        (first.1.node, first.1.revision) = (0, 50);
        let expected = if leased[1] { 2 } else { 1 };
        assert_eq!(winner([first, second]), expected, "{leased:?}, perhaps one node of flannel's with a new address");
    }
}

#[test]
fn of_two_records_of_one_node_the_leased_one_counts_else_the_newer() {
    for leased in [[true, true], [true, false], [false, true], [false, false]] {
        for by_id in [true, false] {
            let [mut old, mut new] = pair();
            (old.1.is_leased, new.1.is_leased) = (leased[0], leased[1]);
            if by_id {
                new.1.node = old.1.node;
            } else {
                new.1.host = old.1.host;
            }
            let expected = if leased == [true, false] { 1 } else { 2 };
            assert_eq!(winner([old, new]), expected, "{leased:?} {by_id}");
            // flannel took its earlier record again.
            old.1.revision = 900;
            let expected = if leased == [false, true] { 2 } else { 1 };
            assert_eq!(winner([old, new]), expected, "{leased:?} {by_id}");
        }
    }
}

#[test]
fn of_two_keys_of_one_subnet_the_same_one_counts() {
    // The way to both families: the same node, the new key counts. Another node: the first one stays.
    for (host, expected) in [(1, 2), (2, 1)] {
        let [(_, old), (_, new)] = pair();
        let records = [((1, 0), old), ((1, 1), Written { mac: 2, host, node: 0, ..new })];
        for order in [[0, 1], [1, 0]] {
            let mut peers = Peers::default();
            for index in order {
                put(&mut peers, records[index].0, &records[index].1);
            }
            assert_eq!(counting(&peers)[&place((1, 0)).0].mac, claim(&records[expected - 1].1).endpoint.mac);
            assert_eq!(peers.aside().count(), 1);
        }
    }
}

#[test]
fn whoever_is_aside_comes_when_its_rival_goes_and_is_told_why_it_waits() {
    let [(first_at, first), (second_at, second)] = pair();
    let mut peers = Peers::default();
    put(&mut peers, first_at, &first);
    assert!(put(&mut peers, second_at, &second).is_empty(), "the first one is not touched");
    let (mac, other) = (claim(&first).endpoint.mac.unwrap(), place(first_at).0);
    assert_eq!(peers.shadow_of(place(second_at)), Some(BadRecord::MacOfAnother { mac, other }));
    let deltas = peers.remove(place(first_at).0, place(first_at).1);
    assert!(
        matches!(&deltas[..], [Delta::Left { subnet, .. }, Delta::Joined(joined)] if (*subnet, *joined) == (other, place(second_at).0)),
        "{deltas:?}"
    );
    assert_eq!(peers.shadow_of(place(second_at)), None);
}

#[test]
fn who_claims_what_is_ours_is_no_peer_and_goes_before_us_only_by_the_same_rules() {
    let [(own_at, own), (other_at, other)] = pair();
    let cases = [
        // Leased, and came later: the other nodes stay with us.
        (own_at, other_at, own, other, None),
        // Our subnet is reserved for us, and the other one has a lease; we have no node id.
        (own_at, other_at, Written { is_leased: false, ..own }, other, None),
        (own_at, other_at, Written { is_leased: false, node: 0, ..own }, other, Some(other_at)),
        // It was there before us.
        (other_at, own_at, other, own, Some(own_at)),
        // It has our address too, and was written after us, with a lease and without one.
        (own_at, other_at, own, Written { host: 1, ..other }, Some(other_at)),
        (own_at, other_at, own, Written { host: 1, is_leased: false, ..other }, None),
        // Our node id and our MAC.
        (own_at, other_at, own, Written { node: 1, ..other }, Some(other_at)),
        (own_at, other_at, own, Written { node: 1, is_leased: false, ..other }, None),
        // Our subnet under another key.
        (own_at, (1, 1), own, Written { mac: 9, ..other }, None),
        // Our address alone is in nobody's way.
        (own_at, other_at, own, Written { mac: 9, host: 1, ..other }, None),
    ];
    for (number, (own_at, other_at, own, other, displaced_by)) in cases.into_iter().enumerate() {
        for own_first in [true, false] {
            let mut peers = Peers::default();
            let held = |peers: &mut Peers| drop(peers.set_own(place(own_at), claim(&own)));
            if own_first {
                held(&mut peers);
            }
            put(&mut peers, other_at, &other);
            if !own_first {
                held(&mut peers);
            }
            assert_eq!(peers.displaced_by(), displaced_by.map(place), "case {number}, {own_first}");
            assert!(peers.is_empty() && peers.claim_aside(place(other_at)).is_some(), "case {number}");
            peers.remove(place(other_at).0, place(other_at).1);
            assert_eq!((peers.displaced_by(), peers.aside().count()), (None, 0), "case {number}");
        }
    }
}

#[test]
fn a_record_in_our_name_goes_before_ours_until_ours_is_written_again() {
    for leased in [true, false] {
        let [(own_at, mut own), (other_at, mut other)] = pair();
        (own.is_leased, other.is_leased, other.host) = (leased, leased, own.host);
        let mut peers = Peers::default();
        peers.set_own(place(own_at), claim(&own));
        put(&mut peers, other_at, &other);
        let in_our_name = peers.in_our_name().map(|(place, claim)| (place, claim.standing.written()));
        assert_eq!(in_our_name, Some((place(other_at), 90)));
        peers.set_own(place(own_at), claim(&Written { revision: 91, ..own }));
        assert_eq!((peers.in_our_name().map(|(place, _)| place), peers.displaced_by()), (None, None));
        // It is written once more.
        put(&mut peers, other_at, &Written { revision: 92, ..other });
        assert_eq!(peers.in_our_name().map(|(place, _)| place), Some(place(other_at)));
    }
    // Another node's that goes before ours is none in our name: writing ours again does not help.
    let [(first_at, first), (own_at, own)] = pair();
    let mut peers = Peers::default();
    peers.set_own(place(own_at), claim(&own));
    put(&mut peers, first_at, &first);
    assert_eq!((peers.displaced_by(), peers.in_our_name().is_some()), (Some(place(first_at)), false));
}

#[test]
fn a_record_that_a_complete_read_does_not_name_is_gone_although_a_rival_was_read() {
    for first_counts in [true, false] {
        let [(first_at, first), (second_at, mut second)] = pair();
        second.is_leased = first_counts;
        let mut peers = Peers::default();
        put(&mut peers, first_at, &first);
        peers.listing();
        put(&mut peers, second_at, &second);
        assert_eq!(peers.unlisted(), [place(first_at)]);
        peers.remove(place(first_at).0, place(first_at).1);
        assert_eq!(counting(&peers).len(), 1);
        // The one that is ignored is not named by the next read.
        put(&mut peers, first_at, &first);
        peers.listing();
        put(&mut peers, first_at, &first);
        assert_eq!(peers.unlisted(), [place(second_at)]);
    }
}

/// The peers that cost more, since something is kept of their rivals.
fn with_contest(peers: &Peers) -> Vec<Place> {
    peers.contest.iter().filter(|(.., is_peer)| *is_peer).map(|(place, ..)| place).collect()
}

/// The peers whose subnet or MAC another record claims.
fn with_rivals(peers: &Peers) -> Vec<Place> {
    let others: Vec<_> = peers.contest.iter().map(|(place, claim, _)| (place, *claim)).collect();
    let has_rival = |(subnet, peer): &(&IpNetwork, &Peer)| {
        let at = (**subnet, peer.source);
        others.iter().any(|(other, claim)| {
            *other != at && (other.0 == at.0 || claim.endpoint.mac.is_some() && claim.endpoint.mac == peer.endpoint.mac)
        })
    };
    let mut places: Vec<_> = peers.iter().filter(has_rival).map(|(subnet, peer)| (*subnet, peer.source)).collect();
    places.sort_unstable();
    places
}

#[test]
fn peers_without_a_mac_share_none() {
    let [(own_at, own), (first_at, first)] = pair();
    let mut peers = Peers::default();
    peers.set_own(place(own_at), claim(&Written { mac: 0, ..own }));
    put(&mut peers, first_at, &Written { mac: 0, ..first });
    put(&mut peers, (3, 0), &Written { mac: 0, host: 3, node: 0, ..first });
    // Another key of the same subnet is a rival all the same.
    put(&mut peers, (3, 1), &Written { mac: 0, host: 4, created: 70, ..first });
    assert_eq!((peers.len(), peers.aside().count(), peers.displaced_by()), (2, 1, None));
    assert!(matches!(peers.shadow_of(place((3, 1))), Some(BadRecord::SubnetOfAnother { .. })));
    peers.remove(place((3, 0)).0, place((3, 0)).1);
    assert_eq!((peers.len(), peers.aside().count()), (2, 0));
}

#[test]
fn records_with_our_former_address_are_peers_once_we_have_another() {
    let [(own_at, own), (other_at, other)] = pair();
    let mut peers = Peers::default();
    peers.set_own(place(own_at), claim(&own));
    put(&mut peers, other_at, &Written { mac: 9, host: own.host, ..other });
    assert!(peers.is_empty());
    let deltas = peers.set_own(place(own_at), claim(&Written { host: 7, ..own }));
    assert!(matches!(&deltas[..], [Delta::Joined(subnet)] if *subnet == place(other_at).0), "{deltas:?}");
    assert_eq!((peers.aside().count(), with_contest(&peers)), (0, vec![]));
}

fn written() -> impl Strategy<Value = Written> {
    // Most have one MAC.
    let mac = prop_oneof![4 => Just(1_u8), 2 => 2..6_u8, 1 => Just(0_u8)];
    let fields = (mac, 1..5_u8, 1..9_i64, 0..3_i64, any::<bool>(), 0..3_u8);
    fields.prop_map(|(mac, host, created, later, is_leased, node)| Written {
        mac,
        host,
        // No two are created or written at one revision, as with etcd.
        created: created * 100,
        revision: (created + later) * 100,
        is_leased,
        node,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_order_the_same_records_count(
        steps in prop::collection::vec(((1..8_u8, 0..2_u32), prop::option::weighted(0.7, written())), 1..60),
        own in prop::option::of(((1..8_u8, 9..10_u32), written())),
        own_after in 0..60_usize,
        // What our record says before that, perhaps under another key, with another MAC or address.
        own_until in prop::collection::vec((0..60_usize, (1..8_u8, 9..10_u32), written()), 0..3),
        list_at in prop::option::of(0..60_usize),
        shuffled in Just((0..14).collect::<Vec<usize>>()).prop_shuffle(),
    ) {
        let (mut peers, mut records) = (Peers::default(), BTreeMap::new());
        let mut own = own;
        if let Some((_, own)) = &mut own {
            (own.created, own.revision) = (own.created + 99, own.revision + 99);
        }
        for (number, (at, written)) in steps.iter().enumerate() {
            for (_, at, own) in own_until.iter().filter(|(until, ..)| own.is_some() && *until == number) {
                peers.set_own(place(*at), claim(own));
            }
            if let Some((at, own)) = own.as_ref().filter(|_| number == own_after) {
                peers.set_own(place(*at), claim(own));
            }
            let written = written.map(|written| {
                let number = number as i64;
                Written { created: written.created + number, revision: written.revision + number, ..written }
            });
            match written {
                Some(written) => {
                    put(&mut peers, *at, &written);
                    records.insert(*at, written);
                }
                None => {
                    peers.remove(place(*at).0, place(*at).1);
                    records.remove(at);
                }
            }
            if list_at == Some(number) {
                // A complete read, of which the last record is gone.
                records.pop_last();
                peers.listing();
                records.iter().for_each(|(at, written)| drop(put(&mut peers, *at, written)));
                for (subnet, source) in peers.unlisted() {
                    peers.remove(subnet, source);
                }
            }
            let macs: Vec<_> = peers.iter().filter_map(|(subnet, peer)| Some((peer.endpoint.mac?, *subnet))).collect();
            let different: BTreeSet<_> = macs.iter().map(|(mac, _)| mac).collect();
            prop_assert_eq!(macs.len(), different.len(), "one MAC, one peer");
            prop_assert!(macs.iter().all(|(mac, subnet)| peers.of_mac(*mac) == Some(*subnet)));
            prop_assert_eq!(with_contest(&peers), with_rivals(&peers), "only for rivals");
        }
        if let Some((at, own)) = &own {
            peers.set_own(place(*at), claim(own));
        }
        let mut again = Peers::default();
        if let Some((at, own)) = &own {
            again.set_own(place(*at), claim(own));
        }
        let in_order: Vec<_> = records.iter().collect();
        for index in shuffled.into_iter().filter(|index| *index < in_order.len()) {
            put(&mut again, *in_order[index].0, in_order[index].1);
        }
        prop_assert_eq!(counting(&peers), counting(&again));
        prop_assert_eq!(peers.displaced_by(), again.displaced_by());

        // As everybody judges it: our own record is one of them, and what touches it is no peer here.
        let mut all = records.clone();
        all.extend(own);
        let count = that_count(&all);
        let touches = |at: &At, one: &Written| own.is_some_and(|(own_at, own)| {
            at.0 == own_at.0 || one.has_mac_of(&own) || one.host == own.host
        });
        let expected: BTreeMap<_, _> = records.iter()
            .filter(|(at, one)| count.contains(at) && !touches(at, one))
            .map(|(at, one)| (place(*at).0, claim(one).endpoint))
            .collect();
        prop_assert_eq!(counting(&peers), expected);
        let own_counts = own.is_none_or(|(at, _)| count.contains(&at));
        prop_assert_eq!(peers.displaced_by().is_none(), own_counts);
        prop_assert_eq!(peers.in_our_name(), again.in_our_name());
        // Written again, ours is not superseded, but by one with a lease where ours has none.
        if let Some((at, own)) = own.as_ref().filter(|_| peers.in_our_name().is_some()) {
            again.set_own(place(*at), claim(&Written { revision: 100_000, ..*own }));
            let superseder = again.in_our_name().map(|(_, claim)| claim.standing.is_leased());
            prop_assert!(superseder.is_none_or(|is_leased| is_leased && !own.is_leased));
        }
        prop_assert_eq!(peers.aside().count() + peers.len(), records.len());
    }
}
