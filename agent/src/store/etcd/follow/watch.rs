//! Two watches on one stream, of the records and of the config, from where they were left.

use std::time::Duration;

use etcd_client::{Client, EventType, GetOptions, TxnOp, WatchOptions, WatchResponse, WatchStream};
use tokio::time::{Instant, timeout, timeout_at};

use super::{Cursor, Follower, Unheard, broken, gets, reading, reading_config, value};
use crate::store::etcd::connection::CALL;
use crate::store::etcd::failure::{Failure, Kind, failure};
use crate::store::etcd::history::History;
use crate::store::{Change, StoreEvent};

/// From this size on, an answer may be a part of what one revision did: etcd splits what is larger than its largest
/// request, 1.5 MiB unless told otherwise, and doesn't say so to us.
const MAYBE_SPLIT: usize = 64 << 10;

/// A watch that lived for so long, more than opening it may take, was no failure: waits begin anew after it.
const STEADY: Duration = Duration::from_secs(10);

const RESTORED: &str = "etcd is not the one we knew: restored from a backup?";

/// Why a watch ended.
pub(super) enum WatchEnd {
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
    /// Watches until something ends it, and keeps `at` where it has to be resumed.
    pub(super) async fn watch(&mut self, at: &mut Cursor, resumes: bool) -> WatchEnd {
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
}
