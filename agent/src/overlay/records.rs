//! Every record: read, checked, and given to the planes; of the bad ones the reason is kept.
//!
//! Our own record is given to the planes as well, as the one that ours has to be: with it they know which records of other
//! keys the other nodes follow instead of it.

use std::collections::BTreeMap;
use std::ops::Deref;

use ignored::Ignored;

use super::backend::Backend;
use super::peers::{Claim, Delta, Endpoint, Place, Source, Standing};
use super::plane::Plane;
use super::record::{BadRecord, Family, Own, PeerRecord, Record, SubnetKey, check, fits};

mod ignored;
mod in_our_name;

pub use in_our_name::InOurName;

/// How many records of a kind are looked at that are few: those with our public IP while we look for a subnet, those that lost
/// their place while all were read.
const FEW: usize = 64;

/// The records that are no peers, and what is needed to judge one.
#[derive(Debug)]
pub struct Records {
    backend: Backend,
    /// Ourselves, for each plane.
    own: Vec<Own>,
    /// The key of our record and how it stands, once we have one.
    held: Option<(String, Standing)>,
    /// What the records with our public IP claim, by the number of the plane, until we know which of them is our own.
    earlier: BTreeMap<(usize, Place), Claim>,
    bad: Ignored,
    /// The key of the record that came last of those that claim what is ours.
    claimant: String,
}

/// A record as etcd has it.
#[derive(Debug, Clone, Copy)]
pub struct Raw<'a> {
    /// What stands behind `<prefix>/subnets/`.
    pub key: &'a str,
    /// The value.
    pub value: &'a [u8],
    /// The `create_revision` of the key.
    pub created: i64,
    /// Its `mod_revision`.
    pub revision: i64,
    /// It hangs on a lease.
    pub is_leased: bool,
}

/// What a record came to.
#[derive(Debug, Default)]
pub struct Taken {
    /// What it changed for the peers.
    pub deltas: Vec<Delta>,
    /// It is a peer's in every family.
    pub is_peer: bool,
    /// Why it is ignored, if it is and that is news.
    pub bad: Option<BadRecord>,
}

impl Records {
    /// For a network of this backend; `own` says who we are in each plane, in the order in which the planes are given.
    pub fn new(backend: Backend, own: Vec<Own>) -> Self {
        Self { backend, own, held: None, earlier: BTreeMap::new(), bad: Ignored::default(), claimant: String::new() }
    }

    /// We hold the record of this key, last written at this revision, and this is who we are.
    pub fn hold(&mut self, planes: &mut [&mut Plane], own: Vec<Own>, raw: Raw<'_>) -> Vec<Delta> {
        let node = Record::parse(raw.value).ok().and_then(|record| record.node);
        let earlier = std::mem::take(&mut self.earlier);
        let standing = Standing::new(raw.created, raw.revision, raw.is_leased, node.as_deref());
        let source = Source::of(raw.key);
        self.bad.remove(raw.key);
        self.own = own;
        let mut deltas = self.stand(planes, raw.key, standing);
        for ((number, (subnet, at)), claim) in earlier {
            if let Some(plane) = planes.get_mut(number).filter(|_| at != source) {
                deltas.extend(plane.put(subnet, at, claim));
            }
        }
        self.name_aside(planes);
        deltas
    }

    /// Our record stays, and this is who we are from now on.
    pub fn move_to(&mut self, planes: &mut [&mut Plane], own: Vec<Own>) -> Vec<Delta> {
        self.own = own;
        match self.held.clone() {
            Some((key, standing)) => self.stand(planes, &key, standing),
            None => Vec::new(),
        }
    }

    /// Our own record as etcd has it. Only its revisions are used here; the keeper looks after its content.
    pub fn put_own(&mut self, planes: &mut [&mut Plane], raw: Raw<'_>) -> Vec<Delta> {
        let Ok(record) = Record::parse(raw.value) else { return Vec::new() };
        let standing = Standing::new(raw.created, raw.revision, raw.is_leased, record.node.as_deref());
        self.stand(planes, raw.key, standing)
    }

    fn stand(&mut self, planes: &mut [&mut Plane], key: &str, standing: Standing) -> Vec<Delta> {
        self.held = Some((key.to_owned(), standing));
        let mut deltas = Vec::new();
        for (plane, own) in planes.iter_mut().zip(&self.own) {
            let claim = Claim { endpoint: Endpoint { mac: own.mac, remote: own.public_ip }, standing };
            deltas.extend(plane.hold(own.subnet, Source::of(key), claim));
        }
        deltas
    }

    /// During the first read a later record may displace an earlier one. Adds the displaced ones to the ignored records.
    fn name_aside(&mut self, planes: &[&mut Plane]) {
        for (number, plane) in planes.iter().enumerate() {
            for place in plane.peers().places_aside().take(FEW) {
                let Some(key) = key_of(number, place, planes) else { continue };
                let claim = plane.peers().claim_aside(place);
                let objection = claim.zip(self.own.get(number)).and_then(|(claim, own)| {
                    let Endpoint { mac, remote } = claim.endpoint;
                    own.objection(&PeerRecord { subnet: place.0, remote, mac }, || remote.to_string())
                });
                // A record that was named on arrival keeps that reason, which names its node.
                if let Some(bad) = objection.or_else(|| plane.peers().shadow_of(place)).filter(|_| !self.bad.has(&key))
                {
                    self.bad.insert(&key, bad);
                }
            }
        }
    }

    /// Why the other nodes don't reach us, where they follow another record instead of ours: for people, a text for each plane.
    pub fn displaced<'a>(&'a self, planes: impl Iterator<Item = &'a Plane> + 'a) -> impl Iterator<Item = String> + 'a {
        planes.zip(&self.own).filter_map(|(plane, own)| {
            let peers = plane.peers();
            let place = peers.displaced_by()?;
            let endpoint = peers.claim_aside(place)?.endpoint;
            let claimed = match own.mac {
                Some(mac) if endpoint.mac == Some(mac) => format!("VTEP's MAC {mac}"),
                _ => format!("subnet {}", own.subnet),
            };
            Some(format!(
                "the record of {} with the public IP {} claims our {claimed}, and the other nodes follow it instead of ours: delete that record, or stop the agent on that host",
                place.0, endpoint.remote
            ))
        })
    }

    /// The first few records that are ignored, each with its key as it is shown.
    pub fn bad(&self) -> impl Iterator<Item = (&str, &BadRecord)> {
        self.bad.named()
    }

    /// How many records are ignored, by [`BadRecord::kind`].
    pub fn bad_by_kind(&self) -> BTreeMap<&'static str, usize> {
        self.bad.by_kind()
    }

    /// Takes in a record of another key than our own.
    ///
    /// A bad one touches only itself: what this key said before is gone, everything else stays.
    pub fn put(&mut self, planes: &mut [&mut Plane], raw: Raw<'_>) -> Taken {
        let parsed: Result<SubnetKey, _> = raw.key.parse();
        let subnets = match parsed {
            Ok(subnets) => subnets,
            Err(error) => return Taken { bad: self.bad.insert(raw.key, error.into()), ..Taken::default() },
        };
        let record = match Record::parse(raw.value) {
            Ok(record) => record,
            Err(error) => {
                let (deltas, bad) = (self.drop_peer(planes, raw.key, &subnets), self.bad.insert(raw.key, error.into()));
                return Taken { deltas, bad, is_peer: false };
            }
        };
        let mut taken = Taken::default();
        self.earlier.retain(|(_, place), _| place.1 != Source::of(raw.key));
        for number in 0..planes.len().min(self.own.len()) {
            self.put_side(planes, number, (&subnets, &record), raw, &mut taken);
        }
        taken.bad = match taken.bad {
            Some(bad) => self.bad.insert(raw.key, bad),
            None => {
                self.bad.remove(raw.key);
                taken.is_peer = true;
                None
            }
        };
        taken
    }

    /// One family's side of it, for the plane of this number.
    fn put_side(
        &mut self,
        planes: &mut [&mut Plane],
        number: usize,
        (subnets, record): (&SubnetKey, &Record),
        raw: Raw<'_>,
        taken: &mut Taken,
    ) {
        let (Some(plane), Some(own)) = (planes.get_mut(number), self.own.get(number)) else { return };
        let (net, source) = (plane.setup().net, Source::of(raw.key));
        let side = subnets.side(Family::of(&net.network));
        let objection = check(record, subnets, &net, &self.backend, own).err();
        match fits(record, subnets, &net, &self.backend) {
            Ok(peer) => {
                let standing = Standing::new(raw.created, raw.revision, raw.is_leased, record.node.as_deref());
                let claim = Claim { endpoint: Endpoint { mac: peer.mac, remote: peer.remote }, standing };
                if objection.is_some() && self.held.is_none() {
                    // Perhaps our own.
                    taken.deltas.extend(plane.remove(peer.subnet, source));
                    if self.earlier.len() < FEW {
                        self.earlier.insert((number, (peer.subnet, source)), claim);
                    }
                } else {
                    if objection.is_some() {
                        self.claimant = raw.key.to_owned();
                    }
                    taken.deltas.extend(plane.put(peer.subnet, source, claim));
                }
                let aside = || plane.peers().shadow_of((peer.subnet, source));
                taken.bad = taken.bad.take().or(objection).or_else(aside);
            }
            Err(_) => {
                taken.deltas.extend(side.into_iter().flat_map(|subnet| plane.remove(subnet, source)));
                taken.bad = objection;
            }
        }
    }

    /// The record of this key is gone.
    pub fn remove(&mut self, planes: &mut [&mut Plane], key: &str) -> Vec<Delta> {
        self.bad.remove(key);
        key.parse().map(|subnets| self.drop_peer(planes, key, &subnets)).unwrap_or_default()
    }

    /// A complete read begins.
    pub fn listing(&mut self) {
        self.earlier.clear();
        self.bad.listing();
    }

    /// It is done: what it did not name is gone.
    pub fn listed(&mut self) {
        self.bad.listed();
    }

    fn drop_peer(&mut self, planes: &mut [&mut Plane], key: &str, subnets: &SubnetKey) -> Vec<Delta> {
        let (mut deltas, source) = (Vec::new(), Source::of(key));
        self.earlier.retain(|(_, place), _| place.1 != source);
        for plane in planes {
            let side = subnets.side(Family::of(&plane.setup().net.network));
            deltas.extend(side.into_iter().flat_map(|subnet| plane.remove(subnet, source)));
        }
        deltas
    }
}

/// The key of a place in the plane of this number, where it can be told: that of the subnet alone, or with a subnet of
/// another plane whose record has the same key.
fn key_of(number: usize, (subnet, source): Place, planes: &[impl Deref<Target = Plane>]) -> Option<String> {
    let alone = SubnetKey::from(subnet);
    let others = planes.iter().enumerate().filter(|(other, _)| *other != number).map(|(_, plane)| plane.peers());
    let same = others.flat_map(|peers| {
        let counting = peers.iter().filter(|(_, peer)| peer.source == source).map(|(subnet, _)| *subnet);
        counting.chain(peers.places_aside().filter(|place| place.1 == source).map(|(subnet, _)| subnet))
    });
    let both = same
        .map(SubnetKey::from)
        .map(|other| SubnetKey { ipv4: alone.ipv4.or(other.ipv4), ipv6: alone.ipv6.or(other.ipv6) });
    let mut keys = [alone].into_iter().chain(both).map(|key| key.to_string());
    keys.find(|key| Source::of(key) == source)
}
