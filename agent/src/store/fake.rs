//! A model of the store in memory, for tests: etcd's revisions, leases and conditional writes, and its faults on demand.
//!
//! Leases end by tokio's clock, so `tokio::time::pause` makes a day short. Nothing here is used outside tests, and it
//! knows nothing of records' contents.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Change, Error, LeaseId, RawRecord, Store, StoreEvent, Written};

/// How many events a follower may leave unread: more than any test makes.
const UNREAD: usize = 1 << 16;
/// Records in one page of a complete read.
const PAGE: usize = 1_000;

/// The calls of [`Store`], to count them and to make them fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is the method of its name, but for Keys: created_since")]
pub enum Op {
    Config,
    Record,
    Keys,
    Grant,
    KeepAlive,
    Revoke,
    Create,
    Update,
    Delete,
}

/// The model. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct FakeStore {
    model: Arc<Mutex<Model>>,
}

#[derive(Debug, Default)]
struct Model {
    revision: i64,
    config: Option<Vec<u8>>,
    records: BTreeMap<String, RawRecord>,
    /// At which revision each record was created; those that are gone too.
    created: BTreeMap<String, i64>,
    leases: BTreeMap<i64, Lease>,
    last_lease: i64,
    followers: Vec<mpsc::Sender<StoreEvent>>,
    /// What followers have not been told because the store is down.
    missed: Vec<StoreEvent>,
    down: bool,
    compacted: bool,
    refuse: BTreeMap<Op, u32>,
    lose_answer: BTreeMap<Op, u32>,
    requests: BTreeMap<Op, u32>,
    delay: Duration,
}

/// The state of a [`FakeStore`] at a moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    revision: i64,
    config: Option<Vec<u8>>,
    records: BTreeMap<String, RawRecord>,
    leases: BTreeMap<i64, Lease>,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    ttl: Duration,
    ends: Instant,
}

impl FakeStore {
    /// An empty store at revision 1, as a new etcd.
    pub fn new() -> Self {
        let store = Self::default();
        store.model().revision = 1;
        store
    }

    /// Makes the next `times` calls of `op` fail before they do anything.
    pub fn fail_next(&self, op: Op, times: u32) {
        self.model().refuse.insert(op, times);
    }

    /// Makes the next `times` calls of `op` take effect and then report a failure all the same.
    pub fn lose_answers(&self, op: Op, times: u32) {
        self.model().lose_answer.insert(op, times);
    }

    /// Each answer takes so long from now on.
    pub fn slow(&self, delay: Duration) {
        self.model().delay = delay;
    }

    /// The store stops answering. Leases go on ending.
    pub fn down(&self) {
        let mut model = self.model();
        model.down = true;
        model.tell(&StoreEvent::Down { reason: "the fake store is down".to_owned() });
    }

    /// The store answers again. Followers are told what they missed, or read all again after a [`Self::compact`].
    pub fn up(&self) {
        let mut model = self.model();
        model.down = false;
        let missed = std::mem::take(&mut model.missed);
        if std::mem::take(&mut model.compacted) {
            model.list_again();
        } else {
            missed.iter().for_each(|event| model.tell(event));
        }
        model.tell(&StoreEvent::Up);
    }

    /// Whoever follows is told nothing any more: its channel is closed.
    pub fn hang_up(&self) {
        self.model().followers.clear();
    }

    /// Forgets the history: whoever is disconnected, or will be next, has to read all again.
    pub fn compact(&self) {
        self.model().compacted = true;
    }

    /// Makes every follower read all again now.
    pub fn relist(&self) {
        self.model().list_again();
    }

    /// Writes a record whatever is there, as `etcdctl put` does. Returns the revision.
    pub fn put(&self, key: &str, value: &[u8], lease: i64) -> i64 {
        self.model().put(key, value, lease)
    }

    /// Deletes a record whatever is there, as `etcdctl del` does.
    pub fn remove(&self, key: &str) {
        self.model().remove(&[key.to_owned()]);
    }

    /// Writes or deletes the network config.
    pub fn set_config(&self, value: Option<&[u8]>) {
        let mut model = self.model();
        model.revision += 1;
        model.config = value.map(<[u8]>::to_vec);
        let event = StoreEvent::Config(model.config.clone());
        model.publish(event);
    }

    /// Ends a lease now, as its expiry does.
    pub fn expire(&self, lease: LeaseId) {
        self.model().end(lease.0);
    }

    /// What is stored now, as `etcdctl snapshot save` saves it.
    pub fn snapshot(&self) -> Snapshot {
        let model = self.model();
        let (config, records, leases) = (model.config.clone(), model.records.clone(), model.leases.clone());
        Snapshot { revision: model.revision, config, records, leases }
    }

    /// Back to an earlier state, revisions included. Its leases begin anew, and followers read all again.
    pub fn restore(&self, snapshot: &Snapshot) {
        let Snapshot { revision, config, records, leases } = snapshot.clone();
        let mut model = self.model();
        (model.revision, model.config, model.records, model.leases) = (revision, config, records, leases);
        for (id, lease) in &mut model.leases {
            lease.ends = Instant::now() + lease.ttl;
            tokio::spawn(self.clone().watch_lease(*id));
        }
        model.list_again();
    }

    /// All records, by key.
    pub fn records(&self) -> BTreeMap<String, RawRecord> {
        self.model().records.clone()
    }

    /// The leases that have not ended.
    pub fn leases(&self) -> Vec<LeaseId> {
        self.model().leases.keys().copied().map(LeaseId).collect()
    }

    /// How often `op` was called, failures included.
    pub fn requests(&self, op: Op) -> u32 {
        self.model().requests.get(&op).copied().unwrap_or(0)
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request: lets other tasks run before it, as a network does, then fails if it is told to.
    async fn request<T>(&self, op: Op, act: impl FnOnce(&mut Model) -> Result<T, Error>) -> Result<T, Error> {
        tokio::task::yield_now().await;
        let delay = self.model().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let mut model = self.model();
        *model.requests.entry(op).or_default() += 1;
        let failure = || Error { step: format!("{op:?}"), reason: "the fake store failed".to_owned(), transient: true };
        if model.down || take(&mut model.refuse, op) {
            return Err(failure());
        }
        let answer = act(&mut model);
        if take(&mut model.lose_answer, op) { Err(failure()) } else { answer }
    }

    /// Ends a lease when its time has come, however often it was renewed.
    async fn watch_lease(self, lease: i64) {
        loop {
            let Some(ends) = self.model().leases.get(&lease).map(|lease| lease.ends) else { return };
            if ends <= Instant::now() {
                return self.model().end(lease);
            }
            tokio::time::sleep_until(ends).await;
        }
    }
}

fn take(faults: &mut BTreeMap<Op, u32>, op: Op) -> bool {
    let left = faults.entry(op).or_default();
    let fails = *left > 0;
    *left = left.saturating_sub(1);
    fails
}

impl Model {
    /// Tells every follower, now or, while the store is down, when it is up again.
    fn publish(&mut self, event: StoreEvent) {
        if self.down {
            self.missed.push(event);
        } else {
            self.tell(&event);
        }
    }

    fn tell(&mut self, event: &StoreEvent) {
        self.followers.retain(|follower| follower.try_send(event.clone()).is_ok());
    }

    fn list_again(&mut self) {
        for event in self.listing() {
            self.tell(&event);
        }
    }

    fn listing(&self) -> Vec<StoreEvent> {
        let records: Vec<RawRecord> = self.records.values().cloned().collect();
        let mut events = vec![StoreEvent::Listing, StoreEvent::Config(self.config.clone())];
        events.extend(records.chunks(PAGE).map(|page| StoreEvent::Page(page.to_vec())));
        events.push(StoreEvent::Listed { revision: self.revision });
        events
    }

    fn put(&mut self, key: &str, value: &[u8], lease: i64) -> i64 {
        self.revision += 1;
        let revision = self.revision;
        let created = self.records.get(key).map_or(revision, |record| record.created);
        let record = RawRecord { key: key.to_owned(), value: value.to_vec(), created, revision, lease };
        self.records.insert(key.to_owned(), record.clone());
        self.created.insert(key.to_owned(), created);
        self.publish(StoreEvent::Changes(vec![Change::Put(record)]));
        self.revision
    }

    /// Deletes keys in one revision.
    fn remove(&mut self, keys: &[String]) {
        let revision = self.revision + 1;
        let gone = keys.iter().filter(|key| self.records.remove(*key).is_some());
        let changes: Vec<_> = gone.map(|key| Change::Deleted { key: key.clone(), revision }).collect();
        if !changes.is_empty() {
            self.revision = revision;
            self.publish(StoreEvent::Changes(changes));
        }
    }

    fn end(&mut self, lease: i64) {
        if self.leases.remove(&lease).is_some() {
            let hang = self.records.values().filter(|record| record.lease == lease);
            let keys: Vec<String> = hang.map(|record| record.key.clone()).collect();
            self.remove(&keys);
        }
    }

    fn known(&self, lease: Option<LeaseId>) -> Result<i64, Error> {
        match lease {
            Some(LeaseId(id)) if !self.leases.contains_key(&id) => Err(Error {
                step: "write a record".to_owned(),
                reason: "requested lease not found".to_owned(),
                transient: false,
            }),
            lease => Ok(lease.map_or(0, |lease| lease.0)),
        }
    }

    /// Whether a record stands in the way of creating `key`: see [`Store::create`].
    fn is_held(&self, key: &str) -> bool {
        match super::ipv4_side(key) {
            Some(side) => self.records.keys().any(|other| super::ipv4_side(other) == Some(side)),
            None => self.records.contains_key(key),
        }
    }

    fn is_at(&self, key: &str, revision: i64) -> bool {
        self.records.get(key).is_some_and(|record| record.revision == revision)
    }
}

impl Store for FakeStore {
    async fn config(&self) -> Result<Option<Vec<u8>>, Error> {
        self.request(Op::Config, |model| Ok(model.config.clone())).await
    }

    async fn record(&self, key: &str) -> Result<Option<RawRecord>, Error> {
        self.request(Op::Record, |model| Ok(model.records.get(key).cloned())).await
    }

    async fn in_the_way(&self, key: &str) -> Result<Option<RawRecord>, Error> {
        let side = super::ipv4_side(key);
        let blocks = |other: &str| other == key || (side.is_some() && super::ipv4_side(other) == side);
        let find = |model: &mut Model| {
            let exact = model.records.get(key);
            Ok(exact.or_else(|| model.records.values().find(|record| blocks(&record.key))).cloned())
        };
        self.request(Op::Record, find).await
    }

    async fn created_since(&self, revision: i64) -> Result<Vec<(String, i64)>, Error> {
        let find = |model: &mut Model| {
            let keys = model.records.keys().filter_map(|key| Some((key.clone(), *model.created.get(key)?)));
            Ok(keys.filter(|(_, created)| *created >= revision).collect())
        };
        self.request(Op::Keys, find).await
    }

    fn follow(&self) -> mpsc::Receiver<StoreEvent> {
        let (follower, events) = mpsc::channel(UNREAD);
        let mut model = self.model();
        if model.down {
            let _ = follower.try_send(StoreEvent::Down { reason: "the fake store is down".to_owned() });
            model.compacted = true;
        } else {
            for event in model.listing() {
                let _ = follower.try_send(event);
            }
        }
        model.followers.push(follower);
        events
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        let grant = |model: &mut Model| {
            model.last_lease += 1;
            let id = model.last_lease;
            model.leases.insert(id, Lease { ttl, ends: Instant::now() + ttl });
            tokio::spawn(self.clone().watch_lease(id));
            Ok(LeaseId(id))
        };
        self.request(Op::Grant, grant).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Option<Duration>, Error> {
        let renew = |model: &mut Model| {
            let renewed = model.leases.get_mut(&lease.0).map(|lease| {
                lease.ends = Instant::now() + lease.ttl;
                lease.ttl
            });
            Ok(renewed)
        };
        self.request(Op::KeepAlive, renew).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        let end = |model: &mut Model| {
            model.end(lease.0);
            Ok(())
        };
        self.request(Op::Revoke, end).await
    }

    async fn create(&self, key: &str, value: &[u8], lease: Option<LeaseId>) -> Result<Written, Error> {
        let create = |model: &mut Model| {
            if model.is_held(key) {
                return Ok(Written::Conflict);
            }
            let lease = model.known(lease)?;
            Ok(Written::At(model.put(key, value, lease)))
        };
        self.request(Op::Create, create).await
    }

    async fn update(&self, key: &str, value: &[u8], lease: Option<LeaseId>, revision: i64) -> Result<Written, Error> {
        let update = |model: &mut Model| {
            if !model.is_at(key, revision) {
                return Ok(Written::Conflict);
            }
            let lease = model.known(lease)?;
            Ok(Written::At(model.put(key, value, lease)))
        };
        self.request(Op::Update, update).await
    }

    async fn delete(&self, key: &str, revision: i64) -> Result<Written, Error> {
        let delete = |model: &mut Model| {
            if !model.is_at(key, revision) {
                return Ok(Written::Conflict);
            }
            model.remove(&[key.to_owned()]);
            Ok(Written::At(model.revision))
        };
        self.request(Op::Delete, delete).await
    }
}

#[cfg(test)]
mod tests;
