//! What is held when a node looks for a subnet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::overlay::alloc::{Hold, KnownRecord, SubnetRequest, hold};
use crate::overlay::plane::Plane;
use crate::overlay::record::{Family, Record, SubnetKey};
use crate::store::RawRecord;

/// What a complete read shows, as far as getting a subnet needs it: our own records, and what all others occupy, without the
/// peers, which [`Census`] adds.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// By the key as the store has it: our own records, and one that no node follows under the key of our previous subnet.
    pub(super) own: BTreeMap<String, KnownRecord>,
    others: BTreeSet<SubnetKey>,
}

impl Known {
    /// All of these records.
    pub fn of<'r>(wanted: &SubnetRequest<'_>, records: impl IntoIterator<Item = &'r RawRecord>) -> Self {
        let mut known = Self::default();
        records.into_iter().for_each(|record| known.put(wanted, record));
        known
    }

    /// Takes in a record of whoever.
    pub fn put(&mut self, wanted: &SubnetRequest<'_>, record: &RawRecord) {
        self.remove(&record.key);
        match see(wanted, record) {
            Some(seen) if seen.record.is_some() || seen.is_void => drop(self.own.insert(record.key.clone(), seen)),
            Some(seen) => drop(self.others.insert(seen.key)),
            None => {}
        }
    }

    /// The record of this key is gone.
    pub fn remove(&mut self, key: &str) {
        self.own.remove(key);
        if let Some(subnets) = SubnetKey::occupied(key) {
            self.others.remove(&subnets);
        }
    }

    /// Our own records.
    pub fn own(&self) -> impl Iterator<Item = &Record> {
        self.own.values().filter_map(|seen| seen.record.as_ref())
    }
}

/// All that is held: what is [`Known`], and the peers, which are kept once.
#[derive(Debug, Clone, Copy)]
pub struct Census<'a> {
    pub(super) known: &'a Known,
    planes: &'a [Plane],
}

impl<'a> Census<'a> {
    /// What is known, and the planes that have the peers.
    pub fn new(known: &'a Known, planes: &'a [Plane]) -> Self {
        Self { known, planes }
    }

    /// What others hold.
    pub(super) fn others(self) -> impl Iterator<Item = SubnetKey> + Clone + 'a {
        let peers = self.planes.iter().flat_map(|plane| plane.peers().iter().map(|(subnet, _)| *subnet));
        let aside = self.planes.iter().flat_map(|plane| plane.peers().aside());
        self.known.others.iter().copied().chain(peers.chain(aside).map(SubnetKey::from))
    }

    /// Who holds a subnet that overlaps this key's, for people.
    pub(super) fn holder(self, key: &SubnetKey) -> Option<String> {
        for (subnet, peer) in self.planes.iter().flat_map(|plane| plane.peers().iter()) {
            if overlaps(key, &SubnetKey::from(*subnet)) {
                return Some(held(peer.endpoint.remote, subnet));
            }
        }
        let other = self.others().find(|other| overlaps(key, other))?;
        Some(format!("the record {other} has it"))
    }
}

impl<'a> From<&'a Known> for Census<'a> {
    fn from(known: &'a Known) -> Self {
        Self::new(known, &[])
    }
}

/// Whether two keys have addresses in common.
fn overlaps(one: &SubnetKey, other: &SubnetKey) -> bool {
    [Family::V4, Family::V6].into_iter().any(|family| match (one.side(family), other.side(family)) {
        (Some(one), Some(other)) => one.contains(other.network()) || other.contains(one.network()),
        _ => false,
    })
}

/// What allocation needs to know of a key: what it occupies and, if it may be ours, its record.
pub(super) fn see(wanted: &SubnetRequest<'_>, raw: &RawRecord) -> Option<KnownRecord> {
    let seen = |key, record, is_void| KnownRecord { key, record, revision: raw.revision, lease: raw.lease, is_void };
    let Ok(key) = raw.key.parse::<SubnetKey>() else {
        return Some(seen(SubnetKey::occupied(&raw.key)?, None, false));
    };
    let record = match Record::parse(&raw.value) {
        Ok(record) if wanted.is_own(&record) => return Some(seen(key, Some(record), false)),
        record => record.ok(),
    };
    // Only the node that had the subnet may take it back from a record that no node follows.
    let is_void = wanted.previous == Some(key)
        && record.is_none_or(|record| matches!(hold(wanted.config, &key, &record, raw.lease), Hold::Void(_)));
    Some(seen(key, None, is_void))
}

/// That another node has a subnet, for people.
pub(super) fn held(remote: IpAddr, subnet: &ipnetwork::IpNetwork) -> String {
    format!("the node with the public IP {remote} holds {subnet}")
}
