//! What the log says of a fight: how often others wrote in each way, and each thing that they wrote.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use tokio::time::Instant;

use super::AGAIN;
use crate::lease::{Deed, FightEvent, Found, Writes};
use crate::overlay::repeats::Repeats;

/// From the line with which a fight begins to the first one with a count. Each further pause is twice as long, up to
/// [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How many lines there are in a minute about what was not told yet.
const NEW_IN_A_MINUTE: u32 = 3;
/// How many of the values that were told are known.
const KNOWN: usize = 16;

/// The writes of others.
#[derive(Debug)]
pub(super) struct Fight {
    /// How many there were since `since`, and the last of each kind.
    writes: Writes,
    last: [Option<Found>; 3],
    since: Instant,
    /// When the last line was due and how long after it the next one is; `None`: this is no fight.
    told: Option<(Instant, Duration)>,
    /// Hashes of what has had a line.
    known: VecDeque<u64>,
    /// The lines about what has had none.
    new: Repeats,
    /// What gets one now.
    fresh: Option<Found>,
}

impl Fight {
    pub(super) fn new(now: Instant) -> Self {
        let (writes, last, new) = (Writes::default(), [None, None, None], Repeats::in_a_minute(NEW_IN_A_MINUTE));
        Self { writes, last, since: now, told: None, known: VecDeque::new(), new, fresh: None }
    }

    /// Whether it was told.
    pub(super) fn is_told(&self) -> bool {
        self.told.is_some()
    }

    /// Another wrote or deleted our record.
    pub(super) fn count(&mut self, found: &Found, now: Instant) {
        let Writes { overwritten, deleted, under_another_key, .. } = &mut self.writes;
        let count = match found.deed() {
            Deed::Overwrote => overwritten,
            Deed::Deleted => deleted,
            Deed::UnderAnotherKey => under_another_key,
        };
        *count += 1;
        self.last[found.deed() as usize] = Some(found.clone());
        if self.told.is_none() || self.known.contains(&hash(found)) {
            return;
        }
        // Asked so that a later minute has its lines again. The number itself stands in the line of the fight.
        self.new.count(now.into_std());
        if self.new.admit(now.into_std()) {
            self.has_line(found);
            self.fresh = Some(found.clone());
        } else {
            self.writes.not_shown += 1;
        }
    }

    /// This has a line in the log.
    pub(super) fn has_line(&mut self, found: &Found) {
        let hash = hash(found);
        if !self.known.contains(&hash) {
            self.known.truncate(KNOWN - 1);
            self.known.push_front(hash);
        }
    }

    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.known.len()
    }

    /// When the next line is due if nothing more comes.
    pub(super) fn due(&self) -> Option<Instant> {
        let (told, pause) = self.told.filter(|_| self.writes.all() > 0)?;
        Some(told + pause)
    }

    /// What is to be told now.
    pub(super) fn news(&mut self, now: Instant) -> Vec<FightEvent> {
        let fresh = self.fresh.take();
        let is_due = match self.told {
            Some(_) => self.due().is_some_and(|due| due <= now),
            None => self.writes.all() >= u64::from(AGAIN),
        };
        let line = if is_due { self.line(now) } else { None };
        let is_in_line = |fresh: &Found| matches!(&line, Some(FightEvent::Disputed { found, .. }) if found == fresh);
        let fresh = fresh.filter(|fresh| !is_in_line(fresh)).map(|found| FightEvent::AlsoFound { found });
        fresh.into_iter().chain(line).collect()
    }

    fn line(&mut self, now: Instant) -> Option<FightEvent> {
        let found = self.last.get_mut(self.writes.most() as usize)?.take()?;
        self.has_line(&found);
        let pause = self.told.map_or(FIRST_PAUSE, |(_, pause)| (pause * 2).min(LONGEST_PAUSE));
        let (writes, within) = (std::mem::take(&mut self.writes), now - self.since);
        (self.last, self.since, self.told) = ([None, None, None], now, Some((now, pause)));
        Some(FightEvent::Disputed { found, writes, within })
    }
}

impl Writes {
    fn all(&self) -> u64 {
        self.overwritten + self.deleted + self.under_another_key
    }

    /// The most frequent kind. On a tie an overwrite wins, since its value can be shown.
    fn most(&self) -> Deed {
        let kinds = [
            (self.deleted, Deed::Deleted),
            (self.under_another_key, Deed::UnderAnotherKey),
            (self.overwritten, Deed::Overwrote),
        ];
        kinds.into_iter().max_by_key(|(count, _)| *count).map_or(Deed::Overwrote, |(_, deed)| deed)
    }
}

/// Of the words in which it is told: what reads the same is the same.
fn hash(found: &Found) -> u64 {
    let mut hasher = DefaultHasher::new();
    found.to_string().hash(&mut hasher);
    hasher.finish()
}
