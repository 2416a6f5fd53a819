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

use crate::overlay::alloc::{Decision, KnownRecord, Relation, SubnetRequest, decide};
use crate::overlay::record::{Instance, Record, SubnetKey};
use crate::overlay::shown;
use crate::store::backoff::Backoff;
use crate::store::{LeaseId, RawRecord, Store, Written};

mod census;
mod claim;
mod contest;
mod error;
mod found;
mod handle;
mod keeper;
mod outage;
mod previous;

use census::see;
pub use census::{Census, Known};
pub use error::AcquireError;
pub use found::{Deed, Defence, Found};
pub use handle::{FightEvent, KeeperHandle, LeaseEvent, Writes};
pub use keeper::Keeper;
use outage::Outage;
pub use outage::{Progress, Tell};
pub use previous::{Previous, tell_of_previous};

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
    /// The `create_revision` of its key: another node's record that has the same one was written over ours.
    pub created: i64,
    /// The record's `mod_revision`: what our next write compares.
    pub revision: i64,
    /// The etcd lease that it hangs on; `None`: a reservation, which never ends.
    pub lease: Option<LeaseId>,
}

/// Gets a subnet: `overlay::alloc`'s decision, carried out. `known` is what a complete read showed, `record` what shall
/// stand in ours, `ttl` how long it lasts without us. Whoever loses a race looks again; a grant that served no purpose is
/// revoked.
///
/// A record with our public IP and another node's id is taken over only after that node was asked whether it lives, which
/// takes 30 s, and one of another instance of this machine after 3 s (`claim`).
///
/// Cost on a quiet network: two requests for a new subnet (grant, create), two for our own record found unchanged (read,
/// keep-alive), three where it has to be written.
///
/// # Errors
/// Only those that no retry mends. The store's are retried for as long as it takes, logged once per outage.
pub async fn acquire<S: Store>(
    store: &S,
    wanted: &SubnetRequest<'_>,
    known: impl Into<Census<'_>>,
    record: &Record,
    ttl: Duration,
) -> Result<Held, AcquireError> {
    acquire_telling(store, wanted, (known.into(), 0), record, ttl, &|_| {}).await
}

/// The same with the revision at which `known` was read, which spares a second look at all keys in a network of both
/// families; tells what happens on the way.
///
/// # Errors
/// As [`acquire`].
pub async fn acquire_telling<S: Store>(
    store: &S,
    wanted: &SubnetRequest<'_>,
    (census, since): (Census<'_>, i64),
    record: &Record,
    ttl: Duration,
    tell: Tell<'_>,
) -> Result<Held, AcquireError> {
    let seen = census.known.own.clone();
    let (lost, grant, outage, given_up) = (BTreeSet::new(), None, Outage::new(tell), None);
    let mut search = Search { store, wanted, record, ttl, since, census, seen, lost, grant, outage, given_up };
    let result = search.run().await;
    if let Some(lease) = search.grant {
        revoke(store, lease).await;
    }
    result
}

/// One run of [`acquire`].
struct Search<'a, S> {
    store: &'a S,
    wanted: &'a SubnetRequest<'a>,
    record: &'a Record,
    ttl: Duration,
    /// What was held when the search began.
    census: Census<'a>,
    /// What was created before this revision is known.
    since: i64,
    /// Records of our own, by the key as the store has it.
    seen: BTreeMap<String, KnownRecord>,
    /// What others have taken since.
    lost: BTreeSet<SubnetKey>,
    /// A lease that nothing hangs on yet.
    grant: Option<LeaseId>,
    outage: Outage<'a>,
    /// Why the search does not aim at the previous subnet, as last told.
    given_up: Option<String>,
}

impl<S: Store> Search<'_, S> {
    async fn run(&mut self) -> Result<Held, AcquireError> {
        loop {
            let taken = self.census.others().chain(self.lost.iter().copied());
            let plan = decide(self.wanted, self.seen.values(), taken, &mut rand::rng());
            self.note_previous(&plan.decision);
            for (key, revision) in &plan.stale {
                self.delete(key, *revision).await;
            }
            let held = match plan.decision {
                Decision::TakeOver { key, revision, lease } => self.take_over(key, revision, lease).await,
                Decision::Create { key } => self.create(key).await,
                Decision::NoFreeSubnet { network } => return Err(self.no_free_subnet(network)),
                Decision::Restore { key, revision } => self.restore(key, revision).await,
                Decision::Doubled { key, relation } => match self.keeper_of(&key, relation).await {
                    Some(other) => return Err(self.doubled(key, &other)),
                    None => None,
                },
            };
            if let Some(held) = held {
                return Ok(held);
            }
        }
    }

    /// Deletes a record of ours that doesn't fit the config, or would go before our reservation.
    async fn delete(&mut self, key: &SubnetKey, revision: i64) {
        let text = key.to_string();
        let store = self.store;
        let deleted = self.outage.retry("delete", || store.delete(&text, revision)).await;
        match deleted {
            Written::At(_) => {
                if self.wanted.fits(key) {
                    tracing::info!(subnet = %key, "deleted our record, since another subnet is reserved for this node");
                } else {
                    tracing::info!(subnet = %key, "deleted our record, which doesn't fit the network config");
                }
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
        let there = self.seen.get(&raw.key)?.record.as_ref()?;
        let is_strangers = self.wanted.relation(there) == Relation::Stranger;
        let since = there.instance.as_ref().filter(|_| self.wanted.is_our_instance(there)).map(|ours| ours.since);
        // What others added to the record stays, a reservation's comment for instance.
        let mut extra = there.extra.clone();
        claim::without_claim(&mut extra);
        let record = Record { extra, ..self.record_since(since.unwrap_or(revision)) };
        let lease = match LeaseId(raw.lease) {
            LeaseId(0) => None,
            // A node that was silent, and comes back, must not find its own lease under our record.
            _ if is_strangers => Some(self.grant().await),
            lease => Some(self.inherit(lease).await),
        };
        if raw.value == record.to_json() && lease.map_or(0, |lease| lease.0) == raw.lease {
            return Some(Held { key, record, created: raw.created, revision, lease });
        }
        let held = self.overwrite(key, record, lease, &raw).await?;
        if is_strangers && raw.lease != 0 {
            revoke(self.store, LeaseId(raw.lease)).await;
        }
        Some(held)
    }

    /// Writes our record over what is there. `None`: something else is there by now.
    async fn overwrite(
        &mut self,
        key: SubnetKey,
        record: Record,
        lease: Option<LeaseId>,
        there: &RawRecord,
    ) -> Option<Held> {
        let created = there.created;
        let (text, value) = (key.to_string(), record.to_json());
        loop {
            match self.store.update(&text, &value, lease, there.revision).await {
                Ok(Written::At(revision)) => return Some(self.done(Held { key, record, created, revision, lease })),
                Ok(Written::Conflict) => return self.adopt(key, record, lease).await,
                Err(error) => self.outage.failed("update", &error).await,
            }
            if !self.is_alive(lease).await {
                return None;
            }
        }
    }

    /// Our record; this instance holds it since this revision.
    fn record_since(&self, since: i64) -> Record {
        let instance = self.record.instance.as_ref().map(|ours| Instance { since, ..ours.clone() });
        Record { instance, ..self.record.clone() }
    }

    /// Makes a new record. `None`: somebody else was faster.
    async fn create(&mut self, key: SubnetKey) -> Option<Held> {
        let record = self.record_since(self.since);
        let (text, value) = (key.to_string(), record.to_json());
        let lease = Some(self.grant().await);
        loop {
            match self.store.create(&text, &value, lease).await {
                Ok(Written::At(revision)) => {
                    return self.alone(Held { key, record, created: revision, revision, lease }).await;
                }
                Ok(Written::Conflict) => match self.adopt(key, record.clone(), lease).await {
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
        let RawRecord { created, revision, .. } = raw;
        is_ours.then(|| self.done(Held { key, record, created, revision, lease }))
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

    fn doubled(&self, key: SubnetKey, other: &Record) -> AcquireError {
        let bare = Record { node: None, ..self.record.clone() };
        let (public_ip, node) = (bare.holder(), self.wanted.node.unwrap_or("none").to_owned());
        let theirs = other.instance.as_ref().map(|instance| shown(&instance.id));
        match (self.wanted.relation(other), self.wanted.instance, theirs) {
            (Relation::Instance, Some(instance), Some(other)) => {
                AcquireError::Cloned { public_ip, node, instance: instance.to_owned(), other, key }
            }
            _ => {
                let other_node = other.node.as_deref().map(shown).unwrap_or_default();
                AcquireError::Doubled { public_ip, node, other_node, key }
            }
        }
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
