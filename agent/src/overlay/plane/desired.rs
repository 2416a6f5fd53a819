//! What should be in the kernel: a function of the records, the mode, the misses and the flags.

use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::refusals::Refusals;
use super::temporary::TemporaryNeighbours;
use crate::overlay::backend::Ways;
use crate::overlay::config::FamilyConfig;
use crate::overlay::kernel::{Fdb, Neigh, Op, Route, Row};
use crate::overlay::peers::{Endpoint, Peer, Peers};

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
    /// Our own subnet; see [`Plane::hold`](super::Plane::hold).
    pub subnet: IpNetwork,
    /// The ways to a peer.
    pub ways: Ways,
    /// When peers are programmed.
    pub mode: PeerMode,
    /// On demand: how long a peer may go without a packet before its rows are taken out.
    pub idle: Duration,
}

/// What one address family should have in the kernel.
///
/// A row is wanted or it is not: [`Self::is_wanted`] says so at any moment, for any row. Nothing here says what is due;
/// that is the work queue's.
#[derive(Debug)]
pub(super) struct Desired {
    pub(super) setup: Setup,
    /// The peers, each with how far it has come ([`Presence`](crate::overlay::presence::Presence)).
    pub(super) peers: Peers,
    /// The unleased blocks whose senders get an error.
    pub(super) refusals: Refusals,
    /// The neighbours that let waiting packets go.
    pub(super) temporary: TemporaryNeighbours,
    /// `--ip-blackhole-route`.
    pub(super) blackhole: bool,
    /// The daemon is about to stop and leaves every peer in the kernel.
    pub(super) everyone: bool,
}

impl Desired {
    pub(super) fn new(setup: Setup) -> Self {
        Self {
            setup,
            peers: Peers::default(),
            refusals: Refusals::default(),
            temporary: TemporaryNeighbours::default(),
            blackhole: false,
            everyone: false,
        }
    }

    /// Whether each peer is wanted, also without a packet that asks for it.
    pub(super) fn is_everyone_wanted(&self) -> bool {
        self.setup.ways.tunnel && (self.everyone || self.setup.mode == PeerMode::All)
    }

    /// Whether it is ours to reach a peer: there is a way to it that we know.
    pub(super) fn is_ours_to_reach(&self, peer: &Peer) -> bool {
        self.setup.ways.tunnel || peer.presence.is_direct()
    }

    /// The VTEP of a subnet's peer, if the rows of its tunnel should be in the kernel.
    pub(super) fn target(&self, subnet: &IpNetwork) -> Option<Endpoint> {
        let peer = self.peers.get(subnet).filter(|peer| peer.presence.is_wanted() && !peer.presence.is_direct());
        peer.map(|peer| peer.endpoint)
    }

    /// The same for the peer whose gateway this address is, with its subnet.
    pub(super) fn target_of_gateway(&self, address: IpAddr) -> Option<(IpNetwork, Endpoint)> {
        let subnet = self.subnet_of_gateway(address)?;
        self.target(&subnet).map(|endpoint| (subnet, endpoint))
    }

    /// The subnet whose gateway this address would be: the one of which it is the first address.
    pub(super) fn subnet_of_gateway(&self, address: IpAddr) -> Option<IpNetwork> {
        self.setup.net.subnet_of(address).filter(|subnet| subnet.network() == address)
    }

    /// The routes that are there whoever the peers are: the base route, where the mode has one, and the one that drops what
    /// is left of our own subnet.
    pub(super) fn base(&self) -> impl Iterator<Item = Route> {
        let on_demand = self.setup.ways.tunnel && self.setup.mode == PeerMode::OnDemand;
        let base = on_demand.then(|| Route::base(self.setup.net.network, self.setup.subnet.network()));
        base.into_iter().chain(self.blackhole.then(|| Route::blackhole(self.setup.subnet)))
    }

    /// The route of a peer's subnet as it should be, whether or not it should be there.
    pub(super) fn peer_route(&self, subnet: IpNetwork) -> Route {
        match self.peers.get(&subnet) {
            Some(peer) if peer.presence.is_direct() => self.direct_route(subnet, peer.endpoint.remote),
            _ => Route::peer(subnet, self.setup.net.index(&subnet)),
        }
    }

    /// The route of a subnet through a host, without a tunnel.
    pub(super) fn direct_route(&self, subnet: IpNetwork, host: IpAddr) -> Route {
        Route::direct(subnet, self.setup.net.index(&subnet), host)
    }

    /// The route of a peer's subnet, if it should be there.
    pub(super) fn wanted_route(&self, subnet: IpNetwork) -> Option<Route> {
        let peer = self.peers.get(&subnet).filter(|peer| peer.presence.is_wanted());
        peer.map(|_| self.peer_route(subnet))
    }

    /// The rows of a peer, in the order of their deletion.
    pub(super) fn rows(&self, subnet: IpNetwork, endpoint: Endpoint) -> impl Iterator<Item = Row> + use<> {
        let on_device = endpoint.fdb().map(|fdb| [Row::Neigh(subnet.network()), Row::Fdb(fdb)]);
        [Row::Route(self.peer_route(subnet))].into_iter().chain(on_device.into_iter().flatten())
    }

    /// What puts a wanted peer into the kernel, in this order: FDB row, neighbour, route; for a direct one the route alone.
    /// Nothing if the peer is there.
    pub(super) fn puts(&self, subnet: IpNetwork) -> impl Iterator<Item = Op> {
        let peer = self.peers.get(&subnet).filter(|peer| peer.presence.is_wanted() && !peer.presence.is_in_kernel());
        let fdb = peer.filter(|peer| !peer.presence.is_direct()).and_then(|peer| peer.endpoint.fdb());
        let tunnel = fdb.map(|fdb| {
            let neigh = Neigh { address: subnet.network(), mac: fdb.mac };
            [Op::PutFdb(fdb), Op::PutNeigh(neigh)]
        });
        let route = peer.map(|_| Op::PutRoute(self.peer_route(subnet)));
        tunnel.into_iter().flatten().chain(route)
    }

    /// Whether a row should be in the kernel now.
    pub(super) fn is_wanted(&self, row: &Row) -> bool {
        match row {
            Row::Route(route) => {
                self.base().any(|base| base == *route)
                    || self.is_refusal(route)
                    || self.wanted_route(route.destination) == Some(*route)
            }
            Row::Neigh(address) => self.temporary.contains(address) || self.target_of_gateway(*address).is_some(),
            Row::Fdb(fdb) => self.wanted_fdb(fdb),
        }
    }

    /// Whether a route refuses an unleased block, as it should.
    pub(super) fn is_refusal(&self, route: &Route) -> bool {
        self.refusals.contains(&route.destination) && *route == Route::refusal(route.destination)
    }

    fn wanted_fdb(&self, fdb: &Fdb) -> bool {
        let holder = self.peers.of_mac(fdb.mac);
        holder.and_then(|subnet| self.target(&subnet)).is_some_and(|endpoint| endpoint.fdb() == Some(*fdb))
    }

    /// The wanted route that has this one's prefix and metric, if it is another one: the kernel holds one of both.
    pub(super) fn wanted_in_place_of(&self, route: &Route) -> Option<Route> {
        let subnet = route.destination;
        let is_subnet = self.setup.net.contains_subnet(&subnet);
        let peer = || self.wanted_route(subnet).filter(|_| is_subnet);
        let refusal = || self.refusals.contains(&subnet).then(|| Route::refusal(subnet));
        self.base()
            .chain(peer())
            .chain(refusal())
            .find(|wanted| (wanted.destination, wanted.metric) == (subnet, route.metric) && wanted != route)
    }
}
