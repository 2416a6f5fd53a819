//! Whether this node is ready, and who is told: the log, `/readyz`, systemd.
//!
//! Ready is: lease held, peers in sync with etcd and kernel, `subnet.env` and nftables rules in place. It falls back when
//! that ends.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;
use tracing::{info, warn};

use super::clock;
use super::systemd::Systemd;
use crate::masquerade::RulesState;
use crate::overlay::repeats::Repeats;
use crate::snapshot::{Etcd, Missing, Part, Snapshot, in_words};

/// How often files are looked at, and systemd's status is brought up to date.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How many changes in a minute have a line each.
const CHANGES_IN_A_ROW: u32 = 20;

/// What readiness rests on beside the planes, and who hears of it.
pub(super) struct Health {
    pub etcd: Etcd,
    /// Why etcd refuses or fails the writes of our record; `None` while they succeed.
    pub lease: Option<String>,
    /// Who writes over our record again and again so that others don't follow it, if anybody does.
    pub disputed: Option<String>,
    /// Why the tunnel's packets cannot leave this host, if they can't.
    pub underlay: Option<String>,
    /// Why `subnet.env` cannot be written, if it can't.
    pub file: Option<String>,
    /// How the nftables rules are.
    pub rules: watch::Receiver<RulesState>,
    /// What was missing when that was told last.
    said: Option<Vec<Missing>>,
    changes: Changes,
    /// We have been ready.
    up: bool,
    systemd: Systemd,
    /// systemd has been told that we are up.
    told_up: bool,
    status: String,
}

/// The lines about being ready or not. Another program may bring them about as often as it likes.
struct Changes(Repeats);

impl Default for Changes {
    fn default() -> Self {
        Self(Repeats::in_a_minute(CHANGES_IN_A_ROW))
    }
}

impl Health {
    /// Nothing is wrong yet; `rules` tells of the nftables rules.
    pub(super) fn new(rules: watch::Receiver<RulesState>) -> Self {
        Self {
            etcd: Etcd::default(),
            lease: None,
            disputed: None,
            underlay: None,
            file: None,
            rules,
            said: None,
            changes: Changes::default(),
            up: false,
            systemd: Systemd::default(),
            told_up: false,
            status: String::new(),
        }
    }

    /// How often [`Health::alive`] is to be called.
    pub(super) fn every() -> Duration {
        // Twice as often as systemd asks for, as sd_watchdog_enabled(3) recommends.
        sd_notify::watchdog_enabled()
            .map_or(LOOK_EVERY, |watchdog| (watchdog / 2).clamp(Duration::from_millis(1), LOOK_EVERY))
    }

    /// What is missing for being ready; `planes` is what is missing in the kernel.
    pub(super) fn missing(&self, planes: impl Iterator<Item = Missing>) -> Vec<Missing> {
        let lease = self.lease.as_ref().map(|reason| format!("etcd refuses or fails: {reason}"));
        let listing = self.etcd.is_listing.then(|| "reading all records".to_owned());
        let before = [
            (Part::Record, lease),
            (Part::Record, self.disputed.clone()),
            (Part::Etcd, self.etcd.down.clone()),
            (Part::Etcd, listing),
            (Part::Underlay, self.underlay.clone()),
        ];
        let after = [(Part::SubnetEnv, self.file.clone()), (Part::Nftables, self.rules.borrow().problem.clone())];
        let missing = |(part, reason): (Part, Option<String>)| reason.map(|reason| Missing::new(part, reason));
        before.into_iter().filter_map(missing).chain(planes).chain(after.into_iter().filter_map(missing)).collect()
    }

    /// Writes what is missing to the log and to systemd, if that has changed since the last time.
    pub(super) fn tell(&mut self, snapshot: &Snapshot) {
        let missing = &snapshot.missing;
        if self.said.as_ref() == Some(missing) {
            return;
        }
        if missing.is_empty() {
            let tally = snapshot.peers();
            let (peers, programmed) = (tally.all(), tally.in_kernel);
            if self.changes.0.admit(clock::now()) {
                info!(peers, programmed, "ready");
            }
            self.status = ready(peers);
        } else if self.up {
            if self.changes.0.admit(clock::now()) {
                warn!(missing = %in_words(missing), "not ready");
            }
            self.status = format!("not ready: {}", in_words(missing));
        } else {
            self.status = format!("starting: {}", in_words(missing));
        }
        self.up |= missing.is_empty();
        self.said = Some(missing.clone());
        self.tell_systemd(None);
    }

    /// Tells systemd that the loop turns, and how many peers there are.
    pub(super) fn alive(&mut self, snapshot: &Snapshot) {
        if self.said.as_ref().is_some_and(Vec::is_empty) {
            self.status = ready(snapshot.peers().all());
        }
        if let Some(times) = self.changes.0.count(clock::now()) {
            let missing = self.said.as_deref().unwrap_or_default();
            let now = if missing.is_empty() { "ready" } else { "not ready" };
            warn!(times, now, missing = %in_words(missing), "the node keeps changing between ready and not ready");
        }
        // The status each time: the last one may have found no room.
        self.tell_systemd(Some(NotifyState::Watchdog));
    }

    /// Tells systemd the status and one thing more; until it has heard it, also that we are up.
    fn tell_systemd(&mut self, news: Option<NotifyState<'_>>) {
        let status = (!self.status.is_empty()).then_some(NotifyState::Status(&self.status));
        let up = (self.up && !self.told_up).then_some(NotifyState::Ready);
        let is_up = up.is_some();
        let all: Vec<NotifyState<'_>> = news.into_iter().chain(status).chain(up).collect();
        self.told_up |= self.systemd.tell(&all) && is_up;
    }
}

/// The status of a node that is ready.
fn ready(peers: usize) -> String {
    format!("ready; {peers} peers")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eventloop::lines::Lines;

    fn health() -> Health {
        Health::new(watch::channel(RulesState::default()).1)
    }

    /// A snapshot in which this is missing in the kernel.
    fn lacking(reason: &str) -> Snapshot {
        Snapshot { missing: vec![Missing::new(Part::Kernel, reason)], ..Snapshot::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn changes_without_a_line_take_none_from_those_with_one() {
        let lines = Lines::begin();
        let mut health = health();
        for peer in 0..2 * CHANGES_IN_A_ROW {
            health.tell(&lacking(&format!("flannel.1: {peer} peers to do")));
        }
        health.tell(&Snapshot::default());
        assert_eq!(lines.with("ready peers=0 programmed=0").len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_again_and_again_is_counted_once_a_minute() {
        let lines = Lines::begin();
        let mut health = health();
        for _ in 0..50 {
            health.tell(&Snapshot::default());
            health.tell(&lacking("flannel.1: being made"));
        }
        assert_eq!(lines.with("not ready missing=").len(), CHANGES_IN_A_ROW as usize / 2);
        health.alive(&Snapshot::default());
        assert_eq!(lines.with("keeps changing").len(), 0);
        tokio::time::advance(Duration::from_secs(60)).await;
        health.alive(&Snapshot::default());
        health.alive(&Snapshot::default());
        assert_eq!(lines.with("the node keeps changing between ready and not ready times=80").len(), 1);
    }

    #[test]
    fn what_fails_for_our_record_is_named() {
        let mut health = health();
        health.lease = Some("update /coreos.com/network/subnets/10.5.1.0-24: permission denied".to_owned());
        let missing = in_words(&health.missing(std::iter::empty()));
        assert_eq!(
            missing,
            "record: etcd refuses or fails: update /coreos.com/network/subnets/10.5.1.0-24: permission denied"
        );
    }
}
