//! A record with our public IP and another node's id: is that node alive?
//!
//! Either two machines have one address, which must be refused, or this machine was installed anew (or has the address of
//! one that is gone) and the record is of the earlier life, good for up to a day. A lease's remaining time can't tell: the
//! day may have begun a second before the node died. So the other one is asked: a member is added to its record, which
//! flannel ignores and whose keeper, if it lives, takes out again at once. Silence for as long as a living keeper may need,
//! while etcd answers us, means that nobody is there.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Search;
use crate::overlay::record::{Record, SubnetKey};
use crate::store::{LeaseId, Store, Written};

/// The member that asks; its value is the asking node's id.
const CLAIM: &str = "ClaimedBy";
/// How long the other one has for its answer. A keeper answers in milliseconds, one whose etcd member hangs within 20 s: 15
/// to notice, and the longest backoff.
pub(super) const CLAIM_WAIT: Duration = Duration::from_secs(30);
/// How often its answer is looked for.
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
    /// Whether the node `other` keeps its record of this key. If not, the record counts as ours from now on, or has
    /// changed: in either case a new decision is due.
    pub(super) async fn is_kept_by(&mut self, key: &SubnetKey, other: &str) -> bool {
        let Some(asked) = self.ask(key, other).await else { return false };
        let mut since = Instant::now();
        while since.elapsed() < CLAIM_WAIT {
            sleep(LOOK_EVERY).await;
            let before = Instant::now();
            match self.look(key).await {
                Some(raw) if raw.revision == asked => {}
                Some(_) => return self.is_others(key, other),
                None => return false,
            }
            // While etcd did not answer us it may not have reached the other one either.
            if before.elapsed() > LOOK_EVERY {
                since = Instant::now();
            }
        }
        tracing::warn!(subnet = %key, other_node = other, "that node gives no sign of life: its record is taken for that of this node's earlier life");
        if let Some(record) = self.seen.get_mut(&key.to_string()).and_then(|seen| seen.record.as_mut()) {
            record.node = None;
        }
        false
    }

    /// Puts the question into the other's record; its revision then, unless the record is another by now.
    async fn ask(&mut self, key: &SubnetKey, other: &str) -> Option<i64> {
        let raw = self.look(key).await?;
        if !self.is_others(key, other) {
            return None;
        }
        let mut record = Record::parse(&raw.value).ok()?;
        without_claim(&mut record.extra);
        record.extra.push((CLAIM.to_owned(), self.wanted.node.unwrap_or_default().into()));
        let lease = (raw.lease != 0).then_some(LeaseId(raw.lease));
        tracing::warn!(subnet = %key, holder = %record.holder(), wait = ?CLAIM_WAIT, "another node's record has our public IP: asking whether that node is alive");
        match self.store.update(&raw.key, &record.to_json(), lease, raw.revision).await {
            Ok(Written::At(revision)) => Some(revision),
            Ok(Written::Conflict) => None,
            Err(error) => {
                self.outage.failed("ask", &error).await;
                None
            }
        }
    }

    /// Whether the record, as last seen, is that node's.
    fn is_others(&self, key: &SubnetKey, other: &str) -> bool {
        let record = self.seen.get(&key.to_string()).and_then(|seen| seen.record.as_ref());
        record.is_some_and(|record| record.node.as_deref() == Some(other))
    }
}
