//! The pure plane against a kernel in memory: every scenario with each operation failing in turn, and generated ones.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use proptest::prelude::*;
use twill_agent::dataplane::Dataplane;
use twill_agent::dataplane::fake::FakeKernel;
use twill_agent::overlay::MacAddr;
use twill_agent::overlay::config::FamilyConfig;
use twill_agent::overlay::kernel::{Fdb, Miss, NeighState, Observed, Op, PROTOCOL, Route, Row, Via};
use twill_agent::overlay::miss::{Answer, REFUSAL_TIME, REFUSALS};
use twill_agent::overlay::peers::{Source, Vtep};
use twill_agent::overlay::plane::{PeerMode, Plane, Setup};
use twill_agent::overlay::reconcile::{Found, Seen};

/// A plane, its kernel and a clock.
struct World {
    plane: Plane,
    kernel: FakeKernel,
    now: Instant,
    /// What all keys say, where the test keeps book of it.
    records: BTreeMap<(IpNetwork, u64), (Vtep, i64)>,
    /// After each operation, no route may lead to a neighbour that is not there, no neighbour to a missing FDB row.
    ordered: bool,
    /// A dump under way: its next part, and whether it is the first one of a daemon's life.
    dump: Option<(u8, bool)>,
}

/// Each subnet has one key, but where a test says otherwise.
const KEY: Source = Source(0);
const IDLE: Duration = Duration::from_secs(600);

fn subnet(index: u8) -> IpNetwork {
    format!("10.5.{index}.0/24").parse().unwrap()
}

fn pod(index: u8, host: u8) -> IpAddr {
    format!("10.5.{index}.{host}").parse().unwrap()
}

fn vtep(mac: u8, remote: u8) -> Vtep {
    Vtep { mac: MacAddr([2, 0, 0, 0, 0, mac]), remote: format!("10.99.0.{remote}").parse().unwrap() }
}

impl World {
    fn new(mode: PeerMode) -> Self {
        let net = FamilyConfig {
            network: "10.5.0.0/16".parse().unwrap(),
            subnet_len: 24,
            subnet_min: "10.5.1.0".parse().unwrap(),
            subnet_max: "10.5.255.0".parse().unwrap(),
        };
        let plane = Plane::new(Setup { net, subnet: subnet(1), mode, idle: IDLE });
        Self {
            plane,
            kernel: FakeKernel::default(),
            now: Instant::now(),
            records: BTreeMap::new(),
            ordered: true,
            dump: None,
        }
    }

    /// A daemon that starts on this kernel, with the same records.
    fn restarted(self) -> Self {
        let mut world = self.restarting();
        world.resync(true);
        world
    }

    /// The same, before its first dump.
    fn restarting(self) -> Self {
        let peers = self.plane.peers().iter().map(|(s, p)| ((*s, p.source.0), (p.vtep, p.revision)));
        let records: BTreeMap<_, _> = peers.chain(self.records.clone()).collect();
        let mut world = Self { plane: Plane::new(self.plane.setup().clone()), dump: Some((0, true)), ..self };
        records.into_iter().for_each(|((subnet, key), (vtep, revision))| {
            world.plane.put(subnet, vtep, revision, Source(key));
        });
        world
    }

    /// The next part of a dump, as the real kernel shows it: a table after the other.
    fn dump_part(&mut self) {
        let (part, adopt) = self.dump.take().unwrap_or((0, false));
        let Observed { fdb, neighbours, routes } = self.kernel.dump();
        let shown = match part {
            0 => Observed { fdb, ..Observed::default() },
            1 => Observed { neighbours, ..Observed::default() },
            _ => Observed { routes, ..Observed::default() },
        };
        if part == 0 {
            self.plane.begin_comparison();
        }
        self.plane.compare(&shown);
        if part < 2 {
            self.dump = Some((part + 1, adopt));
        } else {
            self.plane.end_comparison(adopt, self.now);
        }
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<usize> {
        let mut failed = Vec::new();
        for (index, op) in ops.iter().enumerate() {
            if !self.kernel.apply(std::slice::from_ref(op)).unwrap().is_empty() {
                failed.push(index);
            }
            if self.ordered && self.kernel.fail_at.is_none() {
                self.check_order(op);
            }
        }
        failed
    }

    fn check_order(&self, after: &Op) {
        for ((destination, _), (via, protocol)) in &self.kernel.routes {
            if let Via::Gateway(gateway) = via
                && *protocol == PROTOCOL
            {
                assert!(self.kernel.neighbours.contains_key(gateway), "{after:?} left {destination} without neighbour");
            }
        }
        for (address, (mac, state, protocol)) in &self.kernel.neighbours {
            if *state == NeighState::Permanent && *protocol == PROTOCOL {
                let mac = mac.unwrap();
                assert!(self.kernel.fdb.contains_key(&mac), "{after:?} left {address} without an FDB row for {mac}");
            }
        }
    }

    /// Does all that is due, past pauses and failures.
    fn settle(&mut self) {
        if self.dump.is_some_and(|(_, adopt)| adopt) {
            let chunk = self.plane.urgent_chunk();
            let failed = self.apply(chunk.ops());
            return self.plane.settle(chunk, &failed, self.now);
        }
        for _ in 0..10_000 {
            self.plane.wake(self.now);
            if self.plane.is_due() {
                let chunk = self.plane.next_chunk(16);
                let failed = self.apply(chunk.ops());
                self.plane.settle(chunk, &failed, self.now);
            } else if !self.plane.is_settled() {
                self.now = self.plane.next_wake().unwrap();
            } else {
                return;
            }
        }
        panic!("never settles");
    }

    fn resync(&mut self, adopt: bool) -> Found {
        let observed = self.kernel.dump();
        let found = self.plane.reconcile(&observed, adopt, self.now);
        self.dump = None;
        self.settle();
        found
    }

    fn miss(&mut self, address: IpAddr) -> Answer {
        self.kernel.neighbours.entry(address).or_insert((None, NeighState::Incomplete, 0));
        let answer = self.plane.miss(Miss::Address(address), self.now);
        self.settle();
        answer
    }

    /// The peers whose rows are all in the kernel.
    fn programmed(&self) -> Vec<IpNetwork> {
        let complete = |(s, peer): (&IpNetwork, &twill_agent::overlay::peers::Peer)| {
            let fdb = self.kernel.fdb.get(&peer.vtep.mac).is_some_and(|(remote, _)| *remote == peer.vtep.remote);
            let neigh = self.kernel.neighbours.get(&s.network());
            let neigh = neigh == Some(&(Some(peer.vtep.mac), NeighState::Permanent, PROTOCOL));
            let route =
                self.kernel.routes.iter().any(|((d, _), (via, protocol))| {
                    d == s && *via == Via::Gateway(s.network()) && *protocol == PROTOCOL
                });
            (fdb && neigh && route).then_some(*s)
        };
        let programmed: BTreeSet<IpNetwork> = self.plane.peers().iter().filter_map(complete).collect();
        programmed.into_iter().collect()
    }

    /// The kernel holds these peers and nothing else of ours but the base route.
    fn assert_exactly(&self, peers: &[IpNetwork]) {
        assert_eq!(self.programmed(), peers, "{:#?}", self.kernel);
        assert_eq!(self.kernel.fdb.len(), peers.len(), "{:#?}", self.kernel.fdb);
        let ours = self.kernel.neighbours.values().filter(|(_, _, protocol)| *protocol == PROTOCOL);
        assert_eq!(ours.count(), peers.len(), "{:#?}", self.kernel.neighbours);
        let base = usize::from(self.plane.setup().mode == PeerMode::OnDemand);
        let ours = self.kernel.routes.values().filter(|(_, protocol)| *protocol == PROTOCOL);
        assert_eq!(ours.count(), peers.len() + base, "{:#?}", self.kernel.routes);
    }
}

#[test]
fn on_demand_programs_exactly_the_used_peers() {
    let mut world = World::new(PeerMode::OnDemand);
    for index in 2..10 {
        world.plane.put(subnet(index), vtep(index, index), 1, KEY);
    }
    world.settle();
    world.assert_exactly(&[]);
    let base = ("10.5.0.0/16".parse().unwrap(), 0);
    assert_eq!(world.kernel.routes[&base].0, Via::Link { source: pod(1, 0) });
    assert_eq!(world.miss(pod(3, 7)), Answer::Peer(subnet(3)));
    assert_eq!(world.miss(pod(3, 8)), Answer::Peer(subnet(3)));
    assert_eq!(world.miss(pod(5, 0)), Answer::Peer(subnet(5)));
    world.assert_exactly(&[subnet(3), subnet(5)]);
}

#[test]
fn the_waiting_packet_is_answered_before_the_rest_of_the_peer() {
    let mut world = World::new(PeerMode::OnDemand);
    world.plane.put(subnet(2), vtep(2, 2), 1, KEY);
    world.settle();
    world.plane.miss(Miss::Address(pod(2, 9)), world.now);
    let chunk = world.plane.urgent_chunk();
    let expected = [
        Op::PutFdb(vtep(2, 2).fdb()),
        Op::PutNeigh(twill_agent::overlay::kernel::Neigh { address: pod(2, 9), mac: vtep(2, 2).mac }),
    ];
    assert_eq!(chunk.ops(), expected);
    let failed = world.apply(chunk.ops());
    world.plane.settle(chunk, &failed, world.now);
    assert!(world.plane.is_due(), "the gateway's neighbour and the route are still to come");
    world.settle();
    world.assert_exactly(&[subnet(2)]);
}

#[test]
fn an_l2_miss_brings_the_fdb_row_back() {
    let mut world = World::new(PeerMode::OnDemand);
    world.plane.put(subnet(2), vtep(2, 2), 1, KEY);
    world.miss(pod(2, 9));
    world.kernel.fdb.clear();
    world.ordered = false;
    assert_eq!(world.plane.miss(Miss::Mac(vtep(2, 2).mac), world.now), Answer::Peer(subnet(2)));
    world.settle();
    world.assert_exactly(&[subnet(2)]);
    assert_eq!(world.plane.miss(Miss::Mac(vtep(9, 9).mac), world.now), Answer::Unknown);
}

#[test]
fn an_unleased_block_is_refused_until_its_record_arrives_or_a_minute_is_over() {
    let mut world = World::new(PeerMode::OnDemand);
    assert_eq!(world.miss(pod(7, 1)), Answer::Refused(subnet(7)));
    assert!(!world.kernel.neighbours.contains_key(&pod(7, 1)), "the waiting entry is gone");
    let refused = |world: &World| world.kernel.routes.values().filter(|(via, _)| *via == Via::Unreachable).count();
    assert_eq!(refused(&world), 1);
    world.plane.put(subnet(7), vtep(7, 7), 1, KEY);
    world.settle();
    assert_eq!(refused(&world), 0);
    assert_eq!(world.miss(pod(7, 1)), Answer::Peer(subnet(7)));
    world.miss(pod(8, 1));
    assert_eq!(refused(&world), 1);
    world.now += REFUSAL_TIME;
    world.settle();
    assert_eq!(refused(&world), 0);
    assert_eq!(world.miss("10.6.0.1".parse().unwrap()), Answer::Unknown);
}

#[test]
fn refusals_are_bounded() {
    let mut world = World::new(PeerMode::OnDemand);
    let net = FamilyConfig {
        network: "10.0.0.0/8".parse().unwrap(),
        subnet_len: 24,
        subnet_min: "10.0.1.0".parse().unwrap(),
        subnet_max: "10.255.255.0".parse().unwrap(),
    };
    world.plane = Plane::new(Setup { net, ..world.plane.setup().clone() });
    for block in 0..3 * REFUSALS {
        let [high, low] = u16::try_from(block).unwrap().to_be_bytes();
        world.miss(IpAddr::from([10, high, low, 1]));
    }
    let refused = world.kernel.routes.values().filter(|(via, _)| *via == Via::Unreachable).count();
    assert_eq!(refused, REFUSALS);
}

#[test]
fn a_changed_record_replaces_the_rows_and_leaves_none_of_the_old() {
    for mode in [PeerMode::OnDemand, PeerMode::All] {
        let mut world = World::new(mode);
        world.plane.put(subnet(2), vtep(2, 2), 1, KEY);
        world.settle();
        world.miss(pod(2, 9));
        world.plane.put(subnet(2), vtep(22, 2), 2, KEY);
        world.plane.put(subnet(2), vtep(23, 4), 3, KEY);
        world.settle();
        world.assert_exactly(&[subnet(2)]);
        world.plane.put(subnet(2), vtep(23, 5), 4, KEY);
        world.settle();
        world.assert_exactly(&[subnet(2)]);
        world.plane.remove(subnet(2), KEY);
        world.settle();
        world.assert_exactly(&[]);
    }
}

#[test]
fn a_mac_that_moves_to_another_subnet_is_never_deleted_from_under_it() {
    for removed_first in [true, false] {
        let mut world = World::new(PeerMode::All);
        world.plane.put(subnet(2), vtep(2, 2), 1, KEY);
        world.settle();
        if removed_first {
            world.plane.remove(subnet(2), KEY);
        }
        world.plane.put(subnet(3), vtep(2, 2), 2, KEY);
        if !removed_first {
            assert_eq!(world.plane.peers().aside().count(), 1);
            world.plane.remove(subnet(2), KEY);
        }
        world.settle();
        world.assert_exactly(&[subnet(3)]);
    }
}

#[test]
fn of_two_records_with_one_mac_the_newer_holds_it_whatever_comes_first() {
    for newer_first in [true, false] {
        let mut world = World::new(PeerMode::All);
        let mut records = vec![(subnet(2), vtep(2, 2), 5), (subnet(3), vtep(2, 3), 9)];
        if newer_first {
            records.reverse();
        }
        records.into_iter().for_each(|(subnet, vtep, revision)| {
            world.plane.put(subnet, vtep, revision, KEY);
        });
        world.settle();
        world.assert_exactly(&[subnet(3)]);
        world.plane.remove(subnet(3), KEY);
        world.settle();
        world.assert_exactly(&[subnet(2)]);
    }
}

#[test]
fn an_old_key_that_goes_leaves_the_subnet_to_the_new_one() {
    let mut world = World::new(PeerMode::All);
    world.plane.put(subnet(2), vtep(2, 2), 1, Source(1));
    world.plane.put(subnet(2), vtep(22, 2), 5, Source(2));
    world.plane.put(subnet(2), vtep(23, 3), 3, Source(1));
    world.settle();
    world.assert_exactly(&[subnet(2)]);
    assert_eq!(world.plane.peers().get(&subnet(2)).unwrap().vtep, vtep(22, 2));
    world.plane.remove(subnet(2), Source(1));
    world.settle();
    world.assert_exactly(&[subnet(2)]);
    assert_eq!(world.plane.peers().get(&subnet(2)).unwrap().vtep, vtep(22, 2));
}

#[test]
fn flannels_route_beside_ours_is_deleted_and_ours_stays() {
    let mut world = World::new(PeerMode::All);
    world.plane.put(subnet(2), vtep(2, 2), 1, KEY);
    let flannels = (subnet(2), 0);
    world.kernel.routes.insert(flannels, (Via::Gateway(pod(2, 0)), 3));
    world.resync(true);
    world.assert_exactly(&[subnet(2)]);
    assert!(!world.kernel.routes.contains_key(&flannels));
}

#[test]
fn a_route_that_somebody_replaced_is_put_again() {
    for mode in [PeerMode::OnDemand, PeerMode::All] {
        let mut world = World::new(mode);
        world.plane.put(subnet(2), vtep(2, 2), 1, KEY);
        world.settle();
        world.miss(pod(2, 9));
        let mut wanted = vec![Route::peer(subnet(2), 2)];
        if mode == PeerMode::OnDemand {
            world.miss(pod(7, 1));
            wanted.push(Route::base("10.5.0.0/16".parse().unwrap(), pod(1, 0)));
            wanted.push(Route::refusal(subnet(7)));
        }
        for route in wanted {
            let wrong = Route { via: Via::Elsewhere, protocol: 4, ..route };
            world.kernel.routes.insert((route.destination, route.metric), (wrong.via, wrong.protocol));
            world.plane.saw(&Seen::Route(wrong));
            world.settle();
            let there = world.kernel.routes[&(route.destination, route.metric)];
            assert_eq!(there, (route.via, PROTOCOL), "{route:?}");
        }
    }
}

#[test]
fn what_is_lost_while_a_dump_runs_is_not_taken_for_there() {
    let mut world = World::new(PeerMode::All);
    world.plane.put(subnet(2), vtep(2, 2), 1, KEY);
    world.settle();
    let dump = world.kernel.dump();
    world.ordered = false;
    let row = Row::Fdb(vtep(2, 2).fdb());
    world.apply(&[Op::Delete(row)]);
    world.plane.saw(&Seen::Gone(row));
    world.plane.reconcile(&dump, false, world.now);
    world.settle();
    world.assert_exactly(&[subnet(2)]);
}

#[test]
fn idle_peers_are_taken_out_and_come_back_with_the_next_packet() {
    let mut world = World::new(PeerMode::OnDemand);
    world.plane.put(subnet(2), vtep(2, 2), 1, KEY);
    world.plane.put(subnet(3), vtep(3, 3), 1, KEY);
    world.miss(pod(2, 9));
    world.miss(pod(3, 9));
    world.kernel.fdb.get_mut(&vtep(2, 2).mac).unwrap().1 = IDLE;
    assert_eq!(world.resync(false).idle, 1);
    world.assert_exactly(&[subnet(3)]);
    world.miss(pod(2, 9));
    world.assert_exactly(&[subnet(2), subnet(3)]);
}

#[test]
fn a_restart_rewrites_nothing_and_sweeps_what_went_away_meanwhile() {
    for mode in [PeerMode::OnDemand, PeerMode::All] {
        let mut world = World::new(mode);
        for index in 2..6 {
            world.plane.put(subnet(index), vtep(index, index), 1, KEY);
            world.miss(pod(index, 3));
        }
        world.settle();
        world.plane.put(subnet(9), vtep(9, 9), 1, KEY);
        let before = world.kernel.applied;
        let world = world.restarted();
        let written = if mode == PeerMode::OnDemand { 0 } else { 3 };
        assert_eq!(world.kernel.applied - before, written, "the new peer, where all are wanted, and nothing else");
        let mut world = World { plane: Plane::new(world.plane.setup().clone()), ..world };
        world.plane.put(subnet(3), vtep(3, 3), 1, KEY);
        world.plane.put(subnet(4), vtep(44, 4), 2, KEY);
        world.resync(true);
        world.assert_exactly(&[subnet(3), subnet(4)]);
    }
}

#[test]
fn rows_of_others_survive_and_flannels_own_shape_is_taken_over() {
    let mut world = World::new(PeerMode::All);
    world.plane.put(subnet(2), vtep(2, 2), 1, KEY);
    let foreign_route = ("10.5.7.0/24".parse().unwrap(), 5);
    world.kernel.routes.insert(foreign_route, (Via::Gateway("10.5.9.9".parse().unwrap()), 3));
    world.kernel.neighbours.insert(pod(9, 9), (Some(vtep(77, 0).mac), NeighState::Permanent, 0));
    let old = Route { destination: subnet(6), via: Via::Gateway(pod(6, 0)), metric: 0, protocol: 3 };
    world.kernel.routes.insert((old.destination, 0), (old.via, 3));
    world.kernel.neighbours.insert(pod(6, 0), (Some(vtep(6, 6).mac), NeighState::Permanent, 0));
    world.kernel.fdb.insert(vtep(6, 6).mac, (vtep(6, 6).remote, Duration::ZERO));
    world.resync(true);
    world.assert_exactly(&[subnet(2)]);
    assert!(world.kernel.routes.contains_key(&foreign_route));
    assert!(world.kernel.neighbours.contains_key(&pod(9, 9)));
    assert!(!world.kernel.neighbours.contains_key(&pod(6, 0)), "flannel's neighbour of a peer that is gone");
}

#[test]
fn rows_that_somebody_takes_or_changes_come_back_at_the_notification() {
    let mut world = World::new(PeerMode::All);
    world.plane.put(subnet(2), vtep(2, 2), 1, KEY);
    world.settle();
    let rows = [Row::Fdb(vtep(2, 2).fdb()), Row::Neigh(pod(2, 0)), Row::Route(Route::peer(subnet(2), 2))];
    world.ordered = false;
    for row in rows {
        world.apply(&[Op::Delete(row)]);
        assert!(world.programmed().is_empty());
        world.plane.saw(&Seen::Gone(row));
        world.settle();
        world.assert_exactly(&[subnet(2)]);
    }
    let wrong = Fdb { mac: vtep(2, 2).mac, remote: "10.99.9.9".parse().unwrap() };
    world.apply(&[Op::PutFdb(wrong)]);
    world.plane.saw(&Seen::Fdb(twill_agent::overlay::kernel::SeenFdb { row: wrong, idle: Duration::ZERO }));
    world.settle();
    world.assert_exactly(&[subnet(2)]);
}

#[test]
fn a_clean_stop_wants_everyone() {
    let mut world = World::new(PeerMode::OnDemand);
    let all: Vec<_> = (2..40).map(subnet).collect();
    for index in 2..40 {
        world.plane.put(subnet(index), vtep(index, index), 1, KEY);
    }
    world.miss(pod(5, 1));
    world.plane.want_everyone();
    world.settle();
    world.assert_exactly(&all);
}

#[test]
fn a_complete_read_drops_what_it_does_not_name() {
    let mut world = World::new(PeerMode::All);
    world.plane.put(subnet(2), vtep(2, 2), 1, KEY);
    world.plane.put(subnet(3), vtep(3, 3), 1, KEY);
    world.settle();
    world.plane.listing();
    world.plane.put(subnet(3), vtep(3, 3), 1, KEY);
    world.plane.listed();
    world.settle();
    world.assert_exactly(&[subnet(3)]);
}

/// One thing that happens to a plane.
#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8, u8, u64),
    Remove(u8, u64),
    Miss(u8, u8),
    MacMiss(u8),
    LoseFdb(u8),
    LoseNeigh(u8),
    LoseRoute(u8),
    Idle(u8),
    Resync,
    DumpPart,
    Restart,
    SlowRestart,
    Time(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let (peer, mac) = (2..8_u8, 2..8_u8);
    prop_oneof![
        4 => (peer.clone(), mac.clone(), 2..8_u8, 0..2_u64).prop_map(|(p, m, r, k)| Step::Put(p, m, r, k)),
        2 => (peer.clone(), 0..2_u64).prop_map(|(p, k)| Step::Remove(p, k)),
        4 => (peer.clone(), 0..4_u8).prop_map(|(p, h)| Step::Miss(p, h)),
        1 => mac.clone().prop_map(Step::MacMiss),
        1 => mac.clone().prop_map(Step::LoseFdb),
        1 => peer.clone().prop_map(Step::LoseNeigh),
        1 => peer.prop_map(Step::LoseRoute),
        1 => mac.prop_map(Step::Idle),
        1 => Just(Step::Resync),
        3 => Just(Step::DumpPart),
        1 => Just(Step::Restart),
        1 => Just(Step::SlowRestart),
        1 => (0..90_u16).prop_map(Step::Time),
    ]
}

impl World {
    fn step(mut self, step: &Step, revision: i64) -> Self {
        match *step {
            Step::Put(peer, mac, remote, key) => {
                self.records.insert((subnet(peer), key), (vtep(mac, remote), revision));
                self.plane.put(subnet(peer), vtep(mac, remote), revision, Source(key));
            }
            Step::Remove(peer, key) => {
                self.records.remove(&(subnet(peer), key));
                self.plane.remove(subnet(peer), Source(key));
            }
            Step::Miss(peer, host) => {
                self.plane.miss(Miss::Address(pod(peer, host)), self.now);
            }
            Step::MacMiss(mac) => {
                self.plane.miss(Miss::Mac(vtep(mac, 0).mac), self.now);
            }
            Step::LoseFdb(mac) => {
                if let Some((remote, _)) = self.kernel.fdb.remove(&vtep(mac, 0).mac) {
                    self.plane.saw(&Seen::Gone(Row::Fdb(Fdb { mac: vtep(mac, 0).mac, remote })));
                }
            }
            Step::LoseNeigh(peer) => {
                if self.kernel.neighbours.remove(&pod(peer, 0)).is_some() {
                    self.plane.saw(&Seen::Gone(Row::Neigh(pod(peer, 0))));
                }
            }
            Step::LoseRoute(peer) => {
                let route = Route::peer(subnet(peer), u64::from(peer));
                if self.kernel.routes.remove(&(route.destination, route.metric)).is_some() {
                    self.plane.saw(&Seen::Gone(Row::Route(route)));
                }
            }
            Step::Idle(mac) => {
                if let Some((_, idle)) = self.kernel.fdb.get_mut(&vtep(mac, 0).mac) {
                    *idle = IDLE;
                }
            }
            Step::Resync => {
                let adopt = self.dump.take().is_some_and(|(_, adopt)| adopt);
                let observed = self.kernel.dump();
                self.plane.reconcile(&observed, adopt, self.now);
            }
            Step::DumpPart => self.dump_part(),
            Step::Restart => return self.restarted(),
            Step::SlowRestart => return self.restarting(),
            Step::Time(seconds) => self.now += Duration::from_secs(seconds.into()),
        }
        self
    }

    /// The records that count: the newest first, as long as neither their subnet nor their MAC is taken.
    fn that_count(&self) -> BTreeMap<IpNetwork, Vtep> {
        let mut records: Vec<_> =
            self.records.iter().map(|((subnet, _), (vtep, rev))| (*rev, *subnet, *vtep)).collect();
        records.sort_by_key(|(revision, _, _)| std::cmp::Reverse(*revision));
        let mut count: BTreeMap<IpNetwork, Vtep> = BTreeMap::new();
        for (_, subnet, vtep) in records {
            if !count.contains_key(&subnet) && !count.values().any(|other| other.mac == vtep.mac) {
                count.insert(subnet, vtep);
            }
        }
        count
    }

    /// What holds whenever nothing is due: the kernel has exactly what is wanted, and a second comparison finds nothing.
    fn check_settled(&mut self) {
        let wanted: Vec<IpNetwork> = self.programmed();
        let all = self.plane.setup().mode == PeerMode::All;
        let expected: BTreeSet<IpNetwork> =
            self.plane.peers().iter().filter(|(_, p)| all || p.active).map(|(s, _)| *s).collect();
        assert!(wanted.iter().eq(&expected), "{wanted:?} {expected:?}");
        let known: BTreeMap<_, _> = self.plane.peers().iter().map(|(s, p)| (*s, p.vtep)).collect();
        assert_eq!(known, self.that_count(), "{:?}", self.records);
        let macs: BTreeMap<_, _> = expected.iter().map(|s| (self.plane.peers().get(s).unwrap().vtep.mac, s)).collect();
        assert_eq!(self.kernel.fdb.keys().collect::<Vec<_>>(), macs.keys().collect::<Vec<_>>());
        let before = self.kernel.applied;
        self.kernel.fdb.values_mut().for_each(|(_, idle)| *idle = Duration::ZERO);
        let found = self.resync(false);
        assert_eq!((found.due, found.strays, self.kernel.applied), (0, 0, before), "a second comparison");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_kernel_ends_as_wanted(
        all in any::<bool>(),
        steps in prop::collection::vec((step(), any::<bool>()), 1..40),
        fail_at in prop::option::of(0..60_usize),
    ) {
        let mut world = World::new(if all { PeerMode::All } else { PeerMode::OnDemand });
        world.kernel.fail_at = fail_at;
        // What somebody took away leaves the rest of the peer without it.
        world.ordered = !steps.iter().any(|(step, _)| matches!(step, Step::LoseFdb(_) | Step::LoseNeigh(_)));
        for (revision, (step, settle)) in (1..).zip(&steps) {
            world = world.step(step, revision);
            if *settle {
                world.settle();
                if world.dump.is_none() {
                    world.check_settled();
                }
            }
        }
        while world.dump.is_some() {
            world.dump_part();
        }
        world.settle();
        world.check_settled();
    }
}

#[test]
fn each_operation_may_fail_once_in_a_full_life() {
    let life = [
        Step::Put(2, 2, 2, 0),
        Step::Put(3, 3, 3, 0),
        Step::Miss(2, 9),
        Step::Miss(6, 1),
        Step::Put(2, 4, 4, 0),
        Step::Put(6, 6, 6, 0),
        Step::Miss(6, 1),
        Step::LoseRoute(2),
        Step::Remove(3, 0),
        Step::Remove(2, 0),
        Step::Resync,
    ];
    for mode in [PeerMode::OnDemand, PeerMode::All] {
        let mut operations = 1;
        let mut fail_at = 0;
        while fail_at < operations {
            let mut world = World::new(mode);
            world.ordered = false;
            world.kernel.fail_at = Some(fail_at);
            for (revision, step) in (1..).zip(&life) {
                world = world.step(step, revision);
                world.settle();
                world.check_settled();
            }
            operations = world.kernel.applied;
            fail_at += 1;
        }
        assert!(operations > 20, "the scenario did only {operations} operations");
    }
}
