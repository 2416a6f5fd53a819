//! The records that share a MAC or a subnet with another one, and which of them count.
//!
//! The rule: all claims are put in order ([`Claim::rank`]) and taken one by one; each holds its subnet and its MAC if neither
//! is taken. So the answer is a function of the set of claims, and not of the order in which they came.
//!
//! One record more or less costs little, however many share its MAC. A claim that loses waits at one of its two resources, one
//! that a claim before it holds. Only when that resource is free again is it looked at, and of those that wait there the first
//! one first. Which claims of one node an update supersedes is found in an index by age.
//!
//! Records that share nothing with another one are not in here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;

use super::super::MacAddr;
use super::claim::{Age, Claim, Identity, Place, Rank, Source};

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

/// The subnet and the MAC, if there is one, that a record claims.
pub(super) fn resources(place: Place, claim: &Claim) -> impl Iterator<Item = Resource> + Clone + use<> {
    [Resource::Subnet(place.0)].into_iter().chain(claim.endpoint.mac.map(Resource::Mac))
}

/// A claim with rivals.
#[derive(Debug, Clone, Copy)]
struct Rival {
    claim: Claim,
    /// A rival of the same node supersedes it.
    is_superseded: bool,
    state: State,
    /// It is in the table of peers.
    is_peer: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It has its subnet and its MAC.
    Holds,
    /// A claim before it has this.
    Waits(Resource),
    /// To be looked at in the update under way.
    Open,
}

impl Rival {
    fn rank(&self, place: Place) -> Rank {
        self.claim.rank(place, self.is_superseded)
    }
}

/// The claims with rivals, our own one, and those that this node ignores since they claim our address.
#[derive(Debug, Default)]
pub(super) struct Contest {
    rivals: BTreeMap<Place, Rival>,
    /// For each resource, and each node that claims it, its claims by age.
    ages: BTreeSet<(Resource, Identity, Age)>,
    holders: BTreeMap<Resource, Place>,
    waiting: BTreeSet<(Resource, Rank)>,
    /// How many claims were looked at.
    #[cfg(test)]
    pub(super) steps: usize,
}

/// What is to be looked at, in the order of ranks, and what already was.
#[derive(Debug, Default)]
struct Update {
    queue: BTreeSet<Rank>,
    seen: BTreeSet<Place>,
}

impl Contest {
    pub(super) fn get(&self, place: Place) -> Option<&Claim> {
        self.rivals.get(&place).map(|rival| &rival.claim)
    }

    /// The claim of a place, if it is in here and is no peer's.
    pub(super) fn ignored(&self, place: Place) -> Option<&Claim> {
        self.rivals.get(&place).filter(|rival| !rival.is_peer).map(|rival| &rival.claim)
    }

    /// All claims, with whether they are in the table of peers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Place, &Claim, bool)> + Clone {
        self.rivals.iter().map(|(place, rival)| (*place, &rival.claim, rival.is_peer))
    }

    /// Which claim has this, of those in here.
    pub(super) fn holder(&self, resource: Resource) -> Option<Place> {
        self.holders.get(&resource).copied()
    }

    /// Whether this claim counts by the rule.
    pub(super) fn holds(&self, place: Place) -> bool {
        self.rivals.get(&place).is_some_and(|rival| rival.state == State::Holds)
    }

    /// The claim of the same node that supersedes this one, if one does.
    pub(super) fn superseder(&self, place: Place) -> Option<(Place, Claim)> {
        let rival = self.rivals.get(&place).filter(|rival| rival.is_superseded)?;
        let latest = ages(place, &rival.claim).filter_map(|(resource, identity, _)| self.latest(resource, identity));
        let (.., other) = latest.max()?;
        Some((other, self.rivals.get(&other)?.claim))
    }

    /// Notes whether a claim is in the table of peers.
    pub(super) fn set_peer(&mut self, place: Place, is_peer: bool) {
        if let Some(rival) = self.rivals.get_mut(&place) {
            rival.is_peer = is_peer;
        }
    }

    /// Takes in a peer that had no rival.
    pub(super) fn enter(&mut self, place: Place, claim: Claim) {
        if self.rivals.contains_key(&place) {
            return;
        }
        self.rivals.insert(place, Rival { claim, is_superseded: false, state: State::Holds, is_peer: true });
        self.ages.extend(ages(place, &claim));
        self.holders.extend(resources(place, &claim).map(|resource| (resource, place)));
    }

    /// The only claim to this resource, if it is a peer's and has no rival for its other resource either.
    pub(super) fn unrivalled(&self, resource: Resource) -> Option<Place> {
        let place = self.only(resource)?;
        let rival = self.rivals.get(&place).filter(|rival| rival.is_peer)?;
        resources(place, &rival.claim).all(|resource| self.only(resource).is_some()).then_some(place)
    }

    /// Lets a peer go that has no rival now.
    pub(super) fn dismiss(&mut self, place: Place) {
        let Some(rival) = self.rivals.remove(&place) else { return };
        self.forget_age(place, &rival.claim);
        for resource in resources(place, &rival.claim) {
            self.holders.remove(&resource);
        }
    }

    /// A place says this from now on, `None`: nothing. Returns the claims that were looked at: no other one counts that
    /// did not, or the other way round.
    pub(super) fn set(&mut self, place: Place, claim: Option<Claim>) -> BTreeSet<Place> {
        let before = self.rivals.get(&place).copied();
        let mut update = Update { seen: BTreeSet::from([place]), ..Update::default() };
        if before.map(|rival| rival.claim) == claim {
            return update.seen;
        }
        let mut free = before.map(|rival| self.open(place, rival)).unwrap_or_default();
        let mut concerned = BTreeSet::new();
        if let Some(rival) = &before {
            self.forget_age(place, &rival.claim);
            concerned.extend(self.latest_beside(place, &rival.claim));
        }
        match claim {
            Some(claim) => {
                concerned.extend(self.latest_beside(place, &claim));
                self.ages.extend(ages(place, &claim));
                let is_superseded = self.is_superseded(place, &claim);
                let is_peer = before.is_some_and(|rival| rival.is_peer);
                let rival = Rival { claim, is_superseded, state: State::Open, is_peer };
                self.rivals.insert(place, rival);
                update.queue.insert(rival.rank(place));
            }
            None => {
                self.rivals.remove(&place);
            }
        }
        for place in concerned {
            self.step();
            let Some(rival) = self.rivals.get(&place).copied() else { continue };
            let is_superseded = self.is_superseded(place, &rival.claim);
            if is_superseded != rival.is_superseded {
                free.extend(self.open(place, rival));
                let rival = Rival { is_superseded, state: State::Open, ..rival };
                self.rivals.insert(place, rival);
                update.queue.insert(rival.rank(place));
            }
        }
        free.into_iter().for_each(|resource| self.offer(resource, &mut update));
        self.settle(&mut update);
        update.seen
    }

    /// Looks at the claims whose turn it is, the first in the order of ranks first: whatever ranks before the one that is
    /// looked at is as it stays.
    fn settle(&mut self, update: &mut Update) {
        while let Some(rank) = update.queue.pop_first() {
            self.step();
            let (.., place) = rank;
            let Some(rival) = self.rivals.get(&place).copied() else { continue };
            update.seen.insert(place);
            let mut free = self.open(place, rival);
            let claimed = resources(place, &rival.claim);
            let goes_first = |holder: Place| self.rivals.get(&holder).is_some_and(|other| other.rank(holder) < rank);
            let taken = claimed.clone().find(|resource| self.holder(*resource).is_some_and(goes_first));
            let state = match taken {
                Some(resource) => {
                    self.waiting.insert((resource, rank));
                    State::Waits(resource)
                }
                None => {
                    for holder in claimed.clone().filter_map(|resource| self.holder(resource)).collect::<Vec<_>>() {
                        free.extend(self.oust(holder, update));
                    }
                    self.holders.extend(claimed.map(|resource| (resource, place)));
                    State::Holds
                }
            };
            self.set_state(place, state);
            free.into_iter().for_each(|resource| self.offer(resource, update));
        }
    }

    /// Takes from a claim what it holds; it is looked at again. Returns that.
    fn oust(&mut self, place: Place, update: &mut Update) -> Vec<Resource> {
        let Some(rival) = self.rivals.get(&place).copied().filter(|rival| rival.state == State::Holds) else {
            return Vec::new();
        };
        let free = self.open(place, rival);
        self.set_state(place, State::Open);
        update.queue.insert(rival.rank(place));
        free
    }

    /// Takes a claim out of what it holds or waits for. Returns the resources that others may have now.
    fn open(&mut self, place: Place, rival: Rival) -> Vec<Resource> {
        match rival.state {
            State::Holds => {
                let held: Vec<_> = resources(place, &rival.claim).collect();
                for resource in &held {
                    self.holders.remove(resource);
                }
                held
            }
            State::Waits(resource) => {
                self.waiting.remove(&(resource, rival.rank(place)));
                vec![resource]
            }
            State::Open => Vec::new(),
        }
    }

    /// If nobody has a resource, the first one that waits for it is to be looked at.
    fn offer(&self, resource: Resource, update: &mut Update) {
        if self.holders.contains_key(&resource) {
            return;
        }
        let place = some_place();
        let all = (resource, (false, false, 0, place))..=(resource, (true, true, u64::MAX, place));
        update.queue.extend(self.waiting.range(all).next().map(|(_, rank)| *rank));
    }

    fn forget_age(&mut self, place: Place, claim: &Claim) {
        for age in ages(place, claim) {
            self.ages.remove(&age);
        }
    }

    fn set_state(&mut self, place: Place, state: State) {
        if let Some(rival) = self.rivals.get_mut(&place) {
            rival.state = state;
        }
    }

    /// Whether a rival of the same node supersedes this claim.
    fn is_superseded(&self, place: Place, claim: &Claim) -> bool {
        let age = claim.age(place);
        ages(place, claim).any(|(resource, identity, _)| self.latest(resource, identity).is_some_and(|last| last > age))
    }

    /// For each mark of its node, the rival that supersedes the others; itself not, if it is not in the index.
    fn latest_beside(&self, place: Place, claim: &Claim) -> Vec<Place> {
        let latest = ages(place, claim).filter_map(|(resource, identity, _)| self.latest(resource, identity));
        latest.map(|(.., other)| other).collect()
    }

    /// The claim to this resource that supersedes the others by the node with this mark.
    fn latest(&self, resource: Resource, identity: Identity) -> Option<Age> {
        let place = some_place();
        let all = (resource, identity, (false, 0, 0, place))..=(resource, identity, (true, u64::MAX, u64::MAX, place));
        self.ages.range(all).next_back().map(|(.., age)| *age)
    }

    /// The claim to this resource, if there is one alone.
    fn only(&self, resource: Resource) -> Option<Place> {
        let mut all = self.of(resource);
        let first = all.next()?;
        // Each has two entries at the most, so that the third one ends this.
        all.all(|other| other == first).then_some(first)
    }

    /// Whether anybody in here claims this resource.
    pub(super) fn is_claimed(&self, resource: Resource) -> bool {
        self.of(resource).next().is_some()
    }

    /// Who claims this resource; some more than once.
    fn of(&self, resource: Resource) -> impl Iterator<Item = Place> {
        let least = Identity::Address(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let place = some_place();
        let last = (true, u64::MAX, u64::MAX, place);
        let all = (resource, least, (false, 0, 0, place))..=(resource, Identity::Nameless, last);
        self.ages.range(all).map(|(.., (.., place))| *place)
    }

    /// A claim is looked at.
    fn step(&mut self) {
        #[cfg(test)]
        {
            self.steps += 1;
        }
    }
}

/// Stands in the bounds of a range. Revisions begin with 1 and end below the greatest number, so that any place will do.
fn some_place() -> Place {
    (IpNetwork::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), Source(0))
}

/// The entries of a claim in the index by age.
fn ages(place: Place, claim: &Claim) -> impl Iterator<Item = (Resource, Identity, Age)> {
    let age = claim.age(place);
    resources(place, claim)
        .flat_map(move |resource| claim.identities(resource.is_mac()).map(move |identity| (resource, identity, age)))
}
