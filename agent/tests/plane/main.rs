//! The pure plane against a kernel in memory: every scenario with each operation failing in turn, and generated ones.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use twill_agent::dataplane::Dataplane;
use twill_agent::dataplane::fake::FakeKernel;
use twill_agent::overlay::MacAddr;
use twill_agent::overlay::backend::Backend;
use twill_agent::overlay::config::FamilyConfig;
use twill_agent::overlay::kernel::{
    Fdb, Miss, NeighState, Notification, Observed, Op, PROTOCOL, Route, Row, SeenNeigh, Via,
};
use twill_agent::overlay::peers::{Claim, Endpoint, Source, Standing};
use twill_agent::overlay::plane::comparison::Findings;
use twill_agent::overlay::plane::miss::Answer;
use twill_agent::overlay::plane::refusals::{REFUSAL_TIME, REFUSALS};
use twill_agent::overlay::plane::{Chunk, PeerMode, Plane, Setup};
use twill_agent::overlay::programmed::Cause;

mod model;
mod scenarios;
mod strangers;

/// A plane, its kernel and a clock.
struct World {
    plane: Plane,
    kernel: FakeKernel,
    now: Instant,
    /// What all keys say, where the test keeps book of it.
    records: BTreeMap<(IpNetwork, u32), Claim>,
    /// When each of them was created.
    created: BTreeMap<(IpNetwork, u32), i64>,
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

fn endpoint(mac: u8, remote: u8) -> Endpoint {
    Endpoint { mac: Some(MacAddr([2, 0, 0, 0, 0, mac])), remote: format!("10.99.0.{remote}").parse().unwrap() }
}

fn claim(endpoint: Endpoint, revision: i64) -> Claim {
    Claim { endpoint, standing: Standing::new(revision, revision, false, None) }
}

impl World {
    fn new(mode: PeerMode) -> Self {
        let net = FamilyConfig {
            network: "10.5.0.0/16".parse().unwrap(),
            subnet_len: 24,
            subnet_min: "10.5.1.0".parse().unwrap(),
            subnet_max: "10.5.255.0".parse().unwrap(),
        };
        let plane = Plane::new(Setup { net, subnet: subnet(1), ways: Backend::default().ways(), mode, idle: IDLE });
        Self {
            plane,
            kernel: FakeKernel::default(),
            now: Instant::now(),
            records: BTreeMap::new(),
            created: BTreeMap::new(),
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
        let peers = self.plane.peers().iter();
        let peers = peers.map(|(s, p)| ((*s, p.source.0), Claim { endpoint: p.endpoint, standing: p.standing }));
        let records: BTreeMap<_, _> = peers.chain(self.records.clone()).collect();
        let mut world = Self { plane: Plane::new(self.plane.setup().clone()), dump: Some((0, true)), ..self };
        records.into_iter().for_each(|((subnet, key), claim)| {
            world.plane.put(subnet, Source(key), claim);
        });
        world
    }

    /// A record without a lease, created and written at this revision.
    fn put(&mut self, subnet: IpNetwork, endpoint: Endpoint, revision: i64, source: Source) {
        self.plane.put(subnet, source, claim(endpoint, revision));
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

    fn resync(&mut self, adopt: bool) -> Findings {
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
            let fdb = self
                .kernel
                .fdb
                .get(&peer.endpoint.mac.unwrap())
                .is_some_and(|(remote, _)| *remote == peer.endpoint.remote);
            let neigh = self.kernel.neighbours.get(&s.network());
            // Another program may have written the very same.
            let neigh =
                neigh.is_some_and(|(mac, state, _)| (*mac, *state) == (peer.endpoint.mac, NeighState::Permanent));
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
