//! DirectRouting: a peer whose host is on a link of the underlay gets a route through that host instead of a tunnel.
//!
//! Which hosts are, the kernel's routes tell: the one to the host's address has no gateway. The plane asks for each peer
//! ([`Plane::undecided`]) and is told ([`Plane::decide`]), again whenever routes change. Such a peer is one route, and is
//! put in both modes: there is no question that its first packet would ask.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::kernel::{Route, Row};
use super::plane::Plane;

impl Plane {
    /// Peers are routed directly where they can be (`DirectRouting` in the network config).
    pub fn route_directly(&mut self) {
        self.direct_routing = true;
        self.redecide(None);
    }

    /// The next peer of which it is to be found out whether its host can be reached without a gateway, and that host.
    pub fn undecided(&mut self) -> Option<(IpNetwork, IpAddr)> {
        loop {
            let subnet = self.undecided.pop_first()?;
            if let Some(peer) = self.peers.get(&subnet) {
                return Some((subnet, peer.vtep.remote));
            }
        }
    }

    /// Whether [`Plane::undecided`] has any.
    pub fn has_undecided(&self) -> bool {
        !self.undecided.is_empty()
    }

    /// The answer for one peer.
    pub fn decide(&mut self, subnet: IpNetwork, host: IpAddr, direct: bool) {
        let Some(peer) = self.peers.get(&subnet).filter(|peer| peer.vtep.remote == host && peer.direct != direct)
        else {
            return;
        };
        let (vtep, wanted) = (peer.vtep, self.wants(peer) || peer.seen != 0);
        // What of it is still wanted then is not deleted: that is looked at when its turn comes.
        if wanted && direct {
            self.note_former(vtep.fdb());
            self.strays.extend(self.rows(subnet, vtep));
        } else if !direct {
            self.strays.insert(Row::Route(self.direct_route(subnet, host)));
        }
        if let Some(peer) = self.peers.get_mut(&subnet) {
            (peer.direct, peer.installed, peer.seen) = (direct, false, 0);
        }
        if self.peers.get(&subnet).is_some_and(|peer| self.wants(peer)) {
            self.due.insert(subnet);
        }
    }

    /// Routes of others have changed, to `destination` or anywhere: the peers behind them are to be decided again.
    pub fn redecide(&mut self, destination: Option<IpNetwork>) {
        if !self.direct_routing {
            return;
        }
        let concerned = |host: IpAddr| destination.is_none_or(|destination| destination.contains(host));
        let peers = self.peers.iter().filter(|(_, peer)| concerned(peer.vtep.remote));
        self.undecided.extend(peers.map(|(subnet, _)| *subnet));
    }

    /// A peer that was routed directly has another host now: that route goes, and it is decided anew.
    pub(super) fn host_changed(&mut self, subnet: IpNetwork, old: IpAddr) {
        if !self.direct_routing {
            return;
        }
        self.undecided.insert(subnet);
        let was_direct = self.peers.get_mut(&subnet).is_some_and(|peer| std::mem::take(&mut peer.direct));
        if was_direct {
            self.strays.insert(Row::Route(self.direct_route(subnet, old)));
        }
    }

    pub(super) fn direct_route(&self, subnet: IpNetwork, host: IpAddr) -> Route {
        Route::direct(subnet, self.setup.net.index(&subnet), host)
    }
}
