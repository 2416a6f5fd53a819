//! Waiting for what the start needs from etcd: a usable network config, and all records.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::overlay::NetworkConfig;
use crate::store::{Change, Event, RawRecord};

/// How often a wait that goes on is spoken of.
pub(crate) const REMIND: Duration = Duration::from_secs(30);

/// The first complete read, kept up to date until the event loop takes over.
pub(crate) struct Reader {
    pub(crate) events: mpsc::Receiver<Event>,
    /// Where etcd is, for the log.
    endpoints: String,
    pub(crate) records: BTreeMap<String, RawRecord>,
    config: Option<Vec<u8>>,
    listed: bool,
}

impl Reader {
    /// Reads what these events tell, from etcd at these endpoints.
    pub(crate) fn new(events: mpsc::Receiver<Event>, endpoints: String) -> Self {
        Self { events, endpoints, records: BTreeMap::new(), config: None, listed: false }
    }

    /// Waits for the next event and takes it in.
    pub(crate) async fn next(&mut self) -> Result<()> {
        let event = self.events.recv().await.ok_or_else(|| anyhow!("the reader of etcd has stopped"))?;
        match event {
            Event::Listing => {
                self.records.clear();
                self.listed = false;
            }
            Event::Page(page) => self.records.extend(page.into_iter().map(|record| (record.key.clone(), record))),
            Event::Listed { revision } => {
                self.listed = true;
                debug!(revision, records = self.records.len(), "read all records");
            }
            Event::Changes(changes) => {
                for change in changes {
                    match change {
                        Change::Put(record) => drop(self.records.insert(record.key.clone(), record)),
                        Change::Deleted { key, .. } => drop(self.records.remove(&key)),
                    }
                }
            }
            Event::Config(config) => self.config = config,
            Event::Down { reason } => {
                warn!(endpoints = %self.endpoints, %reason, "etcd does not answer, trying until it does");
            }
            Event::Up => info!(endpoints = %self.endpoints, "etcd answers"),
        }
        Ok(())
    }

    /// The network config, as soon as there is a good one and all records are read.
    pub(crate) async fn config(&mut self, prefix: &str) -> Result<(NetworkConfig, Vec<u8>)> {
        let mut waiting = Waiting::default();
        loop {
            let why = match (&self.config, self.listed) {
                (Some(text), true) => match NetworkConfig::parse(text) {
                    Ok(config) => return Ok((config, text.clone())),
                    Err(error) => format!("the network config {prefix}/config is not usable: {error}"),
                },
                (None, true) => format!(
                    "no network config yet: waiting for the key {prefix}/config, for instance {{\"Network\":\"10.5.0.0/16\"}}"
                ),
                (_, false) => format!("waiting for etcd at {}", self.endpoints),
            };
            waiting.say(&why, self.listed);
            if let Ok(result) = tokio::time::timeout(REMIND, self.next()).await {
                result?;
            }
        }
    }
}

/// Says why something waits: at once where that is news, and again every half minute.
#[derive(Default)]
pub(crate) struct Waiting {
    said: Option<(String, Instant)>,
}

impl Waiting {
    pub(crate) fn say(&mut self, why: &str, loudly: bool) {
        let news = self.said.as_ref().is_none_or(|(said, at)| said != why || at.elapsed() >= REMIND);
        if !news {
            return;
        }
        let first = self.said.is_none();
        self.said = Some((why.to_owned(), Instant::now()));
        if loudly || !first {
            warn!("{why}");
        }
    }
}
