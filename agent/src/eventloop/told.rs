//! What the loop says of the records and of the peers that they make: the first few lines, and of more their number.
//!
//! Others decide how often these things happen: whoever writes to etcd, and each pod that sends a packet.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use tracing::field::display;
use tracing::{debug, info, warn};

use super::config::ConfigNow;
use crate::overlay::Shown;
use crate::overlay::peers::Delta;
use crate::overlay::plane::strangers::Mended;
use crate::overlay::programmed::{Programmed, Unreached};
use crate::overlay::record::BadRecord;
use crate::overlay::records::Records;
use crate::overlay::repeats::Repeats;
use crate::overlay::words::Found;

/// If more peers than this change at once, the log has one line for all of them.
const PEERS_NAMED: usize = 20;
/// Lines of one kind in a row.
const FEW: u32 = 10;
/// Lines about peers in a row: those of a cluster that grows.
const PEERS_IN_A_ROW: u32 = 200;
/// Lines about one peer in a row, within [`WINDOW`].
const OF_ONE_PEER: u32 = 5;
/// How long it is known which peers the last lines were about, and of how many peers at the most.
const WINDOW: Duration = Duration::from_secs(10);
const PEERS_KNOWN: usize = 1_000;
/// How long a peer that was programmed waits for its line: packets that ask for the next peers go first.
const PACKETS_FIRST: Duration = Duration::from_millis(20);

/// What [`Mended`] counts, in its order.
const MENDED: [&str; 3] = ["a route", "a neighbour", "an FDB row"];

/// Which lines may be said, and how many were only counted.
pub(super) struct Told {
    peers: Repeats,
    /// Many of them at once.
    many: Repeats,
    /// How many lines there were about a peer, since a time.
    of_peer: HashMap<IpNetwork, u32>,
    of_peer_since: Option<Instant>,
    /// Peers that change again and again.
    restless: Repeats,
    joined: u64,
    left: u64,
    changed: u64,
    ignored: Repeats,
    kinds: BTreeMap<&'static str, usize>,
    programmed: Repeats,
    unreached: Repeats,
    programmed_at: Option<Instant>,
    config: Repeats,
    /// What the config's key holds, for people.
    config_now: &'static str,
    /// Routes, neighbours and FDB rows of other programs that were mended.
    mended: [Repeats; 3],
    contested: Repeats,
}

impl Default for Told {
    fn default() -> Self {
        Self {
            peers: Repeats::new(PEERS_IN_A_ROW),
            many: Repeats::new(FEW),
            of_peer: HashMap::new(),
            of_peer_since: None,
            restless: Repeats::new(0),
            joined: 0,
            left: 0,
            changed: 0,
            ignored: Repeats::new(FEW),
            kinds: BTreeMap::new(),
            programmed: Repeats::new(FEW),
            unreached: Repeats::new(FEW),
            programmed_at: None,
            config: Repeats::new(FEW),
            config_now: ConfigNow::Ours.words(),
            mended: std::array::from_fn(|_| Repeats::new(1)),
            contested: Repeats::new(FEW),
        }
    }
}

/// Says which records are ignored when the daemon starts: the first few, and the number of each kind.
pub fn ignored_at_start(records: &Records) {
    for (key, reason) in records.bad() {
        say_ignored(key, reason);
    }
    let kinds = records.bad_by_kind();
    let count: usize = kinds.values().sum();
    if count > records.bad().count() {
        warn!(count, kinds = in_words(&kinds), "ignored records in total, those above included");
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
            if self.many.admit(now) {
                info!(joined, left, changed, "peers joined, left or changed");
            } else {
                (self.joined, self.left, self.changed) =
                    (self.joined + joined, self.left + left, self.changed + changed);
            }
            return;
        }
        for delta in deltas {
            if self.admits(*delta.subnet(), now) {
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

    /// Whether a line about this peer is said: one that changes all the time does not hide the others.
    fn admits(&mut self, subnet: IpNetwork, now: Instant) -> bool {
        let is_over = self.of_peer_since.is_none_or(|since| now >= since + WINDOW);
        if is_over && self.restless.due().is_none() {
            self.of_peer.clear();
            self.of_peer_since = Some(now);
        }
        if self.of_peer.len() < PEERS_KNOWN || self.of_peer.contains_key(&subnet) {
            let lines = self.of_peer.entry(subnet).or_default();
            *lines += 1;
            if *lines > OF_ONE_PEER {
                return self.restless.admit(now);
            }
        }
        self.peers.admit(now)
    }

    /// A record is ignored.
    pub(super) fn ignored(&mut self, key: &str, reason: &BadRecord, now: Instant) {
        if self.ignored.admit(now) {
            say_ignored(key, reason);
        } else {
            debug!(key = %Shown::new(key), %reason, "record ignored");
            *self.kinds.entry(reason.kind()).or_default() += 1;
        }
    }

    /// The network config's key holds this now, and held something else before.
    pub(super) fn config(&mut self, config: &ConfigNow, now: Instant) {
        self.config_now = config.words();
        if self.config.admit(now) {
            config.say();
        }
    }

    /// Rows of other programs on our device contradicted the records, and were removed or overwritten.
    pub(super) fn mended(&mut self, device: &str, mended: Mended, now: Instant) {
        for ((found, repeats), what) in mended.kinds.iter().zip(&mut self.mended).zip(MENDED) {
            let Some((row, count)) = found else { continue };
            let row = Found { row, device };
            let admitted = (0..*count).filter(|_| repeats.admit(now)).count();
            if admitted > 0 {
                warn!(device, %row, count, "{what} of another program contradicted the records, mended");
            } else {
                debug!(device, %row, count, "{what} of another program contradicted the records, mended");
            }
        }
    }

    /// A route or a policy rule of another program goes before ours; what to do about it.
    pub(super) fn contested(&mut self, device: &str, words: &str, advice: &str, now: Instant) {
        if self.contested.admit(now) {
            warn!(device, "{words}; {advice}");
        } else {
            debug!(device, "{words}");
        }
    }

    /// Peers were put into the kernel: [`Told::say`] is to be asked for them soon.
    pub(super) fn expect_programmed(&mut self, now: impl FnOnce() -> Instant) {
        if self.programmed_at.is_none() {
            self.programmed_at = Some(now() + PACKETS_FIRST);
        }
    }

    /// There is no way to some peers.
    pub(super) fn unreached(&mut self, peers: &Unreached, backend: &'static str, now: Instant) {
        for (subnet, host) in &peers.first {
            if self.unreached.admit(now) {
                warn!(%subnet, %host, "peer not reached: its host is not on a link of this node, and {backend} has no other way to it");
            } else {
                debug!(%subnet, %host, "peer not reached: its host is not on a link of this node");
            }
        }
        for _ in 0..peers.more {
            self.unreached.admit(now);
        }
    }

    /// When [`Told::say`] has something to say.
    pub(super) fn due(&self) -> Option<Instant> {
        let of_peers = [&self.peers, &self.many, &self.restless, &self.programmed, &self.unreached];
        let others = [&self.ignored, &self.config, &self.contested];
        of_peers.into_iter().chain(others).chain(&self.mended).filter_map(Repeats::due).chain(self.programmed_at).min()
    }

    /// Says what was counted, and which peers were put into the kernel, where it is time for it.
    pub(super) fn say(&mut self, now: Instant, programmed: impl FnOnce() -> Vec<Programmed>) {
        if self.programmed_at.is_some_and(|at| at <= now) {
            self.programmed_at = None;
            programmed().into_iter().for_each(|peers| self.say_programmed(&peers, now));
        }
        let of_peers = [&mut self.peers, &mut self.many, &mut self.restless];
        let lines: u64 = of_peers.into_iter().filter_map(|lines| lines.count(now)).sum();
        let (joined, left, changed) = (self.joined, self.left, self.changed);
        if lines > 0 && joined + left + changed > 0 {
            info!(joined, left, changed, "more peers joined, left or changed");
            (self.joined, self.left, self.changed) = (0, 0, 0);
        }
        if let Some(count) = self.ignored.count(now) {
            let kinds = in_words(&std::mem::take(&mut self.kinds));
            warn!(count, kinds, "more records ignored");
        }
        if let Some(peers) = self.programmed.count(now) {
            info!(peers, "more peers programmed");
        }
        for (repeats, what) in self.mended.iter_mut().zip(MENDED) {
            if let Some(count) = repeats.count(now) {
                warn!(count, "more times {what} of another program contradicted the records, mended");
            }
        }
        if let Some(count) = self.unreached.count(now) {
            warn!(count, "more peers are not reached: their hosts are not on a link of this node");
        }
        if let Some(count) = self.contested.count(now) {
            warn!(count, "more routes or policy rules of other programs came that go before ours");
        }
        if let Some(times) = self.config.count(now) {
            warn!(times, now = self.config_now, "the network config was changed again and again");
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
        Delta::Changed { subnet, old } => {
            let old_mac = old.mac.map(display);
            info!(%subnet, old_mac, old_remote = %old.remote, "peer changed");
        }
        Delta::Left { subnet, displaced_by: Some(by), peer } => {
            let mac = peer.endpoint.mac.map(display);
            warn!(%subnet, mac, %by, "peer dropped: the record of another subnet claims its MAC and takes precedence");
        }
        Delta::Left { subnet, .. } => info!(%subnet, "peer left"),
    }
}

fn say_ignored(key: &str, reason: &BadRecord) {
    let key = Shown::new(key);
    match reason {
        BadRecord::Reserved(node) => info!(%key, node, "a subnet is reserved for a node that has not come yet"),
        reason => warn!(%key, %reason, "record ignored"),
    }
}

/// `12 whose key names no subnet, 3 of another backend`.
fn in_words(kinds: &BTreeMap<&'static str, usize>) -> String {
    kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::peers::Endpoint;

    fn subnet(number: u32) -> IpNetwork {
        format!("10.{}.{}.0/24", number / 256, number % 256).parse().unwrap()
    }

    fn changed(subnet: IpNetwork) -> Delta {
        let old = Endpoint { mac: "02:00:00:00:00:c8".parse().ok(), remote: "10.99.0.7".parse().unwrap() };
        Delta::Changed { subnet, old }
    }

    #[test]
    fn a_peer_that_changes_all_the_time_hides_no_other() {
        let (mut told, mut now) = (Told::default(), Instant::now());
        for round in 0..1_000 {
            now += Duration::from_millis(10);
            assert_eq!(told.admits(subnet(1), now), round < OF_ONE_PEER);
        }
        assert!((2..100).all(|other| told.admits(subnet(other), now)), "others are said");
    }

    #[test]
    fn a_cluster_that_grows_is_named_and_a_flood_counted() {
        let (mut told, now) = (Told::default(), Instant::now());
        let said = (0..5_000).filter(|number| told.admits(subnet(*number), now)).count();
        assert_eq!(said, PEERS_IN_A_ROW as usize);
    }

    #[test]
    fn each_change_is_said_or_counted_and_nothing_is_kept_for_it() {
        let (mut told, mut now) = (Told::default(), Instant::now());
        for _ in 0..5_000 {
            now += Duration::from_millis(1);
            told.deltas(&[changed(subnet(1))], now);
            if told.due().is_some_and(|due| due <= now) {
                told.say(now, Vec::new);
            }
        }
        // Two counts: after one second and two more.
        let counted = u64::from(5_000 - OF_ONE_PEER);
        assert!(told.changed < counted && told.changed > 0, "{}", told.changed);
        assert_eq!(told.of_peer.len(), 1);
        // What is left is said in time, and then there is nothing to wake up for.
        while let Some(due) = told.due() {
            told.say(due, Vec::new);
        }
        assert_eq!(told.changed, 0);
    }
}
