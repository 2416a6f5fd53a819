//! Which rows of other programs contradict the records, and which routes of theirs go before ours.
//!
//! Both are functions of the records and the mode; `strangers` remembers the rows.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::desired::{Desired, PeerMode};
use crate::overlay::MacAddr;
use crate::overlay::kernel::{Fdb, OtherDevice, Route, Row, Via};

/// `RTPROT_KERNEL`: a route that comes and goes with an address of the device.
const KERNEL: u8 = 2;

/// A row on our device that contradicts the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contradiction {
    /// A route to a peer's or our own addresses that leads elsewhere.
    Route(Route),
    /// A neighbour with a MAC that is not its peer's.
    Neigh(IpAddr, MacAddr),
    /// An FDB row that no record asks for.
    Fdb(Fdb),
}

/// A route of another program, on another device, that goes before ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contested {
    /// Whose packets the route takes: a peer's subnet, or a larger part of the network.
    pub part: IpNetwork,
    /// The route.
    pub route: Route,
    /// The route's device, where it has one.
    pub ifindex: Option<u32>,
}

impl Contested {
    /// Whether the kernel has put the route for an address of this host.
    pub fn is_of_an_address(&self) -> bool {
        self.route.protocol == KERNEL && self.route.via == Via::Elsewhere
    }

    /// Whether the route may be that of the pods' bridge, which keeps the address of a subnet that this node has lost until
    /// its operator removes it. Such a route does not make this node unfit to run pods.
    ///
    /// The bridge's name is in the CNI config, which the daemon does not read, and the bridge plugin leaves no mark on it. So
    /// any bridge that could be one counts; a route of any other device is no left-over.
    pub fn may_be_our_former(&self, device: Option<&OtherDevice>) -> bool {
        let is_bridge = device.is_some_and(|device| device.may_be_pods_bridge);
        is_bridge && self.is_of_an_address() && self.part == self.route.destination
    }
}

impl Contradiction {
    pub(super) fn row(self) -> Row {
        match self {
            Self::Route(route) => Row::Route(route),
            Self::Neigh(address, _) => Row::Neigh(address),
            Self::Fdb(fdb) => Row::Fdb(fdb),
        }
    }

    /// The place of its kind among routes, neighbours, FDB rows.
    pub(super) fn kind(self) -> usize {
        match self {
            Self::Route(_) => 0,
            Self::Neigh(..) => 1,
            Self::Fdb(_) => 2,
        }
    }
}

/// Whether a route leads through our device.
pub(super) fn is_on_device(route: &Route) -> bool {
    matches!(route.via, Via::Link { .. } | Via::Gateway(_))
}

impl Desired {
    /// The part of the network whose packets a route on another device takes before ours, if it takes any. `look`: whether
    /// the peers are to be looked through for one behind a route to several subnets; else there may be one.
    pub(super) fn taken_by(&self, route: &Route, look: bool) -> Option<IpNetwork> {
        if self.is_to_several_subnets(route) {
            self.covers_peers(route, look).then_some(route.destination)
        } else {
            self.peer_behind(route)
        }
    }

    /// Whether a route is to more than one subnet.
    pub(super) fn is_to_several_subnets(&self, route: &Route) -> bool {
        route.destination.prefix() < self.setup.net.subnet_len
    }

    /// The peer whose packets a route takes that is to its subnet or to a part of it.
    fn peer_behind(&self, route: &Route) -> Option<IpNetwork> {
        let subnet = self.setup.net.subnet_of(route.destination.network())?;
        let peer = self.peers.get(&subnet).filter(|peer| self.is_ours_to_reach(peer))?;
        // A route to the very host that the record names leads to the peer without a tunnel.
        let leads_there = route.via == Via::Direct(peer.endpoint.remote);
        let is_part = route.destination.prefix() > subnet.prefix();
        let is_asked_for = self.setup.mode == PeerMode::All || peer.presence.is_in_kernel();
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
    pub(super) fn contradicts(&self, route: &Route) -> bool {
        let (to, net) = (route.destination, &self.setup.net);
        if !is_on_device(route) || !self.is_inside(to) {
            return false;
        }
        if self.is_own(to) {
            return route.protocol != KERNEL;
        }
        if self.is_to_several_subnets(route) {
            return true;
        }
        let subnet = net.subnet_of(to.network());
        let peer = subnet.and_then(|subnet| self.peers.get(&subnet));
        // A route through the peer's own gateway leads to the peer.
        peer.is_some_and(|peer| {
            peer.presence.is_direct() || route.via != Via::Gateway(subnet.map_or(to.network(), |s| s.network()))
        })
    }

    /// Whether a prefix lies within our network.
    pub(super) fn is_inside(&self, to: IpNetwork) -> bool {
        let network = self.setup.net.network;
        network.contains(to.network()) && to.prefix() >= network.prefix()
    }

    /// Whether a prefix lies within our own subnet.
    pub(super) fn is_own(&self, to: IpNetwork) -> bool {
        let own = self.setup.subnet;
        own.contains(to.network()) && to.prefix() >= own.prefix()
    }

    /// The MAC that a neighbour has although its peer has another one.
    pub(super) fn wrong_mac(&self, address: IpAddr, mac: Option<MacAddr>) -> Option<MacAddr> {
        let peer = self.setup.net.subnet_of(address).and_then(|subnet| self.peers.get(&subnet));
        mac.filter(|mac| peer.is_some_and(|peer| !peer.presence.is_direct() && peer.endpoint.mac != Some(*mac)))
    }

    /// Whether a row that contradicted the records does so still.
    pub(super) fn is_wrong(&self, contradiction: &Contradiction) -> bool {
        match contradiction {
            Contradiction::Route(route) => self.contradicts(route),
            Contradiction::Neigh(address, mac) => self.wrong_mac(*address, Some(*mac)).is_some(),
            Contradiction::Fdb(_) => true,
        }
    }
}
