//! The operations that are to be done: which are due, in what order, and when a failed one is tried again.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;

use super::desired::Desired;
use crate::overlay::MacAddr;
use crate::overlay::kernel::{Fdb, Neigh, Op, Route, Row};

/// Operations to apply, with what each is for.
#[derive(Debug, Default)]
pub struct Chunk {
    ops: Vec<Op>,
    purposes: Vec<Purpose>,
}

/// What an operation is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Part of a peer, on its way into the kernel.
    Peer(IpNetwork),
    /// A route that is there whoever the peers are.
    Base,
    /// The neighbour of this address, for which packets wait.
    Answer(IpAddr),
    /// Part of a peer, ahead of the whole, which is due as well.
    Ahead,
    /// The route that refuses an unleased block.
    Refusal(IpNetwork),
    /// The deletion of a row.
    Stray(Row),
}

/// What is to be done in the kernel: the one owner of what is due.
///
/// Due things are held in sets, so that a thing asked for twice is done once. [`Self::next_chunk`] hands them out in this
/// order:
/// 1. what waiting packets wait for;
/// 2. the base routes;
/// 3. deletions that make room in the neighbour table;
/// 4. peers, each as FDB row, neighbour, route;
/// 5. deletions of stray rows: routes, then neighbours, then FDB rows.
///
/// What is put comes before what is deleted, so that a peer that changes is never without its new rows. A deletion is
/// checked against what is wanted at the moment it is handed out, and not when it was asked for.
///
/// What failed waits for a pause of 100 ms, twice as long after each further failure and at most 5 s.
#[derive(Debug, Default)]
pub(super) struct WorkQueue {
    urgent: Vec<(Op, Purpose)>,
    base: bool,
    /// Addresses that wait in the neighbour table for an answer that nobody has.
    waiting: BTreeSet<IpAddr>,
    peers: BTreeSet<IpNetwork>,
    strays: BTreeSet<Row>,
    /// Peers whose hosts may be reached another way than before (DirectRouting).
    undecided: BTreeSet<IpNetwork>,
    retry: Retry,
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

    /// What the operations of these indices are for.
    pub(super) fn purposes(&self, indices: &[usize]) -> impl Iterator<Item = Purpose> {
        indices.iter().map(|index| self.purposes[*index])
    }

    /// The peers whose rows the chunk puts, each once.
    pub(super) fn peers(&self) -> impl Iterator<Item = IpNetwork> {
        let mut last = None;
        self.purposes.iter().filter_map(move |purpose| match purpose {
            Purpose::Peer(subnet) if last.replace(*subnet) != Some(*subnet) => Some(*subnet),
            _ => None,
        })
    }

    fn push(&mut self, op: Op, purpose: Purpose) {
        self.ops.push(op);
        self.purposes.push(purpose);
    }

    fn delete(&mut self, row: Row) {
        self.push(Op::Delete(row), Purpose::Stray(row));
    }
}

/// What waiting packets wait for: it goes before everything else.
impl WorkQueue {
    /// Puts a peer's FDB row ahead of the whole peer.
    pub(super) fn put_fdb_now(&mut self, fdb: Fdb) {
        self.urgent.push((Op::PutFdb(fdb), Purpose::Ahead));
    }

    /// Answers an L3 miss: this MAC has the address.
    pub(super) fn answer(&mut self, address: IpAddr, mac: MacAddr) {
        self.urgent.push((Op::PutNeigh(Neigh { address, mac }), Purpose::Answer(address)));
    }

    /// Refuses an unleased block.
    pub(super) fn refuse(&mut self, block: IpNetwork) {
        self.urgent.push((Op::PutRoute(Route::refusal(block)), Purpose::Refusal(block)));
    }

    /// Whether waiting packets wait for something.
    pub(super) fn is_urgent(&self) -> bool {
        !self.urgent.is_empty()
    }

    /// What waiting packets wait for.
    pub(super) fn urgent_chunk(&mut self) -> Chunk {
        let mut chunk = Chunk::default();
        self.urgent.drain(..).for_each(|(op, purpose)| chunk.push(op, purpose));
        chunk
    }
}

/// What is due.
impl WorkQueue {
    /// Whether the base routes are to be put.
    pub(super) fn set_base_due(&mut self, is_due: bool) {
        self.base = is_due;
    }

    /// Puts a peer, unless it is in the kernel when its turn comes.
    pub(super) fn put_peer(&mut self, subnet: IpNetwork) {
        self.peers.insert(subnet);
    }

    /// Whether a peer is due.
    pub(super) fn is_peer_due(&self, subnet: &IpNetwork) -> bool {
        self.peers.contains(subnet)
    }

    /// A peer is no more.
    pub(super) fn forget_peer(&mut self, subnet: &IpNetwork) {
        self.peers.remove(subnet);
        self.retry.peers.remove(subnet);
    }

    /// Deletes a row, unless it is wanted when its turn comes.
    pub(super) fn delete(&mut self, row: Row) {
        self.strays.insert(row);
    }

    /// Deletes these rows, unless they are wanted when their turn comes.
    pub(super) fn delete_all(&mut self, rows: impl IntoIterator<Item = Row>) {
        self.strays.extend(rows);
    }

    /// Deletes the rows of a whole set, in one step.
    pub(super) fn delete_set(&mut self, mut rows: BTreeSet<Row>) {
        self.strays.append(&mut rows);
    }

    /// Deletes a row after a pause, as if its deletion had failed.
    pub(super) fn delete_later(&mut self, row: Row) {
        self.retry.rows.insert(row);
    }

    /// Deletes the neighbour of an address of an unleased block, before everything but the answers: the neighbour table is
    /// small, and such entries fill it.
    pub(super) fn delete_waiting(&mut self, address: IpAddr) {
        self.waiting.insert(address);
    }

    /// How many rows are to be deleted.
    pub(super) fn strays(&self) -> usize {
        self.strays.len()
    }

    /// Whether anything is to be done now.
    pub(super) fn is_due(&self) -> bool {
        self.is_urgent() || self.base || !self.waiting.is_empty() || !self.peers.is_empty() || !self.strays.is_empty()
    }

    /// Whether nothing is to be done, now or later.
    pub(super) fn is_done(&self) -> bool {
        !self.is_due() && self.undecided.is_empty() && self.retry.at.is_none() && self.retry.is_empty()
    }

    /// The next operations, about `limit` of them.
    pub(super) fn next_chunk(&mut self, limit: usize, desired: &Desired) -> Chunk {
        let mut chunk = self.urgent_chunk();
        if std::mem::take(&mut self.base) {
            desired.base().for_each(|route| chunk.push(Op::PutRoute(route), Purpose::Base));
        }
        while chunk.ops.len() < limit
            && let Some(address) = self.waiting.pop_first()
        {
            let row = Row::Neigh(address);
            if !desired.is_wanted(&row) {
                chunk.delete(row);
            }
        }
        while chunk.ops.len() < limit
            && let Some(subnet) = self.peers.pop_first()
        {
            desired.puts(subnet).for_each(|op| chunk.push(op, Purpose::Peer(subnet)));
        }
        while chunk.ops.len() < limit
            && let Some(row) = self.strays.pop_first()
        {
            if !desired.is_wanted(&row) {
                chunk.delete(row);
            }
        }
        chunk
    }
}

/// What failed.
impl WorkQueue {
    /// An operation for this did not work. What was an answer is not tried again: the kernel asks again itself.
    pub(super) fn fail(&mut self, purpose: Purpose) {
        match purpose {
            Purpose::Peer(subnet) => drop(self.retry.peers.insert(subnet)),
            Purpose::Base => self.retry.base = true,
            Purpose::Ahead => {}
            Purpose::Answer(address) => self.delete(Row::Neigh(address)),
            Purpose::Refusal(block) => self.delete(Row::Route(Route::refusal(block))),
            Purpose::Stray(row) => self.delete_later(row),
        }
    }

    /// Begins the pause before what failed is tried again, unless one goes on.
    pub(super) fn pause(&mut self, now: Instant) {
        if self.retry.at.is_none() && !self.retry.is_empty() {
            self.retry.delay = (self.retry.delay * 2).clamp(RETRY_FIRST, RETRY_MOST);
            self.retry.at = Some(now + self.retry.delay);
        }
    }

    /// What failed is due again when its pause is over.
    pub(super) fn wake(&mut self, now: Instant) {
        if self.retry.at.is_some_and(|at| at <= now) {
            self.retry.at = None;
            self.peers.append(&mut self.retry.peers);
            self.strays.append(&mut self.retry.rows);
            self.base |= std::mem::take(&mut self.retry.base);
        } else if self.retry.at.is_none() && self.retry.is_empty() && !self.is_due() {
            self.retry.delay = Duration::ZERO;
        } else {
            self.pause(now);
        }
    }

    /// When [`Self::wake`] has something to do.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.retry.at
    }
}

/// Which peers are to be decided between tunnel and direct route.
impl WorkQueue {
    /// It is to be found out whether a peer's host can be reached without a gateway.
    pub(super) fn decide(&mut self, subnet: IpNetwork) {
        self.undecided.insert(subnet);
    }

    /// The next peer to be decided.
    pub(super) fn next_undecided(&mut self) -> Option<IpNetwork> {
        self.undecided.pop_first()
    }

    /// Whether peers are to be decided.
    pub(super) fn has_undecided(&self) -> bool {
        !self.undecided.is_empty()
    }
}

impl Retry {
    fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.rows.is_empty() && !self.base
    }
}
