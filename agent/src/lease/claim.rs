//! A record with our public IP that is not ours by its ids: is whoever wrote it alive?
//!
//! Either two machines have one address, which must be refused, or the record is of this machine's earlier life, good for up
//! to a day: it was installed anew and has another node id, or it was booted and is another instance (or it has the address
//! of a machine that is gone). A lease's remaining time can't tell: the day may have begun a second before the machine
//! stopped. So the other one is asked: a member is added to its record, which flannel ignores and whose keeper, if it lives,
//! takes out again at once. Silence for as long as a living keeper may need, while etcd answers us, means that nobody is
//! there.
//!
//! An instance is told by the kernel's boot id and the network namespace. A random id of each run would have to be kept in a
//! file to know a plain restart by, and a file can be copied or lost.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Found, Held, Search};
use crate::overlay::alloc::Relation;
use crate::overlay::record::{Record, SubnetKey};
use crate::overlay::words::Span;
use crate::store::{LeaseId, Store, Written};

/// The member that asks; its value is who asks.
const CLAIM: &str = "ClaimedBy";
/// How long a machine with another node id has for its answer. A keeper answers in milliseconds, one whose etcd member hangs
/// within 20 s: 15 to notice, and the longest backoff.
pub(super) const CLAIM_WAIT: Duration = Duration::from_secs(30);
/// How long a daemon with our node id has to answer. Mostly there is none: the record is our own from before the last boot,
/// and a boot must not wait long. A daemon that answers too late gets its record back
/// ([`KeyOwner::Later`](crate::overlay::alloc::KeyOwner)).
pub(super) const INSTANCE_WAIT: Duration = Duration::from_secs(3);
/// How often an answer is looked for, at the least. The time of a look that takes longer than this does not count: etcd may
/// have been as slow for the other node.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a wait that takes longer than planned is logged.
const REMIND: Duration = Duration::from_secs(30);

/// Takes another node's question out of what a record of ours says.
pub(super) fn without_claim(extra: &mut Vec<(String, serde_json::Value)>) {
    extra.retain(|(name, _)| name != CLAIM);
}

/// Who asks in this record of ours.
pub(super) fn claimant(record: &Record) -> Option<String> {
    let (_, by) = record.extra.iter().find(|(name, _)| name == CLAIM)?;
    by.as_str().map(str::to_owned)
}

impl<S: Store> Search<'_, S> {
    /// The record of this key if whoever wrote it keeps it. If not, the record counts as ours from now on, or has changed:
    /// in either case a new decision is due.
    pub(super) async fn keeper_of(&mut self, key: &SubnetKey, relation: Relation) -> Option<Record> {
        let wait = if relation == Relation::Stranger { CLAIM_WAIT } else { INSTANCE_WAIT };
        let asked = self.ask(key, relation, wait).await?;
        if !self.is_silent(key, asked, wait).await {
            return self.seen_as(key, relation).cloned();
        }
        if let Some(record) = self.seen.get_mut(&key.to_string()).and_then(|seen| seen.record.as_mut()) {
            let holder = record.holder();
            match relation {
                Relation::Stranger => {
                    tracing::warn!(subnet = %key, %holder, "the other node did not answer; this node takes over its record and its subnet");
                }
                _ => {
                    tracing::info!(subnet = %key, %holder, "no clone answered; this node takes over its own record from before the last boot")
                }
            }
            (record.node, record.instance) = (None, None);
        }
        None
    }

    /// Replaces an unusable record under the key of our last subnet, unless another node restores its own record first.
    /// `None`: the record has changed.
    pub(super) async fn restore(&mut self, key: SubnetKey, revision: i64) -> Option<Held> {
        let raw = self.look(&key).await.filter(|raw| raw.revision == revision)?;
        tracing::warn!(subnet = %key, found = %Found::unreadable(&raw.value), wait = ?INSTANCE_WAIT, "an unusable record has the key of our last subnet; waiting whether another node restores its own record there");
        if !self.is_silent(&key, revision, INSTANCE_WAIT).await {
            return None;
        }
        // Deleted and made anew, so that the key has another creation: by that a node whose record it was tells that it is gone.
        let (store, text) = (self.store, key.to_string());
        match self.outage.retry("delete", || store.delete(&text, raw.revision)).await {
            Written::At(_) => self.create(key).await,
            Written::Conflict => None,
        }
    }

    /// Whether the record stays at this revision for so long, all the while that the store answers.
    async fn is_silent(&mut self, key: &SubnetKey, revision: i64, wait: Duration) -> bool {
        let (began, mut silent, mut reminded) = (Instant::now(), Duration::ZERO, Instant::now());
        while silent < wait {
            let (before, failures) = (Instant::now(), self.outage.failures);
            sleep(LOOK_EVERY.min(wait / 10)).await;
            let (paused, asked) = (before.elapsed(), Instant::now());
            if self.look(key).await.is_none_or(|raw| raw.revision != revision) {
                return false;
            }
            let took = asked.elapsed();
            silent += paused + if took > LOOK_EVERY { Duration::ZERO } else { took };
            if self.outage.failures != failures {
                // While etcd failed, it may not have reached the other node either.
                silent = Duration::ZERO;
            }
            if silent < wait && reminded.elapsed() >= REMIND {
                reminded = Instant::now();
                tracing::warn!(subnet = %key, waited = %Span(began.elapsed()), last_read = %Span(took), "still waiting for the answer of another node: only the time counts in which etcd answers at once");
            }
        }
        true
    }

    /// Puts the question into the other's record; its revision then, unless the record is another by now.
    async fn ask(&mut self, key: &SubnetKey, relation: Relation, wait: Duration) -> Option<i64> {
        let raw = self.look(key).await?;
        self.seen_as(key, relation)?;
        let mut record = Record::parse(&raw.value).ok()?;
        without_claim(&mut record.extra);
        record.extra.push((CLAIM.to_owned(), self.who_asks(relation).into()));
        let lease = (raw.lease != 0).then_some(LeaseId(raw.lease));
        let holder = record.holder();
        match relation {
            Relation::Stranger => {
                tracing::warn!(subnet = %key, %holder, wait = %Span(wait), "another node's record has our public IP: asking whether that node is alive");
            }
            _ => {
                let instance = record.instance.as_ref().map(|instance| instance.id.as_str());
                tracing::info!(subnet = %key, %holder, instance, ours = self.wanted.instance, wait = %Span(wait), "the record with our public IP and node id is from before the last boot, or a clone wrote it; asking whether a clone is alive");
            }
        }
        match self.store.update(&raw.key, &record.to_json(), lease, raw.revision).await {
            Ok(Written::At(revision)) => Some(revision),
            Ok(Written::Conflict) => None,
            Err(error) => {
                self.outage.failed("ask", &error).await;
                None
            }
        }
    }

    /// Who we are, for the other one's log.
    fn who_asks(&self, relation: Relation) -> String {
        let node = self.wanted.node.unwrap_or_default();
        match (relation, self.wanted.instance) {
            (Relation::Instance, Some(instance)) => format!("{node} instance {instance}").trim_start().to_owned(),
            _ => node.to_owned(),
        }
    }

    /// The record as last read, if its relation to us is still this one.
    fn seen_as(&self, key: &SubnetKey, relation: Relation) -> Option<&Record> {
        let record = self.seen.get(&key.to_string())?.record.as_ref()?;
        (self.wanted.relation(record) == relation).then_some(record)
    }
}
