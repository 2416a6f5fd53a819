//! The first complete read: waiting for a usable network config, then every record straight into the planes.
//!
//! Records are not kept as they are: of a hundred thousand of them only what the planes and the allocation need stays.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::handoff;
use crate::lease::{Known, Previous, Progress};
use crate::overlay::NetworkConfig;
use crate::overlay::alloc::SubnetRequest;
use crate::overlay::plane::Plane;
use crate::overlay::record::Record;
use crate::overlay::records::{Raw, Records};
use crate::overlay::repeats::Repeats;
use crate::store::{Change, RawRecord, Store, StoreEvent};

/// How often a wait that goes on is spoken of.
pub(crate) const REMIND: Duration = Duration::from_secs(30);

/// So many reasons in a row are logged.
const REASONS: u32 = 10;

/// Reads etcd until the event loop takes over.
pub(crate) struct Reader<S> {
    store: S,
    events: mpsc::Receiver<StoreEvent>,
    /// Where etcd is, for the log.
    endpoints: String,
    /// The last config that was usable, and whether the key holds another one by now.
    config: Option<Vec<u8>>,
    changed: bool,
    /// The subnet that we had before.
    previous: Option<Previous>,
    pub(crate) waiting: Waiting,
}

/// Where the records go before we have a lease.
pub(crate) struct Intake {
    pub(crate) planes: Vec<Plane>,
    pub(crate) records: Records,
    /// What else allocation needs to know.
    pub(crate) known: Known,
    /// The revision of the last complete read.
    pub(crate) revision: i64,
    /// The key of the subnet that we had before.
    pub(crate) previous: Option<String>,
    listed: bool,
}

impl<S: Store> Reader<S> {
    /// Begins to read the store, which is at these endpoints, for a node that had this subnet before.
    pub(crate) fn new(store: S, endpoints: String, subnet_file: PathBuf, previous: Option<Previous>) -> Self {
        let events = store.follow();
        let waiting = Waiting::new(&subnet_file);
        Self { store, events, endpoints, config: None, changed: false, previous, waiting }
    }

    /// Whether the config that [`Self::config`] gave last is not what its key holds now.
    pub(crate) fn is_config_changed(&self) -> bool {
        self.changed
    }

    /// The events from here on.
    pub(crate) fn into_events(self) -> mpsc::Receiver<StoreEvent> {
        self.events
    }

    /// The network config, as soon as there is a good one. The records of the same read are still to come. May be asked for
    /// again, which reads everything from the start.
    pub(crate) async fn config(&mut self, prefix: &str) -> Result<(NetworkConfig, Vec<u8>)> {
        if self.config.take().is_some() {
            self.begin();
            // etcd has just answered: that it is asked again is no news.
            self.waiting.said = None;
        }
        let mut why = format!("waiting for etcd at {}", self.endpoints);
        let (mut listing, mut loud) = (false, false);
        loop {
            match self.waiting.down.clone() {
                Some(why) => self.waiting.say(&why, true),
                None => self.waiting.say(&why, loud),
            }
            let Ok(event) = tokio::time::timeout(REMIND, self.event_without_config()).await else { continue };
            match event? {
                StoreEvent::Listing => listing = true,
                StoreEvent::Config(Some(text)) => match NetworkConfig::parse(&text) {
                    Ok(config) if listing => {
                        (self.config, self.changed) = (Some(text.clone()), false);
                        return Ok((config, text));
                    }
                    // The records of this read went by unread: once more, from the start.
                    Ok(_) => self.begin(),
                    Err(error) => {
                        (why, loud) = (format!("the network config {prefix}/config is not usable: {error}"), true);
                    }
                },
                StoreEvent::Config(None) => {
                    let example = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
                    why = format!("no network config yet: waiting for the key {prefix}/config, for instance {example}");
                    loud = true;
                }
                StoreEvent::Page(_) | StoreEvent::Listed { .. } => listing = false,
                StoreEvent::Changes(_) | StoreEvent::Down { .. } | StoreEvent::Up => {}
            }
        }
    }

    /// Waits, for this reason, for another config than the one that [`Self::config`] gave, and so long at the most: what else
    /// stands in the way may have changed too.
    pub(crate) async fn await_other_config(&mut self, why: &str, at_most: Duration) -> Result<()> {
        let changed = async {
            while !self.changed {
                let down = self.waiting.down.clone();
                self.waiting.say(down.as_deref().unwrap_or(why), true);
                self.event_without_config().await?;
            }
            Ok(())
        };
        tokio::time::timeout(at_most, changed).await.unwrap_or(Ok(()))
    }

    /// Takes in what has come, and the whole of a read that has begun.
    pub(crate) async fn pending(&mut self, intake: &mut Intake, wanted: &SubnetRequest<'_>) -> Result<()> {
        while !self.events.is_empty() {
            self.next(intake, wanted).await?;
            // Whoever sends may be waiting for room.
            tokio::task::yield_now().await;
        }
        self.all(intake, wanted).await
    }

    /// Takes in events until a complete read is done.
    pub(crate) async fn all(&mut self, intake: &mut Intake, wanted: &SubnetRequest<'_>) -> Result<()> {
        while !intake.listed {
            self.next(intake, wanted).await?;
        }
        Ok(())
    }

    /// Waits for the next event and takes it in.
    pub(crate) async fn next(&mut self, intake: &mut Intake, wanted: &SubnetRequest<'_>) -> Result<()> {
        let event = self.event().await?;
        intake.take_in(event, wanted);
        Ok(())
    }

    /// Reads everything from the start.
    fn begin(&mut self) {
        self.events = self.store.follow();
        self.waiting.down = None;
    }

    /// The next event while no usable config is there. If a record shows that another node holds the previous subnet, that is
    /// told at once.
    async fn event_without_config(&mut self) -> Result<StoreEvent> {
        let event = self.event().await?;
        let Some(previous) = self.previous.as_ref().filter(|_| !self.waiting.is_given_up()) else { return Ok(event) };
        let taken = match &event {
            StoreEvent::Page(records) => records.iter().find_map(|record| previous.taken_by(record)),
            StoreEvent::Changes(changes) => changes.iter().find_map(|change| match change {
                Change::Put(record) => previous.taken_by(record),
                Change::Deleted { .. } => None,
            }),
            _ => None,
        };
        if let Some(why) = taken {
            self.waiting.progress(Progress::PreviousGivenUp(&why));
            self.waiting.explain_again();
        }
        Ok(event)
    }

    async fn event(&mut self) -> Result<StoreEvent> {
        let event = self.events.recv().await.ok_or_else(|| anyhow!("the reader of etcd has stopped"))?;
        match &event {
            StoreEvent::Down { reason } => {
                let why = format!("etcd at {} does not answer, trying until it does: {reason}", self.endpoints);
                self.waiting.say(&why, true);
                self.waiting.down = Some(why);
            }
            StoreEvent::Up => {
                self.waiting.down = None;
                self.waiting.note("etcd answers; on the way to a subnet");
                info!(endpoints = %self.endpoints, "etcd answers");
            }
            StoreEvent::Config(text) => self.changed = *text != self.config,
            _ => {}
        }
        Ok(event)
    }
}

impl Intake {
    /// For the records of the read whose config has just come.
    pub(crate) fn new(planes: Vec<Plane>, records: Records) -> Self {
        Self { planes, records, known: Known::default(), revision: 0, previous: None, listed: false }
    }

    fn take_in(&mut self, event: StoreEvent, wanted: &SubnetRequest<'_>) {
        match event {
            StoreEvent::Listing => {
                self.known = Known::default();
                self.records.listing();
                self.planes.iter_mut().for_each(Plane::listing);
                self.listed = false;
            }
            StoreEvent::Page(page) => page.into_iter().for_each(|record| self.put(&record, wanted)),
            StoreEvent::Listed { revision } => {
                self.records.listed();
                self.planes.iter_mut().for_each(|plane| drop(plane.listed()));
                (self.listed, self.revision) = (true, revision);
                debug!(revision, "read all records");
            }
            StoreEvent::Changes(changes) => {
                for change in changes {
                    match change {
                        Change::Put(record) => self.put(&record, wanted),
                        Change::Deleted { key, .. } => {
                            self.known.remove(&key);
                            self.records.remove(&mut self.planes.iter_mut().collect::<Vec<_>>(), &key);
                        }
                    }
                }
            }
            StoreEvent::Config(_) | StoreEvent::Down { .. } | StoreEvent::Up => {}
        }
    }

    fn put(&mut self, record: &RawRecord, wanted: &SubnetRequest<'_>) {
        let mut planes: Vec<&mut Plane> = self.planes.iter_mut().collect();
        let taken = self.records.put(&mut planes, Raw::from(record));
        let is_ours = taken.is_peer && self.previous.as_ref() == Some(&record.key) && is_our_instance(record, wanted);
        if is_ours {
            // With the address that we had before it would be a peer: ourselves.
            self.records.remove(&mut planes, &record.key);
        }
        if taken.is_peer && !is_ours {
            // The planes have it now.
            self.known.remove(&record.key);
        } else {
            // Our own last record is no peer either.
            self.known.put(wanted, record);
        }
    }
}

fn is_our_instance(record: &RawRecord, wanted: &SubnetRequest<'_>) -> bool {
    Record::parse(&record.value).is_ok_and(|record| wanted.is_our_instance(&record))
}

/// Says why something waits: at once where that is news, and again every half minute.
pub(crate) struct Waiting {
    said: Option<(String, Instant)>,
    /// What etcd fails by, while it does.
    down: Option<String>,
    /// Whoever writes the config decides how many reasons there are.
    lines: Repeats,
    subnet_file: PathBuf,
    /// Why the subnet of `subnet.env` is not ours any more, once that is known.
    given_up: Mutex<Option<String>>,
}

impl Waiting {
    /// For the daemon of this `subnet.env`, beside which the CNI plugin finds the reason too.
    pub(crate) fn new(subnet_file: &Path) -> Self {
        Self {
            said: None,
            down: None,
            lines: Repeats::new(REASONS),
            subnet_file: subnet_file.to_owned(),
            given_up: Mutex::default(),
        }
    }

    /// `loud`: worth a line even if the wait has only begun.
    pub(crate) fn say(&mut self, why: &str, loud: bool) {
        let news = self.said.as_ref().is_none_or(|(said, at)| said != why || at.elapsed() >= REMIND);
        if !news {
            return;
        }
        self.explain(why);
        let first = self.said.is_none();
        self.said = Some((why.to_owned(), Instant::now()));
        let now = Instant::now();
        if let Some(times) = self.lines.count(now) {
            warn!(times, "waited for other reasons in between, which are not told");
        }
        if (loud || !first) && self.lines.admit(now) {
            warn!("{why}");
        }
    }

    /// The same for the CNI plugin only: the log has it from elsewhere, or needs no line.
    pub(crate) fn note(&mut self, why: &str) {
        self.explain(why);
        self.said = Some((why.to_owned(), Instant::now()));
    }

    /// What happens on the way to a subnet: the CNI plugin hears of it, and finds no `subnet.env` whose subnet is not ours.
    pub(crate) fn progress(&self, progress: Progress<'_>) {
        match progress {
            Progress::StoreFails(reason) => self.explain(&format!("no lease yet, trying until it works: {reason}")),
            Progress::StoreWorks => self.explain("on the way to a subnet"),
            Progress::PreviousGivenUp(why) => {
                handoff::withdraw(&self.subnet_file, why);
                let before = self.given_up.lock().unwrap_or_else(PoisonError::into_inner).replace(why.to_owned());
                if before.is_none() {
                    warn!(file = %self.subnet_file.display(), "subnet.env withdrawn: {why}");
                }
            }
        }
    }

    fn is_given_up(&self) -> bool {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Tells the CNI plugin once more what is waited for.
    fn explain_again(&self) {
        if let Some((said, _)) = &self.said {
            self.explain(said);
        }
    }

    fn explain(&self, why: &str) {
        let given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        let text = given_up.as_ref().map(|given_up| format!("{given_up}; {why}"));
        handoff::explain(&self.subnet_file, Some(text.as_deref().unwrap_or(why)));
    }
}
