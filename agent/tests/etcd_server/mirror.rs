//! What a follower hears, put together again, and its manners watched: nothing twice, nothing out of order, `Down` and `Up`
//! in turn.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use twill_agent::store::{Change, RawRecord, StoreEvent};

/// A table kept by a follower's events.
pub(crate) struct Mirror {
    events: mpsc::Receiver<StoreEvent>,
    pub(crate) table: BTreeMap<String, RawRecord>,
    /// Complete reads begun.
    pub(crate) listings: usize,
    /// What was said of outages, in order.
    pub(crate) outages: Vec<Outage>,
    listed: bool,
    revision: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outage {
    Down(String),
    Up,
}

impl Mirror {
    /// After the first complete read.
    pub(crate) async fn new(events: mpsc::Receiver<StoreEvent>) -> Self {
        let (table, outages) = (BTreeMap::new(), Vec::new());
        let mut mirror = Self { events, table, listings: 0, outages, listed: false, revision: 0 };
        while !mirror.listed {
            let event = super::next(&mut mirror.events).await;
            mirror.take(event);
        }
        mirror
    }

    /// Takes in events until `done`.
    pub(crate) async fn until(&mut self, what: &str, limit: Duration, done: impl Fn(&Self) -> bool) {
        let end = Instant::now() + limit;
        while !done(self) {
            match tokio::time::timeout_at(end.into(), self.events.recv()).await {
                Ok(Some(event)) => self.take(event),
                Ok(None) => panic!("the follower ended before {what}"),
                Err(_) => panic!("{limit:?} in vain for {what}; outages: {:?}", self.outages),
            }
        }
    }

    /// Takes in what has come until nothing does for `time`.
    pub(crate) async fn settle(&mut self, time: Duration) {
        while let Ok(event) = tokio::time::timeout(time, self.events.recv()).await {
            self.take(event.unwrap());
        }
    }

    /// The next event, not yet taken in.
    pub(crate) async fn next(&mut self) -> StoreEvent {
        self.events.recv().await.unwrap()
    }

    /// Takes in an event; whether it completed a read.
    pub(crate) fn take_and_tell(&mut self, event: StoreEvent) -> bool {
        let listed = matches!(event, StoreEvent::Listed { .. });
        self.take(event);
        listed
    }

    /// In the middle of a complete read, when the table is not whole.
    pub(crate) fn is_listing(&self) -> bool {
        !self.listed
    }

    /// etcd's revision of what was heard last.
    pub(crate) fn revision(&self) -> i64 {
        self.revision
    }

    pub(crate) fn is_up(&self) -> bool {
        !matches!(self.outages.last(), Some(Outage::Down(_)))
    }

    pub(crate) fn take(&mut self, event: StoreEvent) {
        match event {
            StoreEvent::Listing => {
                (self.listings, self.listed) = (self.listings + 1, false);
                self.table.clear();
            }
            StoreEvent::Page(page) => self.table.extend(page.into_iter().map(|record| (record.key.clone(), record))),
            StoreEvent::Listed { revision } => (self.listed, self.revision) = (true, revision),
            StoreEvent::Changes(changes) => changes.into_iter().for_each(|change| self.change(change)),
            StoreEvent::Config(_) => {}
            StoreEvent::Down { reason } => {
                assert!(self.is_up(), "down twice: {reason} after {:?}", self.outages);
                self.outages.push(Outage::Down(reason));
            }
            StoreEvent::Up => {
                assert!(!self.is_up(), "up without having been down");
                self.outages.push(Outage::Up);
            }
        }
    }

    fn change(&mut self, change: Change) {
        let revision = match &change {
            Change::Put(record) => record.revision,
            Change::Deleted { revision, .. } => *revision,
        };
        // A lease's end deletes several keys in one revision.
        assert!(revision >= self.revision, "{change:?} after revision {}", self.revision);
        self.revision = revision;
        match change {
            Change::Put(record) => {
                let before = self.table.insert(record.key.clone(), record);
                assert!(before.is_none_or(|before| before.revision < revision), "heard twice at {revision}");
            }
            Change::Deleted { key, .. } => {
                assert!(self.table.remove(&key).is_some(), "{key} was gone already at {revision}");
            }
        }
    }
}
