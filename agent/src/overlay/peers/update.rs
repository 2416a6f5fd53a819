//! What a record changes for the table of peers.
//!
//! A record without a rival goes straight into the table. It enters the contest with its first rival, and leaves it with the
//! last one.

use std::collections::BTreeSet;

use super::claim::{Claim, Place};
use super::contest::{Resource, resources};
use super::{Delta, Peer, Peers};

impl Peers {
    /// Takes in what a key other than our own says now, `None` where it is gone.
    pub(super) fn update(&mut self, place: Place, claim: Option<Claim>) -> Vec<Delta> {
        let mut deltas = Vec::new();
        if self.is_own(place) {
            return deltas;
        }
        let before = self.contest.get(place).copied();
        match claim {
            None if before.is_none() => self.take(place, None, &mut deltas),
            Some(claim) if before.is_none() && !self.has_rival(place, &claim) => self.place(place, claim, &mut deltas),
            _ => {
                let before = before.or_else(|| self.counting(place));
                let concerned: Vec<Resource> =
                    before.into_iter().chain(claim).flat_map(|claim| resources(place, &claim)).collect();
                concerned.iter().for_each(|resource| self.enter(*resource));
                let changed = self.contest.set(place, claim);
                self.apply(&changed, &mut deltas);
                self.dismiss_unrivalled(concerned);
            }
        }
        match claim {
            Some(_) => self.set_listed(place, true),
            None => {
                self.unlisted.remove(&place);
            }
        }
        deltas
    }

    /// We hold this place with this claim now. This node ignores every other record that claims our subnet, MAC or address,
    /// even if the other nodes follow it.
    pub fn set_own(&mut self, place: Place, claim: Claim) -> Vec<Delta> {
        let before = self.own.replace((place, claim));
        // What stands under our key is ours.
        self.unlisted.remove(&place);
        let mut concerned: Vec<Resource> = resources(place, &claim).collect();
        let mut changed = BTreeSet::new();
        if let Some((left, claim)) = before {
            concerned.extend(resources(left, &claim));
            if left != place {
                changed.extend(self.contest.set(left, None));
            }
        }
        let is_moved = before.is_none_or(|(at, before)| at != place || before.endpoint != claim.endpoint);
        if before.is_none_or(|(_, before)| before.endpoint.remote != claim.endpoint.remote) {
            let at_our_address =
                self.by_subnet.iter().filter(|(_, peer)| peer.endpoint.remote == claim.endpoint.remote);
            at_our_address.for_each(|(subnet, peer)| self.contest.enter((*subnet, peer.source), peer.claim()));
        }
        concerned.iter().for_each(|resource| self.enter(*resource));
        changed.extend(self.contest.set(place, Some(claim)));
        if is_moved {
            // What touches us is another than before.
            changed.extend(self.contest.iter().map(|(place, ..)| place));
        }
        let mut deltas = Vec::new();
        self.apply(&changed, &mut deltas);
        if is_moved {
            concerned.extend(changed.iter().map(|(subnet, _)| Resource::Subnet(*subnet)));
        }
        self.dismiss_unrivalled(concerned);
        deltas
    }

    /// The claim of a place, if it is a peer's.
    fn counting(&self, (subnet, source): Place) -> Option<Claim> {
        self.by_subnet.get(&subnet).filter(|peer| peer.source == source).map(Peer::claim)
    }

    pub(super) fn is_own(&self, place: Place) -> bool {
        self.own.is_some_and(|(own, _)| own == place)
    }

    /// Whether another key claims our subnet, MAC or address.
    fn touches_own(&self, place: Place, claim: &Claim) -> bool {
        self.own.as_ref().is_some_and(|(own, ours)| {
            let has_our_mac = ours.endpoint.mac.is_some() && ours.endpoint.mac == claim.endpoint.mac;
            *own != place && (own.0 == place.0 || has_our_mac || ours.endpoint.remote == claim.endpoint.remote)
        })
    }

    /// Whether a claim that is not in the contest has to be in it.
    fn has_rival(&self, place: Place, claim: &Claim) -> bool {
        self.touches_own(place, claim)
            || self.by_subnet.get(&place.0).is_some_and(|peer| peer.source != place.1)
            || claim.endpoint.mac.and_then(|mac| self.of_mac(mac)).is_some_and(|subnet| subnet != place.0)
            || resources(place, claim).any(|resource| self.contest.is_claimed(resource))
    }

    /// The peer that has this resource, if one has, is in the contest from now on.
    fn enter(&mut self, resource: Resource) {
        let subnet = match resource {
            Resource::Subnet(subnet) => Some(subnet),
            Resource::Mac(mac) => self.of_mac(mac),
        };
        if let Some((subnet, peer)) = subnet.and_then(|subnet| self.by_subnet.get_key_value(&subnet)) {
            self.contest.enter((*subnet, peer.source), peer.claim());
        }
    }

    /// The peers that have these resources without a rival need no contest.
    fn dismiss_unrivalled(&mut self, resources: Vec<Resource>) {
        for resource in resources {
            if let Some(place) = self.contest.unrivalled(resource) {
                self.contest.dismiss(place);
            }
        }
    }

    /// Brings the table of peers to what the contest says of these places.
    fn apply(&mut self, changed: &BTreeSet<Place>, deltas: &mut Vec<Delta>) {
        self.note_own();
        let unlisted: Vec<Place> = changed.iter().copied().filter(|place| !self.is_listed(*place)).collect();
        self.drop_losers(changed, deltas);
        for place in changed {
            let Some(claim) = self.contest.get(*place).copied() else { continue };
            let is_peer = self.is_to_be_peer(*place);
            self.contest.set_peer(*place, is_peer);
            if is_peer {
                self.unlisted.remove(place);
                self.place(*place, claim, deltas);
            }
        }
        unlisted.into_iter().for_each(|place| self.set_listed(place, false));
    }

    /// Whether a place of the contest is a peer's.
    fn is_to_be_peer(&self, place: Place) -> bool {
        let claim = self.contest.get(place).filter(|_| self.contest.holds(place) && !self.is_own(place));
        claim.is_some_and(|claim| !self.touches_own(place, claim))
    }

    /// Whoever no longer counts goes before anybody comes, so that a MAC is free before it is given again.
    fn drop_losers(&mut self, changed: &BTreeSet<Place>, deltas: &mut Vec<Delta>) {
        for place in changed {
            let Some(counted) = self.counting(*place) else { continue };
            let holder = self.contest.holder(Resource::Subnet(place.0));
            if holder.is_some_and(|holder| self.is_to_be_peer(holder)) {
                // The subnet stays, with this record or another one.
                self.forget_mac(counted.endpoint.mac);
                continue;
            }
            let mac = self.contest.get(*place).and_then(|claim| claim.endpoint.mac).map(Resource::Mac);
            let by = mac.and_then(|mac| self.contest.holder(mac)).map(|(subnet, _)| subnet);
            self.take(*place, by.filter(|subnet| *subnet != place.0), deltas);
        }
    }

    /// Whether the complete read under way has named a place, which it has to do anew.
    fn is_listed(&self, place: Place) -> bool {
        let counting = self.by_subnet.get(&place.0).filter(|peer| peer.source == place.1);
        counting.is_none_or(|peer| peer.is_listed) && !self.unlisted.contains(&place)
    }

    fn set_listed(&mut self, place: Place, listed: bool) {
        if let Some(peer) = self.by_subnet.get_mut(&place.0).filter(|peer| peer.source == place.1) {
            peer.is_listed = listed;
        } else if listed || self.contest.get(place).is_none() || self.is_own(place) {
            self.unlisted.remove(&place);
        } else {
            self.unlisted.insert(place);
        }
    }

    /// Whom the other nodes follow instead of us.
    fn note_own(&mut self) {
        let Some((own, ours)) = self.own.filter(|(own, _)| !self.contest.holds(*own)) else {
            self.displaced_by = None;
            return;
        };
        self.displaced_by = resources(own, &ours).filter_map(|resource| self.contest.holder(resource)).min();
    }
}
