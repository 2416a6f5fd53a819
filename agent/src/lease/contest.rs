//! Others write or delete our record again and again: how soon it is written back, and how often that is told.
//!
//! The first time it is written back at once. Each further time within a minute waits longer, up to five seconds, so that a
//! fight costs etcd and its watchers next to nothing; all that others write meanwhile is counted. Pure but for the random
//! numbers of the waits.

use std::time::Duration;

use tokio::time::Instant;

use super::Found;
use crate::store::backoff::Backoff;

/// After so long without another's write a fight is over. Also how often one that goes on is told.
pub(super) const CALM: Duration = Duration::from_secs(60);
/// So many writes of others in a row are a fight; after [`CALM`] without one, the row begins anew.
const AGAIN: u32 = 5;
/// How long a question whether we live may wait for its answer: less than the shortest time that anybody waits for it.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// The writes of others under our key.
#[derive(Debug)]
pub(super) struct Contest {
    /// The last one counted.
    revision: i64,
    /// How many since `since`.
    count: u32,
    since: Instant,
    last: Option<Instant>,
    /// When a fight was last told; `None`: there is none.
    told: Option<Instant>,
    not_before: Instant,
    backoff: Backoff,
    /// What is to be told when our record is there again.
    found: Option<Found>,
}

/// A fight, as it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fight {
    /// How many writes of others.
    pub times: u32,
    /// In which time.
    pub within: Duration,
}

impl Contest {
    pub(super) fn new(now: Instant) -> Self {
        let (revision, count, found) = (0, 0, None);
        Self {
            revision,
            count,
            since: now,
            last: None,
            told: None,
            not_before: now,
            backoff: Backoff::default(),
            found,
        }
    }

    /// Another wrote or deleted our record at this revision. A fight that has to be told now.
    pub(super) fn disturbed(&mut self, found: Found, revision: i64, now: Instant) -> Option<Fight> {
        self.touched(now);
        if std::mem::replace(&mut self.revision, revision) != revision {
            self.count = self.count.saturating_add(1);
        }
        self.found = Some(found);
        let is_due = match self.told {
            Some(told) => now - told >= CALM,
            None => self.count >= AGAIN,
        };
        if !is_due {
            return None;
        }
        let fight = Fight { times: self.count, within: now - self.since };
        (self.told, self.count, self.since) = (Some(now), 0, now);
        Some(fight)
    }

    fn touched(&mut self, now: Instant) {
        if self.last.is_none_or(|last| now - last >= CALM) && self.told.is_none() {
            (self.count, self.since, self.backoff) = (0, now, Backoff::default());
        }
        self.last = Some(now);
    }

    /// When our record may be written next.
    pub(super) fn not_before(&self) -> Instant {
        self.not_before
    }

    /// Our record is missing; the log says so when it is written again.
    pub(super) fn missing(&mut self) {
        self.found.get_or_insert(Found::Nothing);
    }

    /// Somebody asks whether we live.
    pub(super) fn asked(&mut self, now: Instant) {
        self.touched(now);
        self.not_before = self.not_before.min(now + ANSWER_WITHIN);
    }

    /// A write of ours begins.
    pub(super) fn writes(&mut self, now: Instant) {
        if self.last.is_some_and(|last| now - last < CALM) {
            self.not_before = now + self.backoff.failed();
        }
    }

    /// Our record is there again. Returns what had replaced it; nothing during a fight, which has its own line.
    pub(super) fn written(&mut self) -> Option<Found> {
        let found = self.found.take();
        found.filter(|_| self.told.is_none())
    }

    /// When a fight is over if nothing more comes.
    pub(super) fn ends_at(&self) -> Option<Instant> {
        self.told.and(self.last).map(|last| last + CALM)
    }

    /// Whether a fight is over now.
    pub(super) fn ends(&mut self, now: Instant) -> bool {
        let ends = self.ends_at().is_some_and(|at| at <= now);
        if ends {
            *self = Self { revision: self.revision, ..Self::new(now) };
        }
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_fight_is_slowed_and_counted() {
        let start = Instant::now();
        let mut contest = Contest::new(start);
        let (mut now, mut writes, mut told) = (start, 0, Vec::new());
        for revision in 1..=300_000 {
            now += Duration::from_millis(1);
            told.extend(contest.disturbed(Found::Nothing, revision, now));
            if contest.not_before() <= now {
                contest.writes(now);
                writes += 1;
            }
        }
        assert_eq!(told[0].times, AGAIN);
        let each_minute: Vec<_> = told[1..].iter().map(|fight| (fight.times, fight.within)).collect();
        assert_eq!(each_minute, [(60_000, CALM); 4]);
        // Three hundred seconds at five seconds, a wait being shortened by up to a half, and some at first.
        assert!((60..=130).contains(&writes), "{writes}");
        assert!(!contest.ends(now + CALM - SECOND) && contest.ends(now + CALM));
        assert!(contest.not_before() <= now + CALM, "the next one is a first one");
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_now_and_then_is_no_fight() {
        let mut now = Instant::now();
        let mut contest = Contest::new(now);
        for revision in 1..=100 {
            now += CALM;
            assert_eq!(contest.disturbed(Found::Nothing, revision, now), None);
            assert!(contest.not_before() <= now);
            contest.writes(now);
            assert_eq!(contest.written(), Some(Found::Nothing));
        }
        assert_eq!(contest.ends_at(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn one_write_that_is_seen_twice_counts_once_and_a_question_is_answered_soon() {
        let now = Instant::now();
        let mut contest = Contest::new(now);
        for _ in 0..100 {
            assert_eq!(contest.disturbed(Found::Nothing, 1, now), None);
        }
        (0..20).for_each(|_| contest.writes(now));
        assert!(contest.not_before() > now + ANSWER_WITHIN);
        contest.asked(now);
        assert_eq!(contest.not_before(), now + ANSWER_WITHIN);
    }
}
