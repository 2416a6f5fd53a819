//! Observed against wanted: a complete dump, or one notification, compared with what the records and the mode ask for.
//!
//! Start, restart, overrun, reconnect, a re-created device and the timer all come through here. Only rows
//! that are ours are touched:
//! - routes with our protocol, or of the shape that flannel gives them on the same device;
//! - neighbours with our protocol, or permanent ones of a gateway address (flannel's);
//! - every FDB row of our device. (What is another program's is `strangers`'.)

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use ipnetwork::IpNetwork;

use super::kernel::{Miss, Neigh, NeighState, Observed, Op, PROTOCOL, Route, Row, SeenFdb, SeenNeigh, SeenRoute, Via};
use super::plane::{Owner, PeerMode, Plane};
use super::strangers::{Contradiction, LeftAlone};

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
    /// A route that is there now, of whomever: putting one replaces another with its prefix and metric without a word.
    Route(SeenRoute),
    /// A row that is no longer there.
    Gone(Row),
    /// Another device than ours is down or gone, and has taken its IPv4 routes with it without a word.
    DeviceDown(u32),
}

/// A comparison under way: what the dump has shown so far, beside the marks at the peers.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    /// Rows of ours that nobody wants. Deleted when all is known, since a route goes before what it leads through.
    strays: BTreeSet<Row>,
    base_seen: BTreeSet<Route>,
    refusals_seen: BTreeSet<IpNetwork>,
    /// Addresses that wait for an answer.
    waiting: Vec<IpAddr>,
    /// Rows of others, and those of them that are wrong.
    pub(super) left_alone: LeftAlone,
    pub(super) contradictions: Vec<Contradiction>,
}

impl Plane {
    /// Compares a complete dump with what is wanted; what differs is due.
    ///
    /// `adopt`: the first dump of a daemon's life. On demand, peers of which rows are there count as used then.
    pub fn reconcile(&mut self, observed: &Observed, adopt: bool, now: Instant) -> Found {
        self.begin_comparison();
        self.compare(observed);
        self.end_comparison(adopt, now)
    }

    /// A dump begins, whose parts are given to [`Plane::compare`]: of a large one each takes the time of its own rows only.
    pub fn begin_comparison(&mut self) {
        self.comparison = Comparison::default();
        self.peers.iter_mut().for_each(|(_, peer)| peer.seen = 0);
    }

    /// A part of the dump.
    pub fn compare(&mut self, part: &Observed) {
        part.fdb.iter().for_each(|row| self.mark_fdb(row));
        part.neighbours.iter().for_each(|row| self.mark_neigh(row));
        part.routes.iter().for_each(|route| self.mark_route(route));
    }

    /// The dump is complete; what differs is due. `adopt` as with [`Plane::reconcile`].
    pub fn end_comparison(&mut self, adopt: bool, now: Instant) -> Found {
        let comparison = std::mem::take(&mut self.comparison);
        let Comparison { mut strays, base_seen, refusals_seen, waiting, left_alone, contradictions } = comparison;
        let base_missing = self.base().any(|base| !base_seen.contains(&base));
        self.base_due = base_missing;
        self.restore_refusals(&refusals_seen);
        if !adopt {
            // At the start they are what an earlier daemon left.
            strays.iter().for_each(|row| {
                if let Row::Fdb(fdb) = row {
                    self.note_fdb(*fdb)
                }
            });
        }
        let before = self.strays.len();
        self.strays.append(&mut strays);
        let mut found = self.judge(adopt);
        self.end_with_strangers(left_alone, contradictions);
        found.strays = self.strays.len() - before;
        for address in waiting {
            self.miss(Miss::Address(address), now);
        }
        found
    }

    /// Compares one notified row with what is wanted; what differs is due.
    pub fn saw(&mut self, seen: &Seen) {
        match seen {
            Seen::Fdb(row) => self.saw_fdb(row),
            Seen::Neigh(seen) => self.saw_neigh(seen),
            Seen::Route(SeenRoute { route, .. }) if self.is_wanted(&Row::Route(*route)) => {}
            Seen::Route(seen) => {
                let route = &seen.route;
                self.others_route(route);
                if let Some(replaced) = self.wanted_in_place_of(route) {
                    self.lost(&Row::Route(replaced));
                }
                if self.owns_route(route) {
                    self.strays.insert(Row::Route(*route));
                } else {
                    self.saw_strangers_route(seen);
                }
            }
            Seen::DeviceDown(ifindex) => self.strangers_device_down(*ifindex),
            Seen::Gone(row) => {
                if let Row::Route(route) = row {
                    self.others_route(route);
                }
                self.strangers_row_gone(row);
                self.lost(row);
            }
        }
    }

    fn saw_fdb(&mut self, seen: &SeenFdb) {
        let row = seen.row;
        let target = self.peers.of_mac(row.mac).filter(|subnet| self.target(subnet).is_some());
        if let Some(subnet) = target {
            let is_right = self.target(&subnet).is_some_and(|vtep| vtep.fdb() == row);
            if !is_right || seen.ages {
                self.drifted(subnet);
            }
            if is_right {
                return;
            }
        } else if self.is_learned(seen) {
            return;
        }
        // With a second remote the row has ours as well, and putting that again takes nothing away.
        self.note_fdb(row);
        self.strays.insert(Row::Fdb(row));
    }

    fn saw_neigh(&mut self, seen: &SeenNeigh) {
        let address = seen.address;
        let guest = self.guests.contains(&address).then(|| self.setup.net.subnet_of(address)).flatten();
        match self.gateway_of(address) {
            Some((subnet, vtep)) if seen.state != NeighState::Permanent || seen.mac != Some(vtep.mac) => {
                self.note_overwritten(seen);
                self.drifted(subnet);
            }
            Some(_) => {}
            None if guest.is_some() => {
                if let Some(mac) = guest.and_then(|subnet| self.peers.get(&subnet)).map(|peer| peer.vtep.mac)
                    && seen.mac != Some(mac)
                {
                    self.note_overwritten(seen);
                    self.urgent.push((Op::PutNeigh(Neigh { address, mac }), Owner::Answer(address)));
                }
            }
            None if self.owns_neigh(seen) => {
                self.strays.insert(Row::Neigh(address));
            }
            None if self.is_strangers_neigh(seen) => self.saw_strangers_neigh(seen),
            None => {}
        }
    }

    /// Somebody else's route came or went: with DirectRouting, peers may be behind it.
    fn others_route(&mut self, route: &Route) {
        if route.protocol != PROTOCOL {
            self.redecide(Some(route.destination));
        }
    }

    /// The wanted route whose prefix and metric this one has, if it is another one.
    fn wanted_in_place_of(&self, route: &Route) -> Option<Route> {
        let subnet = route.destination;
        let is_subnet = self.setup.net.contains_subnet(&subnet);
        let peer = || self.wanted_route(subnet).filter(|_| is_subnet);
        let refusal = || self.refusals.contains(&subnet).then(|| Route::refusal(subnet));
        self.base()
            .chain(peer())
            .chain(refusal())
            .find(|wanted| (wanted.destination, wanted.metric) == (subnet, route.metric) && wanted != route)
    }

    /// A row is gone, by whomever: put it back if it is wanted.
    fn lost(&mut self, row: &Row) {
        self.unsee(row);
        if !self.is_wanted(row) {
            return;
        }
        match row {
            Row::Route(route) if self.base().any(|base| base == *route) => {
                self.base_due = true;
                self.comparison.base_seen.remove(route);
            }
            Row::Route(route) if route.via == Via::Unreachable => {
                self.urgent.push((Op::PutRoute(*route), Owner::Refusal(route.destination)));
            }
            Row::Route(route) => self.drifted(route.destination),
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

    /// The dump under way may have shown a row that is gone now.
    fn unsee(&mut self, row: &Row) {
        let (subnet, bit) = match row {
            Row::Route(route) => (Some(route.destination), ROUTE),
            Row::Neigh(address) => {
                let subnet = self.setup.net.subnet_of(*address);
                (subnet.filter(|subnet| subnet.network() == *address), NEIGH)
            }
            Row::Fdb(fdb) => (self.peers.of_mac(fdb.mac), FDB),
        };
        if let Some(peer) = subnet.and_then(|subnet| self.peers.get_mut(&subnet)) {
            peer.seen &= !bit;
        }
    }

    /// A wanted peer's rows are not what they should be.
    fn drifted(&mut self, subnet: IpNetwork) {
        let Some(peer) = self.peers.get_mut(&subnet) else { return };
        // What the dump under way has shown of it is not so any more.
        peer.seen = 0;
        if std::mem::take(&mut peer.installed) {
            self.due.insert(subnet);
        }
    }

    fn mark_fdb(&mut self, seen: &SeenFdb) {
        if seen.ages {
            // Of a peer it is put again, which makes it permanent.
            if !self.is_learned(seen) {
                self.comparison.strays.insert(Row::Fdb(seen.row));
            }
            return;
        }
        let idle = self.setup.idle;
        let holder = self.peers.of_mac(seen.row.mac).and_then(|subnet| self.peers.get_mut(&subnet));
        match holder {
            Some(peer) if peer.vtep.fdb() == seen.row && !peer.direct => {
                peer.seen |= if seen.idle >= idle { FDB | IDLE } else { FDB };
            }
            _ => {
                self.comparison.strays.insert(Row::Fdb(seen.row));
            }
        }
    }

    fn mark_neigh(&mut self, seen: &SeenNeigh) {
        if seen.state == NeighState::Incomplete {
            self.comparison.waiting.push(seen.address);
        }
        let gateway = self.setup.net.subnet_of(seen.address).filter(|subnet| subnet.network() == seen.address);
        if let Some(peer) = gateway.and_then(|subnet| self.peers.get_mut(&subnet)).filter(|peer| !peer.direct) {
            if seen.mac == Some(peer.vtep.mac) && seen.state == NeighState::Permanent {
                peer.seen |= NEIGH;
            } else if self.owns_neigh(seen) {
                // Deleted only if the peer is not wanted, and else overwritten.
                self.comparison.strays.insert(Row::Neigh(seen.address));
            } else if self.is_strangers_neigh(seen) {
                self.mark_strangers_neigh(seen);
            }
        } else if self.guests.contains(&seen.address) {
        } else if self.owns_neigh(seen) {
            self.comparison.strays.insert(Row::Neigh(seen.address));
        } else if self.is_strangers_neigh(seen) {
            self.mark_strangers_neigh(seen);
        }
    }

    fn mark_route(&mut self, seen: &SeenRoute) {
        let route = seen.route;
        if !self.owns_route(&route) {
            self.mark_strangers_route(seen);
            return;
        }
        if route.protocol == PROTOCOL {
            if self.base().any(|base| base == route) {
                self.comparison.base_seen.insert(route);
                return;
            }
            if self.refusals.contains(&route.destination) && route == Route::refusal(route.destination) {
                self.comparison.refusals_seen.insert(route.destination);
                return;
            }
            let wanted =
                self.setup.net.contains_subnet(&route.destination) && route == self.peer_route(route.destination);
            if wanted && let Some(peer) = self.peers.get_mut(&route.destination) {
                peer.seen |= ROUTE;
                return;
            }
        }
        self.comparison.strays.insert(Row::Route(route));
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
            let complete = if peer.direct { ROUTE } else { ALL };
            if adopt && seen != 0 && !peer.direct {
                peer.active = true;
            }
            let idle = peer.seen & IDLE != 0 && !keep && !adopt;
            if idle {
                peer.active = false;
                found.idle += 1;
            }
            if !keep && !peer.active && !peer.direct {
                if seen != 0 {
                    strays.push((*subnet, peer.vtep));
                }
                peer.installed = false;
                peer.set_told(false);
            } else if seen == complete && (adopt || !self.due.contains(subnet)) {
                // What became due while the dump ran is not as the dump shows it.
                found.right += 1;
                peer.installed = true;
                peer.set_told(true);
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
    fn owns_route(&self, route: &Route) -> bool {
        let Route { destination, via, protocol, .. } = *route;
        let inside = self.setup.net.network.contains(destination.network());
        match via {
            Via::Unreachable | Via::Blackhole | Via::Link { .. } => protocol == PROTOCOL && inside,
            // flannel's own: through the very host of the peer's record.
            Via::Direct(host) => {
                let is_host = || self.peers.get(&destination).is_some_and(|peer| peer.vtep.remote == host);
                inside && (protocol == PROTOCOL || self.direct_routing && is_host())
            }
            Via::Elsewhere | Via::Prohibit | Via::Throw => false,
            Via::Gateway(gateway) => {
                protocol == PROTOCOL || gateway == destination.network() && self.setup.net.contains_subnet(&destination)
            }
        }
    }
}
