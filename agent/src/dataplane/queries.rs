//! Queries of the kernel's tables that are made one after the other and answered a datagram at a time.

use netlink_ext::dump::{Query, Row, Step, TRIES};
use netlink_ext::{Dumper, Error};

/// The queries that are still to be answered. The first of them is under way.
pub(super) struct Queries {
    /// In reverse order.
    left: Vec<Query>,
    tries: u32,
}

/// What a datagram came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// There is more to read.
    More,
    /// The answer was cut short, and the same query is made again: all of its rows will come once more.
    Again,
    /// Every query is answered.
    Done,
}

impl Queries {
    /// Makes the first of these queries.
    ///
    /// # Errors
    /// The last failure, where the query could not be made in several tries.
    pub(super) fn start(dumper: &mut Dumper, queries: impl IntoIterator<Item = Query>) -> Result<Self, Error> {
        let mut left: Vec<Query> = queries.into_iter().collect();
        left.reverse();
        let mut started = Self { left, tries: 0 };
        started.make(dumper)?;
        Ok(started)
    }

    /// The query under way.
    pub(super) fn current(&self) -> Option<&Query> {
        self.left.last()
    }

    /// Reads one datagram of the query under way, and makes the next query after the last one.
    ///
    /// # Errors
    /// The last failure, where a query could not be made or answered in several tries.
    pub(super) fn step(&mut self, dumper: &mut Dumper, on_row: &mut impl FnMut(Row)) -> Result<Progress, Error> {
        let is_cut_short = match dumper.step(on_row) {
            Ok(Step::More) => return Ok(Progress::More),
            Ok(Step::Done) => {
                self.left.pop();
                false
            }
            Ok(Step::Interrupted) => {
                self.count(Error::DumpInterrupted { tries: TRIES })?;
                true
            }
            Err(error) => {
                self.count(error)?;
                true
            }
        };
        self.make(dumper)?;
        Ok(if is_cut_short {
            Progress::Again
        } else if self.left.is_empty() {
            Progress::Done
        } else {
            Progress::More
        })
    }

    fn make(&mut self, dumper: &mut Dumper) -> Result<(), Error> {
        while let Some(query) = self.left.last() {
            match dumper.start(query.clone()) {
                Ok(()) => break,
                Err(error) => self.count(error)?,
            }
        }
        Ok(())
    }

    /// Counts a failed try, and returns its reason if there is to be no other one. A query that timed out is not made again: it
    /// has waited for long.
    fn count(&mut self, reason: Error) -> Result<(), Error> {
        let timed_out = matches!(reason, Error::Timeout { .. });
        let is_worth_it = !timed_out && (reason.is_passing() || reason.is_of_socket());
        if self.tries == TRIES || !is_worth_it {
            return Err(reason);
        }
        self.tries += 1;
        Ok(())
    }
}
