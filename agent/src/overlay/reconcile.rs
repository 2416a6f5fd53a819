//! Observed against wanted: a complete dump, or one notification, compared with what the records and the mode ask for.
//!
//! Start, restart, overrun, reconnect, a re-created device and the timer all come through [`Plane::reconcile`]. Only rows
//! that are ours are touched:
//! - routes with our protocol, or of the shape that flannel gives them on the same device;
//! - neighbours with our protocol, or permanent ones of a gateway address (flannel's);
//! - every FDB row of our device.

use std::collections::BTreeSet;
use std::time::Instant;

use ipnetwork::IpNetwork;

use super::kernel::{Miss, NeighState, Observed, Op, PROTOCOL, Route, Row, SeenFdb, SeenNeigh, SeenRoute, Via};
use super::plane::{Owner, PeerMode, Plane};

const FDB: u8 = 1;
const NEIGH: u8 = 2;
const ROUTE: u8 = 4;
const ALL: u8 = FDB | NEIGH | ROUTE;
/// The FDB row is there and has not been used for long.
const IDLE: u8 = 8;

/// What a comparison found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// Peers whose rows are all in the kernel.
    pub right: usize,
    /// Peers of which rows are missing or wrong.
    pub due: usize,
    /// Rows of ours that nobody wants.
    pub strays: usize,
    /// Peers unused for long, whose rows are taken out.
    pub idle: usize,
}

/// One row that a notification showed, or that it showed to be gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// An FDB row of our device.
    Fdb(SeenFdb),
    /// A neighbour on our device.
    Neigh(SeenNeigh),
    /// A route through our device, or an unreachable one with our protocol.
    Route(SeenRoute),
    /// A row that is no longer there.
    Gone(Row),
}

impl Plane {
    /// Compares a complete dump with what is wanted; what differs is due.
    ///
    /// `adopt`: the first dump of a daemon's life. On demand, peers of which rows are there count as used then.
    pub fn reconcile(&mut self, observed: &Observed, adopt: bool, now: Instant) -> Found {
        let strays = self.strays.len();
        self.peers.iter_mut().for_each(|(_, peer)| peer.seen = 0);
        observed.fdb.iter().for_each(|row| self.mark_fdb(row));
        observed.neighbours.iter().for_each(|row| self.mark_neigh(row));
        self.base_due = self.base().is_some();
        let mut refused = BTreeSet::new();
        for seen in &observed.routes {
            match self.mark_route(seen) {
                Known::Base => self.base_due = false,
                Known::Refusal => {
                    refused.insert(seen.route.destination);
                }
                Known::Peer | Known::No => {}
            }
        }
        self.restore_refusals(&refused);
        let mut found = self.judge(adopt);
        found.strays = self.strays.len().saturating_sub(strays);
        for waiting in observed.neighbours.iter().filter(|seen| seen.state == NeighState::Incomplete) {
            self.miss(Miss::Address(waiting.address), now);
        }
        found
    }

    /// Compares one notified row with what is wanted; what differs is due.
    pub fn saw(&mut self, seen: &Seen) {
        match seen {
            Seen::Fdb(row) => match self.peers.of_mac(row.row.mac) {
                Some(subnet) if self.target(&subnet).is_some() => {
                    if self.peers.get(&subnet).is_some_and(|peer| peer.vtep.fdb() != row.row) {
                        self.drifted(subnet);
                    }
                }
                _ => {
                    self.strays.insert(Row::Fdb(row.row));
                }
            },
            Seen::Neigh(seen) => match self.gateway_of(seen.address) {
                Some((subnet, vtep)) if seen.state != NeighState::Permanent || seen.mac != Some(vtep.mac) => {
                    self.drifted(subnet);
                }
                Some(_) => {}
                None if self.owns_neigh(seen) && !self.guests.contains(&seen.address) => {
                    self.strays.insert(Row::Neigh(seen.address));
                }
                None => {}
            },
            Seen::Route(seen) if self.owns_route(seen) && !self.is_wanted(&Row::Route(seen.route)) => {
                self.strays.insert(Row::Route(seen.route));
            }
            Seen::Route(_) => {}
            Seen::Gone(row) => self.lost(row),
        }
    }

    /// A row is gone, by whomever: put it back if it is wanted.
    fn lost(&mut self, row: &Row) {
        if !self.is_wanted(row) {
            return;
        }
        match row {
            Row::Route(route) if self.base() == Some(*route) => self.base_due = true,
            Row::Route(route) => {
                if !self.refusals.forget(&route.destination) {
                    self.drifted(route.destination);
                }
            }
            Row::Neigh(address) => {
                if let Some((subnet, _)) = self.gateway_of(*address) {
                    self.drifted(subnet);
                }
            }
            Row::Fdb(fdb) => {
                if let Some(subnet) = self.peers.of_mac(fdb.mac) {
                    self.drifted(subnet);
                }
            }
        }
    }

    /// A wanted peer's rows are not what they should be.
    fn drifted(&mut self, subnet: IpNetwork) {
        if let Some(peer) = self.peers.get_mut(&subnet)
            && std::mem::take(&mut peer.installed)
        {
            self.due.insert(subnet);
        }
    }

    fn mark_fdb(&mut self, seen: &SeenFdb) {
        let idle = self.setup.idle;
        let holder = self.peers.of_mac(seen.row.mac).and_then(|subnet| self.peers.get_mut(&subnet));
        match holder {
            Some(peer) if peer.vtep.fdb() == seen.row => {
                peer.seen |= if seen.idle >= idle { FDB | IDLE } else { FDB };
            }
            _ => {
                self.strays.insert(Row::Fdb(seen.row));
            }
        }
    }

    fn mark_neigh(&mut self, seen: &SeenNeigh) {
        let gateway = self.setup.net.subnet_of(seen.address).filter(|subnet| subnet.network() == seen.address);
        if let Some(peer) = gateway.and_then(|subnet| self.peers.get_mut(&subnet)) {
            if seen.mac == Some(peer.vtep.mac) && seen.state == NeighState::Permanent {
                peer.seen |= NEIGH;
            }
        } else if self.owns_neigh(seen) && !self.guests.contains(&seen.address) {
            self.strays.insert(Row::Neigh(seen.address));
        }
    }

    fn mark_route(&mut self, seen: &SeenRoute) -> Known {
        let route = seen.route;
        if !self.owns_route(seen) {
            return Known::No;
        }
        if seen.protocol == PROTOCOL {
            if self.base() == Some(route) {
                return Known::Base;
            }
            if self.refusals.contains(&route.destination) && route == Route::refusal(route.destination) {
                return Known::Refusal;
            }
            let wanted =
                self.setup.net.contains_subnet(&route.destination) && route == self.peer_route(route.destination);
            if wanted && let Some(peer) = self.peers.get_mut(&route.destination) {
                peer.seen |= ROUTE;
                return Known::Peer;
            }
        }
        self.strays.insert(Row::Route(route));
        Known::No
    }

    /// Refusals that the dump did not show are put (again): somebody took them out, or they came while it ran.
    fn restore_refusals(&mut self, seen: &BTreeSet<IpNetwork>) {
        let missing = self.refusals.blocks().filter(|block| !seen.contains(block));
        let puts = missing.map(|block| (Op::PutRoute(Route::refusal(*block)), Owner::Refusal(*block)));
        self.urgent.extend(puts);
    }

    /// Decides for each peer, from which of its rows were seen.
    fn judge(&mut self, adopt: bool) -> Found {
        let mut found = Found::default();
        let mut strays = Vec::new();
        let keep = self.setup.mode == PeerMode::All || self.everyone;
        for (subnet, peer) in self.peers.iter_mut() {
            let seen = peer.seen & ALL;
            if adopt && seen != 0 {
                peer.active = true;
            }
            let idle = peer.seen & IDLE != 0 && !keep && !adopt;
            if idle {
                peer.active = false;
                found.idle += 1;
            }
            if !keep && !peer.active {
                if seen != 0 {
                    strays.push((*subnet, peer.vtep));
                }
                peer.installed = false;
            } else if seen == ALL {
                found.right += 1;
                peer.installed = true;
            } else {
                found.due += 1;
                peer.installed = false;
                self.due.insert(*subnet);
            }
        }
        for (subnet, vtep) in strays {
            self.strays.extend(self.rows(subnet, vtep));
        }
        found
    }

    /// Whether a neighbour is ours: our protocol, or flannel's shape.
    fn owns_neigh(&self, seen: &SeenNeigh) -> bool {
        let gateway = || self.setup.net.subnet_of(seen.address).is_some_and(|block| block.network() == seen.address);
        seen.protocol == PROTOCOL || seen.state == NeighState::Permanent && gateway()
    }

    /// Whether a route is ours: our protocol and within our network, or flannel's shape.
    fn owns_route(&self, seen: &SeenRoute) -> bool {
        let Route { destination, via, .. } = seen.route;
        let inside = self.setup.net.network.contains(destination.network());
        match via {
            Via::Unreachable | Via::Link { .. } => seen.protocol == PROTOCOL && inside,
            Via::Gateway(gateway) => {
                seen.protocol == PROTOCOL
                    || gateway == destination.network() && self.setup.net.contains_subnet(&destination)
            }
        }
    }
}

/// What a dumped route turned out to be.
enum Known {
    Base,
    Refusal,
    Peer,
    No,
}
