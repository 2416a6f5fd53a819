//! A record in our name under another key: ours is written again, so that it is the later one on every node.
//!
//! Of two records of one node the others follow the one with a lease, else the later one. So a reservation can't be made to
//! go before a record with a lease by writing it again: that record is deleted.

use super::{Cause, Keeper, Over, Todo};
use crate::lease::{Defence, Found};
use crate::overlay::records::InOurName;
use crate::overlay::shown;
use crate::store::{Error, Store};

impl<S: Store> Keeper<S> {
    /// Has our record written again, as slowly as where others write under our own key.
    pub(super) async fn defend(&mut self, against: InOurName) -> Result<(), Over> {
        let defence = match (self.is_outranked_by(&against), &against.key) {
            (false, _) => Defence::WritesAgain,
            (true, Some(_)) => Defence::Deletes,
            (true, None) => Defence::KeyUnknown,
        };
        let found = Found::InOurName { key: shown(&against.name()), defence };
        let revision = against.revision;
        self.superseder = Some(against);
        if self.todo.is_none() {
            self.todo = Some(Todo::Write(Cause::Repair));
        }
        self.disturbed(found, true, revision).await
    }

    /// Whether a record in our name still supersedes ours, which was written at this revision.
    pub(super) fn is_superseded(&self, revision: i64) -> bool {
        let superseder = self.superseder.as_ref();
        superseder.is_some_and(|against| against.revision >= revision || self.is_outranked_by(against))
    }

    /// Deletes the record in our name that would go before ours however often that is written.
    pub(super) async fn clear_way(&mut self) -> Result<(), Error> {
        if let Some(against) = self.superseder.as_ref().filter(|against| self.is_outranked_by(against))
            && let Some(key) = &against.key
        {
            // One that was written again meanwhile is heard of again.
            self.store.delete(key, against.revision).await?;
        }
        Ok(())
    }

    fn is_outranked_by(&self, against: &InOurName) -> bool {
        against.is_leased && self.held.lease.is_none() && !self.has_ended
    }
}
