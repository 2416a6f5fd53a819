//! Rows of other programs inside our network.
//!
//! The device is ours: a row there that leads a peer's packets anywhere but to that peer is removed at once. What is on
//! another device is not ours to remove: a route there that goes before ours is named, and this node is not ready towards
//! that peer. Everything else is left alone, and remembered, since a record that comes later may make it wrong. Of routes
//! only the main table is looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::MacAddr;
use super::kernel::{Fdb, NeighState, PROTOCOL, Route, Row, SeenFdb, SeenNeigh, SeenRoute, Via};
use super::plane::{PeerMode, Plane};

/// How many rows that are left alone are remembered. Of more, the next comparison finds what has become wrong.
const REMEMBERED: usize = 1024;
/// How many rows are removed at the notification, until the next comparison; more are removed at the pace of retries. Else
/// a program that puts a row back at each notification of its own keeps both busy.
const AT_ONCE: u32 = 64;
/// For how many routes all peers are looked through, in the search for one behind it.
const PEERS_LOOKED_THROUGH: u32 = 16;
/// `RTPROT_KERNEL`: a route that comes and goes with an address of the device.
const KERNEL: u8 = 2;

/// Rows of others that are left alone.
#[derive(Debug, Default)]
pub(super) struct LeftAlone {
    /// With the device, where that is another one than ours.
    routes: BTreeMap<Route, Option<u32>>,
    neighbours: BTreeMap<IpAddr, MacAddr>,
}

/// A row on our device that contradicted the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contradiction {
    /// A route to a peer's or our own addresses that leads elsewhere.
    Route(Route),
    /// A neighbour with a MAC that is not its peer's.
    Neigh(IpAddr, MacAddr),
    /// An FDB row that no record asks for.
    Fdb(Fdb),
}

/// The contradictions that were found since somebody asked last.
#[derive(Debug, Default)]
pub struct Mended {
    /// The last one of each kind, and how many there were: routes, neighbours, FDB rows.
    pub kinds: [Option<(Contradiction, u64)>; 3],
}

/// A route of another program, on another device, that goes before ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contested {
    /// Whose packets it takes: a peer's subnet, or a larger part of the network.
    pub part: IpNetwork,
    /// The route.
    pub route: Route,
    /// Its device, where it has one.
    pub ifindex: Option<u32>,
}

impl Contested {
    /// Whether the kernel has put the route for an address of this host.
    pub fn is_of_an_address(&self) -> bool {
        self.route.protocol == KERNEL && self.route.via == Via::Elsewhere
    }

    /// Whether it may be that of the pods' bridge, which keeps the address of a subnet that this node has lost until its
    /// operator removes it. That is no reason for this node to be held for unfit to run pods.
    pub fn may_be_our_former(&self) -> bool {
        self.is_of_an_address() && self.part == self.route.destination
    }
}

/// What is known of strangers' rows.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    left_alone: LeftAlone,
    mended: Mended,
    /// How many were removed at notifications.
    at_once: u32,
    /// FDB rows that were ours until lately: the kernel tells of our own writes too, and late.
    former: BTreeSet<Fdb>,
    /// What goes before our routes may be something else now.
    changed: bool,
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

    /// Those in this part of the network that contradict the records as they are now.
    fn contradictions(&self, plane: &Plane, part: IpNetwork) -> Vec<Contradiction> {
        let is_inside = |route: &&Route| part.contains(route.destination.network());
        // Routes are in the order of their destinations.
        let routes = self.routes.keys().skip_while(|route| !is_inside(route)).take_while(is_inside);
        let routes = routes.map(|route| Contradiction::Route(*route));
        let neighbours = self.neighbours.range(part.network()..=part.broadcast());
        let neighbours = neighbours.map(|(address, mac)| Contradiction::Neigh(*address, *mac));
        routes.chain(neighbours).filter(|wrong| plane.is_wrong(wrong)).collect()
    }

    fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.neighbours.is_empty()
    }
}

impl Contradiction {
    fn row(self) -> Row {
        match self {
            Self::Route(route) => Row::Route(route),
            Self::Neigh(address, _) => Row::Neigh(address),
            Self::Fdb(fdb) => Row::Fdb(fdb),
        }
    }

    fn kind(self) -> usize {
        match self {
            Self::Route(_) => 0,
            Self::Neigh(..) => 1,
            Self::Fdb(_) => 2,
        }
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

/// Whether a route leads through our device.
fn is_on_device(route: &Route) -> bool {
    matches!(route.via, Via::Link { .. } | Via::Gateway(_))
}

impl Plane {
    /// Whether rows were mended since [`Plane::take_mended`].
    pub fn has_mended(&self) -> bool {
        !self.strangers.mended.is_empty()
    }

    /// The rows of others on our device that contradicted the records. Asked once, they are forgotten.
    pub fn take_mended(&mut self) -> Mended {
        std::mem::take(&mut self.strangers.mended)
    }

    /// Whether [`Plane::contested`] may have another answer than the last time; asked once, it is so no more.
    pub fn take_contested_changed(&mut self) -> bool {
        std::mem::take(&mut self.strangers.changed)
    }

    /// The routes of others that go before ours, in order.
    pub fn contested(&self) -> Vec<Contested> {
        let elsewhere = |(route, _): &(&Route, &Option<u32>)| !is_on_device(route) && !self.is_own(route.destination);
        let mut looks = PEERS_LOOKED_THROUGH;
        let mut taken = |route: &Route| {
            if route.destination.prefix() < self.setup.net.subnet_len {
                looks = looks.saturating_sub(1);
                self.covers_peers(route, looks > 0).then_some(route.destination)
            } else {
                self.peer_behind(route)
            }
        };
        let routes = self.strangers.left_alone.routes.iter().filter(elsewhere);
        let contested = routes
            .filter_map(|(route, ifindex)| Some(Contested { part: taken(route)?, route: *route, ifindex: *ifindex }));
        contested.collect()
    }

    /// The peer whose packets a route takes that is to its subnet or to a part of it.
    fn peer_behind(&self, route: &Route) -> Option<IpNetwork> {
        let subnet = self.setup.net.subnet_of(route.destination.network())?;
        let peer = self.peers.get(&subnet)?;
        // To the very host that the record names it is a tunnel less.
        let leads_there = route.via == Via::Direct(peer.vtep.remote);
        let is_part = route.destination.prefix() > subnet.prefix();
        let is_asked_for = self.setup.mode == PeerMode::All || peer.installed;
        let goes_before = is_part || !is_asked_for || route.metric < self.peer_route(subnet).metric;
        (goes_before && !leads_there).then_some(subnet)
    }

    /// Whether a route to several subnets goes before the base route and there are peers in it, where `look` says that this
    /// is to be found out. A peer's own route goes before it, once a packet has asked for that.
    fn covers_peers(&self, route: &Route, look: bool) -> bool {
        let network = self.setup.net.network;
        let Some(base) = self.base().find(|base| base.destination == network) else { return false };
        let goes_before = route.destination.prefix() > network.prefix() || route.metric < base.metric;
        goes_before && (!look || self.peers.iter().any(|(subnet, _)| route.destination.contains(subnet.network())))
    }

    /// Whether a route on our device leads a peer's packets, or our own pods', to the wrong place.
    fn contradicts(&self, route: &Route) -> bool {
        let (to, net) = (route.destination, &self.setup.net);
        if !is_on_device(route) || !self.is_inside(to) {
            return false;
        }
        if self.is_own(to) {
            return route.protocol != KERNEL;
        }
        if to.prefix() < net.subnet_len {
            return true;
        }
        let subnet = net.subnet_of(to.network());
        let peer = subnet.and_then(|subnet| self.peers.get(&subnet));
        // Through the peer's own gateway it leads to the peer.
        peer.is_some_and(|peer| peer.direct || route.via != Via::Gateway(subnet.map_or(to.network(), |s| s.network())))
    }

    fn is_inside(&self, to: IpNetwork) -> bool {
        let network = self.setup.net.network;
        network.contains(to.network()) && to.prefix() >= network.prefix()
    }

    fn is_own(&self, to: IpNetwork) -> bool {
        let own = self.setup.subnet;
        own.contains(to.network()) && to.prefix() >= own.prefix()
    }

    /// The MAC that a neighbour has although its peer has another one.
    fn wrong_mac(&self, address: IpAddr, mac: Option<MacAddr>) -> Option<MacAddr> {
        let peer = self.setup.net.subnet_of(address).and_then(|subnet| self.peers.get(&subnet));
        mac.filter(|mac| peer.is_some_and(|peer| !peer.direct && peer.vtep.mac != *mac))
    }

    /// A notification shows a route that is not ours.
    pub(super) fn saw_strangers_route(&mut self, seen: &SeenRoute) {
        if !self.is_inside(seen.route.destination) {
            return;
        }
        if self.contradicts(&seen.route) {
            self.remove_at_once(Contradiction::Route(seen.route));
        } else {
            self.strangers.left_alone.put_route(seen);
            self.comparison.left_alone.put_route(seen);
            self.strangers.changed = true;
        }
    }

    /// A notification shows a neighbour that is not ours.
    pub(super) fn saw_strangers_neigh(&mut self, seen: &SeenNeigh) {
        if let Some(mac) = self.wrong_mac(seen.address, seen.mac) {
            self.remove_at_once(Contradiction::Neigh(seen.address, mac));
        } else if let Some(mac) = seen.mac.filter(|_| self.setup.net.network.contains(seen.address)) {
            self.strangers.left_alone.put_neigh(seen.address, mac);
            self.comparison.left_alone.put_neigh(seen.address, mac);
        }
    }

    /// A notification or a dump shows an FDB row that no record asks for.
    pub(super) fn note_fdb(&mut self, fdb: Fdb) {
        if !self.strangers.former.contains(&fdb) && self.strangers.former.len() < REMEMBERED {
            self.strangers.mended.add(Contradiction::Fdb(fdb));
        }
    }

    /// This was a peer's FDB row.
    pub(super) fn note_former(&mut self, fdb: Fdb) {
        if self.strangers.former.len() < REMEMBERED {
            self.strangers.former.insert(fdb);
        }
    }

    /// A wanted neighbour was overwritten; it is put right.
    pub(super) fn note_overwritten(&mut self, seen: &SeenNeigh) {
        if let Some(mac) = seen.mac {
            self.strangers.mended.add(Contradiction::Neigh(seen.address, mac));
        }
    }

    /// A row is gone, whosever it was.
    pub(super) fn strangers_row_gone(&mut self, row: &Row) {
        for left_alone in [&mut self.strangers.left_alone, &mut self.comparison.left_alone] {
            match row {
                Row::Route(route) => self.strangers.changed |= left_alone.routes.remove(route).is_some(),
                Row::Neigh(address) => drop(left_alone.neighbours.remove(address)),
                Row::Fdb(_) => {}
            }
        }
    }

    /// The routes on another device are gone.
    pub(super) fn strangers_device_down(&mut self, down: u32) {
        for left_alone in [&mut self.strangers.left_alone, &mut self.comparison.left_alone] {
            let before = left_alone.routes.len();
            left_alone.routes.retain(|_, ifindex| *ifindex != Some(down));
            self.strangers.changed |= left_alone.routes.len() != before;
        }
    }

    /// The dump under way shows a route that is not ours.
    pub(super) fn mark_strangers_route(&mut self, seen: &SeenRoute) {
        if !self.is_inside(seen.route.destination) {
        } else if self.contradicts(&seen.route) {
            self.comparison.contradictions.push(Contradiction::Route(seen.route));
        } else {
            self.comparison.left_alone.put_route(seen);
        }
    }

    /// The dump under way shows a neighbour that is not ours.
    pub(super) fn mark_strangers_neigh(&mut self, seen: &SeenNeigh) {
        if let Some(mac) = self.wrong_mac(seen.address, seen.mac) {
            self.comparison.contradictions.push(Contradiction::Neigh(seen.address, mac));
        } else if let Some(mac) = seen.mac.filter(|_| self.setup.net.network.contains(seen.address)) {
            self.comparison.left_alone.put_neigh(seen.address, mac);
        }
    }

    /// The dump is complete: what it showed of strangers' rows is what there is.
    pub(super) fn end_with_strangers(&mut self, left_alone: LeftAlone, contradictions: Vec<Contradiction>) {
        self.strangers.changed |= !(self.strangers.left_alone.routes.is_empty() && left_alone.routes.is_empty());
        self.strangers.left_alone = left_alone;
        (self.strangers.at_once, self.strangers.former) = (0, BTreeSet::new());
        // Records may have come and gone since the dump showed a row.
        let late = self.strangers.left_alone.contradictions(self, self.setup.net.network);
        late.iter().for_each(|contradiction| self.strangers_row_gone(&contradiction.row()));
        for contradiction in late.into_iter().chain(contradictions) {
            if self.is_wrong(&contradiction) {
                self.strangers.mended.add(contradiction);
                self.strays.insert(contradiction.row());
            }
        }
    }

    fn is_wrong(&self, contradiction: &Contradiction) -> bool {
        match contradiction {
            Contradiction::Route(route) => self.contradicts(route),
            Contradiction::Neigh(address, mac) => self.wrong_mac(*address, Some(*mac)).is_some(),
            Contradiction::Fdb(_) => true,
        }
    }

    /// A peer was put into the kernel, or is gone: which routes go before ours may be others now.
    pub(super) fn recheck_contested(&mut self) {
        self.strangers.changed |= !self.strangers.left_alone.routes.is_empty();
    }

    /// The record of this subnet has come, changed or gone: what was left alone in it may be wrong now.
    pub(super) fn review_strangers(&mut self, subnet: IpNetwork) {
        if self.strangers.left_alone.is_empty() {
            return;
        }
        self.strangers.changed = true;
        for contradiction in self.strangers.left_alone.contradictions(self, subnet) {
            self.strangers_row_gone(&contradiction.row());
            self.remove_at_once(contradiction);
        }
    }

    fn remove_at_once(&mut self, contradiction: Contradiction) {
        self.strangers.mended.add(contradiction);
        self.strangers.at_once = self.strangers.at_once.saturating_add(1);
        if self.strangers.at_once > AT_ONCE {
            self.remove_later(contradiction.row());
        } else {
            self.strays.insert(contradiction.row());
        }
    }

    /// Whether an FDB row that is not as a record asks is one that nobody has written: it ages, and harms no peer.
    pub(super) fn is_learned(&self, seen: &SeenFdb) -> bool {
        let holder = self.peers.of_mac(seen.row.mac).and_then(|subnet| self.peers.get(&subnet));
        seen.ages && holder.is_none_or(|peer| peer.vtep.fdb() == seen.row)
    }

    /// Whether a neighbour may be somebody's who wrote it: an entry of ours is not, nor one that waits.
    pub(super) fn is_strangers_neigh(&self, seen: &SeenNeigh) -> bool {
        seen.protocol != PROTOCOL && seen.state != NeighState::Incomplete
    }
}
