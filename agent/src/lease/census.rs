//! What is held when a node looks for a subnet.

use std::collections::{BTreeMap, BTreeSet};

use crate::overlay::alloc::{Seen, Wanted};
use crate::overlay::plane::Plane;
use crate::overlay::record::{Record, SubnetKey};
use crate::store::RawRecord;

/// What a complete read shows, as far as getting a subnet needs it: our own records, and what all others occupy, without the
/// peers, which [`Census`] adds.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// By the key as the store has it.
    pub(super) own: BTreeMap<String, Seen>,
    others: BTreeSet<SubnetKey>,
}

impl Known {
    /// All of these records.
    pub fn of<'r>(wanted: &Wanted<'_>, records: impl IntoIterator<Item = &'r RawRecord>) -> Self {
        let mut known = Self::default();
        records.into_iter().for_each(|record| known.put(wanted, record));
        known
    }

    /// Takes in a record of whoever.
    pub fn put(&mut self, wanted: &Wanted<'_>, record: &RawRecord) {
        self.remove(&record.key);
        match see(wanted, record) {
            Some(seen) if seen.record.is_some() => drop(self.own.insert(record.key.clone(), seen)),
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
}

impl<'a> From<&'a Known> for Census<'a> {
    fn from(known: &'a Known) -> Self {
        Self::new(known, &[])
    }
}

/// What allocation needs to know of a key: what it occupies and, if it may be ours, its record.
pub(super) fn see(wanted: &Wanted<'_>, raw: &RawRecord) -> Option<Seen> {
    let parsed = || Record::parse(&raw.value).ok().filter(|record| wanted.is_own(record));
    let (key, record) = match raw.key.parse::<SubnetKey>() {
        Ok(key) => (key, parsed()),
        Err(_) => (SubnetKey::occupied(&raw.key)?, None),
    };
    Some(Seen { key, record, revision: raw.revision, lease: raw.lease })
}
