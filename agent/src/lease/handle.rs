//! What a [`Keeper`](super::Keeper) is told, and what it tells.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::Found;
use crate::overlay::record::Record;
use crate::overlay::records::InOurName;
use crate::store::{Change, LeaseId};

/// What happened to our lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseEvent {
    /// The lease was renewed.
    Renewed {
        /// What is left of it now.
        left: Duration,
    },
    /// Our record was deleted, expired or spoilt, and is there again.
    Recreated {
        /// Its new revision.
        revision: i64,
        /// The lease it hangs on now.
        lease: Option<LeaseId>,
        /// What stood in its place; `None` where that was told already.
        found: Option<Found>,
    },
    /// Others write or delete our record again and again.
    Fight(FightEvent),
    /// What [`KeeperHandle::publish`] asked for is written.
    Published {
        /// The record's new revision.
        revision: i64,
    },
    /// Somebody made our record a reservation (`lease` is `None`), or hung it on another lease. It still is ours.
    Rehung {
        /// The lease it hangs on now.
        lease: Option<LeaseId>,
    },
    /// Another machine has our public IP and asks in our record whether we are alive. Taking the question out, which follows
    /// as [`LeaseEvent::Recreated`], is the answer. Sent for the first question, and once a minute while questions come,
    /// whoever asks.
    Claimed {
        /// The node id of who asked last and, if that is ours, its instance.
        by: String,
        /// How many questions this event stands for.
        times: u64,
    },
    /// Another node holds our subnet. Final: the keeper has stopped.
    Lost {
        /// The other: its public IP and, where known, its node id.
        holder: String,
    },
    /// The store fails; the keeper goes on trying. Sent when that begins, and again when the reason is another, every 30 s at
    /// the most.
    Trouble {
        /// What it said.
        reason: String,
    },
    /// The store works again. Sent once per outage.
    Recovered,
}

/// What happens in a fight over our record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FightEvent {
    /// It begins or goes on. Sent when it begins, after ten seconds and ever more seldom, once a minute in the end, if others
    /// wrote since the last one.
    Disputed {
        /// The last example of the most frequent kind of their writes.
        found: Found,
        /// How often others wrote.
        writes: Writes,
        /// In which time.
        within: Duration,
    },
    /// In the middle of it something stood there that was not told yet. Sent a few times a minute at the most.
    AlsoFound {
        /// What.
        found: Found,
    },
    /// The other nodes may not find this one because of it, from now until [`FightEvent::Harmless`].
    Harmful {
        /// What stood there.
        found: Found,
    },
    /// Our record has stood for some seconds as it is to be.
    Harmless,
    /// Nobody has touched our record for a minute.
    Over,
}

/// How often others wrote, by what they did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Writes {
    /// They wrote something else under our key.
    pub overwritten: u64,
    /// They deleted our record.
    pub deleted: u64,
    /// They wrote under another key.
    pub under_another_key: u64,
    /// How many of all of them left something that has had no line of its own.
    pub not_shown: u64,
}

/// How to talk to a running [`Keeper`](super::Keeper). Clones share it.
#[derive(Debug, Clone)]
pub struct KeeperHandle {
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) task: AbortHandle,
}

#[derive(Debug)]
pub(super) enum Command {
    Seen(Change),
    Check,
    Publish(Box<Record>),
    Defend(InOurName),
}

impl KeeperHandle {
    /// What a watch, or a complete read, shows of our own key. After a complete read without our key: a
    /// [`Change::Deleted`] at its revision. Changes of other keys are ignored, and so are our own echoes.
    pub fn seen(&self, change: Change) {
        // A keeper that has stopped doesn't mind.
        let _ = self.commands.send(Command::Seen(change));
    }

    /// A complete read is done. What is known of our record may be of another history, that of an etcd before it was wiped
    /// or restored from a backup, where revisions were higher: the lease is renewed and the record looked at.
    pub fn check(&self) {
        let _ = self.commands.send(Command::Check);
    }

    /// Writes our record anew, with another public IP or MAC.
    pub fn publish(&self, record: Record) {
        let _ = self.commands.send(Command::Publish(Box::new(record)));
    }

    /// A record of another key supersedes ours in our own name, so that the other nodes don't follow ours: ours is written
    /// again.
    pub fn defend(&self, against: InOurName) {
        let _ = self.commands.send(Command::Defend(against));
    }

    /// Stops the keeper at once. The record stays as it is.
    pub fn stop(&self) {
        self.task.abort();
    }
}
