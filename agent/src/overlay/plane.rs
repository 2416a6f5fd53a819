//! One address family's overlay: what its peers' records ask of the kernel, and what is still to be done there.
//!
//! A plane is told things (records, misses, what a dump or a notification showed) and hands out chunks of operations;
//! [`Plane::settle`] takes the results back. It holds everything that is due in sets, so that a thing asked for twice is
//! done once, and checks each deletion against what is wanted at the moment it is handed out. `miss` and `reconcile` hold
//! its other halves.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;

use super::config::FamilyConfig;
use super::kernel::{Fdb, Neigh, Op, Route, Row};
use super::miss::Refusals;
use super::peers::{Claim, Delta, Peer, Peers, Source, Vtep};
use super::programmed::{Cause, Programmed};
use super::reconcile::Comparison;
use super::strangers::Strangers;

/// When a peer is put into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerMode {
    /// When the first packet asks for it.
    OnDemand,
    /// When its record appears, as flannel since 0.9 does it.
    All,
}

/// What a plane is made of; fixed for its life.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The network and how it is cut into subnets.
    pub net: FamilyConfig,
    /// Our own subnet; see [`Plane::hold`].
    pub subnet: IpNetwork,
    /// When peers are programmed.
    pub mode: PeerMode,
    /// On demand: how long a peer may go without a packet before its rows are taken out.
    pub idle: Duration,
}

/// One family's overlay.
#[derive(Debug)]
pub struct Plane {
    pub(super) setup: Setup,
    pub(super) peers: Peers,
    /// Peers whose rows are not all in the kernel.
    pub(super) due: BTreeSet<IpNetwork>,
    /// Rows to delete, unless they are wanted when their turn comes.
    pub(super) strays: BTreeSet<Row>,
    /// The routes that are there whatever the peers are.
    pub(super) base_due: bool,
    /// `DirectRouting`.
    pub(super) direct_routing: bool,
    /// With DirectRouting: peers that may have to be routed another way.
    pub(super) undecided: BTreeSet<IpNetwork>,
    /// `--ip-blackhole-route`.
    pub(super) blackhole: bool,
    /// What waiting packets wait for: goes before everything else.
    pub(super) urgent: Vec<(Op, Owner)>,
    /// Addresses of peers answered with a neighbour of their own until the peer's route serves.
    pub(super) guests: BTreeSet<IpAddr>,
    pub(super) refusals: Refusals,
    /// Addresses of refused blocks that wait in the neighbour table until they are deleted.
    pub(super) refused: BTreeSet<IpAddr>,
    /// Every peer is wanted, whatever the mode: the daemon is about to stop.
    pub(super) everyone: bool,
    /// The dump under way, if one is.
    pub(super) comparison: Comparison,
    /// Rows of other programs.
    pub(super) strangers: Strangers,
    retry: Retry,
    /// Misses for MACs that no peer has.
    pub(super) unknown_macs: u64,
    /// What the log has still to say.
    pub(super) programmed: Programmed,
}

/// Operations to apply, with what each is for.
#[derive(Debug, Default)]
pub struct Chunk {
    ops: Vec<Op>,
    owners: Vec<Owner>,
}

/// What an operation is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Peer(IpNetwork),
    Base,
    Answer(IpAddr),
    /// Part of a peer, ahead of the whole, which is due as well.
    Ahead,
    Refusal(IpNetwork),
    Stray(Row),
}

/// What failed, until it is due again.
#[derive(Debug, Default)]
struct Retry {
    peers: BTreeSet<IpNetwork>,
    rows: BTreeSet<Row>,
    base: bool,
    at: Option<Instant>,
    delay: Duration,
}

/// The first pause after a failure; each further one is twice as long.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// The longest pause.
const RETRY_MOST: Duration = Duration::from_secs(5);

impl Chunk {
    /// The operations, in the order in which they must run.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    pub(super) fn push(&mut self, op: Op, owner: Owner) {
        self.ops.push(op);
        self.owners.push(owner);
    }
}

impl Plane {
    /// A plane with no peers; its base route is due where the mode has one.
    pub fn new(setup: Setup) -> Self {
        let base_due = setup.mode == PeerMode::OnDemand;
        Self {
            setup,
            peers: Peers::default(),
            due: BTreeSet::new(),
            strays: BTreeSet::new(),
            base_due,
            direct_routing: false,
            undecided: BTreeSet::new(),
            blackhole: false,
            urgent: Vec::new(),
            guests: BTreeSet::new(),
            refusals: Refusals::default(),
            refused: BTreeSet::new(),
            everyone: false,
            comparison: Comparison::default(),
            strangers: Strangers::default(),
            retry: Retry::default(),
            unknown_macs: 0,
            programmed: Programmed::default(),
        }
    }

    /// What it was made of.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// We hold this subnet, under this key, with this claim. To be called before the first chunk is taken, and whenever our
    /// record changes. Says what that changed: a record that claims what is ours is no peer's.
    pub fn hold(&mut self, subnet: IpNetwork, source: Source, claim: Claim) -> Vec<Delta> {
        self.setup.subnet = subnet;
        let deltas = self.peers.set_own((subnet, source), claim);
        deltas.iter().for_each(|delta| self.take_in(delta));
        deltas
    }

    /// What nothing else of our own subnet takes is dropped (`--ip-blackhole-route`).
    pub fn drop_own(&mut self) {
        (self.blackhole, self.base_due) = (true, true);
    }

    /// The peers.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// How many peers are completely in the kernel.
    pub fn installed(&self) -> usize {
        self.peers.iter().filter(|(_, peer)| peer.installed).count()
    }

    /// Whether peers were put into the kernel since [`Plane::take_programmed`].
    pub fn has_programmed(&self) -> bool {
        !self.programmed.is_empty()
    }

    /// Which were. Asked once, they are so no more.
    pub fn take_programmed(&mut self) -> Programmed {
        std::mem::take(&mut self.programmed)
    }

    /// Takes in a checked record. Says what it changed.
    pub fn put(&mut self, subnet: IpNetwork, source: Source, claim: Claim) -> Vec<Delta> {
        let deltas = self.peers.put(subnet, source, claim);
        deltas.iter().for_each(|delta| self.take_in(delta));
        deltas
    }

    /// The record of this key is gone or unusable. Says what that changed.
    pub fn remove(&mut self, subnet: IpNetwork, source: Source) -> Vec<Delta> {
        let deltas = self.peers.remove(subnet, source);
        deltas.iter().for_each(|delta| self.take_in(delta));
        deltas
    }

    /// A complete read of the records begins.
    pub fn listing(&mut self) {
        self.peers.listing();
    }

    /// It is done: peers that it did not name are gone. Says which.
    pub fn listed(&mut self) -> Vec<Delta> {
        self.peers.unlisted().into_iter().flat_map(|(subnet, source)| self.remove(subnet, source)).collect()
    }

    /// From now on every known peer is wanted in the kernel: what a clean stop asks for.
    pub fn want_everyone(&mut self) {
        self.everyone = true;
        let missing = self.peers.iter().filter(|(_, peer)| !peer.installed);
        self.due.extend(missing.map(|(subnet, _)| *subnet));
    }

    fn take_in(&mut self, delta: &Delta) {
        match *delta {
            Delta::Joined(subnet) => {
                if self.refusals.forget(&subnet) {
                    self.strays.insert(Row::Route(Route::refusal(subnet)));
                }
                if self.setup.mode == PeerMode::All || self.everyone {
                    self.due.insert(subnet);
                }
                if self.direct_routing {
                    self.undecided.insert(subnet);
                }
                self.review_strangers(subnet);
            }
            Delta::Changed { subnet, old } => {
                self.note_former(old.fdb());
                self.host_changed(subnet, old.remote);
                if self.target(&subnet).is_some() {
                    self.strays.insert(Row::Fdb(old.fdb()));
                    self.due.insert(subnet);
                }
                if let Some(peer) = self.peers.get_mut(&subnet) {
                    peer.installed = false;
                    if std::mem::take(&mut peer.seen) != 0 {
                        // The dump under way has passed rows of the old one by.
                        self.strays.extend([Row::Fdb(old.fdb()), Row::Neigh(subnet.network())]);
                    }
                }
                self.reanswer(subnet);
                self.review_strangers(subnet);
            }
            Delta::Left { subnet, ref peer, .. } => {
                self.due.remove(&subnet);
                self.retry.peers.remove(&subnet);
                self.note_former(peer.vtep.fdb());
                self.recheck_contested();
                let guests = self.take_guests(subnet);
                self.strays.extend(guests);
                if peer.direct {
                    self.strays.insert(Row::Route(self.direct_route(subnet, peer.vtep.remote)));
                } else if self.wants(peer) || peer.installed || peer.seen != 0 {
                    self.strays.extend(self.rows(subnet, peer.vtep));
                }
            }
        }
    }

    /// Whether a peer's rows should be in the kernel now.
    pub(super) fn wants(&self, peer: &Peer) -> bool {
        peer.active || peer.direct || self.everyone || self.setup.mode == PeerMode::All
    }

    /// The peer of a subnet, if the rows of its tunnel should be in the kernel.
    pub(super) fn target(&self, subnet: &IpNetwork) -> Option<Vtep> {
        self.peers.get(subnet).filter(|peer| self.wants(peer) && !peer.direct).map(|peer| peer.vtep)
    }

    /// The base route, where the mode has one, and the one that drops what is left of our own subnet.
    pub(super) fn base(&self) -> impl Iterator<Item = Route> {
        let on_demand = self.setup.mode == PeerMode::OnDemand;
        let base = on_demand.then(|| Route::base(self.setup.net.network, self.setup.subnet.network()));
        base.into_iter().chain(self.blackhole.then(|| Route::blackhole(self.setup.subnet)))
    }

    /// The route of a peer's subnet as it should be, whether or not it should be there.
    pub(super) fn peer_route(&self, subnet: IpNetwork) -> Route {
        match self.peers.get(&subnet) {
            Some(peer) if peer.direct => self.direct_route(subnet, peer.vtep.remote),
            _ => Route::peer(subnet, self.setup.net.index(&subnet)),
        }
    }

    /// The same, if it should be there.
    pub(super) fn wanted_route(&self, subnet: IpNetwork) -> Option<Route> {
        let peer = self.peers.get(&subnet).filter(|peer| self.wants(peer));
        peer.map(|_| self.peer_route(subnet))
    }

    /// The three rows of a peer, in the order of their deletion.
    pub(super) fn rows(&self, subnet: IpNetwork, vtep: Vtep) -> [Row; 3] {
        [Row::Route(self.peer_route(subnet)), Row::Neigh(subnet.network()), Row::Fdb(vtep.fdb())]
    }

    /// Whether a row should be in the kernel now.
    pub(super) fn is_wanted(&self, row: &Row) -> bool {
        match row {
            Row::Route(route) => {
                self.base().any(|base| base == *route)
                    || self.refusals.contains(&route.destination) && *route == Route::refusal(route.destination)
                    || self.wanted_route(route.destination) == Some(*route)
            }
            Row::Neigh(address) => self.guests.contains(address) || self.gateway_of(*address).is_some(),
            Row::Fdb(fdb) => self.wanted_fdb(fdb),
        }
    }

    fn wanted_fdb(&self, fdb: &Fdb) -> bool {
        let holder = self.peers.of_mac(fdb.mac);
        holder.and_then(|subnet| self.target(&subnet)).is_some_and(|vtep| vtep.fdb() == *fdb)
    }

    /// The wanted peer whose gateway this address is.
    pub(super) fn gateway_of(&self, address: IpAddr) -> Option<(IpNetwork, Vtep)> {
        let subnet = self.setup.net.subnet_of(address).filter(|subnet| subnet.network() == address)?;
        self.target(&subnet).map(|vtep| (subnet, vtep))
    }

    /// Whether anything is to be done now.
    pub fn is_due(&self) -> bool {
        !self.urgent.is_empty()
            || self.base_due
            || !self.refused.is_empty()
            || !self.due.is_empty()
            || !self.strays.is_empty()
    }

    /// Whether waiting packets wait for something.
    pub fn is_urgent(&self) -> bool {
        !self.urgent.is_empty()
    }

    /// Whether the kernel has all that is wanted, as far as is known.
    pub fn is_settled(&self) -> bool {
        !self.is_due() && self.undecided.is_empty() && self.retry.at.is_none() && self.retry.is_empty()
    }

    /// What waiting packets wait for.
    pub fn urgent_chunk(&mut self) -> Chunk {
        let mut chunk = Chunk::default();
        self.urgent.drain(..).for_each(|(op, owner)| chunk.push(op, owner));
        chunk
    }

    /// The next operations, about `limit` of them. Whoever takes them gives the results to [`Plane::settle`].
    ///
    /// What is put comes before what is deleted, so that a peer that changes is never without its new rows.
    pub fn next_chunk(&mut self, limit: usize) -> Chunk {
        let mut chunk = self.urgent_chunk();
        if std::mem::take(&mut self.base_due) {
            self.base().for_each(|route| chunk.push(Op::PutRoute(route), Owner::Base));
        }
        // The neighbour table is small, and these fill it.
        while chunk.ops.len() < limit
            && let Some(address) = self.refused.pop_first()
        {
            let row = Row::Neigh(address);
            if !self.is_wanted(&row) {
                chunk.push(Op::Delete(row), Owner::Stray(row));
            }
        }
        while chunk.ops.len() < limit
            && let Some(subnet) = self.due.pop_first()
        {
            self.program(subnet, &mut chunk);
        }
        while chunk.ops.len() < limit
            && let Some(row) = self.strays.pop_first()
        {
            if !self.is_wanted(&row) {
                chunk.push(Op::Delete(row), Owner::Stray(row));
            }
        }
        chunk
    }

    /// Programs a peer: FDB row, neighbour, route; of one that is routed directly the route alone.
    fn program(&self, subnet: IpNetwork, chunk: &mut Chunk) {
        let Some(peer) = self.peers.get(&subnet).filter(|peer| self.wants(peer) && !peer.installed) else { return };
        let owner = Owner::Peer(subnet);
        if !peer.direct {
            chunk.push(Op::PutFdb(peer.vtep.fdb()), owner);
            chunk.push(Op::PutNeigh(Neigh { address: subnet.network(), mac: peer.vtep.mac }), owner);
        }
        chunk.push(Op::PutRoute(self.peer_route(subnet)), owner);
    }

    /// Takes the results of a chunk: `failed` are the indices of the operations that did not work, ascending.
    ///
    /// What failed is due again after a pause; what worked is known to be in the kernel.
    pub fn settle(&mut self, chunk: Chunk, failed: &[usize], now: Instant) {
        let mut refused: BTreeSet<IpNetwork> = BTreeSet::new();
        for index in failed {
            match chunk.owners[*index] {
                Owner::Peer(subnet) => {
                    refused.insert(subnet);
                }
                Owner::Base => self.retry.base = true,
                Owner::Ahead => {}
                Owner::Answer(address) => {
                    self.guests.remove(&address);
                    self.strays.insert(Row::Neigh(address));
                }
                Owner::Refusal(block) => {
                    self.refusals.forget(&block);
                    self.strays.insert(Row::Route(Route::refusal(block)));
                }
                Owner::Stray(row) => {
                    self.retry.rows.insert(row);
                }
            }
        }
        let mut last = None;
        for owner in chunk.owners {
            if let Owner::Peer(subnet) = owner
                && last.replace(subnet) != Some(subnet)
            {
                self.settle_peer(subnet, !refused.contains(&subnet));
            }
        }
        self.retry.peers.extend(refused);
        if !self.retry.is_empty() && self.retry.at.is_none() {
            self.pause(now);
        }
    }

    /// What is to be tried again is due after a pause, twice as long as the one before.
    fn pause(&mut self, now: Instant) {
        self.retry.delay = (self.retry.delay * 2).clamp(RETRY_FIRST, RETRY_MOST);
        self.retry.at = Some(now + self.retry.delay);
    }

    fn settle_peer(&mut self, subnet: IpNetwork, worked: bool) {
        let Some(peer) = self.peers.get_mut(&subnet) else { return };
        peer.installed = worked;
        if !worked {
            // Whatever the dump under way has shown of it.
            peer.seen = 0;
        } else {
            if !peer.set_told(true) {
                let cause = if peer.direct { Cause::Direct } else { Cause::of(peer.active) };
                self.programmed.add(subnet, cause);
            }
            let guests = self.take_guests(subnet);
            self.strays.extend(guests);
            self.recheck_contested();
        }
    }

    /// Deletes a row after a pause, as if that had failed.
    pub(super) fn remove_later(&mut self, row: Row) {
        self.retry.rows.insert(row);
    }

    /// Moves what is due by the clock: failed operations, and refusals whose time is over.
    pub fn wake(&mut self, now: Instant) {
        let ended = self.refusals.expire(now);
        self.strays.extend(ended.into_iter().map(|block| Row::Route(Route::refusal(block))));
        if self.retry.at.is_some_and(|at| at <= now) {
            self.retry.at = None;
            self.due.append(&mut self.retry.peers);
            self.strays.append(&mut self.retry.rows);
            self.base_due |= std::mem::take(&mut self.retry.base);
        } else if self.retry.at.is_none() && !self.retry.is_empty() {
            self.pause(now);
        } else if self.retry.at.is_none() && !self.is_due() {
            self.retry.delay = Duration::ZERO;
        }
    }

    /// When [`Plane::wake`] has something to do.
    pub fn next_wake(&self) -> Option<Instant> {
        [self.retry.at, self.refusals.next_end()].into_iter().flatten().min()
    }
}

impl Retry {
    fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.rows.is_empty() && !self.base
    }
}
