//! Whether this node is ready, and who is told: the log, `/readyz`, systemd.
//!
//! Ready is: lease held, peers in sync with etcd and kernel, `subnet.env` and nftables rules in place. It falls back when
//! that ends.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;
use tracing::{info, warn};

use super::half;
use super::systemd::Systemd;
use crate::http::Readiness;
use crate::overlay::Shown;
use crate::overlay::repeats::Repeats;

/// How often files are looked at, and systemd's status is brought up to date.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The longest that one missing thing is described, in characters: systemd takes a line, and `/readyz` has one for each.
const LONGEST: usize = 600;
/// How many changes in a minute have a line each.
const CHANGES_IN_A_ROW: u32 = 20;

/// What readiness rests on beside the planes.
#[derive(Default)]
pub(super) struct Health {
    /// Why etcd does not answer, if it doesn't.
    pub etcd: Option<String>,
    /// A complete read is under way.
    pub listing: bool,
    /// What etcd does not do that keeps our record, and why, if there is such a thing.
    pub lease: Option<String>,
    /// Who writes our record again and again, if anybody does: half of the time others follow what that one writes.
    pub disputed: Option<String>,
    /// Why the tunnel's packets cannot leave this host, if they can't.
    pub underlay: Option<String>,
    /// Why `subnet.env` cannot be written, if it can't.
    pub file: Option<String>,
    /// What is wrong with the nftables rules, where there are any to be.
    pub rules: Option<watch::Receiver<Option<String>>>,
    /// Who answers `/readyz`.
    pub http: Option<watch::Sender<Readiness>>,
    said: Option<Vec<String>>,
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
    /// How often [`Health::alive`] is to be called.
    pub(super) fn every() -> Duration {
        // Twice as often as systemd asks for, as sd_watchdog_enabled(3) recommends.
        sd_notify::watchdog_enabled()
            .map_or(LOOK_EVERY, |watchdog| (watchdog / 2).clamp(Duration::from_millis(1), LOOK_EVERY))
    }

    /// Works out what is missing; `planes` is what is missing in the kernel. Tells everyone where that is news.
    ///
    /// `programmed` counts the peers that are in the kernel. It is asked only when that is told: this is called after each
    /// answer to a miss.
    pub(super) fn update(&mut self, planes: Vec<String>, peers: usize, programmed: impl FnOnce() -> usize) {
        let mut missing = Vec::new();
        missing.extend(self.lease.as_ref().map(|reason| format!("record: etcd refuses or fails: {reason}")));
        missing.extend(self.disputed.as_ref().map(|reason| format!("record: {reason}")));
        missing.extend(self.etcd.as_ref().map(|reason| format!("etcd: {reason}")));
        if self.listing {
            missing.push("etcd: reading all records".to_owned());
        }
        missing.extend(self.underlay.as_ref().map(|reason| format!("underlay: {reason}")));
        missing.extend(planes);
        missing.extend(self.file.as_ref().map(|reason| format!("subnet.env: {reason}")));
        let rules = self.rules.as_ref().and_then(|rules| rules.borrow().clone());
        missing.extend(rules.map(|reason| format!("nftables: {reason}")));
        missing.iter_mut().for_each(|what| *what = Shown::up_to(LONGEST, what).to_string());
        if self.said.as_ref() == Some(&missing) {
            return;
        }
        if missing.is_empty() {
            if self.changes.0.admit(half::now()) {
                info!(peers, programmed = programmed(), "ready");
            }
            self.status = ready(peers);
        } else if self.up {
            if self.changes.0.admit(half::now()) {
                warn!(missing = %missing.join("; "), "not ready");
            }
            self.status = format!("not ready: {}", missing.join("; "));
        } else {
            self.status = format!("starting: {}", missing.join("; "));
        }
        if let Some(http) = &self.http {
            http.send_replace(Readiness { missing: missing.clone() });
        }
        self.up |= missing.is_empty();
        self.said = Some(missing);
        self.tell_systemd(None);
    }

    /// What is missing for being ready, as it was told last.
    pub(super) fn missing(&self) -> &[String] {
        self.said.as_deref().unwrap_or_default()
    }

    /// Tells systemd that the loop turns, and how many peers there are.
    pub(super) fn alive(&mut self, peers: usize) {
        if self.said.as_ref().is_some_and(Vec::is_empty) {
            self.status = ready(peers);
        }
        if let Some(times) = self.changes.0.count(half::now()) {
            let missing = self.missing().join("; ");
            warn!(times, now = if missing.is_empty() { "ready" } else { "not ready" }, %missing, "the node keeps changing between ready and not ready");
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

    #[tokio::test(start_paused = true)]
    async fn changes_without_a_line_take_none_from_those_with_one() {
        let lines = Lines::begin();
        let mut health = Health::default();
        for peer in 0..2 * CHANGES_IN_A_ROW {
            health.update(vec![format!("flannel.1: {peer} peers to do")], 1, || 0);
        }
        health.update(Vec::new(), 1, || 1);
        assert_eq!(lines.with("ready peers=1 programmed=1").len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_again_and_again_is_counted_once_a_minute() {
        let lines = Lines::begin();
        let mut health = Health::default();
        for _ in 0..50 {
            health.update(Vec::new(), 1, || 1);
            health.update(vec!["flannel.1: being made".to_owned()], 1, || 0);
        }
        assert_eq!(lines.with("not ready missing=").len(), CHANGES_IN_A_ROW as usize / 2);
        health.alive(1);
        assert_eq!(lines.with("keeps changing").len(), 0);
        tokio::time::advance(Duration::from_secs(60)).await;
        health.alive(1);
        health.alive(1);
        assert_eq!(lines.with("the node keeps changing between ready and not ready times=80").len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_for_our_record_is_named() {
        let (http, told) = watch::channel(Readiness::starting());
        let mut health = Health { http: Some(http), ..Health::default() };
        health.lease = Some("update /coreos.com/network/subnets/10.5.1.0-24: permission denied".to_owned());
        health.update(Vec::new(), 1, || 1);
        let named = "record: etcd refuses or fails: update /coreos.com/network/subnets/10.5.1.0-24: permission denied";
        assert_eq!(told.borrow().missing, [named]);
    }
}
