//! What the loop says of the records and of the peers that they make: the first few lines, and of more their number.
//!
//! Others decide how often these things happen: whoever writes to etcd, and each pod that sends a packet.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

use crate::overlay::peers::Delta;
use crate::overlay::programmed::Programmed;
use crate::overlay::record::BadRecord;
use crate::overlay::records::Records;
use crate::overlay::repeats::Repeats;
use crate::overlay::{NetworkConfig, Shown};

/// With more peers changed at once than this, the log has one line for them all.
const PEERS_NAMED: usize = 20;
/// Lines of one kind in a row; those about peers in a row.
const FEW: u32 = 10;
const PEERS_IN_A_ROW: u32 = 50;
/// How long a peer that was programmed waits for its line: packets that ask for the next peers go first.
const PACKETS_FIRST: Duration = Duration::from_millis(20);

/// The lines that repeat, and what of them was counted only.
pub(super) struct Told {
    peers: Repeats,
    joined: u64,
    left: u64,
    changed: u64,
    kept_out: Repeats,
    kinds: BTreeMap<&'static str, usize>,
    programmed: Repeats,
    programmed_at: Option<Instant>,
    config: Repeats,
}

impl Default for Told {
    fn default() -> Self {
        Self {
            peers: Repeats::new(PEERS_IN_A_ROW),
            joined: 0,
            left: 0,
            changed: 0,
            kept_out: Repeats::new(FEW),
            kinds: BTreeMap::new(),
            programmed: Repeats::new(FEW),
            programmed_at: None,
            config: Repeats::new(FEW),
        }
    }
}

/// Says which records are kept out when the daemon starts: the first few, and the number of each kind.
pub fn kept_out_at_start(records: &Records) {
    for (key, reason) in records.bad() {
        say_kept_out(key, reason);
    }
    let kinds = records.bad_by_kind();
    let count: usize = kinds.values().sum();
    if count > records.bad().count() {
        warn!(count, kinds = in_words(&kinds), "records kept out, with those above");
    }
}

impl Told {
    /// What changed for the peers at once.
    pub(super) fn deltas(&mut self, deltas: &[Delta], now: Instant) {
        let count = |is: fn(&Delta) -> bool| deltas.iter().filter(|delta| is(delta)).count() as u64;
        let joined = count(|delta| matches!(delta, Delta::Joined(_)));
        let left = count(|delta| matches!(delta, Delta::Left { .. }));
        let changed = deltas.len() as u64 - joined - left;
        if deltas.len() > PEERS_NAMED {
            if self.peers.admit(now) {
                info!(joined, left, changed, "peers joined, left or changed");
            } else {
                (self.joined, self.left, self.changed) =
                    (self.joined + joined, self.left + left, self.changed + changed);
            }
            return;
        }
        for delta in deltas {
            if self.peers.admit(now) {
                say_delta(delta);
                continue;
            }
            let (subnet, what, count) = match delta {
                Delta::Joined(subnet) => (subnet, "joined", &mut self.joined),
                Delta::Left { subnet, .. } => (subnet, "left", &mut self.left),
                Delta::Changed { subnet, .. } => (subnet, "changed", &mut self.changed),
            };
            *count += 1;
            debug!(%subnet, "peer {what}");
        }
    }

    /// A record was kept out.
    pub(super) fn kept_out(&mut self, key: &str, reason: &BadRecord, now: Instant) {
        if self.kept_out.admit(now) {
            say_kept_out(key, reason);
        } else {
            debug!(key = %Shown::new(key), %reason, "record kept out");
            *self.kinds.entry(reason.kind()).or_default() += 1;
        }
    }

    /// The network config that this daemon started with was deleted, and is there again.
    pub(super) fn config_back(&mut self, now: Instant) {
        if self.config.admit(now) {
            info!("the network config is back as it was");
        }
    }

    /// The network config's key holds this now; none of it, if it was deleted.
    pub(super) fn config(&mut self, text: Option<&[u8]>, now: Instant) {
        if !self.config.admit(now) {
            return;
        }
        let Some(text) = text else {
            warn!("the network config was deleted; this daemon goes on with the one it started with");
            return;
        };
        let config_now = Shown::new(text);
        match NetworkConfig::parse(text) {
            Ok(_) => {
                warn!(%config_now, "the network config was changed; this daemon goes on with the one it started with until it is restarted");
            }
            Err(error) => {
                error!(%config_now, %error, "the network config was changed and is not usable: no daemon starts with it; this one goes on with the one it started with");
            }
        }
    }

    /// Peers were put into the kernel: [`Told::say`] is to be asked for them soon.
    pub(super) fn expect_programmed(&mut self, now: impl FnOnce() -> Instant) {
        if self.programmed_at.is_none() {
            self.programmed_at = Some(now() + PACKETS_FIRST);
        }
    }

    /// When [`Told::say`] has something to say.
    pub(super) fn due(&self) -> Option<Instant> {
        let counts = [&self.peers, &self.kept_out, &self.programmed, &self.config];
        counts.into_iter().filter_map(Repeats::due).chain(self.programmed_at).min()
    }

    /// Says what was counted, and which peers were put into the kernel, where it is time for it.
    pub(super) fn say(&mut self, now: Instant, programmed: impl FnOnce() -> Vec<Programmed>) {
        if self.programmed_at.is_some_and(|at| at <= now) {
            self.programmed_at = None;
            programmed().into_iter().for_each(|peers| self.say_programmed(&peers, now));
        }
        if self.peers.count(now).is_some() {
            let (joined, left, changed) = (self.joined, self.left, self.changed);
            info!(joined, left, changed, "more peers joined, left or changed");
            (self.joined, self.left, self.changed) = (0, 0, 0);
        }
        if let Some(count) = self.kept_out.count(now) {
            let kinds = in_words(&std::mem::take(&mut self.kinds));
            warn!(count, kinds, "more records kept out");
        }
        if let Some(peers) = self.programmed.count(now) {
            info!(peers, "more peers programmed");
        }
        if let Some(times) = self.config.count(now) {
            warn!(
                times,
                "the network config was changed again and again; this daemon goes on with the one it started with"
            );
        }
    }

    fn say_programmed(&mut self, peers: &Programmed, now: Instant) {
        for (subnet, why) in &peers.first {
            if self.programmed.admit(now) {
                info!(%subnet, %why, "peer programmed");
            } else {
                debug!(%subnet, %why, "peer programmed");
            }
        }
        for _ in 0..peers.more {
            self.programmed.admit(now);
        }
    }
}

fn say_delta(delta: &Delta) {
    match delta {
        Delta::Joined(subnet) => info!(%subnet, "peer joined"),
        Delta::Changed { subnet, old } => info!(%subnet, old_mac = %old.mac, old_remote = %old.remote, "peer changed"),
        Delta::Left { subnet, displaced_by: Some(by), peer } => {
            warn!(%subnet, mac = %peer.vtep.mac, %by, "peer kept out: the record of another subnet comes first and has its MAC");
        }
        Delta::Left { subnet, .. } => info!(%subnet, "peer left"),
    }
}

fn say_kept_out(key: &str, reason: &BadRecord) {
    let key = Shown::new(key);
    match reason {
        BadRecord::Reserved(node) => info!(%key, node, "a subnet is reserved for a node that has not come yet"),
        reason => warn!(%key, %reason, "record kept out"),
    }
}

/// `12 whose key names no subnet, 3 of another backend`.
fn in_words(kinds: &BTreeMap<&'static str, usize>) -> String {
    kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>().join(", ")
}
