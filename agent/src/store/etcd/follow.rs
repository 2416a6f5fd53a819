//! Reading everything once and hearing of every change after it.
//!
//! A complete read in pages, all at the first page's revision, then one stream with two watches, of the records and of
//! the config, each from where it left off. Whatever breaks is opened again at that place; only a compaction beyond it,
//! or an etcd that is not the one we knew, makes the read start over.

use std::sync::Arc;

use etcd_client::{
    Client, EventType, GetOptions, GetResponse, Txn, TxnOp, TxnOpResponse, WatchOptions, WatchResponse, WatchStream,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::Keys;
use super::connection::{Access, CALL, Connection, Failure, Kind, failure, needs};
use crate::store::backoff::Backoff;
use crate::store::{Change, Error, Event, RawRecord};

/// Keys in a page. The client refuses answers over 4 MiB, and a record has some 150 bytes.
const PAGE: i64 = 1_000;
/// From this size on, an answer may be a part of what one revision did: etcd splits what is larger than its largest
/// request, 1.5 MiB unless told otherwise, and doesn't say so to us.
const MAYBE_SPLIT: usize = 64 << 10;

/// The task behind `EtcdStore::follow`.
pub(super) struct Follower {
    connection: Arc<Connection>,
    keys: Arc<Keys>,
    events: mpsc::Sender<Event>,
    backoff: Backoff,
    down: bool,
}

/// Nobody listens any more.
struct Unheard;

/// How far we have heard.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    /// The first revision of the records that was not told yet.
    records: i64,
    /// The same for the config.
    config: i64,
    /// etcd's id of the cluster that counts these revisions.
    cluster: u64,
}

/// Why a watch ended.
enum End {
    Unheard,
    /// What we know can't be continued.
    StartOver(&'static str),
    Broken(Failure),
}

impl From<Unheard> for End {
    fn from(_: Unheard) -> Self {
        Self::Unheard
    }
}

/// The two watches of a stream, by etcd's ids for them. Their `created` answers come in the order of the requests.
#[derive(Default)]
struct Watches {
    records: Option<i64>,
    config: Option<i64>,
}

impl Follower {
    pub(super) fn new(connection: Arc<Connection>, keys: Arc<Keys>, events: mpsc::Sender<Event>) -> Self {
        Self { connection, keys, events, backoff: Backoff::default(), down: false }
    }

    /// Runs until nobody listens.
    pub(super) async fn run(mut self) {
        let closed = self.events.clone();
        tokio::select! {
            Unheard = self.follow() => {}
            () = closed.closed() => {}
        }
    }

    async fn follow(&mut self) -> Unheard {
        let mut cursor: Option<Cursor> = None;
        loop {
            let (mut at, resumes) = match cursor.take() {
                Some(at) => (at, true),
                None => match self.list().await {
                    Ok(at) => (at, false),
                    Err(Unheard) => return Unheard,
                },
            };
            match self.watch(&mut at, resumes).await {
                End::Unheard => return Unheard,
                End::StartOver(reason) => tracing::info!(reason, "reading all records again"),
                End::Broken(failure) => {
                    cursor = Some(at);
                    if self.failed(failure.error).await.is_err() {
                        return Unheard;
                    }
                }
            }
        }
    }

    /// A complete read.
    async fn list(&mut self) -> Result<Cursor, Unheard> {
        'again: loop {
            let mut limit = PAGE;
            let (config, mut page, at) = loop {
                match self.first_page(limit).await {
                    Ok(first) => break first,
                    Err(failure) => limit = self.page_failed(failure, limit).await?,
                }
            };
            self.tell(Event::Listing).await?;
            self.tell(Event::Config(config)).await?;
            let revision = at.records - 1;
            loop {
                let last = page.kvs().last().map(|kv| [kv.key(), &[0]].concat());
                let records: Vec<RawRecord> = page.take_kvs().iter().filter_map(|kv| self.keys.record(kv)).collect();
                if !records.is_empty() {
                    self.tell(Event::Page(records)).await?;
                }
                let Some(from) = last.filter(|_| page.more()) else { break };
                page = loop {
                    match self.next_page(from.clone(), limit, revision).await {
                        Ok(page) => break page,
                        Err(failure) if failure.kind == Kind::Compacted => {
                            self.failed(failure.error).await?;
                            continue 'again;
                        }
                        Err(failure) => limit = self.page_failed(failure, limit).await?,
                    }
                };
            }
            self.tell(Event::Listed { revision }).await?;
            return Ok(at);
        }
    }

    /// The config and the first records, in one request and so at one revision.
    async fn first_page(&self, limit: i64) -> Result<(Option<Vec<u8>>, GetResponse, Cursor), Failure> {
        let from = self.keys.subnets.as_str();
        let range = GetOptions::new().with_prefix().with_limit(limit);
        let txn = Txn::new().and_then([TxnOp::get(self.keys.config.as_str(), None), TxnOp::get(from, Some(range))]);
        let access = reading(&self.keys);
        let call = |client: Client| {
            let txn = txn.clone();
            async move { client.kv_client().txn(txn).await }
        };
        let answer = self.connection.retried(access, call).await?;
        let gets = answer.op_responses().into_iter().filter_map(|op| match op {
            TxnOpResponse::Get(get) => Some(get),
            _ => None,
        });
        let mut gets = gets.collect::<Vec<_>>().into_iter();
        match (answer.header(), gets.next(), gets.next()) {
            (Some(header), Some(mut config), Some(records)) => {
                let next = header.revision() + 1;
                let config = config.take_kvs().pop().map(|kv| kv.into_key_value().1);
                Ok((config, records, Cursor { records: next, config: next, cluster: header.cluster_id() }))
            }
            _ => Err(broken(access, "an answer without its parts")),
        }
    }

    async fn next_page(&self, from: Vec<u8>, limit: i64, revision: i64) -> Result<GetResponse, Failure> {
        // '0' follows '/': the end of everything below `subnets/`.
        let end = format!("{}0", self.keys.subnets.trim_end_matches('/'));
        let range = GetOptions::new().with_range(end).with_limit(limit).with_revision(revision);
        let call = |client: Client| {
            let (from, range) = (from.clone(), Some(range.clone()));
            async move { client.kv_client().get(from, range).await }
        };
        self.connection.retried(reading(&self.keys), call).await
    }

    /// The limit for the next try.
    async fn page_failed(&mut self, failure: Failure, limit: i64) -> Result<i64, Unheard> {
        // Somebody's megabytes under a key of ours must not hide all the others.
        if failure.kind == Kind::TooLarge && limit > 1 {
            return Ok((limit / 8).max(1));
        }
        self.failed(failure.error).await?;
        Ok(limit)
    }

    /// Watches until something ends it, and keeps `at` where it has to be resumed.
    async fn watch(&mut self, at: &mut Cursor, resumes: bool) -> End {
        // etcd answers to a watch from a compacted revision that it is created, and takes it back in a second answer:
        // asked before, it tells before anybody is told that all is well.
        if resumes && let Err(end) = self.probe(at).await {
            return end;
        }
        let connected = match self.connection.connected(reading(&self.keys)).await {
            Ok(connected) => connected,
            Err(failure) => return End::Broken(failure),
        };
        let deadline = Instant::now() + CALL;
        let end = match timeout(CALL, self.open(connected.client, at)).await {
            Ok(Ok(stream)) => self.hear(stream, at, deadline).await,
            Ok(Err(error)) => End::Broken(failure(reading(&self.keys), &error)),
            Err(_) => End::Broken(broken(reading(&self.keys), "no answer to a watch")),
        };
        if let End::Broken(failure) = &end {
            self.connection.failed(connected.generation, failure.kind).await;
        }
        end
    }

    /// Whether etcd still has what we heard last: neither compacted nor, in a restored etcd, still to come.
    async fn probe(&self, at: &Cursor) -> Result<(), End> {
        let options = GetOptions::new().with_count_only().with_revision(at.records.min(at.config) - 1);
        let call = |client: Client| {
            let options = Some(options.clone());
            async move { client.kv_client().get(self.keys.config.as_str(), options).await }
        };
        match self.connection.retried(reading(&self.keys), call).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.kind == Kind::Compacted => Err(End::StartOver("etcd has compacted what we missed")),
            Err(failure) => Err(End::Broken(failure)),
        }
    }

    async fn open(&self, client: Client, at: &Cursor) -> Result<WatchStream, etcd_client::Error> {
        let options = |from| WatchOptions::new().with_start_revision(from).with_progress_notify().with_fragment();
        let records = options(at.records).with_prefix();
        let mut stream = client.watch_client().watch(self.keys.subnets.as_str(), Some(records)).await?;
        stream.watch(self.keys.config.as_str(), Some(options(at.config))).await?;
        Ok(stream)
    }

    async fn hear(&mut self, mut stream: WatchStream, at: &mut Cursor, deadline: Instant) -> End {
        let mut watches = Watches::default();
        loop {
            let opening = watches.config.is_none();
            let message = if opening {
                match timeout_at(deadline, stream.message()).await {
                    Ok(message) => message,
                    Err(_) => return End::Broken(broken(reading(&self.keys), "no answer to a watch")),
                }
            } else {
                stream.message().await
            };
            let answer = match message {
                Ok(Some(answer)) => answer,
                Ok(None) => return End::Broken(broken(reading(&self.keys), "etcd ended the watch")),
                Err(error) => return End::Broken(failure(reading(&self.keys), &error)),
            };
            if let Err(end) = self.take(&answer, at, &mut watches).await {
                return end;
            }
            if opening && watches.config.is_some() && self.works().await.is_err() {
                return End::Unheard;
            }
        }
    }

    /// One answer of a watch.
    async fn take(&mut self, answer: &WatchResponse, at: &mut Cursor, watches: &mut Watches) -> Result<(), End> {
        if answer.canceled() {
            if answer.compact_revision() > 0 {
                return Err(End::StartOver("etcd has compacted what we missed"));
            }
            return Err(End::Broken(self.cancelled(answer.cancel_reason())));
        }
        let (revision, cluster) = answer.header().map_or((0, 0), |header| (header.revision(), header.cluster_id()));
        if answer.created() {
            // A start in the future is no error to etcd: it would be silence until then.
            if revision + 1 < at.records.min(at.config) || cluster != at.cluster {
                return Err(End::StartOver("etcd is not the one we knew: restored from a backup?"));
            }
            let watch = if watches.records.is_none() { &mut watches.records } else { &mut watches.config };
            *watch = Some(answer.watch_id());
        } else if answer.events().is_empty() {
            // A progress notice: nothing up to this revision is still to come.
            if watches.records == Some(answer.watch_id()) {
                at.records = at.records.max(revision + 1);
            } else if watches.config == Some(answer.watch_id()) {
                at.config = at.config.max(revision + 1);
            }
        } else {
            self.changed(answer, at).await?;
        }
        Ok(())
    }

    async fn changed(&mut self, answer: &WatchResponse, at: &mut Cursor) -> Result<(), Unheard> {
        let mut changes = Vec::with_capacity(answer.events().len());
        let (mut size, mut last) = (0, 0);
        for event in answer.events() {
            let Some(kv) = event.kv() else { continue };
            size += kv.key().len() + kv.value().len();
            last = kv.mod_revision();
            let is_put = event.event_type() == EventType::Put;
            if kv.key() == self.keys.config.as_bytes() {
                at.config = last + 1;
                self.tell(Event::Config(is_put.then(|| kv.value().to_vec()))).await?;
            } else if let Some(record) = self.keys.record(kv) {
                changes.push(if is_put {
                    Change::Put(record)
                } else {
                    Change::Deleted { key: record.key, revision: record.revision }
                });
            }
        }
        if !changes.is_empty() {
            self.tell(Event::Changes(changes)).await?;
            // After a break, hearing the last revision twice does no harm; hearing half of it would.
            at.records = if size < MAYBE_SPLIT { last + 1 } else { last };
        }
        Ok(())
    }

    /// A watch that etcd refused says so in words only.
    fn cancelled(&self, reason: &str) -> Failure {
        let access = reading(&self.keys);
        let mut failure = broken(access, if reason.is_empty() { "etcd cancelled the watch" } else { reason });
        if reason.contains("permission denied") {
            failure.error = Error { reason: needs(access, reason), transient: false, ..failure.error };
        }
        failure
    }

    /// The store fails: says so, the first time, and waits.
    async fn failed(&mut self, error: Error) -> Result<(), Unheard> {
        if !std::mem::replace(&mut self.down, true) {
            self.tell(Event::Down { reason: error.to_string() }).await?;
        }
        sleep(self.backoff.failed()).await;
        Ok(())
    }

    async fn works(&mut self) -> Result<(), Unheard> {
        self.backoff.worked();
        if std::mem::take(&mut self.down) {
            self.tell(Event::Up).await?;
        }
        Ok(())
    }

    async fn tell(&self, event: Event) -> Result<(), Unheard> {
        self.events.send(event).await.map_err(|_| Unheard)
    }
}

fn reading(keys: &Keys) -> Access<'_> {
    Access { verb: "read", key: &keys.subnets, permission: "read" }
}

fn broken(access: Access<'_>, reason: &str) -> Failure {
    let step = format!("{} {}", access.verb, access.key);
    Failure { kind: Kind::Away, error: Error { step, reason: reason.to_owned(), transient: true } }
}
