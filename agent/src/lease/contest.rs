//! Others write or delete our record again and again: how soon it is written back, and what is told of it.
//!
//! The first time it is written back at once. Each further time within a minute waits longer, up to a second. So the other
//! nodes find this node again about a second after the last forged write, and each of two daemons that fight over a record
//! costs etcd and its watchers about one write a second. All that others write is counted. Pure but for the random numbers of
//! the waits.

use std::time::Duration;

use tokio::time::Instant;

use super::{FightEvent, Found};
use crate::store::backoff::Backoff;

mod fight;
pub(super) mod harm;

use fight::Fight;
use harm::Harm;

/// After so long without another's write a fight is over.
pub(super) const CALM: Duration = Duration::from_secs(60);
/// So many writes of others in a row are a fight; after [`CALM`] without one, the row begins anew.
const AGAIN: u32 = 5;
/// The longest time between two writes of ours. Each is shortened at random by up to a half.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How long a question whether we live may wait for its answer: less than the shortest time that anybody waits for it.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// The writes of others.
#[derive(Debug)]
pub(super) struct Contest {
    /// The last one counted.
    revision: i64,
    last: Option<Instant>,
    fight: Fight,
    harm: Harm,
    not_before: Instant,
    backoff: Backoff,
    /// What is to be told when our record is there again.
    found: Option<Found>,
}

impl Contest {
    pub(super) fn new(now: Instant) -> Self {
        let (fight, harm, backoff) = (Fight::new(now), Harm::default(), Backoff::up_to(LONGEST_WAIT));
        Self { revision: 0, last: None, fight, harm, not_before: now, backoff, found: None }
    }

    /// Another wrote or deleted our record at this revision; whether that harms, `harm` says. Returns what is to be told now.
    pub(super) fn disturbed(&mut self, found: Found, harms: bool, revision: i64, now: Instant) -> Vec<FightEvent> {
        self.touched(now);
        if std::mem::replace(&mut self.revision, revision) != revision {
            self.fight.count(&found, now);
            if harms {
                self.harm.begins(now);
            }
        }
        self.found = Some(found);
        self.news(now)
    }

    fn touched(&mut self, now: Instant) {
        if self.last.is_none_or(|last| now - last >= CALM) && !self.fight.is_told() {
            (self.fight, self.backoff) = (Fight::new(now), Backoff::up_to(LONGEST_WAIT));
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

    /// Our record is there again. Returns what had replaced it; nothing during a fight, which has its own lines.
    pub(super) fn written(&mut self, now: Instant) -> Option<Found> {
        self.harm.written(now);
        let found = self.found.take().filter(|_| !self.fight.is_told())?;
        self.fight.has_line(&found);
        Some(found)
    }

    /// When [`Self::news`] is to be asked next, if nothing more comes.
    pub(super) fn due(&self) -> Option<Instant> {
        [self.fight.due(), self.harm.due(), self.ends_at()].into_iter().flatten().min()
    }

    /// When a fight is over if nothing more comes.
    fn ends_at(&self) -> Option<Instant> {
        self.last.filter(|_| self.fight.is_told()).map(|last| last + CALM)
    }

    /// Returns what is to be told now.
    pub(super) fn news(&mut self, now: Instant) -> Vec<FightEvent> {
        let mut news = self.fight.news(now);
        match self.harm.news(now) {
            Some(true) => {
                let told = news.iter().find_map(|event| match event {
                    FightEvent::Disputed { found, .. } => Some(found),
                    _ => None,
                });
                let found = told.or(self.found.as_ref()).cloned();
                news.extend(found.map(|found| FightEvent::Harmful { found }));
            }
            Some(false) => news.push(FightEvent::Harmless),
            None => {}
        }
        if self.ends_at().is_some_and(|at| at <= now) {
            // What is not written back yet is told then.
            let (harm, found) = (std::mem::take(&mut self.harm), self.found.take());
            *self = Self { revision: self.revision, harm, found, ..Self::new(now) };
            news.push(FightEvent::Over);
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Writes;

    const SECOND: Duration = Duration::from_secs(1);

    /// The fight's lines of these events.
    fn lines(news: Vec<FightEvent>) -> Vec<(Writes, Duration)> {
        let lines = news.into_iter().filter_map(|event| match event {
            FightEvent::Disputed { writes, within, .. } => Some((writes, within)),
            _ => None,
        });
        lines.collect()
    }

    fn value(text: &str) -> Found {
        Found::Changed { value: text.to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_fight_is_slowed_and_counted() {
        let start = Instant::now();
        let mut contest = Contest::new(start);
        let (mut now, mut writes, mut told) = (start, 0, Vec::new());
        for revision in 1..=300_000 {
            now += Duration::from_millis(1);
            told.extend(lines(contest.disturbed(Found::Nothing, true, revision, now)));
            if contest.not_before() <= now {
                contest.writes(now);
                assert!(contest.not_before() <= now + LONGEST_WAIT);
                writes += 1;
            }
        }
        let told: Vec<_> = told.iter().map(|(writes, within)| (writes.deleted, *within)).collect();
        // The fight is told when it begins, after 10, 20 and 40 s, and then each minute.
        let each = [10, 20, 40, 60, 60, 60].map(|seconds| (seconds * 1_000, SECOND * seconds as u32));
        assert_eq!((told[0], &told[1..]), ((u64::from(AGAIN), SECOND / 250), &each[..]));
        // Three hundred seconds at one second, a wait being shortened by up to a half, and some at first.
        assert!((300..=610).contains(&writes), "{writes}");
        let news = contest.news(now + CALM - SECOND);
        assert!(!news.contains(&FightEvent::Over), "{news:?}");
        assert_eq!(contest.news(now + CALM), [FightEvent::Over]);
        assert!(contest.not_before() <= now + CALM, "the next one is a first one");
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_now_and_then_is_no_fight() {
        let mut now = Instant::now();
        let mut contest = Contest::new(now);
        for revision in 1..=100 {
            now += CALM;
            assert_eq!(contest.disturbed(Found::Nothing, true, revision, now), []);
            assert!(contest.not_before() <= now);
            contest.writes(now);
            assert_eq!(contest.written(now), Some(Found::Nothing));
        }
        assert_eq!(contest.due(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn one_write_that_is_seen_twice_counts_once_and_a_question_is_answered_soon() {
        let now = Instant::now();
        let mut contest = Contest::new(now);
        for _ in 0..100 {
            assert_eq!(contest.disturbed(Found::Nothing, true, 1, now), []);
        }
        while contest.not_before() <= now + ANSWER_WITHIN {
            contest.writes(now);
        }
        contest.asked(now);
        assert_eq!(contest.not_before(), now + ANSWER_WITHIN);
    }

    #[tokio::test(start_paused = true)]
    async fn each_new_value_has_its_line_and_a_flood_of_them_a_few() {
        let mut now = Instant::now();
        let (mut contest, mut told) = (Contest::new(now), Vec::new());
        for revision in 1..=60_000 {
            now += Duration::from_millis(10);
            // The tenth minute is the one of the flood.
            let found = match revision {
                500 => value("rare"),
                1_000 => Found::Nothing,
                54_000.. => value(&revision.to_string()),
                _ => value("usual"),
            };
            told.extend(contest.disturbed(found, true, revision, now).into_iter().map(|event| (revision, event)));
        }
        let new = |(revision, event): &(i64, FightEvent)| match event {
            FightEvent::AlsoFound { found } => Some((*revision, found.clone())),
            _ => None,
        };
        let new: Vec<_> = told.iter().filter_map(new).collect();
        assert_eq!(new[..2], [(500, value("rare")), (1_000, Found::Nothing)]);
        assert_eq!(new[2..].iter().map(|(revision, _)| *revision).collect::<Vec<_>>(), [54_000, 54_001, 54_002]);
        let lines = lines(told.into_iter().map(|(_, event)| event).collect());
        let (mut all, mut not_shown) = (0, 0);
        for (Writes { overwritten, deleted, under_another_key, not_shown: of_them }, _) in lines {
            assert_eq!((deleted.min(1), under_another_key), (deleted, 0));
            (all, not_shown) = (all + overwritten + deleted, not_shown + of_them);
        }
        assert!(all > 50_000 && not_shown > 0, "{all} {not_shown}");
        assert!(contest.fight.known() <= 16);
    }

    #[tokio::test(start_paused = true)]
    async fn the_line_shows_the_last_of_what_there_was_most_of() {
        let mut now = Instant::now();
        let (mut contest, mut told) = (Contest::new(now), Vec::new());
        let elsewhere = Found::InTheWay { key: "k".to_owned(), reason: String::new(), value: String::new() };
        for revision in 1..=2_000 {
            now += Duration::from_millis(10);
            let found = match revision % 100 {
                7 => Found::Nothing,
                8..30 => elsewhere.clone(),
                rest => value(&(rest % 2).to_string()),
            };
            told.extend(contest.disturbed(found, true, revision, now));
        }
        let FightEvent::Disputed { found, writes, .. } = &told[told.len() - 1] else { panic!("{told:?}") };
        assert!(matches!(found, Found::Changed { .. }), "{found:?}");
        assert_eq!((writes.deleted, writes.under_another_key, writes.not_shown), (10, 220, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_harms_again_and_again_counts_until_ours_has_stood_for_ten_seconds() {
        let mut now = Instant::now();
        let (mut contest, mut harmful) = (Contest::new(now), Vec::new());
        for revision in 1..=20 {
            now += SECOND;
            // The first ten harm nobody.
            let news = contest.disturbed(value("x"), revision > 10, revision, now);
            harmful.extend(news.into_iter().filter(|event| !matches!(event, FightEvent::Disputed { .. })));
            assert!(revision < 15 || contest.harm.due().is_none(), "not written back yet");
            contest.written(now);
        }
        assert_eq!(harmful, [FightEvent::Harmful { found: value("x") }]);
        let ends = now + harm::CALM;
        assert!(!contest.news(ends - Duration::from_millis(1)).contains(&FightEvent::Harmless));
        assert!(contest.news(ends).contains(&FightEvent::Harmless));
        // The fight goes on, and one more is none in a row.
        assert_eq!(contest.disturbed(value("x"), true, 21, ends + SECOND), []);
    }
}
