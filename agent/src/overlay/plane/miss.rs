//! Answers to the kernel's questions: which MAC an address has (L3 miss), which host a MAC has (L2 miss).
//!
//! An address of a peer gets a neighbour of its own at once, which lets the waiting packets go, and the peer gets its three
//! rows right after. Then the temporary neighbour is deleted. An address that nobody leased gets an `unreachable` route for
//! its block.
//!
//! A packet to a direct peer (`direct`) comes to our device only where the peer's route is missing: the route is not put yet,
//! or it has gone with a link that was down, of which the kernel tells nothing. So the route is put. The packet that waits on
//! our device cannot be sent through another one: it takes the tunnel, whose two rows for it are deleted right after.

use std::net::IpAddr;
use std::time::Instant;

use ipnetwork::IpNetwork;

use super::Plane;
use crate::overlay::MacAddr;
use crate::overlay::kernel::{Miss, Route, Row};

/// What a miss came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The peer of this subnet has the address or the MAC.
    Peer(IpNetwork),
    /// Nobody leased this block: its senders get an error from now on, if the answer goes out at once. Until it does, each
    /// further address of the block takes up a place in the neighbour table.
    Refused(IpNetwork),
    /// Nobody leased this block, and its senders should have had an error already.
    RefusedBefore(IpNetwork),
    /// The address is none of our network's, or the MAC no peer's.
    Unknown,
}

impl Answer {
    /// The place of such an answer among the [`RESULTS`](crate::overlay::counts) that are counted.
    fn place(self) -> usize {
        match self {
            Self::Peer(_) => 0,
            Self::Refused(_) => 1,
            Self::RefusedBefore(_) => 2,
            Self::Unknown => 3,
        }
    }
}

impl Plane {
    /// Works out the answer to a miss; the operations are in the next chunk, first in line.
    pub fn miss(&mut self, miss: Miss, now: Instant) -> Answer {
        let answer = match miss {
            Miss::Address(address) => self.address_miss(address, now),
            Miss::Mac(mac) => self.mac_miss(mac),
        };
        self.counts.count_miss(miss, answer.place());
        answer
    }

    fn address_miss(&mut self, address: IpAddr, now: Instant) -> Answer {
        let Some(block) = self.desired.setup.net.subnet_of(address) else { return Answer::Unknown };
        let Some(mut peer) = self.desired.peers.get_mut(&block) else { return self.refuse(address, block, now) };
        // Of a peer without a device nothing is asked.
        let (endpoint, Some(fdb)) = (peer.endpoint, peer.endpoint.fdb()) else { return Answer::Unknown };
        peer.presence.ask();
        let (is_gateway, is_direct) = (address == block.network(), peer.presence.is_direct());
        if is_gateway || is_direct {
            // The gateway's permanent neighbour or the direct route is gone, so the peer's rows are not all in the kernel.
            peer.presence.lose();
            peer.sighting.clear();
        }
        let is_served = peer.presence.is_in_kernel();
        if !is_served {
            self.work.put_fdb_now(fdb);
            self.work.put_peer(block);
        }
        self.work.answer(address, fdb.mac);
        if is_direct {
            self.strangers.note_former(endpoint);
            self.work.delete_all([Row::Neigh(address), Row::Fdb(fdb)]);
        } else if is_served {
            self.work.delete(Row::Neigh(address));
        } else if !is_gateway {
            self.desired.temporary.add(address);
        }
        Answer::Peer(block)
    }

    fn refuse(&mut self, address: IpAddr, block: IpNetwork, now: Instant) -> Answer {
        let is_new = !self.desired.refusals.contains(&block);
        if is_new {
            let oldest = self.desired.refusals.add(block, now);
            self.work.delete_all(oldest.map(|block| Row::Route(Route::refusal(block))));
            self.work.refuse(block);
        }
        if address == block.network() {
            // The address may be the gateway of a route that is still there, and the route has to go first.
            self.work.delete(Row::Neigh(address));
        } else {
            self.work.delete_waiting(address);
        }
        if is_new { Answer::Refused(block) } else { Answer::RefusedBefore(block) }
    }

    fn mac_miss(&mut self, mac: MacAddr) -> Answer {
        let found = self.desired.peers.of_mac(mac);
        let Some((subnet, mut peer)) = found.and_then(|subnet| Some((subnet, self.desired.peers.get_mut(&subnet)?)))
        else {
            return Answer::Unknown;
        };
        peer.presence.ask();
        // The FDB row of the peer's MAC is gone, or a direct peer's route. The packet is lost in either case.
        peer.presence.lose();
        peer.sighting.clear();
        let fdb = peer.endpoint.fdb().filter(|_| !peer.presence.is_direct());
        fdb.into_iter().for_each(|fdb| self.work.put_fdb_now(fdb));
        self.work.put_peer(subnet);
        Answer::Peer(subnet)
    }

    /// The peer of this subnet has another VTEP: its temporary neighbours lead to the old MAC.
    pub(super) fn answer_again(&mut self, subnet: IpNetwork) {
        let Some(fdb) = self.desired.peers.get(&subnet).and_then(|peer| peer.endpoint.fdb()) else { return };
        let mut addresses = self.desired.temporary.of(subnet).peekable();
        if addresses.peek().is_some() {
            self.work.put_fdb_now(fdb);
        }
        addresses.for_each(|address| self.work.answer(address, fdb.mac));
    }
}
