//! The one event loop: store, kernel, timers and signals go in, operations on the kernel and files come out.
//!
//! Order of a turn: what the kernel asks, then what waiting packets wait for, then one chunk of whatever is due or one
//! step of a dump, then everything else that has happened. So a miss waits for one chunk (half a millisecond), and while
//! records come in by the thousand for one page of them.

use std::pin::{Pin, pin};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Sleep;
use tracing::{debug, info, warn};

use crate::dataplane::Dataplane;
use crate::masquerade::RulesState;
use crate::overlay::peers::Delta;
use crate::overlay::plane::Plane;
use crate::overlay::records::{Raw, Records};
use crate::overlay::repeats::Repeats;
use crate::site::Site;
use crate::snapshot::{Missing, Part, Publisher};
use crate::store::{Change, RawRecord, StoreEvent};

mod clock;
mod config;
mod family_plane;
mod health;
#[cfg(test)]
mod lines;
mod own;
mod publish;
mod signals;
mod sockets;
mod sources;
mod subnet_env;
mod systemd;
mod told;
mod underlay;

use config::ConfigNow;
pub use family_plane::FamilyPlane;
use family_plane::Heard;
use health::Health;
pub use own::OwnRecord;
pub use signals::{Order, Signals};
pub use sources::Feeds;
use sources::{News, Sources};
use told::Told;
pub use told::ignored_at_start;
use underlay::Underlay;

/// How long a loop with no planes sleeps.
const NOTHING_TO_DO: Duration = Duration::from_secs(60);
/// No further store event is taken in at once when those before were about so many records: some milliseconds' work.
const STORE_RECORDS: usize = 1_000;

/// Why the loop ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// SIGTERM, SIGINT or SIGQUIT.
    Stopped,
    /// Another node holds our subnet.
    LeaseLost {
        /// Who.
        holder: String,
    },
    /// A part of the daemon ended by itself or works no more, and without it the rest would only seem to work.
    Broken {
        /// Which, and why as far as it is known.
        part: String,
    },
}

/// What a loop is made of: parts that are ready to run.
pub struct Parts<D> {
    /// What is fixed for our life.
    pub site: Site,
    /// The planes, one a family.
    pub families: Vec<FamilyPlane<D>>,
    /// The records that are no peers, and the reading of all.
    pub records: Records,
    /// Our own record.
    pub own: OwnRecord,
    /// Whether a clean stop programs every peer first (`--program-all-on-exit`).
    pub program_all_on_exit: bool,
    /// Reads the store from the start, for when we are somebody else.
    pub read_again: ReadAgain,
    /// How the nftables rules are.
    pub rules: watch::Receiver<RulesState>,
    /// Where it is published what the loop knows.
    pub publisher: Publisher,
}

/// Reads the store from the start.
pub type ReadAgain = Box<dyn Fn() -> mpsc::Receiver<StoreEvent>>;

/// All that the loop turns on.
pub struct EventLoop<D> {
    site: Site,
    families: Vec<FamilyPlane<D>>,
    records: Records,
    /// A reading of the store from the start that the loop has not turned to yet.
    store: Option<mpsc::Receiver<StoreEvent>>,
    own: OwnRecord,
    program_all_on_exit: bool,
    read_again: ReadAgain,
    publisher: Publisher,
    health: Health,
    told: Told,
    /// What the network config's key holds, as it was told last.
    config: ConfigNow,
    /// The lines about a `subnet.env` that had to be written.
    rewritten: Repeats,
    underlay: Underlay,
}

impl<D: Dataplane> EventLoop<D> {
    /// A loop over these parts.
    pub fn new(parts: Parts<D>) -> Self {
        let Parts { site, families, records, own, program_all_on_exit, read_again, rules, publisher } = parts;
        Self {
            site,
            families,
            records,
            store: None,
            own,
            program_all_on_exit,
            read_again,
            publisher,
            health: Health::new(rules),
            told: Told::default(),
            config: ConfigNow::Ours,
            rewritten: Repeats::in_a_minute(subnet_env::LINES),
            underlay: Underlay::default(),
        }
    }

    /// Runs until a signal or the loss of the lease.
    pub async fn run(mut self, signals: Signals, feeds: Feeds) -> Ended {
        self.health.file = Some("not written yet".to_owned());
        self.write_env();
        self.defend();
        let mut sources = Sources::new(signals, feeds, self.health.rules.clone());
        // One timer for all turns: making one anew each time costs more than the rest of a turn.
        let mut timer = pin!(tokio::time::sleep(NOTHING_TO_DO));
        loop {
            match self.turn_until_news(&mut sources, timer.as_mut()).await {
                News::Signal(signal, order) => {
                    self.answer_signal(signal, order);
                    if order == Order::Stop {
                        return Ended::Stopped;
                    }
                }
                News::Store(event) => self.store_events(event, &mut sources.feeds.store),
                News::Lease(event) => {
                    if let Some(ended) = self.lease_event(event) {
                        return ended;
                    }
                }
                News::Look => {
                    self.write_env();
                    self.families.iter_mut().for_each(|family| family.tell_repeats(clock::now()));
                    self.underlay.tell_repeats(clock::now());
                    self.health.alive(&self.publisher.last());
                }
                News::Rules => {}
                News::ReadAgain => {
                    if let Some(store) = self.store.take() {
                        sources.feeds.store = store;
                    }
                }
                News::Ended(part) => return Ended::Broken { part },
            }
        }
    }

    /// Turns until there is news of something else than the kernel.
    async fn turn_until_news(&mut self, sources: &mut Sources, mut timer: Pin<&mut Sleep>) -> News {
        // One wait for all turns, which a miss does not disturb: nothing is done for it before the miss is answered.
        let mut news = pin!(sources.next());
        loop {
            let busy = self.turn().await;
            if self.store.is_some() {
                return News::ReadAgain;
            }
            if let Some(why) = self.families.iter().find_map(FamilyPlane::given_up) {
                return News::Ended(why.to_owned());
            }
            if !busy {
                self.note_ready();
                self.say();
            }
            let wake = self.families.iter().map(FamilyPlane::next_wake).min();
            let wake = wake
                .into_iter()
                .chain(self.underlay.move_at)
                .chain(self.told.due())
                .min()
                .unwrap_or_else(|| clock::now() + NOTHING_TO_DO);
            if timer.deadline() != wake.into() {
                timer.as_mut().reset(wake.into());
            }
            tokio::select! {
                biased;
                // First, since a packet may wait. The others are not starved: a turn that has heard anything is busy.
                () = readable(&self.families), if !busy => {}
                news = &mut news => return news,
                () = tokio::task::yield_now(), if busy => {}
                () = timer.as_mut(), if !busy => {}
            }
        }
    }

    /// One turn over all planes; whether more is to be done at once.
    async fn turn(&mut self) -> bool {
        let mut busy = false;
        for family in &mut self.families {
            let now = clock::now();
            let heard = family.hear(now);
            family.answer(now);
            let worked = !family.is_flooded(heard, now) && family.work(now).await;
            busy |= heard != Heard::Nothing || worked;
        }
        busy | self.follow_underlay(clock::now())
    }

    /// Works out whether we are ready. Asked between two pieces of work only, so that it does not flicker with each.
    fn note_ready(&mut self) {
        for family in &mut self.families {
            let routes = family.look_for_contested();
            let rules = family.look_for_diversion(clock::now()).into_iter();
            let rules = rules.map(|words| (words, family_plane::contested::RULE.to_owned()));
            for (words, advice) in routes.into_iter().chain(rules) {
                self.told.contested(&family.device.name, &words, &advice, clock::now());
            }
        }
        let behind = self.families.iter().filter_map(FamilyPlane::lack).map(|why| Missing::new(Part::Kernel, why));
        let displaced = self.displaced().into_iter().map(|why| Missing::new(Part::Record, why));
        let contested =
            self.families.iter().flat_map(FamilyPlane::blocking).map(|why| Missing::new(Part::Contested, why));
        self.publish(self.health.missing(behind.chain(displaced).chain(contested)));
        self.health.tell(&self.publisher.last());
    }

    /// Says in the log what has waited for a pause.
    fn say(&mut self) {
        if self.families.iter().any(|family| family.plane.has_programmed()) {
            self.told.expect_programmed(clock::now);
        }
        for family in self.families.iter_mut().filter(|family| family.plane.has_mended()) {
            self.told.mended(&family.device.name, family.plane.take_mended(), clock::now());
        }
        for unreached in self.families.iter_mut().filter_map(|family| family.plane.take_unreached()) {
            self.told.unreached(&unreached, self.site.config.backend.name(), clock::now());
        }
        if self.told.due().is_some_and(|due| due <= clock::now()) {
            let planes = self.families.iter_mut().map(|family| &mut family.plane);
            self.told.say(clock::now(), || planes.map(Plane::take_programmed).collect());
        }
    }

    /// Takes in a store event and whatever else has arrived by now; it is planned together.
    fn store_events(&mut self, first: StoreEvent, more: &mut mpsc::Receiver<StoreEvent>) {
        let mut deltas = Vec::new();
        let mut records = size(&first);
        self.store_event(first, &mut deltas);
        while records < STORE_RECORDS
            && let Ok(event) = more.try_recv()
        {
            records += size(&event);
            self.store_event(event, &mut deltas);
        }
        if !deltas.is_empty() {
            self.told.deltas(&deltas, clock::now());
        }
        self.defend();
    }

    fn store_event(&mut self, event: StoreEvent, deltas: &mut Vec<Delta>) {
        let planes = self.families.iter_mut().map(|family| &mut family.plane);
        match event {
            StoreEvent::Listing => {
                self.health.etcd.is_listing = true;
                self.health.etcd.listings += 1;
                self.own.listed = false;
                self.records.listing();
                planes.for_each(Plane::listing);
            }
            StoreEvent::Page(records) => {
                for record in records {
                    self.put(record, deltas);
                }
            }
            StoreEvent::Listed { revision } => {
                debug!(revision, "read all records");
                self.health.etcd.is_listing = false;
                self.records.listed();
                if !self.own.listed {
                    self.own.keeper.seen(Change::Deleted { key: self.own.text.clone(), revision });
                }
                self.own.keeper.check();
                planes.for_each(|plane| deltas.extend(plane.listed()));
            }
            StoreEvent::Changes(changes) => {
                for change in changes {
                    match change {
                        Change::Put(record) => self.put(record, deltas),
                        Change::Deleted { key, revision } => self.delete(key, revision, deltas),
                    }
                }
            }
            StoreEvent::Config(config) => self.config_changed(config),
            StoreEvent::Down { reason } => {
                warn!(%reason, "etcd does not answer; the data plane goes on");
                // Told again within one outage where its reason is another.
                self.health.etcd.outages += u64::from(self.health.etcd.down.is_none());
                self.health.etcd.down = Some(reason.to_string());
            }
            StoreEvent::Up => {
                info!("etcd answers again");
                self.health.etcd.down = None;
            }
        }
    }

    fn put(&mut self, record: RawRecord, deltas: &mut Vec<Delta>) {
        let mut planes: Vec<&mut Plane> = self.families.iter_mut().map(|family| &mut family.plane).collect();
        if record.key == self.own.text {
            self.own.listed = true;
            deltas.extend(self.records.put_own(&mut planes, Raw::from(&record)));
            self.own.keeper.seen(Change::Put(record));
            return;
        }
        let taken = self.records.put(&mut planes, Raw::from(&record));
        deltas.extend(taken.deltas);
        if let Some(bad) = taken.bad {
            self.told.ignored(&record.key, &bad, clock::now());
        }
    }

    fn delete(&mut self, key: String, revision: i64, deltas: &mut Vec<Delta>) {
        if key == self.own.text {
            self.own.keeper.seen(Change::Deleted { key, revision });
            return;
        }
        let mut planes: Vec<&mut Plane> = self.families.iter_mut().map(|family| &mut family.plane).collect();
        deltas.extend(self.records.remove(&mut planes, &key));
    }
}

/// Waits until any plane's kernel side has something to tell.
async fn readable<D: Dataplane>(families: &[FamilyPlane<D>]) {
    match families {
        [] => std::future::pending().await,
        // The usual case allocates nothing: this is on the path of each miss.
        [one] => one.dataplane.readable().await,
        [first, rest @ ..] => tokio::select! {
            () = first.dataplane.readable() => {}
            () = Box::pin(readable(rest)) => {}
        },
    }
}

/// How many records an event is about.
fn size(event: &StoreEvent) -> usize {
    match event {
        StoreEvent::Page(records) => records.len(),
        StoreEvent::Changes(changes) => changes.len(),
        _ => 1,
    }
}
