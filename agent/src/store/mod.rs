//! Where the network config and the nodes' records live, as the rest of the agent sees it.
//!
//! Keys are relative to `<prefix>/subnets/`, values are bytes nobody has read yet. This module knows nothing of VXLAN or
//! the kernel. `etcd` is the real store, `fake` a model of it in memory for tests.

use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::overlay::Shown;
use crate::overlay::records::Raw;

pub mod backoff;
pub mod etcd;
#[cfg(any(test, feature = "test-doubles"))]
pub mod fake;

/// A record as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawRecord {
    /// The key below `<prefix>/subnets/`, as in `10.5.52.0-24`. Anybody's: of any length and with any characters.
    pub key: String,
    /// The value, not yet parsed.
    pub value: Vec<u8>,
    /// etcd's `create_revision` of the key.
    pub created: i64,
    /// etcd's `mod_revision` of the key: what a conditional write compares.
    pub revision: i64,
    /// The etcd lease that the key hangs on; 0 where there is none (a reservation).
    pub lease: i64,
}

impl<'a> From<&'a RawRecord> for Raw<'a> {
    fn from(record: &'a RawRecord) -> Self {
        let RawRecord { key, value, created, revision, lease } = record;
        Self { key, value, created: *created, revision: *revision, is_leased: *lease != 0 }
    }
}

/// One thing that happened to the records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A record was written.
    Put(RawRecord),
    /// The record of this key is gone (deleted or expired), at this revision.
    Deleted {
        /// The key below `<prefix>/subnets/`.
        key: String,
        /// The revision of the deletion.
        revision: i64,
    },
}

/// What a follower of the records is told, in order.
///
/// A complete read is `Listing`, the `Config` of the same revision, any number of `Page`s, `Listed`; what it does not
/// name is gone. It comes first, and again after whatever makes a resume impossible (a compaction, a restored etcd).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreEvent {
    /// A complete read begins.
    Listing,
    /// A part of the complete read.
    Page(Vec<RawRecord>),
    /// The complete read is done; it showed the records as of this revision.
    Listed {
        /// etcd's revision of the whole read.
        revision: i64,
    },
    /// Records changed, in this order.
    Changes(Vec<Change>),
    /// What the network config's key holds now; `None`: it does not exist. Part of each complete read, and then sent when
    /// the key changes.
    Config(Option<Vec<u8>>),
    /// The store does not answer; retries go on. Sent once per outage, and again where its reason is another half a minute
    /// later.
    Down {
        /// Why, for people.
        reason: String,
    },
    /// The store answers again and no event was missed. Sent once per outage.
    Up,
}

/// An etcd lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseId(pub i64);

/// How a conditional write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It took effect at this revision.
    At(i64),
    /// The condition did not hold; nothing was changed.
    Conflict,
}

/// The records and the config, with etcd's semantics. Every call is one request.
///
/// Errors say by [`Error::is_transient`] whether trying again can help; implementations retry the short hiccups of one
/// endpoint among several themselves.
pub trait Store: Clone + Send + Sync + 'static {
    /// The value of `<prefix>/config`, if there is one.
    fn config(&self) -> impl Future<Output = Result<Option<Vec<u8>>, Error>> + Send;

    /// One record, read now.
    fn record(&self, key: &str) -> impl Future<Output = Result<Option<RawRecord>, Error>> + Send;

    /// What keeps [`Self::create`] from making this key, read now: a record under it or another one with the same IPv4
    /// side.
    fn in_the_way(&self, key: &str) -> impl Future<Output = Result<Option<RawRecord>, Error>> + Send;

    /// The keys of records that were created at this revision or later, each with the revision of its creation.
    fn created_since(&self, revision: i64) -> impl Future<Output = Result<Vec<(String, i64)>, Error>> + Send;

    /// Follows the records and the config's key for as long as the receiver lives. Never ends by itself.
    fn follow(&self) -> mpsc::Receiver<StoreEvent>;

    /// A new lease that ends `ttl` after its last renewal.
    fn grant(&self, ttl: Duration) -> impl Future<Output = Result<LeaseId, Error>> + Send;

    /// Renews a lease: what is left of it now, or `None` where it has ended.
    fn keep_alive(&self, lease: LeaseId) -> impl Future<Output = Result<Option<Duration>, Error>> + Send;

    /// Ends a lease and deletes what hangs on it. One that is gone already is a success.
    fn revoke(&self, lease: LeaseId) -> impl Future<Output = Result<(), Error>> + Send;

    /// Writes a record if neither its key nor another one with the same IPv4 side (`10.5.52.0-24` and
    /// `10.5.52.0-24&fc00::-64`) exists.
    fn create(
        &self,
        key: &str,
        value: &[u8],
        lease: Option<LeaseId>,
    ) -> impl Future<Output = Result<Written, Error>> + Send;

    /// Writes a record if its `mod_revision` still is `revision`.
    fn update(
        &self,
        key: &str,
        value: &[u8],
        lease: Option<LeaseId>,
        revision: i64,
    ) -> impl Future<Output = Result<Written, Error>> + Send;

    /// Deletes a record if its `mod_revision` still is `revision`.
    fn delete(&self, key: &str, revision: i64) -> impl Future<Output = Result<Written, Error>> + Send;
}

/// The IPv4 side of a key; `None` for a key that has none and so is alone in its place.
fn ipv4_side(key: &str) -> Option<&str> {
    let side = key.split_once('&').map_or(key, |(ipv4, _)| ipv4);
    (side != "0.0.0.0-0").then_some(side)
}

/// As much of the store's words, which may quote what somebody wrote, as an error shows, in characters.
const LONGEST: usize = 400;

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {}", words(step), words(reason))]
pub struct Error {
    /// What was being done, with the key, as in `read /coreos.com/network/config`.
    pub step: String,
    /// What the store or the connection said.
    pub reason: String,
    /// Whether the same call may work later without anybody mending anything.
    pub transient: bool,
}

fn words(text: &str) -> Shown<'_> {
    Shown::up_to(LONGEST, text)
}

impl Error {
    /// Whether the same call may work later: the store is away, slow or electing, rather than refusing.
    pub fn is_transient(&self) -> bool {
        self.transient
    }
}
