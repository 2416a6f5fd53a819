//! What the daemon restores because another program changed it: how often, and whether that program keeps doing it.
//!
//! Between two restores the device or the table is wrong and packets are lost, even if each look finds it right.

use std::time::{Duration, Instant};

/// So many restores within a minute are no fight yet: a tool that starts, a firewall that is loaded anew.
pub const FEW: u32 = 10;
/// The time in which they are few.
const WINDOW: Duration = Duration::from_secs(60);
/// A fight is over once so much time has passed without a restore.
const CALM: Duration = Duration::from_secs(10);

/// The restores of one thing.
#[derive(Debug, Clone, Default)]
pub struct Restores {
    total: u64,
    /// Since when `lately` counts.
    since: Option<Instant>,
    lately: u32,
    /// When the fight is over unless there is another restore.
    calm_at: Option<Instant>,
}

impl Restores {
    /// It was restored.
    pub fn restored(&mut self, now: Instant) {
        self.total += 1;
        if self.since.is_none_or(|since| now >= since + WINDOW) {
            (self.since, self.lately) = (Some(now), 0);
        }
        self.lately = self.lately.saturating_add(1);
        if self.lately > FEW || self.is_fight() {
            self.calm_at = Some(now + CALM);
        }
    }

    /// How often it was, in all.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Whether another program keeps changing it, as of the last [`Self::wake`].
    pub fn is_fight(&self) -> bool {
        self.calm_at.is_some()
    }

    /// When [`Self::wake`] is to be called.
    pub fn due(&self) -> Option<Instant> {
        self.calm_at
    }

    /// The time goes on.
    pub fn wake(&mut self, now: Instant) {
        self.calm_at = self.calm_at.filter(|at| now < *at);
    }
}
