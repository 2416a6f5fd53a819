//! Generated lives, against a model of what records ask for.

use proptest::prelude::*;

use twill_agent::overlay::peers::Peers;

use super::*;

/// One thing that happens to a plane.
#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8, u8, u32, bool),
    Remove(u8, u32),
    Miss(u8, u8),
    MacMiss(u8),
    LoseFdb(u8),
    LoseNeigh(u8),
    LoseRoute(u8),
    Idle(u8),
    /// Another program's route on our device: to a peer's subnet or the second half of it, with this metric, through the
    /// gateway of this peer or through none.
    StrangersRoute(u8, bool, u32, Option<u8>),
    /// Its neighbour there.
    StrangersNeigh(u8, u8, u8, bool),
    Resync,
    DumpPart,
    Restart,
    SlowRestart,
    Time(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let (peer, mac) = (2..8_u8, 2..8_u8);
    prop_oneof![
        4 => (peer.clone(), mac.clone(), 2..8_u8, 0..2_u32, any::<bool>())
            .prop_map(|(p, m, r, k, l)| Step::Put(p, m, r, k, l)),
        2 => (peer.clone(), 0..2_u32).prop_map(|(p, k)| Step::Remove(p, k)),
        4 => (peer.clone(), 0..4_u8).prop_map(|(p, h)| Step::Miss(p, h)),
        1 => mac.clone().prop_map(Step::MacMiss),
        1 => mac.clone().prop_map(Step::LoseFdb),
        1 => peer.clone().prop_map(Step::LoseNeigh),
        1 => peer.clone().prop_map(Step::LoseRoute),
        2 => (peer.clone(), any::<bool>(), prop::sample::select(vec![0, 5, 9_000]), prop::option::of(peer.clone()))
            .prop_map(|(p, half, metric, gateway)| Step::StrangersRoute(p, half, metric, gateway)),
        2 => (peer, 0..4_u8, mac.clone(), any::<bool>())
            .prop_map(|(p, h, m, permanent)| Step::StrangersNeigh(p, h, m, permanent)),
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
            Step::Put(peer, mac, remote, key, is_leased) => {
                let at = (subnet(peer), key);
                let created = *self.created.entry(at).or_insert(revision);
                let standing = Standing::new(created, revision, is_leased, None);
                let claim = Claim { endpoint: endpoint(mac, remote), standing };
                self.records.insert(at, claim);
                self.plane.put(at.0, Source(key), claim);
            }
            Step::Remove(peer, key) => {
                self.records.remove(&(subnet(peer), key));
                self.created.remove(&(subnet(peer), key));
                self.plane.remove(subnet(peer), Source(key));
            }
            Step::Miss(peer, host) => {
                self.plane.miss(Miss::Address(pod(peer, host)), self.now);
            }
            Step::MacMiss(mac) => {
                self.plane.miss(Miss::Mac(endpoint(mac, 0).mac.unwrap()), self.now);
            }
            Step::LoseFdb(mac) => {
                if let Some((remote, _)) = self.kernel.fdb.remove(&endpoint(mac, 0).mac.unwrap()) {
                    self.plane.saw(&Notification::Gone(Row::Fdb(Fdb { mac: endpoint(mac, 0).mac.unwrap(), remote })));
                }
            }
            Step::LoseNeigh(peer) => {
                if self.kernel.neighbours.remove(&pod(peer, 0)).is_some() {
                    self.plane.saw(&Notification::Gone(Row::Neigh(pod(peer, 0))));
                }
            }
            Step::LoseRoute(peer) => {
                let route = Route::peer(subnet(peer), u64::from(peer));
                if self.kernel.routes.remove(&(route.destination, route.metric)).is_some() {
                    self.plane.saw(&Notification::Gone(Row::Route(route)));
                }
            }
            Step::Idle(mac) => {
                if let Some((_, idle)) = self.kernel.fdb.get_mut(&endpoint(mac, 0).mac.unwrap()) {
                    *idle = IDLE;
                }
            }
            Step::StrangersRoute(peer, half, metric, gateway) => {
                let part = format!("10.5.{peer}.128/25").parse().unwrap();
                let destination = if half { part } else { subnet(peer) };
                let via = gateway.map_or(Via::Link { source: pod(1, 0) }, |gateway| Via::Gateway(pod(gateway, 0)));
                let route = Route { destination, via, metric, protocol: 4 };
                self.kernel.routes.insert((destination, metric), (via, route.protocol));
                self.plane.saw(&Notification::Route(route.into()));
            }
            Step::StrangersNeigh(peer, host, mac, permanent) => {
                let state = if permanent { NeighState::Permanent } else { NeighState::Other };
                let (address, mac) = (pod(peer, host), Some(endpoint(mac, 0).mac.unwrap()));
                self.kernel.neighbours.insert(address, (mac, state, 0));
                self.plane.saw(&Notification::Neigh(SeenNeigh { address, mac, state, protocol: 0 }));
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

    /// The records that count, as a table of peers has them that hears of them in one go. What counts is tested there.
    fn that_count(&self) -> BTreeMap<IpNetwork, Endpoint> {
        let mut peers = Peers::default();
        for ((subnet, key), claim) in self.records.iter().rev() {
            peers.put(*subnet, Source(*key), *claim);
        }
        peers.iter().map(|(subnet, peer)| (*subnet, peer.endpoint)).collect()
    }

    /// No row of another program leads a peer's packets to anybody else, and what harms no peer is left alone.
    fn check_strangers(&self) {
        let peer_of = |address: IpAddr| {
            let subnet = self.plane.setup().net.subnet_of(address)?;
            self.plane.peers().get(&subnet).and_then(|peer| Some((subnet, peer.endpoint.mac?)))
        };
        for ((destination, metric), (via, protocol)) in &self.kernel.routes {
            if let (4, Some((subnet, _))) = (*protocol, peer_of(destination.network())) {
                let is_part = *destination != subnet;
                assert!(is_part && *via == Via::Gateway(subnet.network()), "{destination} {metric} {via:?}");
            }
        }
        for (address, (mac, state, protocol)) in &self.kernel.neighbours {
            if let (0, Some((_, wanted))) = (*protocol, peer_of(*address))
                && *state != NeighState::Incomplete
            {
                assert_eq!(*mac, Some(wanted), "{address}");
            }
        }
    }

    /// What holds whenever nothing is due: the kernel has exactly what is wanted, and a second comparison finds nothing.
    fn check_settled(&mut self) {
        self.check_strangers();
        let wanted: Vec<IpNetwork> = self.programmed();
        let all = self.plane.setup().mode == PeerMode::All;
        let expected: BTreeSet<IpNetwork> =
            self.plane.peers().iter().filter(|(_, p)| all || p.presence.is_wanted()).map(|(s, _)| *s).collect();
        assert!(wanted.iter().eq(&expected), "{wanted:?} {expected:?}");
        let known: BTreeMap<_, _> = self.plane.peers().iter().map(|(s, p)| (*s, p.endpoint)).collect();
        assert_eq!(known, self.that_count(), "{:?}", self.records);
        let macs: BTreeMap<_, _> =
            expected.iter().map(|s| (self.plane.peers().get(s).unwrap().endpoint.mac.unwrap(), s)).collect();
        assert_eq!(self.kernel.fdb.keys().collect::<Vec<_>>(), macs.keys().collect::<Vec<_>>());
        // No neighbour that let a packet go is left. The gateway's may be another program's, and as it should be.
        let ours = self.kernel.neighbours.iter().filter(|(_, (_, _, protocol))| *protocol == PROTOCOL);
        let mut left = ours.filter(|(address, _)| !expected.iter().any(|subnet| subnet.network() == **address));
        assert_eq!(left.next(), None, "a stale neighbour");
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
        let breaks = |step: &Step| matches!(step, Step::LoseFdb(_) | Step::LoseNeigh(_) | Step::StrangersNeigh(..));
        world.ordered = !steps.iter().any(|(step, _)| breaks(step));
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
        Step::Put(2, 2, 2, 0, true),
        Step::Put(3, 3, 3, 0, true),
        Step::Miss(2, 9),
        Step::Miss(6, 1),
        Step::Put(2, 4, 4, 0, true),
        Step::Put(6, 6, 6, 0, true),
        Step::Miss(6, 1),
        Step::LoseRoute(2),
        Step::StrangersRoute(2, true, 0, Some(6)),
        Step::StrangersNeigh(2, 3, 7, true),
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
