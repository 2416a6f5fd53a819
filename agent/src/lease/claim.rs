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
use crate::store::{LeaseId, Store, Written};

/// The member that asks; its value is who asks.
const CLAIM: &str = "ClaimedBy";
/// How long a machine with another node id has for its answer. A keeper answers in milliseconds, one whose etcd member hangs
/// within 20 s: 15 to notice, and the longest backoff.
pub(super) const CLAIM_WAIT: Duration = Duration::from_secs(30);
/// How long another instance has: nearly always it is this machine before its last boot, which must not wait for long. A
/// keeper that could not answer in time has its record back from us ([`Standing::Later`](crate::overlay::alloc::Standing)).
pub(super) const INSTANCE_WAIT: Duration = Duration::from_secs(3);
/// How often an answer is looked for, at the least. A look that takes longer than this says that etcd did not answer us.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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
                    tracing::warn!(subnet = %key, %holder, "that node gives no sign of life: its record is taken for that of this node's earlier life");
                }
                _ => {
                    tracing::info!(subnet = %key, %holder, "no answer: the record is taken for that of this machine before it was booted")
                }
            }
            (record.node, record.instance) = (None, None);
        }
        None
    }

    /// Puts our record where one stands that no node follows, unless its keeper is quicker: the subnet was ours when we last
    /// ran. `None`: it has changed.
    pub(super) async fn restore(&mut self, key: SubnetKey, revision: i64) -> Option<Held> {
        let raw = self.look(&key).await.filter(|raw| raw.revision == revision)?;
        tracing::warn!(subnet = %key, found = %Found::unreadable(&raw.value), wait = ?INSTANCE_WAIT, "a record that no node follows stands where ours was: waiting whether another node mends it");
        if !self.is_silent(&key, revision, INSTANCE_WAIT).await {
            return None;
        }
        let lease = Some(self.grant().await);
        self.overwrite(key, self.record_since(revision), lease, revision).await
    }

    /// Whether the record stays at this revision for so long, all the while that the store answers.
    async fn is_silent(&mut self, key: &SubnetKey, revision: i64, wait: Duration) -> bool {
        let mut since = Instant::now();
        while since.elapsed() < wait {
            sleep(LOOK_EVERY.min(wait / 10)).await;
            let before = Instant::now();
            if self.look(key).await.is_none_or(|raw| raw.revision != revision) {
                return false;
            }
            // While etcd did not answer us it may not have reached the other one either.
            if before.elapsed() > LOOK_EVERY {
                since = Instant::now();
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
                tracing::warn!(subnet = %key, %holder, ?wait, "another node's record has our public IP: asking whether that node is alive");
            }
            _ => {
                let instance = record.instance.as_ref().map(|instance| instance.id.as_str());
                tracing::info!(subnet = %key, %holder, instance, ours = self.wanted.instance, ?wait, "our record is of this machine before it was booted, or of a clone: asking whether a clone is alive");
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

    /// The record, as last seen, if it still stands so to us.
    fn seen_as(&self, key: &SubnetKey, relation: Relation) -> Option<&Record> {
        let record = self.seen.get(&key.to_string())?.record.as_ref()?;
        (self.wanted.relation(record) == relation).then_some(record)
    }
}
