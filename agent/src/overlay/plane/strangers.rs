//! Rows of other programs inside our network.
//!
//! The device is ours: a row there that leads a peer's packets anywhere but to that peer is removed at once. What is on
//! another device is not ours to remove: a route there that goes before ours is named, and this node is not ready towards
//! that peer. Everything else is left alone, and remembered, since a record that comes later may make it wrong. Of routes
//! only the main table is looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::contradiction::{Contested, Contradiction, is_on_device};
use super::desired::Desired;
use super::work::WorkQueue;
use crate::overlay::MacAddr;
use crate::overlay::kernel::{Fdb, Route, Row, SeenNeigh, SeenRoute};
use crate::overlay::peers::Endpoint;

/// How many rows that are left alone are remembered. Of more, the next comparison finds what has become wrong.
const REMEMBERED: usize = 1024;
/// How many rows are removed at the notification, until the next comparison; more are removed at the pace of retries. Else
/// a program that puts a row back at each notification of its own keeps both busy.
const AT_ONCE: u32 = 64;
/// For how many routes all peers are looked through, in the search for one behind it.
const PEERS_LOOKED_THROUGH: u32 = 16;

/// The contradictions that were found since somebody asked last.
#[derive(Debug, Default)]
pub struct Mended {
    /// The last one of each kind, and how many there were: routes, neighbours, FDB rows.
    pub kinds: [Option<(Contradiction, u64)>; 3],
}

/// What is known of other programs' rows.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    left_alone: LeftAlone,
    mended: Mended,
    /// How many contradictions there were in all, by kind.
    counts: [u64; 3],
    /// How many rows were removed at notifications since the last comparison.
    at_once: u32,
    /// FDB rows that were ours until lately: the kernel tells of our own writes too, and late.
    former: BTreeSet<Fdb>,
    /// What goes before our routes may be something else now.
    changed: bool,
    /// What the dump under way has shown so far.
    dumped: DumpedRows,
}

/// What the dump under way has shown of other programs' rows.
#[derive(Debug, Default)]
struct DumpedRows {
    left_alone: LeftAlone,
    contradictions: Vec<Contradiction>,
}

/// Rows of other programs that are left alone.
#[derive(Debug, Default)]
struct LeftAlone {
    /// With the device, where that is another one than ours.
    routes: BTreeMap<Route, Option<u32>>,
    neighbours: BTreeMap<IpAddr, MacAddr>,
}

impl LeftAlone {
    fn put_route(&mut self, seen: &SeenRoute) {
        if self.routes.len() < REMEMBERED {
            self.routes.insert(seen.route, seen.ifindex);
        }
    }

    fn put_neigh(&mut self, address: IpAddr, mac: MacAddr) {
        if self.neighbours.len() < REMEMBERED {
            self.neighbours.insert(address, mac);
        }
    }

    /// The rows in this part of the network that contradict the records as they are now.
    fn contradictions(&self, desired: &Desired, part: IpNetwork) -> Vec<Contradiction> {
        let is_inside = |route: &&Route| part.contains(route.destination.network());
        // Routes are in the order of their destinations.
        let routes = self.routes.keys().skip_while(|route| !is_inside(route)).take_while(is_inside);
        let routes = routes.map(|route| Contradiction::Route(*route));
        let neighbours = self.neighbours.range(part.network()..=part.broadcast());
        let neighbours = neighbours.map(|(address, mac)| Contradiction::Neigh(*address, *mac));
        routes.chain(neighbours).filter(|wrong| desired.is_wrong(wrong)).collect()
    }

    fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.neighbours.is_empty()
    }
}

impl Mended {
    fn add(&mut self, contradiction: Contradiction) {
        let (last, count) = self.kinds[contradiction.kind()].get_or_insert((contradiction, 0));
        (*last, *count) = (contradiction, *count + 1);
    }

    /// Whether nothing was.
    pub fn is_empty(&self) -> bool {
        self.kinds.iter().all(Option::is_none)
    }
}

/// What is asked.
impl Strangers {
    /// Whether rows were mended since [`Self::take_mended`].
    pub(super) fn has_mended(&self) -> bool {
        !self.mended.is_empty()
    }

    pub(super) fn take_mended(&mut self) -> Mended {
        std::mem::take(&mut self.mended)
    }

    /// How many rows were mended in all: routes, neighbours, FDB rows.
    pub(super) fn counts(&self) -> [u64; 3] {
        self.counts
    }

    pub(super) fn take_contested_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The routes of other programs that go before ours, in order.
    pub(super) fn contested(&self, desired: &Desired) -> Vec<Contested> {
        let elsewhere =
            |(route, _): &(&Route, &Option<u32>)| !is_on_device(route) && !desired.is_own(route.destination);
        let mut looks = PEERS_LOOKED_THROUGH;
        let mut taken = |route: &Route| {
            looks = looks.saturating_sub(u32::from(desired.is_to_several_subnets(route)));
            desired.taken_by(route, looks > 0)
        };
        let routes = self.left_alone.routes.iter().filter(elsewhere);
        let contested = routes
            .filter_map(|(route, ifindex)| Some(Contested { part: taken(route)?, route: *route, ifindex: *ifindex }));
        contested.collect()
    }
}

/// What a notification tells.
impl Strangers {
    /// A notification shows a route that is not ours.
    pub(super) fn saw_route(&mut self, seen: &SeenRoute, desired: &Desired, work: &mut WorkQueue) {
        if !desired.is_inside(seen.route.destination) {
            return;
        }
        if desired.contradicts(&seen.route) {
            self.remove_at_once(Contradiction::Route(seen.route), work);
        } else {
            self.left_alone.put_route(seen);
            self.dumped.left_alone.put_route(seen);
            self.changed = true;
        }
    }

    /// A notification shows a neighbour that is not ours.
    pub(super) fn saw_neigh(&mut self, seen: &SeenNeigh, desired: &Desired, work: &mut WorkQueue) {
        if let Some(mac) = desired.wrong_mac(seen.address, seen.mac) {
            self.remove_at_once(Contradiction::Neigh(seen.address, mac), work);
        } else if let Some(mac) = seen.mac.filter(|_| desired.setup.net.network.contains(seen.address)) {
            self.left_alone.put_neigh(seen.address, mac);
            self.dumped.left_alone.put_neigh(seen.address, mac);
        }
    }

    /// A notification or a dump shows an FDB row that no record asks for.
    pub(super) fn note_fdb(&mut self, fdb: Fdb) {
        if !self.former.contains(&fdb) && self.former.len() < REMEMBERED {
            self.note(Contradiction::Fdb(fdb));
        }
    }

    /// The FDB row of this endpoint was a peer's.
    pub(super) fn note_former(&mut self, endpoint: Endpoint) {
        if self.former.len() < REMEMBERED {
            self.former.extend(endpoint.fdb());
        }
    }

    /// A wanted neighbour was overwritten; it is put right.
    pub(super) fn note_overwritten(&mut self, seen: &SeenNeigh) {
        if let Some(mac) = seen.mac {
            self.note(Contradiction::Neigh(seen.address, mac));
        }
    }

    /// A row is gone, whosever it was.
    pub(super) fn row_gone(&mut self, row: &Row) {
        for left_alone in [&mut self.left_alone, &mut self.dumped.left_alone] {
            match row {
                Row::Route(route) => self.changed |= left_alone.routes.remove(route).is_some(),
                Row::Neigh(address) => drop(left_alone.neighbours.remove(address)),
                Row::Fdb(_) => {}
            }
        }
    }

    /// Another device than ours is down, and its routes are gone.
    pub(super) fn device_down(&mut self, down: u32) {
        for left_alone in [&mut self.left_alone, &mut self.dumped.left_alone] {
            let before = left_alone.routes.len();
            left_alone.routes.retain(|_, ifindex| *ifindex != Some(down));
            self.changed |= left_alone.routes.len() != before;
        }
    }

    fn note(&mut self, contradiction: Contradiction) {
        self.mended.add(contradiction);
        self.counts[contradiction.kind()] += 1;
    }

    fn remove_at_once(&mut self, contradiction: Contradiction, work: &mut WorkQueue) {
        self.note(contradiction);
        self.at_once = self.at_once.saturating_add(1);
        if self.at_once > AT_ONCE {
            work.delete_later(contradiction.row());
        } else {
            work.delete(contradiction.row());
        }
    }
}

/// What a dump shows.
impl Strangers {
    /// A dump begins.
    pub(super) fn begin_dump(&mut self) {
        self.dumped = DumpedRows::default();
    }

    /// The dump under way shows a route that is not ours.
    pub(super) fn mark_route(&mut self, seen: &SeenRoute, desired: &Desired) {
        if !desired.is_inside(seen.route.destination) {
            return;
        }
        if desired.contradicts(&seen.route) {
            self.dumped.contradictions.push(Contradiction::Route(seen.route));
        } else {
            self.dumped.left_alone.put_route(seen);
        }
    }

    /// The dump under way shows a neighbour that is not ours.
    pub(super) fn mark_neigh(&mut self, seen: &SeenNeigh, desired: &Desired) {
        if let Some(mac) = desired.wrong_mac(seen.address, seen.mac) {
            self.dumped.contradictions.push(Contradiction::Neigh(seen.address, mac));
        } else if let Some(mac) = seen.mac.filter(|_| desired.setup.net.network.contains(seen.address)) {
            self.dumped.left_alone.put_neigh(seen.address, mac);
        }
    }

    /// The dump is complete: what it showed of other programs' rows is what there is.
    pub(super) fn end_dump(&mut self, desired: &Desired, work: &mut WorkQueue) {
        let DumpedRows { left_alone, contradictions } = std::mem::take(&mut self.dumped);
        self.changed |= !(self.left_alone.routes.is_empty() && left_alone.routes.is_empty());
        self.left_alone = left_alone;
        (self.at_once, self.former) = (0, BTreeSet::new());
        // Records may have come and gone since the dump showed a row.
        let late = self.left_alone.contradictions(desired, desired.setup.net.network);
        late.iter().for_each(|contradiction| self.row_gone(&contradiction.row()));
        for contradiction in late.into_iter().chain(contradictions) {
            if desired.is_wrong(&contradiction) {
                self.note(contradiction);
                work.delete(contradiction.row());
            }
        }
    }
}

/// What a record tells.
impl Strangers {
    /// A peer was put into the kernel, or is gone: other routes may go before ours now.
    pub(super) fn recheck_contested(&mut self) {
        self.changed |= !self.left_alone.routes.is_empty();
    }

    /// The record of this subnet has come, changed or gone: what was left alone in it may be wrong now.
    pub(super) fn review(&mut self, subnet: IpNetwork, desired: &Desired, work: &mut WorkQueue) {
        if self.left_alone.is_empty() {
            return;
        }
        self.changed = true;
        for contradiction in self.left_alone.contradictions(desired, subnet) {
            self.row_gone(&contradiction.row());
            self.remove_at_once(contradiction, work);
        }
    }
}
