//! Observed against wanted: a complete dump, compared with what the records and the mode ask for.
//!
//! Start, restart, overrun, reconnect, a re-created device and the timer all come through here. Only rows that are ours are
//! touched (`ours`), and other programs' rows that lead a peer's packets astray (`strangers`).

use std::time::Instant;

use super::Plane;
use super::comparison::{Comparison, Findings};
use super::ours::is_strangers_neigh;
use crate::overlay::kernel::{Miss, NeighState, Observed, PROTOCOL, Row, SeenFdb, SeenNeigh, SeenRoute};
use crate::overlay::sighting::PeerRow;

impl Plane {
    /// Compares a complete dump with what is wanted; what differs is due.
    ///
    /// `adopt`: the first dump of a daemon's life. On demand, peers of which rows are there count as used then.
    pub fn reconcile(&mut self, observed: &Observed, adopt: bool, now: Instant) -> Findings {
        self.begin_comparison();
        self.compare(observed);
        self.end_comparison(adopt, now)
    }

    /// A dump begins, whose parts are given to [`Plane::compare`]: of a large one each takes the time of its own rows only.
    pub fn begin_comparison(&mut self) {
        self.comparison = Comparison::default();
        self.strangers.begin_dump();
        self.desired.peers.update_all(|_, peer| {
            peer.sighting.clear();
        });
    }

    /// A part of the dump.
    pub fn compare(&mut self, part: &Observed) {
        part.fdb.iter().for_each(|row| self.mark_fdb(row));
        part.neighbours.iter().for_each(|row| self.mark_neigh(row));
        part.routes.iter().for_each(|route| self.mark_route(route));
    }

    /// The dump is complete; what differs is due. `adopt` as with [`Plane::reconcile`].
    pub fn end_comparison(&mut self, adopt: bool, now: Instant) -> Findings {
        let comparison = std::mem::take(&mut self.comparison);
        self.counts.comparisons += 1;
        self.work.set_base_due(comparison.lacks_base(&self.desired));
        comparison.missing_refusals(&self.desired).for_each(|block| self.work.refuse(block));
        let (strays, waiting) = comparison.into_rest();
        if !adopt {
            // At the start the rows that nobody wants are an earlier daemon's.
            strays.iter().for_each(|row| {
                if let Row::Fdb(fdb) = row {
                    self.strangers.note_fdb(*fdb)
                }
            });
        }
        let before = self.work.strays();
        self.work.delete_set(strays);
        let mut findings = self.judge(adopt);
        self.strangers.end_dump(&self.desired, &mut self.work);
        findings.strays = self.work.strays() - before;
        for address in waiting {
            self.miss(Miss::Address(address), now);
        }
        findings
    }

    fn mark_fdb(&mut self, seen: &SeenFdb) {
        if seen.ages {
            // An ageing row of a peer is put again, which makes it permanent.
            if !self.desired.is_learned(seen) {
                self.comparison.stray(Row::Fdb(seen.row));
            }
            return;
        }
        let idle = self.desired.setup.idle;
        let peers = &mut self.desired.peers;
        let holder = peers.of_mac(seen.row.mac).and_then(|subnet| peers.get_mut(&subnet));
        match holder {
            Some(mut peer) if peer.endpoint.fdb() == Some(seen.row) && !peer.presence.is_direct() => {
                if seen.idle >= idle {
                    peer.sighting.show_idle_fdb();
                } else {
                    peer.sighting.show(PeerRow::Fdb);
                }
            }
            _ => self.comparison.stray(Row::Fdb(seen.row)),
        }
    }

    fn mark_neigh(&mut self, seen: &SeenNeigh) {
        if seen.state == NeighState::Incomplete {
            self.comparison.show_waiting(seen.address);
        }
        let gateway = self.desired.subnet_of_gateway(seen.address);
        let peer = gateway.and_then(|subnet| self.desired.peers.get_mut(&subnet));
        if let Some(mut peer) = peer.filter(|peer| !peer.presence.is_direct()) {
            if seen.mac.is_some() && seen.mac == peer.endpoint.mac && seen.state == NeighState::Permanent {
                peer.sighting.show(PeerRow::Neigh);
                return;
            }
        } else if self.desired.temporary.contains(&seen.address) {
            return;
        }
        if self.desired.owns_neigh(seen) {
            // A row of a wanted peer is overwritten; only that of a peer that is not wanted is deleted.
            self.comparison.stray(Row::Neigh(seen.address));
        } else if is_strangers_neigh(seen) {
            self.strangers.mark_neigh(seen, &self.desired);
        }
    }

    fn mark_route(&mut self, seen: &SeenRoute) {
        let route = seen.route;
        if !self.desired.owns_route(&route) {
            self.strangers.mark_route(seen, &self.desired);
            return;
        }
        if route.protocol == PROTOCOL {
            if self.desired.base().any(|base| base == route) {
                return self.comparison.show_base(route);
            }
            if self.desired.is_refusal(&route) {
                return self.comparison.show_refusal(route.destination);
            }
            let subnet = route.destination;
            let is_peers = self.desired.setup.net.contains_subnet(&subnet) && route == self.desired.peer_route(subnet);
            if is_peers && let Some(mut peer) = self.desired.peers.get_mut(&subnet) {
                return peer.sighting.show(PeerRow::Route);
            }
        }
        self.comparison.stray(Row::Route(route));
    }

    /// Decides for each peer, from which of its rows the dump has shown.
    fn judge(&mut self, adopt: bool) -> Findings {
        let mut findings = Findings::default();
        let (mut unwanted, mut arrived) = (Vec::new(), Vec::new());
        let may_leave = !self.desired.is_everyone_wanted() && !adopt;
        self.desired.peers.update_all(|subnet, peer| {
            let (sighting, is_direct) = (peer.sighting, peer.presence.is_direct());
            if adopt && !sighting.is_empty() && !is_direct {
                peer.presence.ask();
            }
            if may_leave && sighting.is_idle() {
                peer.presence.leave();
                findings.idle += 1;
            }
            if !peer.presence.is_wanted() {
                if !sighting.is_empty() {
                    unwanted.push((subnet, peer.endpoint));
                }
            } else if sighting.is_complete(is_direct) && (adopt || !self.work.is_peer_due(&subnet)) {
                // What became due while the dump ran is not as the dump shows it.
                findings.right += 1;
                if adopt {
                    peer.presence.adopt();
                }
                if !peer.presence.is_in_kernel() {
                    arrived.push(subnet);
                }
            } else {
                findings.due += 1;
                self.counts.peers_mended += u64::from(peer.presence.lose());
                self.work.put_peer(subnet);
            }
        });
        for (subnet, endpoint) in unwanted {
            self.work.delete_all(self.desired.rows(subnet, endpoint));
            self.work.delete_all(self.desired.temporary.take(subnet));
        }
        arrived.into_iter().for_each(|subnet| self.peer_arrived(subnet));
        findings
    }
}
