//! Every record but our own: read, checked, and given to the planes; of the bad ones the reason is kept.

use std::collections::BTreeMap;

use kept_out::{KeptOut, hash};

use super::peers::{Delta, Source, Vtep};
use super::plane::Plane;
use super::record::{BadRecord, Own, Record, SubnetKey, check};

mod kept_out;

/// The records that are no peers, and what is needed to judge one.
#[derive(Debug)]
pub struct Records {
    vni: u32,
    /// Ourselves, for each plane.
    own: Vec<Own>,
    bad: KeptOut,
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
        Self { vni, own, bad: KeptOut::default() }
    }

    /// The record of this key is ours, and this is who we are now.
    pub fn we_are(&mut self, key: &str, own: Vec<Own>) {
        self.bad.remove(key);
        self.own = own;
    }

    /// The first few records that were kept out, each with its key as it is shown.
    pub fn bad(&self) -> impl Iterator<Item = (&str, &BadRecord)> {
        self.bad.named()
    }

    /// How many records are kept out, by [`BadRecord::kind`].
    pub fn bad_by_kind(&self) -> BTreeMap<&'static str, usize> {
        self.bad.by_kind()
    }

    /// Takes in a record: `key` is what stands behind `<prefix>/subnets/`.
    ///
    /// A bad one touches only itself: what this key said before is gone, everything else stays.
    pub fn put(&mut self, planes: &mut [&mut Plane], key: &str, value: &[u8], revision: i64) -> Taken {
        let parsed: Result<SubnetKey, _> = key.parse();
        let subnets = match parsed {
            Ok(subnets) => subnets,
            Err(error) => return Taken { bad: self.bad.insert(key, error.into()), ..Taken::default() },
        };
        let record = match Record::parse(value) {
            Ok(record) => record,
            Err(error) => {
                let (deltas, bad) = (self.drop_peer(planes, key, &subnets), self.bad.insert(key, error.into()));
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
            Some(bad) => self.bad.insert(key, bad),
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
        self.bad.listing();
    }

    /// It is done: what it did not name is gone.
    pub fn listed(&mut self) {
        self.bad.listed();
    }

    fn drop_peer(&self, planes: &mut [&mut Plane], key: &str, subnets: &SubnetKey) -> Vec<Delta> {
        let mut deltas = Vec::new();
        for plane in planes {
            let family = super::record::Family::of(&plane.setup().net.network);
            deltas.extend(subnets.side(family).into_iter().flat_map(|subnet| plane.remove(subnet, source(key))));
        }
        deltas
    }
}

/// Tells the keys of one subnet apart.
fn source(key: &str) -> Source {
    Source(hash(key))
}
