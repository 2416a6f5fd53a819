//! What another tool does to our tables: named, and answered no faster than is good for either.
//!
//! Some changes are answered at once, since a packet that leaves meanwhile has the wrong source. A tool that comes back each
//! time would else keep both busy for ever.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::RulesState;
use crate::overlay::Shown;
use crate::overlay::repeats::Repeats;
use crate::overlay::restores::Restores;

/// So many repairs may follow each other at once.
const AT_ONCE: u32 = 10;
/// On the average there is one in this time.
const EVERY: Duration = Duration::from_secs(1);
/// So many lines in a row name each repair; then there is one a minute.
const NAMED: u32 = 3;

/// Who changed our tables, as the kernel names him.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Writer {
    /// The program's name, which that program may choose.
    pub name: Vec<u8>,
    /// Its pid in the first pid namespace.
    pub pid: u32,
}

/// Our side of it.
pub(super) struct Fight {
    mended: Repeats,
    restores: Restores,
    removed: Repeats,
    problems: Repeats,
    /// The time until which the repairs made so far use up the allowance of one every [`EVERY`].
    paid: Instant,
    last: Option<Writer>,
}

impl Fight {
    pub(super) fn new(now: Instant) -> Self {
        let lines = || Repeats::in_a_minute(NAMED);
        let restores = Restores::default();
        Self { mended: lines(), restores, removed: lines(), problems: lines(), paid: now, last: None }
    }

    /// Tables were mended that this one had changed.
    pub(super) fn mended(&mut self, tables: &[String], by: Option<Writer>, now: Instant) {
        self.paid = self.paid.max(now) + EVERY;
        self.restores.restored(now.into_std());
        if self.mended.admit(now.into_std()) {
            warn!(tables = tables.join(", "), by = %who(by.as_ref()), "another program changed our nftables rules; the daemon restored them");
        }
        self.last = by;
    }

    /// These chains of an earlier flannel were removed.
    pub(super) fn removed(&mut self, chains: &[String], now: Instant) {
        if self.removed.admit(now.into_std()) {
            info!(removed = chains.join(", "), "rules of an earlier flannel removed");
        }
    }

    /// Says how the rules are, in the log too where that is bad news. While another program keeps changing them they are
    /// not in place, whatever the last look found.
    pub(super) fn tell(&mut self, state: &watch::Sender<RulesState>, problem: Option<String>) {
        self.restores.wake(Instant::now().into_std());
        let fight = || self.restores.is_fight().then(|| "another program keeps changing the tables".to_owned());
        let new = RulesState { problem: problem.clone().or_else(fight), restores: self.restores.total() };
        state.send_if_modified(|now| {
            if let Some(problem) = problem.filter(|_| now.problem != new.problem)
                && self.problems.admit(Instant::now().into_std())
            {
                warn!(%problem, "nftables rules are not in place, trying until they are");
            }
            let news = *now != new;
            *now = new;
            news
        });
    }

    /// When the next repair may be made.
    pub(super) fn next_repair(&self) -> Instant {
        self.paid.checked_sub(EVERY * AT_ONCE).unwrap_or(self.paid)
    }

    /// Waits until something that went on without a line has to be said, and says how often it did; or until a fight is over.
    /// Cancel-safe.
    pub(super) async fn count(&mut self) {
        let due = [&self.mended, &self.removed, &self.problems].into_iter().filter_map(Repeats::due);
        let due = due.chain(self.restores.due()).min();
        match due {
            Some(due) => tokio::time::sleep_until(Instant::from_std(due)).await,
            None => std::future::pending().await,
        }
        let now = Instant::now().into_std();
        if let Some(times) = self.mended.count(now) {
            warn!(times, by = %who(self.last.as_ref()), "another program keeps changing our nftables rules; the daemon restores them at most once a second");
        }
        if let Some(times) = self.removed.count(now) {
            warn!(
                times,
                "rules of an earlier flannel come back each time that they are removed: stop the flanneld of this node"
            );
        }
        if let Some(times) = self.problems.count(now) {
            warn!(times, "nftables rules were not in place again and again");
        }
    }
}

fn who(writer: Option<&Writer>) -> String {
    writer.map_or("unknown".to_owned(), |writer| format!("{} (pid {})", Shown::new(&writer.name), writer.pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rules_are_not_in_place_while_another_program_keeps_changing_them() {
        let mut fight = Fight::new(Instant::now());
        let (state, told) = watch::channel(RulesState::default());
        let problem = |fight: &mut Fight| {
            fight.tell(&state, None);
            told.borrow().problem.clone()
        };
        for _ in 0..AT_ONCE {
            fight.mended(&[], None, Instant::now());
            assert_eq!(problem(&mut fight), None);
        }
        fight.mended(&[], None, Instant::now());
        assert_eq!(problem(&mut fight).as_deref(), Some("another program keeps changing the tables"));
        assert_eq!(told.borrow().restores, u64::from(AT_ONCE) + 1);
        // It waits until that is over.
        let began = Instant::now();
        while problem(&mut fight).is_some() {
            fight.count().await;
        }
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    }

    #[test]
    fn some_repairs_are_made_at_once_and_then_one_a_second() {
        let began = Instant::now();
        let mut fight = Fight::new(began);
        let mut now = began;
        let mut repairs = Vec::new();
        while now < began + Duration::from_secs(60) {
            now = fight.next_repair().max(now);
            repairs.push(now - began);
            fight.mended(&[], None, now);
            now += Duration::from_millis(50);
        }
        assert!(repairs[AT_ONCE as usize - 1] < EVERY, "{repairs:?}");
        assert!((60..=75).contains(&repairs.len()), "{repairs:?}");
        // After a rest again at once.
        let later = now + EVERY * AT_ONCE;
        assert!(fight.next_repair() <= later);
    }
}
