//! Reading everything once and hearing of every change after it.
//!
//! A complete read in pages, all at the first page's revision, then one stream with two watches, of the records and of
//! the config. Whatever breaks is opened again: the records where they were left, the config, which is one key, read anew.
//! Only a compaction beyond that place, or an etcd that is not the one we knew, makes the read start over.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Client, EventType, GetOptions, GetResponse, Txn, TxnOp, TxnOpResponse, TxnResponse, WatchOptions, WatchResponse,
    WatchStream,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::Keys;
use super::connection::{CALL, Connection};
use super::failure::{Access, Failure, Kind, failure, needs};
use super::history::History;
use crate::store::backoff::Backoff;
use crate::store::{Change, Error, RawRecord, StoreEvent};

/// Keys in a page. The client refuses answers over 4 MiB, and a record has some 150 bytes.
const PAGE: i64 = 1_000;
/// From this size on, an answer may be a part of what one revision did: etcd splits what is larger than its largest
/// request, 1.5 MiB unless told otherwise, and doesn't say so to us.
const MAYBE_SPLIT: usize = 64 << 10;

/// A watch that lived for so long, more than opening it may take, was no failure: waits begin anew after it.
const STEADY: Duration = Duration::from_secs(10);

/// How long the reason of an outage stands before another one is told. A connection that fails may say something else
/// each time.
const STANDS: Duration = Duration::from_secs(30);

/// The task behind `EtcdStore::follow`.
pub(super) struct Follower {
    connection: Arc<Connection>,
    keys: Arc<Keys>,
    events: mpsc::Sender<StoreEvent>,
    backoff: Backoff,
    /// The reason that was told while the store fails, and when it was looked at last.
    told: Option<(String, Instant)>,
}

/// Nobody listens any more.
struct Unheard;

/// How far we have heard.
#[derive(Debug, Clone)]
struct Cursor {
    /// The first revision of the records that was not told yet.
    records: i64,
    /// The revision after the one at which the config was read.
    config: i64,
    /// The config as it was told last.
    text: Option<Vec<u8>>,
    /// The etcd that counts these revisions.
    history: History,
}

const RESTORED: &str = "etcd is not the one we knew: restored from a backup?";

/// Why a watch ended.
enum WatchEnd {
    Unheard,
    /// What we know can't be continued.
    StartOver(&'static str),
    /// A watch began before a compaction; the probe tells whether what it was to tell is known otherwise.
    Compacted,
    Broken(Failure),
}

impl From<Unheard> for WatchEnd {
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
    pub(super) fn new(connection: Arc<Connection>, keys: Arc<Keys>, events: mpsc::Sender<StoreEvent>) -> Self {
        Self { connection, keys, events, backoff: Backoff::default(), told: None }
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
                WatchEnd::Unheard => return Unheard,
                WatchEnd::StartOver(reason) => {
                    tracing::info!(reason, "reading all records again");
                    sleep(self.backoff.failed()).await;
                }
                WatchEnd::Compacted => {
                    cursor = Some(at);
                    sleep(self.backoff.failed()).await;
                }
                WatchEnd::Broken(failure) => {
                    cursor = Some(at);
                    if self.failed(failure).await.is_err() {
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
            let (mut page, at) = loop {
                match self.first_page(limit).await {
                    Ok(first) => break first,
                    Err(failure) => limit = self.page_failed(failure, limit).await?,
                }
            };
            self.tell(StoreEvent::Listing).await?;
            self.tell(StoreEvent::Config(at.text.clone())).await?;
            let revision = at.records - 1;
            loop {
                let last = page.kvs().last().map(|kv| [kv.key(), &[0]].concat());
                let records: Vec<RawRecord> = page.take_kvs().iter().filter_map(|kv| self.keys.record(kv)).collect();
                if !records.is_empty() {
                    self.tell(StoreEvent::Page(records)).await?;
                }
                let Some(from) = last.filter(|_| page.more()) else { break };
                page = loop {
                    match self.next_page(from.clone(), limit, revision).await {
                        Ok(page) => break page,
                        Err(failure) if failure.kind == Kind::Compacted => {
                            self.failed(failure).await?;
                            continue 'again;
                        }
                        Err(failure) => limit = self.page_failed(failure, limit).await?,
                    }
                };
            }
            self.tell(StoreEvent::Listed { revision }).await?;
            return Ok(at);
        }
    }

    /// The config and the first records, in one request and so at one revision.
    async fn first_page(&self, limit: i64) -> Result<(GetResponse, Cursor), Failure> {
        let from = self.keys.subnets.as_str();
        let range = GetOptions::new().with_prefix().with_limit(limit);
        let (access, config) = (reading(&self.keys), self.keys.config.as_str());
        let answer = self.read(access, [TxnOp::get(config, None), TxnOp::get(from, Some(range))]).await?;
        let mut gets = gets(&answer);
        match (answer.header(), gets.next(), gets.next()) {
            (Some(header), Some(config), Some(records)) => {
                let (next, text) = (header.revision() + 1, value(config));
                Ok((records, Cursor { records: next, config: next, text, history: History::of(header) }))
            }
            _ => Err(broken(access, "an answer without its parts")),
        }
    }

    /// Several reads at one revision, in one request.
    async fn read(&self, access: Access<'_>, reads: [TxnOp; 2]) -> Result<TxnResponse, Failure> {
        let txn = Txn::new().and_then(reads);
        let call = |client: Client| {
            let txn = txn.clone();
            async move { client.kv_client().txn(txn).await }
        };
        self.connection.retried(access, call).await
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
        self.failed(failure).await?;
        Ok(limit)
    }

    /// Watches until something ends it, and keeps `at` where it has to be resumed.
    async fn watch(&mut self, at: &mut Cursor, resumes: bool) -> WatchEnd {
        // etcd answers to a watch from a compacted revision that it is created, and takes it back in a second answer:
        // asked before, it tells before anybody is told that all is well.
        if resumes && let Err(end) = self.probe(at).await {
            return end;
        }
        let connected = match self.connection.connected(reading(&self.keys)).await {
            Ok(connected) => connected,
            Err(failure) => return WatchEnd::Broken(failure),
        };
        let deadline = Instant::now() + CALL;
        let end = match timeout(CALL, self.open(connected.client, at)).await {
            Ok(Ok(stream)) => {
                let opened = Instant::now();
                let end = self.hear(stream, at, deadline).await;
                if opened.elapsed() >= STEADY {
                    self.backoff.worked();
                }
                end
            }
            Ok(Err(error)) => WatchEnd::Broken(failure(reading(&self.keys), &error)),
            Err(_) => WatchEnd::Broken(broken(reading(&self.keys), "no answer to a watch")),
        };
        match end {
            WatchEnd::Broken(failure) => {
                self.connection.failed(connected.generation, failure.kind).await;
                WatchEnd::Broken(failure.at(connected.endpoint))
            }
            end => end,
        }
    }

    /// Whether etcd still has what we heard last: neither compacted nor, in a restored etcd, still to come. Reads the config
    /// on the way, which so needs no history.
    async fn probe(&mut self, at: &mut Cursor) -> Result<(), WatchEnd> {
        let (access, config) = (reading_config(&self.keys), self.keys.config.as_str());
        let heard = GetOptions::new().with_count_only().with_revision(at.records - 1);
        let answer = match self.read(access, [TxnOp::get(config, None), TxnOp::get(config, Some(heard))]).await {
            Ok(answer) => answer,
            Err(failure) if failure.kind == Kind::Compacted => {
                return Err(WatchEnd::StartOver("etcd has compacted what we missed"));
            }
            Err(failure) => return Err(WatchEnd::Broken(failure)),
        };
        let (Some(header), Some(config)) = (answer.header(), gets(&answer).next()) else {
            return Err(WatchEnd::Broken(broken(access, "an answer without its parts")));
        };
        let history = History::of(header);
        if !at.history.goes_on(history) {
            return Err(WatchEnd::StartOver(RESTORED));
        }
        at.config = header.revision() + 1;
        at.history = history;
        self.tell_config(value(config), at).await?;
        Ok(())
    }

    async fn open(&self, client: Client, at: &Cursor) -> Result<WatchStream, etcd_client::Error> {
        let options = |from| WatchOptions::new().with_start_revision(from).with_progress_notify().with_fragment();
        let records = options(at.records).with_prefix();
        let mut stream = client.watch_client().watch(self.keys.subnets.as_str(), Some(records)).await?;
        stream.watch(self.keys.config.as_str(), Some(options(at.config))).await?;
        Ok(stream)
    }

    async fn hear(&mut self, mut stream: WatchStream, at: &mut Cursor, deadline: Instant) -> WatchEnd {
        let mut watches = Watches::default();
        loop {
            let opening = watches.config.is_none();
            let message = if opening {
                match timeout_at(deadline, stream.message()).await {
                    Ok(message) => message,
                    Err(_) => return WatchEnd::Broken(broken(reading(&self.keys), "no answer to a watch")),
                }
            } else {
                stream.message().await
            };
            let answer = match message {
                Ok(Some(answer)) => answer,
                Ok(None) => return WatchEnd::Broken(broken(reading(&self.keys), "etcd ended the watch")),
                Err(error) => return WatchEnd::Broken(failure(reading(&self.keys), &error)),
            };
            if let Err(end) = self.take(&answer, at, &mut watches).await {
                return end;
            }
            if opening && watches.config.is_some() && self.works().await.is_err() {
                return WatchEnd::Unheard;
            }
        }
    }

    /// One answer of a watch.
    async fn take(&mut self, answer: &WatchResponse, at: &mut Cursor, watches: &mut Watches) -> Result<(), WatchEnd> {
        if answer.canceled() {
            if answer.compact_revision() > 0 {
                return Err(WatchEnd::Compacted);
            }
            return Err(WatchEnd::Broken(self.cancelled(answer.cancel_reason())));
        }
        let (revision, history) = match answer.header() {
            Some(header) => (header.revision(), History::of(header)),
            None => (0, History::default()),
        };
        at.history.term = at.history.term.max(history.term);
        if answer.created() {
            let (watch, from) = match watches.records {
                None => (&mut watches.records, at.records),
                Some(_) => (&mut watches.config, at.config),
            };
            // A start in the future is no error to etcd: it would be silence until then.
            if revision + 1 < from || !at.history.is_cluster(history.cluster) {
                return Err(WatchEnd::StartOver(RESTORED));
            }
            *watch = Some(answer.watch_id());
        } else if answer.events().is_empty() {
            // A progress notice: nothing up to this revision is still to come.
            if watches.records == Some(answer.watch_id()) {
                at.records = at.records.max(revision + 1);
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
                self.tell_config(is_put.then(|| kv.value().to_vec()), at).await?;
            } else if let Some(record) = self.keys.record(kv) {
                changes.push(if is_put {
                    Change::Put(record)
                } else {
                    Change::Deleted { key: record.key, revision: record.revision }
                });
            }
        }
        if !changes.is_empty() {
            self.tell(StoreEvent::Changes(changes)).await?;
            // After a break, hearing the last revision twice does no harm; hearing half of it would.
            at.records = if size < MAYBE_SPLIT { last + 1 } else { last };
        }
        Ok(())
    }

    /// The config, if it is another than was told.
    async fn tell_config(&self, text: Option<Vec<u8>>, at: &mut Cursor) -> Result<(), Unheard> {
        if at.text != text {
            at.text.clone_from(&text);
            self.tell(StoreEvent::Config(text)).await?;
        }
        Ok(())
    }

    /// A watch that etcd refused says so in words only.
    fn cancelled(&self, reason: &str) -> Failure {
        let failure = broken(reading(&self.keys), if reason.is_empty() { "etcd cancelled the watch" } else { reason });
        let kind = if reason.contains("permission denied") { Kind::Denied } else { failure.kind };
        Failure { kind, ..failure }
    }

    /// The store fails: says so, the first time and when the reason is another, and waits.
    async fn failed(&mut self, failure: Failure) -> Result<(), Unheard> {
        if self.told.as_ref().is_none_or(|(_, at)| at.elapsed() >= STANDS) {
            let failure = self.connection.explained(failure).await;
            let error = if failure.kind == Kind::Denied { self.denied(failure.error).await } else { failure.error };
            let told = self.told.replace((error.reason.clone(), Instant::now()));
            if told.is_none_or(|(told, _)| is_another(&told, &error.reason)) {
                self.tell(StoreEvent::Down { reason: error.to_string() }).await?;
            }
        }
        sleep(self.backoff.failed()).await;
        Ok(())
    }

    /// A refusal of several reads at once doesn't say which one it is for: asks for each.
    async fn denied(&self, error: Error) -> Error {
        let mut refused = Vec::new();
        for access in [reading_config(&self.keys), reading(&self.keys)] {
            let mut options = GetOptions::new().with_count_only();
            if access.key == self.keys.subnets {
                options = options.with_prefix();
            }
            let call = |client: Client| {
                let options = Some(options.clone());
                async move { client.kv_client().get(access.key, options).await }
            };
            if self.connection.retried(access, call).await.is_err_and(|failure| failure.kind == Kind::Denied) {
                refused.push(access.key);
            }
        }
        if refused.is_empty() {
            return error;
        }
        let key = refused.join(" and ");
        let access = Access { key: &key, ..reading(&self.keys) };
        Error { step: format!("{} {key}", access.verb), reason: needs(access, "permission denied"), transient: false }
    }

    async fn works(&mut self) -> Result<(), Unheard> {
        if self.told.take().is_some() {
            self.tell(StoreEvent::Up).await?;
        }
        Ok(())
    }

    async fn tell(&self, event: StoreEvent) -> Result<(), Unheard> {
        self.events.send(event).await.map_err(|_| Unheard)
    }
}

/// Whether two reasons differ in more than the original words behind them.
fn is_another(told: &str, reason: &str) -> bool {
    let words = |reason: &str| reason.split(" (").next().map(str::to_owned);
    words(told) != words(reason)
}

fn reading(keys: &Keys) -> Access<'_> {
    Access { verb: "read", key: &keys.subnets, permission: "read" }
}

fn reading_config(keys: &Keys) -> Access<'_> {
    Access { verb: "read", key: &keys.config, permission: "read" }
}

/// The answers of the reads in a transaction, in order.
fn gets(answer: &TxnResponse) -> impl Iterator<Item = GetResponse> {
    let gets = answer.op_responses().into_iter().filter_map(|op| match op {
        TxnOpResponse::Get(get) => Some(get),
        _ => None,
    });
    gets.collect::<Vec<_>>().into_iter()
}

/// The value of the one key that was asked for.
fn value(mut answer: GetResponse) -> Option<Vec<u8>> {
    answer.take_kvs().pop().map(|kv| kv.into_key_value().1)
}

fn broken(access: Access<'_>, reason: &str) -> Failure {
    let step = format!("{} {}", access.verb, access.key);
    Failure::new(Kind::Away, Error { step, reason: reason.to_owned(), transient: true })
}
