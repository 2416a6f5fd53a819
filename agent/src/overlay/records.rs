//! Every record but our own: read, checked, and given to the planes; the bad ones are kept aside with the reason.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::peers::{Delta, Source, Vtep};
use super::plane::Plane;
use super::record::{BadRecord, Own, Record, SubnetKey, check};

/// The records that are no peers, and what is needed to judge one.
#[derive(Debug)]
pub struct Records {
    vni: u32,
    /// Ourselves, for each plane.
    own: Vec<Own>,
    bad: BTreeMap<String, BadRecord>,
    /// What was bad before the complete read under way.
    bad_before: BTreeMap<String, BadRecord>,
}

/// What a record came to.
#[derive(Debug, Default)]
pub struct Taken {
    /// What it changed for the peers.
    pub deltas: Vec<Delta>,
    /// It is a peer's in every family.
    pub is_peer: bool,
    /// Why it was kept out, if it was and that is news.
    pub bad: Option<BadRecord>,
}

impl Records {
    /// For a network of this VNI; `own` says who we are in each plane, in the order in which the planes are given.
    pub fn new(vni: u32, own: Vec<Own>) -> Self {
        Self { vni, own, bad: BTreeMap::new(), bad_before: BTreeMap::new() }
    }

    /// The record of this key is ours, and this is who we are now.
    pub fn we_are(&mut self, key: &str, own: Vec<Own>) {
        self.bad.remove(key);
        self.own = own;
    }

    /// The records that were kept out, by key.
    pub fn bad(&self) -> impl Iterator<Item = (&str, &BadRecord)> {
        self.bad.iter().map(|(key, reason)| (key.as_str(), reason))
    }

    /// Takes in a record: `key` is what stands behind `<prefix>/subnets/`.
    ///
    /// A bad one touches only itself: what this key said before is gone, everything else stays.
    pub fn put(&mut self, planes: &mut [&mut Plane], key: &str, value: &[u8], revision: i64) -> Taken {
        let parsed: Result<SubnetKey, _> = key.parse();
        let subnets = match parsed {
            Ok(subnets) => subnets,
            Err(error) => return Taken { bad: self.keep_out(key, error.into()), ..Taken::default() },
        };
        let record = match Record::parse(value) {
            Ok(record) => record,
            Err(error) => {
                let (deltas, bad) = (self.drop_peer(planes, key, &subnets), self.keep_out(key, error.into()));
                return Taken { deltas, bad, is_peer: false };
            }
        };
        let mut taken = Taken::default();
        for (plane, own) in planes.iter_mut().zip(&self.own) {
            match check(&record, &subnets, &plane.setup().net, self.vni, own) {
                Ok(peer) => {
                    let (vtep, source) = (Vtep { mac: peer.mac, remote: peer.remote }, source(key));
                    taken.deltas.extend(plane.put(peer.subnet, vtep, revision, source));
                    let shadow = plane.peers().shadow_of(peer.subnet, source);
                    taken.bad = taken.bad.or(shadow.map(|(mac, other)| BadRecord::MacOfAnother { mac, other }));
                }
                Err(bad) => {
                    let family = super::record::Family::of(&plane.setup().net.network);
                    taken
                        .deltas
                        .extend(subnets.side(family).into_iter().flat_map(|subnet| plane.remove(subnet, source(key))));
                    taken.bad = Some(bad);
                }
            }
        }
        taken.bad = match taken.bad {
            Some(bad) => self.keep_out(key, bad),
            None => {
                self.bad.remove(key);
                taken.is_peer = true;
                None
            }
        };
        taken
    }

    /// The record of this key is gone.
    pub fn remove(&mut self, planes: &mut [&mut Plane], key: &str) -> Vec<Delta> {
        self.bad.remove(key);
        key.parse().map(|subnets| self.drop_peer(planes, key, &subnets)).unwrap_or_default()
    }

    /// A complete read begins.
    pub fn listing(&mut self) {
        self.bad_before = std::mem::take(&mut self.bad);
    }

    fn drop_peer(&self, planes: &mut [&mut Plane], key: &str, subnets: &SubnetKey) -> Vec<Delta> {
        let mut deltas = Vec::new();
        for plane in planes {
            let family = super::record::Family::of(&plane.setup().net.network);
            deltas.extend(subnets.side(family).into_iter().flat_map(|subnet| plane.remove(subnet, source(key))));
        }
        deltas
    }

    /// Remembers a bad record; says so only if it is news.
    fn keep_out(&mut self, key: &str, reason: BadRecord) -> Option<BadRecord> {
        let before = self.bad.insert(key.to_owned(), reason.clone()).or_else(|| self.bad_before.remove(key));
        (before.as_ref() != Some(&reason)).then_some(reason)
    }
}

/// Tells the keys of one subnet apart.
fn source(key: &str) -> Source {
    // Not a hash for ever: it only has to be the same within one process.
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    Source(hasher.finish())
}
