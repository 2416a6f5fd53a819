//! Writing our record: anew, again, and what is known once it stands.

use tokio::time::Instant;

use super::{Cause, Keeper, Over, Stop, Todo, addresses};
use crate::lease::handle::LeaseEvent;
use crate::lease::{Held, revoke};
use crate::store::{Error, LeaseId, Store, Written};

impl<S: Store> Keeper<S> {
    /// Makes our record again, if its key is free.
    pub(super) async fn create(&mut self) -> Result<(), Stop> {
        let lease = self.living_lease().await?;
        self.contest.writes(Instant::now());
        match self.store.create(&self.key, &self.held.record.to_json(), Some(lease)).await? {
            Written::At(revision) => {
                self.held.created = revision;
                self.recreated(revision).await?;
            }
            Written::Conflict => self.look().await?,
        }
        Ok(())
    }

    /// The lease for a new record: the one we have, if it still is there, or else a new one.
    pub(super) async fn living_lease(&mut self) -> Result<LeaseId, Stop> {
        if self.renew().await?.is_some()
            && let Some(lease) = self.held.lease
        {
            return Ok(lease);
        }
        let lease = self.store.grant(self.ttl).await?;
        (self.unused, self.granted) = (Some(lease), Some(lease));
        self.held.lease = Some(lease);
        self.renewed(self.ttl);
        Ok(lease)
    }

    pub(super) async fn write(&mut self, cause: Cause) -> Result<(), Stop> {
        self.contest.writes(Instant::now());
        self.clear_way().await?;
        let Held { lease, revision, record, .. } = &self.held;
        match self.store.update(&self.key, &record.to_json(), *lease, *revision).await? {
            Written::At(revision) => self.written(revision, cause).await?,
            Written::Conflict => self.look().await?,
        }
        Ok(())
    }

    /// After a conflict: what stands under our key?
    pub(super) async fn look(&mut self) -> Result<(), Stop> {
        match self.store.in_the_way(&self.key).await? {
            Some(raw) if raw.key == self.key => Ok(self.judge(raw).await?),
            Some(raw) if self.todo == Some(Todo::Create) => Ok(self.judge_overlap(&raw).await?),
            None if self.todo == Some(Todo::Create) => {
                let reason = "a record came and went".to_owned();
                Err(Stop::Failed(Error { step: format!("create {}", self.key), reason, transient: true }))
            }
            _ => {
                self.todo = Some(Todo::Create);
                Ok(())
            }
        }
    }

    /// Follows the lease that somebody, in our name, hung the record on.
    pub(super) async fn rehang(&mut self, lease: i64) -> Result<(), Over> {
        // Nothing of ours hangs on the one before any more. One that we followed may be another node's.
        let before = self.held.lease.filter(|held| self.granted == Some(*held));
        for unused in [self.unused.take(), before].into_iter().flatten().filter(|unused| unused.0 != lease) {
            revoke(&self.store, unused).await;
        }
        self.held.lease = (lease != 0).then_some(LeaseId(lease));
        // How long it lasts is not known yet, so it is renewed at once.
        self.renew_at = self.held.lease.map(|_| Instant::now());
        self.tell(LeaseEvent::Rehung { lease: self.held.lease }).await
    }

    pub(super) async fn recreated(&mut self, revision: i64) -> Result<(), Over> {
        self.settled(revision);
        let found = self.contest.written(Instant::now());
        self.tell(LeaseEvent::Recreated { revision, lease: self.held.lease, found }).await
    }

    pub(super) async fn written(&mut self, revision: i64, cause: Cause) -> Result<(), Over> {
        match cause {
            Cause::Publish => {
                self.settled(revision);
                // What stood there meanwhile was to be replaced anyway.
                self.contest.written(Instant::now());
                self.tell(LeaseEvent::Published { revision }).await
            }
            Cause::Repair => self.recreated(revision).await,
        }
    }

    pub(super) fn settled(&mut self, revision: i64) {
        self.held.revision = revision;
        self.addresses = vec![addresses(&self.held.record)];
        (self.todo, self.superseder) = (None, None);
        self.unused = None;
        self.has_ended = false;
    }
}
