//! For how long this node is not ready because others write its record.
//!
//! What they write harms where the other nodes do not follow our record until it is written back:
//! - under our key, another address, MAC, VNI or backend, or what no node follows: packets to our pods go elsewhere or nowhere;
//! - our record deleted, also where a record under another key keeps it from being written again: packets go nowhere;
//! - under another key, a record in our name that supersedes ours, since it is newer or ours has no lease: the others give our
//!   MAC to that one's subnet. Where the keeper does not know its key, our write does not help; then readiness names that record
//!   for as long as the others follow it.
//!
//! It does not harm under our key where only members are others that no other node reads, nor under another key where the record
//! is ignored because it has no lease, is older, or is another node's that came later: that never comes here.
//!
//! A single one harms for some milliseconds, which nobody has to act on. After several in a row, with less than [`CALM`]
//! between two, the others may find this node or not at any moment. That ends when our record has stood for so long.

use std::time::Duration;

use tokio::time::Instant;

use super::AGAIN;

/// How long our record has to stand. Twice as long as an older Twill, which may be the other one, waits at the most before
/// it writes again.
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

    /// When this node counts as harmed no more if nothing comes.
    pub(super) fn due(&self) -> Option<Instant> {
        self.last.filter(|_| self.told && !self.lasts).map(|last| last + CALM)
    }

    /// Whether this node counts as harmed from now on, if that is another than before.
    pub(super) fn news(&mut self, now: Instant) -> Option<bool> {
        let before = self.told;
        self.told = if before { self.due().is_none_or(|due| due > now) } else { self.times >= AGAIN && self.lasts };
        (self.told != before).then_some(self.told)
    }
}
