//! Answers to the kernel's questions: which MAC an address has (L3 miss), which host a MAC has (L2 miss).
//!
//! An address of a peer gets a neighbour of its own at once, which lets the waiting packets go (a "guest"), and the peer
//! its three rows right after; then the guest goes again. An address of nobody gets its block's refusal.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;

use super::MacAddr;
use super::kernel::{Miss, Neigh, Op, Route, Row};
use super::plane::{Owner, Plane};

/// How long an unleased block is refused before it is asked for again.
pub const REFUSAL_TIME: Duration = Duration::from_secs(60);

/// How many unleased blocks are refused at the most; the oldest goes.
pub const REFUSALS: usize = 1024;

/// What a miss came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// This subnet's peer has it.
    Peer(IpNetwork),
    /// Nobody leased this block: its senders get an error from now on, if the answer goes out at once. Until it does, each
    /// further address of the block takes up a place in the neighbour table.
    Refused(IpNetwork),
    /// The same, of a block whose senders should have had it already.
    RefusedBefore(IpNetwork),
    /// It is none of our network's addresses, or no peer's MAC.
    Unknown,
}

impl Plane {
    /// Works out the answer to a miss; the operations are in the next chunk, first in line.
    pub fn miss(&mut self, miss: Miss, now: Instant) -> Answer {
        match miss {
            Miss::Address(address) => self.address_miss(address, now),
            Miss::Mac(mac) => self.mac_miss(mac),
        }
    }

    fn address_miss(&mut self, address: IpAddr, now: Instant) -> Answer {
        let Some(block) = self.setup.net.subnet_of(address) else { return Answer::Unknown };
        let Some(peer) = self.peers.get_mut(&block) else { return self.refuse(address, block, now) };
        peer.active = true;
        let vtep = peer.vtep;
        if address == block.network() {
            // The gateway itself: its permanent neighbour is gone, so the peer is not what we thought.
            (peer.installed, peer.seen) = (false, 0);
        }
        let served = peer.installed;
        if !served {
            self.urgent.push((Op::PutFdb(vtep.fdb()), Owner::Ahead));
            self.due.insert(block);
        }
        self.urgent.push((Op::PutNeigh(Neigh { address, mac: vtep.mac }), Owner::Answer(address)));
        if served {
            self.strays.insert(Row::Neigh(address));
        } else if address != block.network() {
            self.guests.insert(address);
        }
        Answer::Peer(block)
    }

    fn refuse(&mut self, address: IpAddr, block: IpNetwork, now: Instant) -> Answer {
        let is_new = !self.refusals.contains(&block);
        if is_new {
            let oldest = self.refusals.add(block, now);
            self.strays.extend(oldest.map(|block| Row::Route(Route::refusal(block))));
            self.urgent.push((Op::PutRoute(Route::refusal(block)), Owner::Refusal(block)));
        }
        if address == block.network() {
            // Perhaps the gateway of a route that is still there, and has to go first.
            self.strays.insert(Row::Neigh(address));
        } else {
            self.refused.insert(address);
        }
        if is_new { Answer::Refused(block) } else { Answer::RefusedBefore(block) }
    }

    fn mac_miss(&mut self, mac: MacAddr) -> Answer {
        let found = self.peers.of_mac(mac);
        let Some((subnet, peer)) = found.and_then(|subnet| Some((subnet, self.peers.get_mut(&subnet)?))) else {
            self.unknown_macs += 1;
            return Answer::Unknown;
        };
        peer.active = true;
        (peer.installed, peer.seen) = (false, 0);
        let fdb = peer.vtep.fdb();
        self.urgent.push((Op::PutFdb(fdb), Owner::Ahead));
        self.due.insert(subnet);
        Answer::Peer(subnet)
    }

    /// The peer of this subnet has a new MAC: what its guests were told is wrong.
    pub(super) fn reanswer(&mut self, subnet: IpNetwork) {
        let Some(vtep) = self.peers.get(&subnet).map(|peer| peer.vtep) else { return };
        let mut guests = self.guests.range(subnet.network()..=subnet.broadcast()).peekable();
        if guests.peek().is_some() {
            self.urgent.push((Op::PutFdb(vtep.fdb()), Owner::Ahead));
        }
        let neigh = |address| Neigh { address, mac: vtep.mac };
        self.urgent.extend(guests.map(|address| (Op::PutNeigh(neigh(*address)), Owner::Answer(*address))));
    }

    /// Forgets the guests of a subnet; returns their rows.
    pub(super) fn take_guests(&mut self, subnet: IpNetwork) -> Vec<Row> {
        let guests: Vec<IpAddr> = self.guests.range(subnet.network()..=subnet.broadcast()).copied().collect();
        guests.iter().for_each(|address| {
            self.guests.remove(address);
        });
        guests.into_iter().map(Row::Neigh).collect()
    }
}

/// The unleased blocks that are refused now, bounded in number and time.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    ends: BTreeMap<IpNetwork, Instant>,
    queue: VecDeque<(Instant, IpNetwork)>,
}

impl Refusals {
    pub(super) fn contains(&self, block: &IpNetwork) -> bool {
        self.ends.contains_key(block)
    }

    /// Adds a block; returns the oldest one where there are too many.
    fn add(&mut self, block: IpNetwork, now: Instant) -> Option<IpNetwork> {
        let end = now + REFUSAL_TIME;
        self.ends.insert(block, end);
        self.queue.push_back((end, block));
        if self.ends.len() <= REFUSALS {
            return None;
        }
        loop {
            let (end, oldest) = self.queue.pop_front()?;
            if self.ends.get(&oldest) == Some(&end) {
                self.ends.remove(&oldest);
                return Some(oldest);
            }
        }
    }

    /// Drops a block; whether it was there.
    pub(super) fn forget(&mut self, block: &IpNetwork) -> bool {
        self.ends.remove(block).is_some()
    }

    /// Drops and returns the blocks whose time is over.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<IpNetwork> {
        let mut ended = Vec::new();
        while let Some((end, block)) = self.queue.front().copied()
            && (end <= now || self.ends.get(&block) != Some(&end))
        {
            self.queue.pop_front();
            if self.ends.get(&block) == Some(&end) {
                self.ends.remove(&block);
                ended.push(block);
            }
        }
        ended
    }

    pub(super) fn next_end(&self) -> Option<Instant> {
        self.queue.front().map(|(end, _)| *end)
    }

    /// The blocks.
    pub(super) fn blocks(&self) -> impl Iterator<Item = &IpNetwork> {
        self.ends.keys()
    }
}
