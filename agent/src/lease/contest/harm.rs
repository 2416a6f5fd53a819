//! For how long this node is not ready because others write its record.
//!
//! A write of others harms if the other nodes do not follow our record until it is written back:
//! - Our key has another address, MAC, VNI or backend, or a record that no node follows. Packets to our pods go elsewhere or
//!   nowhere.
//! - Our key is deleted, perhaps with a record under another key that keeps ours from being written again. Packets to our pods
//!   go nowhere.
//! - Another key has a record in our name that goes before ours, since it is newer or has a lease where ours has none. The other
//!   nodes send nothing to our subnet. Where the keeper does not know that key our write does not help; then readiness names
//!   that record for as long as the others follow it.
//!
//! A write under our key harms nobody if it changes only members that other nodes do not read. A record under another key harms
//! nobody if the nodes ignore it, since it has no lease, is older, or is of another node and came later; the keeper never hears
//! of such a one.
//!
//! One harmful write cuts this node off for some milliseconds, and nobody can do anything about that. After several in a row,
//! with less than [`CALM`] between two, this node may be cut off at any moment: it is not ready until its record has stood for
//! so long.

use std::time::Duration;

use tokio::time::Instant;

use super::AGAIN;

/// How long our record has to stand. The other one may be an older Twill, which waits for up to five seconds before it writes
/// again: this is twice as long.
pub(in crate::lease) const CALM: Duration = Duration::from_secs(10);

/// The writes of others that harm.
#[derive(Debug, Default)]
pub(super) struct Harm {
    /// How many there were in a row.
    times: u32,
    /// When the last one came, or our record was written back after it.
    last: Option<Instant>,
    /// Our record is not written back yet.
    lasts: bool,
    /// This node counts as harmed.
    told: bool,
}

impl Harm {
    /// Another's write harms.
    pub(super) fn begins(&mut self, now: Instant) {
        if !self.lasts && self.last.is_none_or(|last| now - last >= CALM) {
            self.times = 0;
        }
        self.times = self.times.saturating_add(1);
        (self.last, self.lasts) = (Some(now), true);
    }

    /// Our record is there again.
    pub(super) fn written(&mut self, now: Instant) {
        if std::mem::take(&mut self.lasts) {
            self.last = Some(now);
        }
    }

    /// When this node no longer counts as harmed if nothing more comes.
    pub(super) fn due(&self) -> Option<Instant> {
        self.last.filter(|_| self.told && !self.lasts).map(|last| last + CALM)
    }

    /// Whether this node counts as harmed from now on, if that has changed.
    pub(super) fn news(&mut self, now: Instant) -> Option<bool> {
        let before = self.told;
        self.told = if before { self.due().is_none_or(|due| due > now) } else { self.times >= AGAIN && self.lasts };
        (self.told != before).then_some(self.told)
    }
}
