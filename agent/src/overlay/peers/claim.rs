//! What a record claims, and which of two claims to one MAC or one subnet counts.
//!
//! Every node has to come to the same answer, in whatever order the records reach it and after a restart too. So the answer
//! rests on what etcd tells every node alike, and is a function of the set of claims:
//!
//! 1. Of two records of one node (same public IP, or same node id) the one with a lease counts, else the one written last: a
//!    node that changes its MAC, its subnet or its address leaves such a pair behind, and whoever wrote one without a lease in
//!    the name of a living node need not be that node. Flannel's records have no node id, and flannel keeps the MAC when only
//!    its `--public-ip` changes: of two that have a lease and one MAC, and neither of which has an id, the one written last
//!    counts too, as flannel's own nodes have it.
//! 2. Of two nodes, one with a lease (it was alive a day ago at most) or with a node id (its subnet is reserved for it) counts
//!    before one with neither, whose record may be anybody's.
//! 3. Else the one whose record was created first: the other one came into a place that was taken.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::super::MacAddr;
use super::super::kernel::Fdb;

/// A peer's endpoint: where its packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// The MAC of its `flannel.1`; `None` with a backend that has no devices.
    pub mac: Option<MacAddr>,
    /// The underlay address of its host.
    pub remote: IpAddr,
}

impl Endpoint {
    /// The FDB row that leads to it, where it has a device.
    pub fn fdb(self) -> Option<Fdb> {
        self.mac.map(|mac| Fdb { mac, remote: self.remote })
    }
}

/// Which key a record stands under: a number that no other key of the same subnet has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(pub u32);

impl Source {
    /// The number of a key as etcd has it.
    pub fn of(key: &str) -> Self {
        Self(hash(key))
    }
}

/// A record's key in one family: its subnet, and which of the keys of that subnet it is.
pub type Place = (IpNetwork, Source);

/// What etcd and the record say of a record's age and owner. 16 bytes without padding: there is one for each peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The revision at which the key was created, twice, and 1 more where it hangs on a lease.
    created: u64,
    /// How many revisions later it was written last. Two that were both written over four thousand million revisions after
    /// their creation are told apart by that.
    rewritten: u32,
    /// A hash of the node id, 0 where there is none.
    node: u32,
}

impl Standing {
    /// Of a record that was created and last written at these revisions.
    pub fn new(created: i64, revision: i64, is_leased: bool, node: Option<&str>) -> Self {
        let rewritten = u32::try_from(revision.saturating_sub(created).max(0)).unwrap_or(u32::MAX);
        let created = u64::try_from(created).unwrap_or(0) << 1 | u64::from(is_leased);
        Self { created, rewritten, node: node.map_or(0, |node| hash(node).max(1)) }
    }

    /// Whether it hangs on a lease.
    pub fn is_leased(self) -> bool {
        self.created & 1 == 1
    }

    fn created(self) -> u64 {
        self.created >> 1
    }

    /// The revision at which it was written last.
    pub fn written(self) -> u64 {
        self.created() + u64::from(self.rewritten)
    }
}

/// What a record claims for its subnet, and how it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The MAC, if there is one, that no other peer may have, and the host behind it.
    pub endpoint: Endpoint,
    /// How it stands against others.
    pub standing: Standing,
}

/// By what two claims of one node are known: its address, its id, or the lack of any where the MAC is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Identity {
    Address(IpAddr),
    Id(u32),
    Nameless,
}

impl Claim {
    /// What may tell that another claim, to the same MAC or to the same subnet only, is of the same node.
    pub(super) fn identities(&self, same_mac: bool) -> impl Iterator<Item = Identity> {
        let id = match self.standing.node {
            0 => Some(Identity::Nameless).filter(|_| same_mac && self.standing.is_leased()),
            node => Some(Identity::Id(node)),
        };
        [Identity::Address(self.endpoint.remote)].into_iter().chain(id)
    }

    /// The order of two claims of one node; the greater supersedes the other: the one with a lease, else the later one.
    pub(super) fn age(&self, place: Place) -> Age {
        (self.standing.is_leased(), self.standing.written(), self.standing.created(), place)
    }

    /// The order of counting; the smaller goes first. `is_superseded`: a rival of the same node supersedes it.
    pub(super) fn rank(&self, place: Place, is_superseded: bool) -> Rank {
        let may_be_anybodys = !self.standing.is_leased() && self.standing.node == 0;
        (is_superseded, may_be_anybodys, self.standing.created(), place)
    }
}

/// With a lease or not, when it was written and created, and where.
pub(super) type Age = (bool, u64, u64, Place);

pub(super) type Rank = (bool, bool, u64, Place);

/// The same in every process, but not for ever.
fn hash(text: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let [a, b, c, d, ..] = hasher.finish().to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}
