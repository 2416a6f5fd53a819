//! Reading everything once and hearing of every change after it.
//!
//! A complete read in pages, all at the first page's revision, then one stream with two watches, of the records and of
//! the config. Whatever breaks is opened again: the records where they were left, the config, which is one key, read anew.
//! Only a compaction beyond that place, or an etcd that is not the one we knew, makes the read start over.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, GetOptions, GetResponse, TxnOpResponse, TxnResponse};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::Keys;
use super::connection::Connection;
use super::failure::{Access, Failure, Kind, needs};
use super::history::History;
use crate::store::backoff::Backoff;
use crate::store::{Error, StoreEvent};

mod list;
mod watch;

use watch::WatchEnd;

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
