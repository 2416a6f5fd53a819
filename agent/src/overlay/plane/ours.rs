//! Which rows are ours: how a daemon that has just started knows what an earlier one, or flannel, has written.
//!
//! Every FDB row of our device is, unless a record contradicts it (`contradiction`).

use super::desired::Desired;
use crate::overlay::kernel::{NeighState, PROTOCOL, Route, SeenFdb, SeenNeigh, Via};

impl Desired {
    /// Whether a neighbour is ours: it has our protocol, or it is a permanent one of a gateway address, as flannel's are.
    pub(super) fn owns_neigh(&self, seen: &SeenNeigh) -> bool {
        let is_gateway = || self.subnet_of_gateway(seen.address).is_some();
        seen.protocol == PROTOCOL || seen.state == NeighState::Permanent && is_gateway()
    }

    /// Whether a route is ours: it has our protocol and lies within our network, or it has the shape of flannel's.
    pub(super) fn owns_route(&self, route: &Route) -> bool {
        let Route { destination, via, protocol, .. } = *route;
        let inside = self.setup.net.network.contains(destination.network());
        match via {
            Via::Unreachable | Via::Blackhole | Via::Link { .. } => protocol == PROTOCOL && inside,
            // flannel's own: through the very host of the peer's record.
            Via::Direct(host) => {
                let is_host = || self.peers.get(&destination).is_some_and(|peer| peer.endpoint.remote == host);
                inside && (protocol == PROTOCOL || self.setup.ways.host && is_host())
            }
            Via::Elsewhere | Via::Prohibit | Via::Throw => false,
            Via::Gateway(gateway) => {
                protocol == PROTOCOL || gateway == destination.network() && self.setup.net.contains_subnet(&destination)
            }
        }
    }

    /// Whether an FDB row that is not as a record asks is one that nobody has written: it ages, and harms no peer.
    pub(super) fn is_learned(&self, seen: &SeenFdb) -> bool {
        let holder = self.peers.of_mac(seen.row.mac).and_then(|subnet| self.peers.get(&subnet));
        seen.ages && holder.is_none_or(|peer| peer.endpoint.fdb() == Some(seen.row))
    }
}

/// Whether another program may have written a neighbour: an entry of ours it has not, nor one that waits for an answer.
pub(super) fn is_strangers_neigh(seen: &SeenNeigh) -> bool {
    seen.protocol != PROTOCOL && seen.state != NeighState::Incomplete
}
