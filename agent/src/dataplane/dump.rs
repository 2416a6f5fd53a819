//! A dump of all that hangs on the device, and of the main table, a datagram at a time.

use netlink_ext::dump::{Query, Row as Dumped, Step, TRIES};
use netlink_ext::{Dumper, Family};

use super::{Error, convert};
use crate::overlay::kernel::Observed;

/// A dump under way: which of its queries runs.
pub(super) struct Dump {
    queries: Vec<Query>,
    tries: u32,
}

impl Dump {
    /// All that a comparison looks at.
    pub(super) fn new(ifindex: u32, family: Family) -> Self {
        // Taken from the end. All of the main table: a stranger's route on any device may go before ours, and ours are not
        // all on our device.
        let queries = vec![Query::MainTable { family }, Query::Neigh { ifindex, family }, Query::Fdb { ifindex }];
        Self { queries, tries: 0 }
    }

    pub(super) fn start(&self, dumper: &mut Dumper) -> Result<(), netlink_ext::Error> {
        if let Some(query) = self.queries.last() {
            dumper.start(query.clone())?;
        }
        Ok(())
    }

    /// Reads one datagram: what it shows, and whether it was the last one of the last query.
    pub(super) fn step(&mut self, dumper: &mut Dumper, ifindex: u32) -> Result<(Observed, bool), Error> {
        let mut observed = Observed::default();
        let seen = dumper.step(&mut |row| match row {
            Dumped::Fdb(seen) => observed.fdb.push(convert::seen_fdb(&seen)),
            Dumped::Neigh(seen) => observed.neighbours.push(convert::seen_neigh(&seen)),
            Dumped::Route(seen) => observed.routes.extend(convert::seen_route(ifindex, &seen)),
            Dumped::Link(_) | Dumped::Address(_) | Dumped::NeighParams(_) => {}
            Dumped::DefaultRoute(_) | Dumped::Nexthop(_) | Dumped::Rule(_) => {}
        });
        match seen {
            Ok(Step::More) => return Ok((observed, false)),
            Ok(Step::Done) => {
                self.queries.pop();
            }
            // A row seen twice does no harm, one that was missed would: this query again.
            Ok(Step::Interrupted) => self.again(netlink_ext::Error::DumpInterrupted { tries: TRIES })?,
            Err(error) => self.again(error)?,
        }
        while let Err(error) = self.start(dumper) {
            self.again(error)?;
        }
        Ok((observed, self.queries.is_empty()))
    }

    /// Counts a try that came to nothing; the reason, where there have been too many.
    pub(super) fn again(&mut self, reason: netlink_ext::Error) -> Result<(), Error> {
        // A timeout has waited long enough already.
        let timed_out = matches!(reason, netlink_ext::Error::Timeout { .. });
        let is_worth_it = !timed_out && (reason.is_passing() || reason.is_of_socket());
        if self.tries == TRIES || !is_worth_it {
            return Err(reason.into());
        }
        self.tries += 1;
        Ok(())
    }
}
