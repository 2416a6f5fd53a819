//! A peer whose host is on a link of the underlay gets a route through that host: with DirectRouting instead of a tunnel, with
//! host-gw in any case. Where there is no tunnel and the host is not on a link, there is no way to the peer.
//!
//! The kernel's routes tell which hosts are: the route to such a host's address has no gateway. The plane names the peers to
//! be decided ([`Plane::undecided`]) and is told ([`Plane::decide`]), again whenever routes change. Such a peer is one route,
//! and is put in both modes: its first packet would ask no question.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::Plane;
use crate::overlay::kernel::Row;
use crate::overlay::peers::Peer;

impl Plane {
    /// Whether peers are routed directly where they can be.
    pub fn routes_directly(&self) -> bool {
        self.desired.setup.ways.host
    }

    /// The next peer of which it is to be found out whether its host can be reached without a gateway, and that host.
    pub fn undecided(&mut self) -> Option<(IpNetwork, IpAddr)> {
        loop {
            let subnet = self.work.next_undecided()?;
            if let Some(peer) = self.desired.peers.get(&subnet) {
                return Some((subnet, peer.endpoint.remote));
            }
        }
    }

    /// Whether [`Plane::undecided`] has any.
    pub fn has_undecided(&self) -> bool {
        self.work.has_undecided()
    }

    /// The answer for one peer.
    pub fn decide(&mut self, subnet: IpNetwork, host: IpAddr, direct: bool) {
        let has_no_way = !direct && !self.desired.setup.ways.tunnel;
        let is_concerned =
            |peer: &&Peer| peer.endpoint.remote == host && (has_no_way || peer.presence.is_direct() != direct);
        let Some(peer) = self.desired.peers.get(&subnet).filter(is_concerned) else { return };
        let (endpoint, may_have_rows) = (peer.endpoint, peer.presence.is_wanted() || !peer.sighting.is_empty());
        // A row that is still wanted is not deleted: that is looked at when its turn comes.
        if may_have_rows && direct {
            self.strangers.note_former(endpoint);
            self.work.delete_all(self.desired.rows(subnet, endpoint));
            self.work.delete_all(self.desired.temporary.take(subnet));
        } else if !direct && peer.presence.is_direct() {
            self.work.delete(Row::Route(self.desired.direct_route(subnet, host)));
        }
        let is_everyone_wanted = self.desired.is_everyone_wanted();
        let Some(mut peer) = self.desired.peers.get_mut(&subnet) else { return };
        peer.sighting.clear();
        if direct {
            peer.presence.go_direct();
        } else if has_no_way {
            if peer.presence.go_unreached() {
                self.unreached.add(subnet, host);
            }
        } else {
            peer.presence.go_through_tunnel(is_everyone_wanted);
        }
        if peer.presence.is_wanted() {
            self.work.put_peer(subnet);
        }
    }

    /// Routes of other programs have changed, to `destination` or anywhere: the peers behind them are to be decided again.
    pub fn redecide(&mut self, destination: Option<IpNetwork>) {
        if !self.desired.setup.ways.host {
            return;
        }
        self.desired.peers.update_all(|subnet, peer| {
            if !destination.is_none_or(|destination| destination.contains(peer.endpoint.remote)) {
                return;
            }
            self.work.decide(subnet);
            // A link that went down has taken the peer's route with it without a word, and this is its own that is back.
            if destination.is_some() && peer.presence.is_direct() && peer.presence.lose() {
                self.work.put_peer(subnet);
            }
        });
    }

    /// A peer has another host than this one now: a direct route through the old host goes, and the peer is decided anew.
    pub(super) fn host_changed(&mut self, subnet: IpNetwork, old: IpAddr) {
        if !self.desired.setup.ways.host {
            return;
        }
        self.work.decide(subnet);
        let is_everyone_wanted = self.desired.is_everyone_wanted();
        let Some(mut peer) = self.desired.peers.get_mut(&subnet) else { return };
        let was_direct = peer.presence.is_direct();
        peer.presence.forget_way(is_everyone_wanted);
        drop(peer);
        if was_direct {
            self.work.delete(Row::Route(self.desired.direct_route(subnet, old)));
        }
    }
}
