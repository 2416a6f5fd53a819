//! Records that claim one MAC or one subnet: which of them count.
//!
//! The claims that are bound to each other, directly or through others, are put in order ([`Claim::rank`]) and taken one by
//! one; each counts if neither its subnet nor its MAC is taken. So the answer does not depend on which came first here.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use super::super::MacAddr;
use super::claim::{Claim, Identity, Place, Source};
use super::{Delta, LISTED, Peer, Peers};

/// What no two records may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Resource {
    Subnet(IpNetwork),
    Mac(MacAddr),
}

impl Resource {
    fn is_mac(self) -> bool {
        matches!(self, Self::Mac(_))
    }
}

/// The records that do not count now.
#[derive(Debug, Default)]
pub(super) struct Aside {
    claims: BTreeMap<Place, Claim>,
    by_mac: BTreeMap<MacAddr, BTreeSet<Place>>,
    /// Not named yet by the complete read under way.
    unlisted: BTreeSet<Place>,
}

impl Aside {
    pub(super) fn insert(&mut self, place: Place, claim: Claim) {
        self.remove(place);
        self.by_mac.entry(claim.vtep.mac).or_default().insert(place);
        self.claims.insert(place, claim);
    }

    pub(super) fn remove(&mut self, place: Place) -> Option<Claim> {
        self.unlisted.remove(&place);
        let claim = self.claims.remove(&place)?;
        if let Entry::Occupied(mut places) = self.by_mac.entry(claim.vtep.mac) {
            places.get_mut().remove(&place);
            if places.get().is_empty() {
                places.remove();
            }
        }
        Some(claim)
    }

    pub(super) fn get(&self, place: Place) -> Option<&Claim> {
        self.claims.get(&place)
    }

    pub(super) fn places(&self) -> impl Iterator<Item = Place> + Clone {
        self.claims.keys().copied()
    }

    /// A complete read begins.
    pub(super) fn listing(&mut self) {
        self.unlisted = self.claims.keys().copied().collect();
    }

    /// Those that it has not named.
    pub(super) fn unlisted(&self) -> impl Iterator<Item = Place> {
        self.unlisted.iter().copied()
    }

    /// Those that claim this.
    fn of(&self, resource: Resource) -> impl Iterator<Item = (Place, Claim)> {
        let (of_subnet, of_mac) = match resource {
            Resource::Subnet(subnet) => {
                (Some(self.claims.range((subnet, Source(0))..=(subnet, Source(u32::MAX)))), None)
            }
            Resource::Mac(mac) => (None, self.by_mac.get(&mac)),
        };
        let of_mac = of_mac.into_iter().flatten().filter_map(|place| self.claims.get_key_value(place));
        of_subnet.into_iter().flatten().chain(of_mac).map(|(place, claim)| (*place, *claim))
    }
}

impl Peers {
    /// Takes in what a key says now, `None` where it is gone.
    pub(super) fn update(&mut self, place: Place, claim: Option<Claim>) -> Vec<Delta> {
        let aside = self.aside.remove(place);
        let counted = self.counting(place);
        let mut claimed = vec![Resource::Subnet(place.0)];
        claimed.extend([claim, aside, counted].into_iter().flatten().map(|claim| Resource::Mac(claim.vtep.mac)));
        let mut deltas = Vec::new();
        if claimed.iter().any(|resource| self.is_contested(*resource, place)) {
            self.decide(claimed, Some((place, claim)), &mut deltas);
        } else {
            match claim {
                Some(claim) if self.touches_own(place, &claim) => {
                    self.take(place, None, &mut deltas);
                    self.aside.insert(place, claim);
                }
                Some(claim) => self.place(place, claim, &mut deltas),
                None => self.take(place, None, &mut deltas),
            }
        }
        if claim.is_some() {
            self.set_listed(place, true);
        }
        deltas
    }

    /// We hold this place with this claim now. Nobody else's record counts here that claims our MAC, our subnet or our
    /// address, whatever the other nodes make of it.
    pub fn set_own(&mut self, place: Place, claim: Claim) -> Vec<Delta> {
        let before = self.own.replace((place, claim));
        // What stands under our key is ours.
        self.aside.remove(place);
        let mut claimed = Vec::new();
        for (place, claim) in before.into_iter().chain([(place, claim)]) {
            claimed.extend(resources(&place, &claim));
        }
        let gone = self.counting(place).map(|_| (place, None));
        let at_our_address = self.by_subnet.iter().filter(|(_, peer)| peer.vtep.remote == claim.vtep.remote);
        claimed.extend(at_our_address.map(|(subnet, _)| Resource::Subnet(*subnet)));
        let mut deltas = Vec::new();
        self.decide(claimed, gone, &mut deltas);
        deltas
    }

    /// The claim of a place, if it counts.
    fn counting(&self, (subnet, source): Place) -> Option<Claim> {
        self.by_subnet.get(&subnet).filter(|peer| peer.source == source).map(Peer::claim)
    }

    /// Whether anybody but this place claims a resource.
    fn is_contested(&self, resource: Resource, place: Place) -> bool {
        self.claims_of(resource).any(|(other, _)| other != place)
    }

    /// Everybody who claims a resource, whether or not he has it.
    fn claims_of(&self, resource: Resource) -> impl Iterator<Item = (Place, Claim)> {
        let counting = match resource {
            Resource::Subnet(subnet) => Some(subnet),
            Resource::Mac(mac) => self.of_mac(mac),
        };
        let counting = counting.and_then(|subnet| self.by_subnet.get(&subnet).map(|peer| (subnet, peer)));
        let counting = counting.map(|(subnet, peer)| ((subnet, peer.source), peer.claim()));
        let own = self.own.filter(|((subnet, _), claim)| {
            resource == Resource::Subnet(*subnet) || resource == Resource::Mac(claim.vtep.mac)
        });
        counting.into_iter().chain(own).chain(self.aside.of(resource))
    }

    /// Whether a claim of somebody else's is to something that we have.
    fn touches_own(&self, place: Place, claim: &Claim) -> bool {
        self.own.as_ref().is_some_and(|(own, ours)| {
            *own != place
                && (own.0 == place.0 || ours.vtep.mac == claim.vtep.mac || ours.vtep.remote == claim.vtep.remote)
        })
    }

    /// Decides anew among all that are bound to these resources. `news`: what one place says from now on.
    fn decide(&mut self, resources: Vec<Resource>, news: Option<(Place, Option<Claim>)>, deltas: &mut Vec<Delta>) {
        let mut rivals = self.bound_to(resources, news);
        if let Some((place, claim)) = news {
            match claim {
                Some(claim) => rivals.insert(place, claim),
                None => rivals.remove(&place),
            };
        }
        let winners = winners(&rivals);
        self.note_own(&rivals, &winners);
        let unlisted: Vec<Place> = rivals.keys().copied().filter(|place| !self.is_listed(*place)).collect();
        let peers: BTreeMap<IpNetwork, (Source, Claim)> = winners
            .iter()
            .filter(|(place, claim)| !self.is_own(**place) && !self.touches_own(**place, claim))
            .map(|((subnet, source), claim)| (*subnet, (*source, *claim)))
            .collect();
        self.drop_losers(&rivals, &winners, &peers, news, deltas);
        for (place, claim) in &rivals {
            match peers.get(&place.0) {
                Some((source, _)) if *source == place.1 => {
                    self.aside.remove(*place);
                    self.place(*place, *claim, deltas);
                }
                _ if self.is_own(*place) => {}
                _ => self.aside.insert(*place, *claim),
            }
        }
        unlisted.into_iter().for_each(|place| self.set_listed(place, false));
    }

    /// Whether the complete read under way has named a place, which it has to do anew.
    fn is_listed(&self, place: Place) -> bool {
        let counting = self.by_subnet.get(&place.0).filter(|peer| peer.source == place.1);
        counting.is_none_or(|peer| peer.is_listed()) && !self.aside.unlisted.contains(&place)
    }

    fn set_listed(&mut self, place: Place, listed: bool) {
        if let Some(peer) = self.by_subnet.get_mut(&place.0).filter(|peer| peer.source == place.1) {
            peer.mark(LISTED, listed);
        } else if listed || !self.aside.claims.contains_key(&place) {
            self.aside.unlisted.remove(&place);
        } else {
            self.aside.unlisted.insert(place);
        }
    }

    /// Whoever no longer counts goes before anybody comes, so that a MAC is free before it is given again.
    fn drop_losers(
        &mut self,
        rivals: &BTreeMap<Place, Claim>,
        winners: &BTreeMap<Place, Claim>,
        peers: &BTreeMap<IpNetwork, (Source, Claim)>,
        news: Option<(Place, Option<Claim>)>,
        deltas: &mut Vec<Delta>,
    ) {
        let concerned: BTreeSet<Place> = rivals.keys().copied().chain(news.map(|(place, _)| place)).collect();
        for place in concerned {
            let Some(counted) = self.counting(place) else { continue };
            if peers.contains_key(&place.0) {
                // The subnet stays, with this record or another one.
                self.by_mac.remove(&counted.vtep.mac);
                continue;
            }
            let claim = rivals.get(&place);
            let by = claim.and_then(|claim| winners.iter().find(|(_, winner)| winner.vtep.mac == claim.vtep.mac));
            let by = by.map(|((subnet, _), _)| *subnet).filter(|subnet| *subnet != place.0);
            self.take(place, by, deltas);
        }
    }

    /// All claims that are bound to each other through these resources.
    fn bound_to(&self, mut resources: Vec<Resource>, news: Option<(Place, Option<Claim>)>) -> BTreeMap<Place, Claim> {
        let mut known: BTreeSet<Resource> = resources.iter().copied().collect();
        let mut bound = BTreeMap::new();
        resources.extend(news.and_then(|(_, claim)| Some(Resource::Mac(claim?.vtep.mac))));
        while let Some(resource) = resources.pop() {
            for (place, claim) in self.claims_of(resource) {
                resources
                    .extend(self::resources(&place, &claim).into_iter().filter(|resource| known.insert(*resource)));
                bound.insert(place, claim);
            }
        }
        bound
    }

    fn is_own(&self, place: Place) -> bool {
        self.own.is_some_and(|(own, _)| own == place)
    }

    /// Whom the other nodes follow instead of us.
    fn note_own(&mut self, rivals: &BTreeMap<Place, Claim>, winners: &BTreeMap<Place, Claim>) {
        let Some((own, ours)) = self.own.filter(|(own, _)| rivals.contains_key(own)) else { return };
        let mut before_us = winners.iter().filter(|(place, claim)| place.0 == own.0 || claim.vtep.mac == ours.vtep.mac);
        let first = before_us.next().map(|(place, _)| *place);
        self.displaced_by = first.filter(|_| !winners.contains_key(&own));
    }
}

/// What a claim is to.
fn resources(place: &Place, claim: &Claim) -> [Resource; 2] {
    [Resource::Subnet(place.0), Resource::Mac(claim.vtep.mac)]
}

/// Those of these claims that count.
fn winners(rivals: &BTreeMap<Place, Claim>) -> BTreeMap<Place, Claim> {
    // When each node last wrote a claim to each resource.
    let mut latest = BTreeMap::new();
    for (place, claim) in rivals {
        for resource in resources(place, claim) {
            for identity in claim.identities(resource.is_mac()) {
                let age = latest.entry((resource, identity)).or_insert(claim.age(*place));
                *age = (*age).max(claim.age(*place));
            }
        }
    }
    let is_superseded = |place: &Place, claim: &Claim| {
        let age = claim.age(*place);
        let is_later = |at: (Resource, Identity)| latest.get(&at).is_some_and(|latest| *latest > age);
        resources(place, claim)
            .into_iter()
            .any(|resource| claim.identities(resource.is_mac()).any(|identity| is_later((resource, identity))))
    };
    let ranked = rivals.iter().map(|(place, claim)| (claim.rank(*place, is_superseded(place, claim)), *place, *claim));
    let mut ranked: Vec<_> = ranked.collect();
    ranked.sort_unstable_by_key(|(rank, ..)| *rank);
    let (mut taken, mut winners) = (BTreeSet::new(), BTreeMap::new());
    for (_, place, claim) in ranked {
        let claimed = resources(&place, &claim);
        if claimed.iter().all(|resource| !taken.contains(resource)) {
            taken.extend(claimed);
            winners.insert(place, claim);
        }
    }
    winners
}
