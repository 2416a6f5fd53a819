//! What an update costs with many rivals: counted in claims that are looked at.

use super::*;

/// So many records share a MAC.
const MANY: u32 = 20_000;

/// How many claims one update may look at, however many share the MAC.
const SOME: usize = 10;

/// Where the `number`th of many records stands.
fn one_of_many(number: u32) -> Place {
    let subnet = IpNetwork::new(std::net::Ipv4Addr::from(0x0a80_0000 | number << 8).into(), 24).unwrap();
    (subnet, Source(0))
}

/// Asserts that an update looks at few claims.
#[track_caller]
fn few_steps(peers: &mut Peers, update: impl FnOnce(&mut Peers) -> Vec<Delta>) -> Vec<Delta> {
    let before = peers.contest.steps;
    let deltas = update(peers);
    let steps = peers.contest.steps - before;
    assert!(steps <= SOME, "{steps} claims were looked at");
    deltas
}

/// How each of many was written that all have the first MAC: by the order in which they were, or against it.
fn ranked(number: u32, first_is_best: bool) -> Written {
    let number = if first_is_best { i64::from(number) } else { i64::from(MANY - number) };
    let revision = 1000 + number;
    Written { mac: 1, host: 1, created: revision, revision, is_leased: false, node: 0 }
}

#[test]
fn however_many_records_share_a_mac_one_more_or_less_costs_no_more() {
    let another = |number: u32| claim(&Written { host: 2, ..ranked(number, true) });
    for first_is_best in [true, false] {
        for same_node in [true, false] {
            let remote = |number: u32| std::net::Ipv4Addr::from(0x0a63_0000 | number).into();
            let said = |number: u32| {
                let mut said = claim(&ranked(number, first_is_best));
                if !same_node {
                    said.endpoint.remote = remote(number);
                }
                said
            };
            let mut peers = Peers::default();
            for number in 0..MANY {
                let (subnet, source) = one_of_many(number);
                few_steps(&mut peers, |peers| peers.put(subnet, source, said(number)));
            }
            // Of one node the one written last counts, of several the one created first.
            let holder = if first_is_best == same_node { MANY - 1 } else { 0 };
            assert_eq!(peers.iter().map(|(subnet, _)| *subnet).collect::<Vec<_>>(), [one_of_many(holder).0]);
            // One that is ignored goes and comes back, and says something else.
            let (subnet, source) = one_of_many(MANY / 2);
            assert!(few_steps(&mut peers, |peers| peers.remove(subnet, source)).is_empty());
            assert!(few_steps(&mut peers, |peers| peers.put(subnet, source, said(MANY / 2))).is_empty());
            few_steps(&mut peers, |peers| peers.put(subnet, source, another(MANY / 2)));
            few_steps(&mut peers, |peers| peers.put(subnet, source, said(MANY / 2)));
            // The one that counts goes, and comes back.
            let (subnet, source) = one_of_many(holder);
            assert_eq!(few_steps(&mut peers, |peers| peers.remove(subnet, source)).len(), 2);
            assert_eq!(few_steps(&mut peers, |peers| peers.put(subnet, source, said(holder))).len(), 2);
            assert!(peers.get(&subnet).is_some());
            // Our own record is one of them: heard of again, it costs no more.
            let mut own = another(MANY);
            peers.set_own(one_of_many(MANY), own);
            for revision in 0..10 {
                own.standing = Standing::new(99_999, 99_999 + revision, true, None);
                few_steps(&mut peers, |peers| peers.set_own(one_of_many(MANY), own));
            }
            assert!(peers.is_empty(), "all of them have our MAC");
            // All of them go.
            for number in 0..MANY {
                let (subnet, source) = one_of_many(number);
                few_steps(&mut peers, |peers| peers.remove(subnet, source));
            }
            assert_eq!((peers.len(), peers.contest.iter().count()), (0, 1), "ours");
        }
    }
}

#[test]
fn a_mac_that_is_given_up_again_and_again_by_turns_is_not_looked_for_by_all_each_time() {
    // Each of many records of the first MAC has a rival for its subnet too, which goes before it.
    let mut peers = Peers::default();
    for number in 0..MANY {
        let (subnet, _) = one_of_many(number);
        let mut before = claim(&Written { is_leased: true, ..ranked(number, true) });
        let [_, a, b, c] = number.to_be_bytes();
        before.endpoint = Endpoint { mac: Some(MacAddr([2, 1, 0, a, b, c])), remote: [10, 98, 0, 1].into() };
        peers.put(subnet, Source(1), before);
    }
    let (subnet, source) = one_of_many(MANY);
    let holder = claim(&Written { is_leased: true, host: 3, ..ranked(0, true) });
    peers.put(subnet, source, holder);
    for number in 0..MANY {
        let mut said = claim(&ranked(number, true));
        said.endpoint.remote = [10, 97, 0, 1].into();
        said.standing = Standing::new(5_000, 5_000 + i64::from(number), false, None);
        few_steps(&mut peers, |peers| peers.put(one_of_many(number).0, Source(0), said));
    }
    peers.remove(subnet, source);
    for _ in 0..10 {
        few_steps(&mut peers, |peers| peers.put(subnet, source, holder));
        few_steps(&mut peers, |peers| peers.remove(subnet, source));
    }
    assert_eq!((peers.len(), peers.aside().count()), (MANY as usize, MANY as usize));
}
