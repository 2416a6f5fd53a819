//! Our own record: getting a subnet ([`acquire`]) and keeping it ([`Keeper`]).
//!
//! Every write is conditional: on the key being free, or on the revision we know. What has to be decided, `overlay::alloc`
//! decides; the store is a trait; the kernel and files are not known here. Order and rules: flannel's, with its faults
//! mended, see <https://github.com/flannel-io/flannel/blob/v0.28.9/pkg/subnet/etcd/local_manager.go>.
//!
//! No error of the store ends anything here: what fails is tried again, with backoff, until it works.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::overlay::alloc::{Decision, Seen, Wanted, decide};
use crate::overlay::record::{Record, SubnetKey};
use crate::store::backoff::Backoff;
use crate::store::{LeaseId, RawRecord, Store, Written};

mod census;
mod claim;
mod handle;
mod keeper;
mod outage;

use census::see;
pub use census::{Census, Known};
pub use handle::{KeeperHandle, LeaseEvent};
pub use keeper::Keeper;
use outage::Outage;
pub use outage::Tell;

/// The TTL of a record, flannel's `subnetTTL`.
pub const TTL: Duration = Duration::from_secs(86_400);

/// How often the end of a lease that nobody needs is asked for before it is left to end by itself.
const REVOKE_TRIES: u32 = 3;

/// A subnet that is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The subnet.
    pub key: SubnetKey,
    /// What the record says.
    pub record: Record,
    /// The record's `mod_revision`: what our next write compares.
    pub revision: i64,
    /// The etcd lease that it hangs on; `None`: a reservation, which never ends.
    pub lease: Option<LeaseId>,
}

/// Why there is no subnet for us. Trying the same again can help only after somebody changed the records or the config.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcquireError {
    /// Each subnet of the network is held.
    #[error("no free subnet: every /{subnet_len} that {network} gives out is held")]
    NoFreeSubnet {
        /// The network.
        network: IpNetwork,
        /// Its `SubnetLen`.
        subnet_len: u8,
    },
    /// Another node has our public IP, and is alive.
    #[error(
        "two nodes have the public IP {public_ip}: this one is {node}, the other one, {other_node}, is alive and holds {key}"
    )]
    Doubled {
        /// The address.
        public_ip: String,
        /// Our own node id.
        node: String,
        /// The other node's id.
        other_node: String,
        /// The other node's subnet.
        key: SubnetKey,
    },
}

/// Gets a subnet: `overlay::alloc`'s decision, carried out. `known` is what a complete read showed, `record` what shall
/// stand in ours, `ttl` how long it lasts without us. Whoever loses a race looks again; a grant that served no purpose is
/// revoked.
///
/// A record with our public IP and another node's id is taken over only after that node was asked whether it lives, which
/// takes 30 s (`claim`).
///
/// Cost on a quiet network: two requests for a new subnet (grant, create), two for our own record found unchanged (read,
/// keep-alive), three where it has to be written.
///
/// # Errors
/// Only those that no retry mends. The store's are retried for as long as it takes, logged once per outage.
pub async fn acquire<S: Store>(
    store: &S,
    wanted: &Wanted<'_>,
    known: impl Into<Census<'_>>,
    record: &Record,
    ttl: Duration,
) -> Result<Held, AcquireError> {
    acquire_telling(store, wanted, (known.into(), 0), record, ttl, &|_| {}).await
}

/// The same with the revision at which `known` was read, which spares a second look at all keys in a network of both
/// families; says what keeps it from a subnet when the store fails, and `None` when that works again.
///
/// # Errors
/// As [`acquire`].
pub async fn acquire_telling<S: Store>(
    store: &S,
    wanted: &Wanted<'_>,
    (census, since): (Census<'_>, i64),
    record: &Record,
    ttl: Duration,
    tell: Tell<'_>,
) -> Result<Held, AcquireError> {
    let seen = census.known.own.clone();
    let (lost, grant, outage) = (BTreeSet::new(), None, Outage::new(tell));
    let mut search = Search { store, wanted, record, ttl, since, census, seen, lost, grant, outage };
    let result = search.run().await;
    if let Some(lease) = search.grant {
        revoke(store, lease).await;
    }
    result
}

/// One run of [`acquire`].
struct Search<'a, S> {
    store: &'a S,
    wanted: &'a Wanted<'a>,
    record: &'a Record,
    ttl: Duration,
    /// What was held when the search began.
    census: Census<'a>,
    /// What was created before this revision is known.
    since: i64,
    /// Records of our own, by the key as the store has it.
    seen: BTreeMap<String, Seen>,
    /// What others have taken since.
    lost: BTreeSet<SubnetKey>,
    /// A lease that nothing hangs on yet.
    grant: Option<LeaseId>,
    outage: Outage<'a>,
}

impl<S: Store> Search<'_, S> {
    async fn run(&mut self) -> Result<Held, AcquireError> {
        loop {
            let taken = self.census.others().chain(self.lost.iter().copied());
            let plan = decide(self.wanted, self.seen.values(), taken, &mut rand::rng());
            for (key, revision) in &plan.stale {
                self.delete(key, *revision).await;
            }
            let held = match plan.decision {
                Decision::TakeOver { key, revision, lease } => self.take_over(key, revision, lease).await,
                Decision::Create { key } => self.create(key).await,
                Decision::NoFreeSubnet { network } => return Err(self.no_free_subnet(network)),
                Decision::Doubled { key, other_node } => {
                    if self.is_kept_by(&key, &other_node).await {
                        return Err(self.doubled(key, other_node));
                    }
                    None
                }
            };
            if let Some(held) = held {
                return Ok(held);
            }
        }
    }

    /// Deletes a record of ours that doesn't fit the config.
    async fn delete(&mut self, key: &SubnetKey, revision: i64) {
        let text = key.to_string();
        let store = self.store;
        let deleted = self.outage.retry("delete", || store.delete(&text, revision)).await;
        match deleted {
            Written::At(_) => {
                tracing::info!(subnet = %key, "deleted our record, which doesn't fit the network config");
                self.seen.remove(&text);
            }
            Written::Conflict => {
                self.look(key).await;
            }
        }
    }

    /// Writes our attributes into a record of ours. `None`: it changed meanwhile.
    async fn take_over(&mut self, key: SubnetKey, revision: i64, lease: i64) -> Option<Held> {
        let raw = self.look(&key).await.filter(|raw| (raw.revision, raw.lease) == (revision, lease))?;
        // What others added to the record stays, a reservation's comment for instance.
        let mut extra = self.seen.get(&raw.key)?.record.as_ref()?.extra.clone();
        claim::without_claim(&mut extra);
        let record = Record { extra, ..self.record.clone() };
        let lease = if raw.lease == 0 { None } else { Some(self.inherit(LeaseId(raw.lease)).await) };
        let value = record.to_json();
        if raw.value == value && lease.map_or(0, |lease| lease.0) == raw.lease {
            return Some(Held { key, record, revision, lease });
        }
        loop {
            match self.store.update(&raw.key, &value, lease, revision).await {
                Ok(Written::At(revision)) => return Some(self.done(Held { key, record, revision, lease })),
                Ok(Written::Conflict) => return self.adopt(key, record, lease).await,
                Err(error) => self.outage.failed("update", &error).await,
            }
            if !self.is_alive(lease).await {
                return None;
            }
        }
    }

    /// Makes a new record. `None`: somebody else was faster.
    async fn create(&mut self, key: SubnetKey) -> Option<Held> {
        let (text, value) = (key.to_string(), self.record.to_json());
        let lease = Some(self.grant().await);
        loop {
            match self.store.create(&text, &value, lease).await {
                Ok(Written::At(revision)) => {
                    return self.alone(Held { key, record: self.record.clone(), revision, lease }).await;
                }
                Ok(Written::Conflict) => match self.adopt(key, self.record.clone(), lease).await {
                    Some(held) => return self.alone(held).await,
                    None => {
                        tracing::debug!(subnet = %key, "another node was faster, looking again");
                        self.lost.insert(key);
                        return None;
                    }
                },
                Err(error) => self.outage.failed("create", &error).await,
            }
            if !self.is_alive(lease).await {
                return None;
            }
        }
    }

    /// What we have created, unless another node has its IPv6 subnet under another IPv4 one, which etcd can't see to: then
    /// whoever came later lets go.
    async fn alone(&mut self, held: Held) -> Option<Held> {
        let (Some(_), Some(ours)) = (held.key.ipv4, held.key.ipv6) else { return Some(self.done(held)) };
        let (store, since) = (self.store, self.since);
        let created = self.outage.retry("read", || store.created_since(since)).await;
        let earlier = created.iter().filter(|(_, created)| *created < held.revision);
        let others = earlier.filter_map(|(key, _)| SubnetKey::occupied(key));
        let Some(other) = others.into_iter().find(|key| key.ipv6.is_some_and(|theirs| theirs.overlaps(ours))) else {
            return Some(self.done(held));
        };
        tracing::debug!(subnet = %held.key, %other, "another node has the IPv6 subnet, looking again");
        self.lost.insert(other);
        let text = held.key.to_string();
        self.outage.retry("delete", || store.delete(&text, held.revision)).await;
        self.seen.remove(&text);
        self.grant = held.lease;
        None
    }

    /// After a conflict: perhaps the write of ours whose answer got lost is what stands in the way.
    async fn adopt(&mut self, key: SubnetKey, record: Record, lease: Option<LeaseId>) -> Option<Held> {
        let raw = self.look(&key).await?;
        let is_ours = raw.lease == lease.map_or(0, |lease| lease.0) && raw.value == record.to_json();
        is_ours.then(|| self.done(Held { key, record, revision: raw.revision, lease }))
    }

    fn done(&mut self, held: Held) -> Held {
        self.outage.worked();
        if self.grant == held.lease {
            self.grant = None;
        }
        held
    }

    /// Reads one key again and remembers what it shows.
    async fn look(&mut self, key: &SubnetKey) -> Option<RawRecord> {
        let text = key.to_string();
        let store = self.store;
        let raw = self.outage.retry("read", || store.record(&text)).await;
        match raw.as_ref().and_then(|raw| see(self.wanted, raw)) {
            Some(seen) => self.seen.insert(text, seen),
            None => self.seen.remove(&text),
        };
        if raw.is_none() {
            self.lost.remove(key);
        }
        raw
    }

    /// The lease of our earlier life, renewed, if it lasts as long as a new one would.
    async fn inherit(&mut self, lease: LeaseId) -> LeaseId {
        let store = self.store;
        let left = self.outage.retry("keep alive", || store.keep_alive(lease)).await;
        if left.is_some_and(|left| left >= self.ttl) { lease } else { self.grant().await }
    }

    /// One lease for the whole search.
    async fn grant(&mut self) -> LeaseId {
        let (store, ttl) = (self.store, self.ttl);
        let lease = match self.grant {
            Some(lease) => lease,
            None => self.outage.retry("grant", || store.grant(ttl)).await,
        };
        self.grant = Some(lease);
        lease
    }

    /// After a write failed for a reason of its own: whether the lease it named still is there.
    async fn is_alive(&mut self, lease: Option<LeaseId>) -> bool {
        let Some(lease) = lease.filter(|_| self.outage.is_refusal) else { return true };
        let alive = !matches!(self.store.keep_alive(lease).await, Ok(None));
        if !alive && self.grant == Some(lease) {
            self.grant = None;
        }
        alive
    }

    fn no_free_subnet(&self, network: IpNetwork) -> AcquireError {
        let family = self.wanted.config.families().find(|family| family.network == network);
        AcquireError::NoFreeSubnet { network, subnet_len: family.map_or(network.prefix(), |family| family.subnet_len) }
    }

    fn doubled(&self, key: SubnetKey, other_node: String) -> AcquireError {
        let bare = Record { node: None, ..self.record.clone() };
        let node = self.wanted.node.unwrap_or_default().to_owned();
        AcquireError::Doubled { public_ip: bare.holder(), node, other_node, key }
    }
}

/// Ends a lease that serves no purpose. Best effort: it ends by itself in time.
async fn revoke<S: Store>(store: &S, lease: LeaseId) {
    let mut backoff = Backoff::default();
    for _ in 0..REVOKE_TRIES {
        match store.revoke(lease).await {
            Ok(()) => return,
            Err(error) => tracing::debug!(%error, lease = lease.0, "could not revoke an unused lease"),
        }
        tokio::time::sleep(backoff.failed()).await;
    }
}

#[cfg(test)]
mod tests;
