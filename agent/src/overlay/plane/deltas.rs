//! What the records change: which peers there are, and what of theirs becomes due or has to go.

use ipnetwork::IpNetwork;

use super::Plane;
use crate::overlay::kernel::{Route, Row};
use crate::overlay::peers::{Claim, Delta, Endpoint, Peer, Source};

impl Plane {
    /// We hold this subnet, under this key, with this claim. To be called before the first chunk is taken, and whenever our
    /// record changes. Says what that changed: a record that claims what is ours is no peer's.
    pub fn hold(&mut self, subnet: IpNetwork, source: Source, claim: Claim) -> Vec<Delta> {
        self.desired.setup.subnet = subnet;
        let deltas = self.desired.peers.set_own((subnet, source), claim);
        self.take_in(deltas)
    }

    /// Takes in a checked record. Says what it changed.
    pub fn put(&mut self, subnet: IpNetwork, source: Source, claim: Claim) -> Vec<Delta> {
        let deltas = self.desired.peers.put(subnet, source, claim);
        self.take_in(deltas)
    }

    /// The record of this key is gone or unusable. Says what that changed.
    pub fn remove(&mut self, subnet: IpNetwork, source: Source) -> Vec<Delta> {
        let deltas = self.desired.peers.remove(subnet, source);
        self.take_in(deltas)
    }

    /// A complete read of the records begins.
    pub fn listing(&mut self) {
        self.desired.peers.listing();
    }

    /// The complete read is done: peers that it did not name are gone. Says which.
    pub fn listed(&mut self) -> Vec<Delta> {
        self.desired.peers.unlisted().into_iter().flat_map(|(subnet, source)| self.remove(subnet, source)).collect()
    }

    fn take_in(&mut self, deltas: Vec<Delta>) -> Vec<Delta> {
        for delta in &deltas {
            match *delta {
                Delta::Joined(subnet) => self.joined(subnet),
                Delta::Changed { subnet, old } => self.changed(subnet, old),
                Delta::Left { subnet, ref peer, .. } => self.left(subnet, peer),
            }
        }
        deltas
    }

    fn joined(&mut self, subnet: IpNetwork) {
        if self.desired.refusals.forget(&subnet) {
            self.work.delete(Row::Route(Route::refusal(subnet)));
        }
        if self.desired.is_everyone_wanted() {
            if let Some(mut peer) = self.desired.peers.get_mut(&subnet) {
                peer.presence.want();
            }
            self.work.put_peer(subnet);
        }
        if self.desired.setup.ways.host {
            self.work.decide(subnet);
        }
        self.strangers.review(subnet, &self.desired, &mut self.work);
    }

    fn changed(&mut self, subnet: IpNetwork, old: Endpoint) {
        self.strangers.note_former(old);
        self.host_changed(subnet, old.remote);
        if self.desired.target(&subnet).is_some() {
            self.work.delete_all(old.fdb().map(Row::Fdb));
            self.work.put_peer(subnet);
        }
        if let Some(mut peer) = self.desired.peers.get_mut(&subnet) {
            peer.presence.lose();
            if peer.sighting.clear() {
                // The dump under way has already shown rows of the old VTEP.
                let rows = old.fdb().map(|fdb| [Row::Fdb(fdb), Row::Neigh(subnet.network())]);
                self.work.delete_all(rows.into_iter().flatten());
            }
        }
        self.answer_again(subnet);
        self.strangers.review(subnet, &self.desired, &mut self.work);
    }

    fn left(&mut self, subnet: IpNetwork, peer: &Peer) {
        self.work.forget_peer(&subnet);
        self.strangers.note_former(peer.endpoint);
        self.strangers.recheck_contested();
        self.work.delete_all(self.desired.temporary.take(subnet));
        if peer.presence.is_direct() {
            self.work.delete(Row::Route(self.desired.direct_route(subnet, peer.endpoint.remote)));
        } else if peer.presence.is_wanted() || !peer.sighting.is_empty() {
            self.work.delete_all(self.desired.rows(subnet, peer.endpoint));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::presence::Presence;

    /// There are 100,000 of them on a node of a large network.
    #[test]
    fn a_peer_takes_no_more_bytes_than_its_record_needs() {
        assert_eq!(size_of::<Presence>(), 2);
        assert_eq!(size_of::<Peer>(), 48);
        assert_eq!(size_of::<(IpNetwork, Peer)>(), 72);
    }
}
