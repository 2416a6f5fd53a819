//! The one event loop: store, kernel, timers and signals go in, operations on the kernel and files come out.
//!
//! Order of a turn: what the kernel asks, then what waiting packets wait for, then one chunk of whatever is due or one
//! step of a dump, then everything else that has happened. A miss so waits for one chunk at the most.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use crate::dataplane::Dataplane;
use crate::lease::{KeeperHandle, LeaseEvent};
use crate::overlay::peers::Delta;
use crate::overlay::plane::Plane;
use crate::overlay::record::Record;
use crate::overlay::records::Records;
use crate::overlay::{MacAddr, SubnetKey};
use crate::site::{self, End, Site, Unfit};
use crate::store::{self, Change, RawRecord};

mod half;

pub use half::Half;

/// How long a loop with no planes sleeps.
const NOTHING_TO_DO: Duration = Duration::from_secs(60);
/// The most store events that are taken in at once.
const STORE_EVENTS: usize = 256;
/// How long a clean stop may take to program everyone.
const STOP_WITHIN: Duration = Duration::from_millis(1500);
/// With more peers changed at once than this, the log has one line for them all.
const PEERS_NAMED: usize = 20;

/// Why the loop ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// SIGTERM or SIGINT.
    Stopped,
    /// Another node holds our subnet.
    LeaseLost {
        /// Who.
        holder: String,
    },
}

/// Our own record, and who keeps it.
pub struct Own {
    key: SubnetKey,
    /// The key as etcd has it.
    text: String,
    record: Record,
    keeper: KeeperHandle,
    events: mpsc::Receiver<LeaseEvent>,
    /// The complete read under way has shown it.
    listed: bool,
}

/// All that the loop turns on.
pub struct EventLoop<D> {
    /// What is fixed for our life.
    site: Site,
    /// The planes, one a family.
    halves: Vec<Half<D>>,
    /// The records that are no peers, and the reading of all.
    records: Records,
    /// What the store tells.
    store: mpsc::Receiver<store::Event>,
    own: Own,
    /// Whether a clean stop programs every peer first.
    pub program_all_on_exit: bool,
    ready: bool,
}

impl Own {
    /// Our record under its key, with its keeper.
    pub fn new(key: SubnetKey, record: Record, keeper: KeeperHandle, events: mpsc::Receiver<LeaseEvent>) -> Self {
        Self { key, text: key.to_string(), record, keeper, events, listed: false }
    }
}

impl<D: Dataplane> EventLoop<D> {
    /// A loop over parts that are ready to run; it programs everyone before a clean stop.
    pub fn new(
        site: Site,
        halves: Vec<Half<D>>,
        records: Records,
        store: mpsc::Receiver<store::Event>,
        own: Own,
    ) -> Self {
        Self { site, halves, records, store, own, program_all_on_exit: true, ready: false }
    }

    /// Runs until a signal or the loss of the lease.
    pub async fn run(mut self) -> std::io::Result<Ended> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        loop {
            let busy = self.turn().await;
            self.note_ready();
            let wake = self.halves.iter().map(Half::next_wake).min();
            let wake = wake.unwrap_or_else(|| half::now() + NOTHING_TO_DO);
            tokio::select! {
                biased;
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                () = readable(&self.halves), if !busy => {}
                Some(event) = self.store.recv() => self.store_events(event),
                Some(event) = self.own.events.recv() => {
                    if let Some(ended) = self.lease_event(event) {
                        return Ok(ended);
                    }
                }
                () = tokio::task::yield_now(), if busy => {}
                () = tokio::time::sleep_until(wake.into()), if !busy => {}
            }
        }
        self.stop();
        Ok(Ended::Stopped)
    }

    /// One turn over all planes; whether more is to be done at once.
    async fn turn(&mut self) -> bool {
        let mut busy = false;
        for half in &mut self.halves {
            let now = half::now();
            let more = half.hear(now);
            half.answer(now);
            busy |= more || half.work(now).await;
        }
        if self.halves.iter_mut().fold(false, |changed, half| half.take_underlay_changed() | changed) {
            self.follow_underlay();
            busy = true;
        }
        busy
    }

    fn note_ready(&mut self) {
        if self.ready || !self.halves.iter().all(Half::in_sync) {
            return;
        }
        self.ready = true;
        let peers: usize = self.halves.iter().map(|half| half.plane.peers().len()).sum();
        let programmed: usize = self.halves.iter().map(|half| half.plane.installed()).sum();
        info!(peers, programmed, "ready");
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            warn!(%error, "cannot tell systemd");
        }
    }

    /// Takes in a store event and whatever else has arrived by now; it is planned together.
    fn store_events(&mut self, first: store::Event) {
        let mut told = Told::default();
        self.store_event(first, &mut told);
        for _ in 0..STORE_EVENTS {
            match self.store.try_recv() {
                Ok(event) => self.store_event(event, &mut told),
                Err(_) => break,
            }
        }
        told.log();
    }

    fn store_event(&mut self, event: store::Event, told: &mut Told) {
        let planes = self.halves.iter_mut().map(|half| &mut half.plane);
        match event {
            store::Event::Listing => {
                self.own.listed = false;
                self.records.listing();
                planes.for_each(Plane::listing);
            }
            store::Event::Page(records) => {
                for record in records {
                    self.put(record, told);
                }
            }
            store::Event::Listed { revision } => {
                debug!(revision, "read all records");
                if !self.own.listed {
                    self.own.keeper.seen(Change::Deleted { key: self.own.text.clone(), revision });
                }
                planes.for_each(|plane| told.deltas.extend(plane.listed()));
            }
            store::Event::Changes(changes) => {
                for change in changes {
                    match change {
                        Change::Put(record) => self.put(record, told),
                        Change::Deleted { key, revision } => self.delete(key, revision, told),
                    }
                }
            }
            store::Event::Config(config) => self.config_changed(config),
            store::Event::Down { reason } => warn!(%reason, "etcd does not answer; the data plane goes on"),
            store::Event::Up => info!("etcd answers again"),
        }
    }

    fn put(&mut self, record: RawRecord, told: &mut Told) {
        if record.key == self.own.text {
            self.own.listed = true;
            self.own.keeper.seen(Change::Put(record));
            return;
        }
        let mut planes: Vec<&mut Plane> = self.halves.iter_mut().map(|half| &mut half.plane).collect();
        let taken = self.records.put(&mut planes, &record.key, &record.value, record.revision);
        told.deltas.extend(taken.deltas);
        if let Some(bad) = taken.bad {
            warn!(key = %record.key, reason = %bad, "record kept out");
        }
    }

    fn delete(&mut self, key: String, revision: i64, told: &mut Told) {
        if key == self.own.text {
            self.own.keeper.seen(Change::Deleted { key, revision });
            return;
        }
        let mut planes: Vec<&mut Plane> = self.halves.iter_mut().map(|half| &mut half.plane).collect();
        told.deltas.extend(self.records.remove(&mut planes, &key));
    }

    fn config_changed(&mut self, config: Option<Vec<u8>>) {
        match config {
            Some(config) if config == self.site.config_text => {}
            Some(config) => {
                let config_now = String::from_utf8_lossy(&config).into_owned();
                warn!(%config_now, "the network config was changed; this daemon goes on with the one it started with until it is restarted");
                self.site.config_text = config;
            }
            None => warn!("the network config was deleted; this daemon goes on with the one it started with"),
        }
    }

    /// Links, addresses or default routes have changed: device, record and `subnet.env` follow.
    fn follow_underlay(&mut self) {
        let Some(first) = self.halves.first_mut() else { return };
        let interfaces = match first.dataplane.interfaces() {
            Ok(interfaces) => interfaces,
            Err(error) => return warn!(%error, "cannot read the interfaces, staying with what was chosen"),
        };
        match self.site.ends(&interfaces) {
            Ok(ends) => {
                if let Err(error) = self.move_to(&ends) {
                    warn!(%error, "cannot follow the underlay's change");
                }
            }
            // It may come back; until then what is programmed is the best guess.
            Err(error) => warn!(%error, "the underlay is not usable now, staying with what was chosen"),
        }
    }

    fn move_to(&mut self, ends: &[End]) -> Result<(), Unfit> {
        let now = half::now();
        for (half, end) in self.halves.iter_mut().zip(ends) {
            let device = self.site.device(end, &self.own.key, half.device.mac)?;
            if device != half.device {
                info!(device = %device.name, underlay = %device.underlay_name, local = %device.local, mtu = device.mtu, "the underlay changed");
                half.device = device;
                half.check(now);
            }
        }
        let macs: Vec<_> = self.halves.iter().map(|half| half.device.mac).collect();
        let mut macs = macs.into_iter();
        let addressed = self.site.record(ends, |_| macs.next().unwrap_or(MacAddr([0; 6])));
        let record = Record { node: self.own.record.node.clone(), extra: self.own.record.extra.clone(), ..addressed };
        if record != self.own.record {
            info!(record = %String::from_utf8_lossy(&record.to_json()), "our record follows");
            let own = ends.iter().map(|end| site::own(&self.own.key, end)).collect::<Result<_, _>>()?;
            self.records.we_are(&self.own.text, own);
            self.own.keeper.publish(record.clone());
            self.own.record = record;
        }
        self.write_env();
        Ok(())
    }

    fn write_env(&self) {
        let mtu = self.halves.iter().map(|half| half.device.mtu).min().unwrap_or_default();
        match self.site.subnet_env(&self.own.key, mtu).write(&self.site.subnet_file) {
            Ok(true) => info!(file = %self.site.subnet_file.display(), mtu, "subnet.env written"),
            Ok(false) => {}
            Err(error) => warn!(%error, "cannot write subnet.env"),
        }
    }

    fn lease_event(&mut self, event: LeaseEvent) -> Option<Ended> {
        match event {
            LeaseEvent::Lost { holder } => {
                error!(subnet = %self.own.text, %holder, "another node holds our subnet");
                return Some(Ended::LeaseLost { holder });
            }
            LeaseEvent::Trouble { reason } => {
                warn!(%reason, subnet = %self.own.text, "our lease cannot be renewed now, trying until it works")
            }
            LeaseEvent::Renewed { left } => info!(?left, subnet = %self.own.text, "lease renewed"),
            LeaseEvent::Recreated { revision, .. } => {
                warn!(revision, subnet = %self.own.text, "our record was gone or changed, written again");
            }
            event => info!(?event, subnet = %self.own.text, "lease"),
        }
        None
    }

    /// A clean stop: what is due is done, on demand with every known peer, as far as the time allows.
    fn stop(&mut self) {
        let started = half::now();
        for half in &mut self.halves {
            if self.program_all_on_exit {
                half.plane.want_everyone();
            }
            half.finish(started + STOP_WITHIN);
        }
        let peers: usize = self.halves.iter().map(|half| half.plane.peers().len()).sum();
        let programmed: usize = self.halves.iter().map(|half| half.plane.installed()).sum();
        let took = started.elapsed();
        if self.program_all_on_exit && programmed < peers {
            warn!(peers, programmed, ?took, "stopping, not every peer could be put into the kernel");
        } else {
            info!(peers, programmed, ?took, "stopping; device, routes, record and subnet.env stay");
        }
    }
}

/// Waits until any plane's kernel side has something to tell.
async fn readable<D: Dataplane>(halves: &[Half<D>]) {
    let mut waiting: Vec<_> = halves.iter().map(|half| Box::pin(half.dataplane.readable())).collect();
    poll_fn(|context| {
        let ready = waiting.iter_mut().any(|future| pin!(future).poll(context).is_ready());
        if ready { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// What store events changed, for the log.
#[derive(Default)]
struct Told {
    deltas: Vec<Delta>,
}

impl Told {
    fn log(&self) {
        if self.deltas.len() > PEERS_NAMED {
            let joined = self.deltas.iter().filter(|delta| matches!(delta, Delta::Joined(_))).count();
            let left = self.deltas.iter().filter(|delta| matches!(delta, Delta::Left { .. })).count();
            info!(joined, left, changed = self.deltas.len() - joined - left, "peers joined, left or changed");
            return;
        }
        for delta in &self.deltas {
            match delta {
                Delta::Joined(subnet) => info!(%subnet, "peer joined"),
                Delta::Changed { subnet, old } => {
                    info!(%subnet, old_mac = %old.mac, old_remote = %old.remote, "peer changed")
                }
                Delta::Left { subnet, .. } => info!(%subnet, "peer left"),
            }
        }
    }
}
