//! The peers of one network, by subnet and by MAC: what the records say, and what of it is in the kernel.
//!
//! Two records may not share a MAC, since an FDB row leads to one host, nor a subnet, as the keys `10.5.52.0-24` and
//! `10.5.52.0-24&fc00::-64` of a node that went dual-stack do: one counts, the others are ignored until it is gone.
//! `claim` says which goes before which, `contest` finds those that count, `update` keeps the table of peers so. Our own record is one of the rivals, though no peer.

use std::collections::{BTreeSet, HashMap};

use ipnetwork::IpNetwork;

use super::MacAddr;
use super::presence::Presence;
use super::record::BadRecord;
use super::sighting::Sighting;

mod claim;
mod contest;
mod tally;
mod update;

pub use claim::{Claim, Endpoint, Place, Source, Standing};
use contest::Contest;
pub(super) use tally::PeerMut;
pub use tally::Tally;

/// One peer.
#[derive(Debug, Clone)]
pub struct Peer {
    /// What its record says.
    pub endpoint: Endpoint,
    /// How that record stands against others.
    pub standing: Standing,
    /// The key of that record.
    pub source: Source,
    /// How far the peer has come on its way into the kernel.
    pub presence: Presence,
    /// Which of the peer's rows the dump under way has shown.
    pub(super) sighting: Sighting,
    /// The complete read under way has named the record.
    is_listed: bool,
}

impl Peer {
    fn claim(&self) -> Claim {
        Claim { endpoint: self.endpoint, standing: self.standing }
    }
}

/// What a record changed for one peer.
#[derive(Debug, Clone)]
pub enum Delta {
    /// A peer that was not known.
    Joined(IpNetwork),
    /// A known peer has another endpoint.
    Changed {
        /// Its subnet.
        subnet: IpNetwork,
        /// Its endpoint until now.
        old: Endpoint,
    },
    /// A peer is gone: its record was deleted or became unusable.
    Left {
        /// Its subnet.
        subnet: IpNetwork,
        /// What was known of it.
        peer: Peer,
        /// The subnet whose record has its MAC now, if that is why.
        displaced_by: Option<IpNetwork>,
    },
}

impl Delta {
    /// The peer's subnet.
    pub fn subnet(&self) -> &IpNetwork {
        match self {
            Self::Joined(subnet) | Self::Changed { subnet, .. } | Self::Left { subnet, .. } => subnet,
        }
    }
}

/// All peers of one network.
#[derive(Debug, Default)]
pub struct Peers {
    // Hashed, not ordered: a miss finds its peer in one step.
    by_subnet: HashMap<IpNetwork, Peer>,
    by_mac: HashMap<MacAddr, IpNetwork>,
    tally: Tally,
    /// The records with rivals, and all that are ignored.
    contest: Contest,
    /// The ignored records that the complete read under way has not named yet.
    unlisted: BTreeSet<Place>,
    /// Our own record.
    own: Option<(Place, Claim)>,
    /// The record that the other nodes follow instead of ours.
    displaced_by: Option<Place>,
}

impl Peers {
    /// The peer of this subnet.
    pub fn get(&self, subnet: &IpNetwork) -> Option<&Peer> {
        self.by_subnet.get(subnet)
    }

    /// The peer of this subnet, to change what is in the kernel for it.
    pub(super) fn get_mut(&mut self, subnet: &IpNetwork) -> Option<PeerMut<'_>> {
        let peer = self.by_subnet.get_mut(subnet)?;
        Some(PeerMut::new(peer, &mut self.tally))
    }

    /// The subnet whose peer holds this MAC.
    pub fn of_mac(&self, mac: MacAddr) -> Option<IpNetwork> {
        self.by_mac.get(&mac).copied()
    }

    /// All peers, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&IpNetwork, &Peer)> + Clone {
        self.by_subnet.iter()
    }

    /// Changes what is in the kernel for each peer, in no order.
    pub(super) fn update_all(&mut self, mut update: impl FnMut(IpNetwork, &mut Peer)) {
        for (subnet, peer) in &mut self.by_subnet {
            update(*subnet, &mut PeerMut::new(peer, &mut self.tally));
        }
    }

    /// How many peers have come how far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// The subnets of the ignored records.
    pub fn aside(&self) -> impl Iterator<Item = IpNetwork> + Clone {
        self.places_aside().map(|(subnet, _)| subnet)
    }

    /// The keys of these records.
    pub fn places_aside(&self) -> impl Iterator<Item = Place> + Clone {
        let own = self.own.map(|(own, _)| own);
        let ignored = self.contest.iter().filter(move |(place, _, is_peer)| !is_peer && Some(*place) != own);
        ignored.map(|(place, ..)| place)
    }

    /// What the record of this key claims, if it is ignored.
    pub fn claim_aside(&self, place: Place) -> Option<Claim> {
        self.contest.ignored(place).filter(|_| !self.is_own(place)).copied()
    }

    /// Why the record of this key is ignored, if another one is why.
    pub fn shadow_of(&self, place: Place) -> Option<BadRecord> {
        let mac = self.claim_aside(place)?.endpoint.mac;
        let (subnet, _) = place;
        match mac.and_then(|mac| Some((mac, self.of_mac(mac)?))) {
            Some((mac, other)) if other != subnet => Some(BadRecord::MacOfAnother { mac, other }),
            _ => {
                let other = self.by_subnet.get(&subnet)?.endpoint.remote;
                Some(BadRecord::SubnetOfAnother { subnet, other })
            }
        }
    }

    /// The record in our own name under another key that supersedes ours, so that the other nodes don't follow ours.
    pub fn in_our_name(&self) -> Option<(Place, Claim)> {
        let (own, _) = self.own.filter(|_| self.displaced_by.is_some())?;
        self.contest.superseder(own)
    }

    /// The record of another key that the other nodes follow instead of ours, since it takes precedence ([`Claim`]).
    pub fn displaced_by(&self) -> Option<Place> {
        self.displaced_by
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_subnet.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_subnet.is_empty()
    }

    /// Takes in a record.
    pub fn put(&mut self, subnet: IpNetwork, source: Source, claim: Claim) -> Vec<Delta> {
        self.update((subnet, source), Some(claim))
    }

    /// Drops the record of a key.
    pub fn remove(&mut self, subnet: IpNetwork, source: Source) -> Vec<Delta> {
        self.update((subnet, source), None)
    }

    /// Makes a record the one that counts for its subnet and its MAC, which nobody else has.
    fn place(&mut self, (subnet, source): Place, claim: Claim, deltas: &mut Vec<Delta>) {
        let Claim { endpoint, standing } = claim;
        match self.by_subnet.get_mut(&subnet) {
            Some(peer) => {
                let old = std::mem::replace(&mut peer.endpoint, endpoint);
                peer.is_listed |= peer.source != source;
                (peer.standing, peer.source) = (standing, source);
                if old != endpoint {
                    deltas.push(Delta::Changed { subnet, old });
                    if old.mac.is_some_and(|mac| self.by_mac.get(&mac) == Some(&subnet)) {
                        self.forget_mac(old.mac);
                    }
                }
            }
            None => {
                let (presence, sighting, is_listed) = (Presence::default(), Sighting::default(), true);
                self.tally.joins(presence);
                self.by_subnet.insert(subnet, Peer { endpoint, standing, source, presence, sighting, is_listed });
                deltas.push(Delta::Joined(subnet));
            }
        }
        if let Some(mac) = endpoint.mac {
            self.by_mac.insert(mac, subnet);
        }
    }

    /// Takes out the record of a key, if it counts.
    fn take(&mut self, (subnet, source): Place, displaced_by: Option<IpNetwork>, deltas: &mut Vec<Delta>) {
        if self.by_subnet.get(&subnet).is_some_and(|peer| peer.source == source)
            && let Some(peer) = self.by_subnet.remove(&subnet)
        {
            self.forget_mac(peer.endpoint.mac);
            self.tally.leaves(peer.presence);
            deltas.push(Delta::Left { subnet, peer, displaced_by });
        }
    }

    fn forget_mac(&mut self, mac: Option<MacAddr>) {
        if let Some(mac) = mac {
            self.by_mac.remove(&mac);
        }
    }

    /// A complete read begins: what it does not name is gone.
    pub fn listing(&mut self) {
        self.unlisted = self.places_aside().collect();
        self.by_subnet.values_mut().for_each(|peer| peer.is_listed = false);
    }

    /// The complete read is done: the records that it did not name, in order.
    pub fn unlisted(&self) -> Vec<Place> {
        let unlisted = self.by_subnet.iter().filter(|(_, peer)| !peer.is_listed);
        let unlisted = unlisted.map(|(subnet, peer)| (*subnet, peer.source)).chain(self.unlisted.iter().copied());
        let mut unlisted: Vec<_> = unlisted.collect();
        unlisted.sort_unstable();
        unlisted
    }
}

#[cfg(test)]
mod tests;
