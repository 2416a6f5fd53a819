//! A dump of all that hangs on the device, and of the main table, a datagram at a time.

use netlink_ext::dump::{Query, Row as Dumped};
use netlink_ext::{Dumper, Family};

use super::queries::{Progress, Queries};
use super::{Error, convert};
use crate::overlay::kernel::Observed;

/// A dump under way.
pub(super) struct Dump(Queries);

impl Dump {
    /// Begins to read all that a comparison looks at. All of the main table: a stranger's route on any device may go before ours,
    /// and ours are not all on our device.
    pub(super) fn start(dumper: &mut Dumper, ifindex: Option<u32>, family: Family) -> Result<Self, Error> {
        let on_device = ifindex.map(|ifindex| [Query::Fdb { ifindex }, Query::Neigh { ifindex, family }]);
        let queries = on_device.into_iter().flatten().chain([Query::MainTable { family }]);
        Ok(Self(Queries::start(dumper, queries)?))
    }

    /// Reads one datagram: what it shows, and whether it was the last one of the last query. A row may come twice, which does no
    /// harm; a row that was missed would.
    pub(super) fn step(&mut self, dumper: &mut Dumper, ifindex: Option<u32>) -> Result<(Observed, bool), Error> {
        let mut observed = Observed::default();
        let progress = self.0.step(dumper, &mut |row| match row {
            Dumped::Fdb(seen) => observed.fdb.push(convert::seen_fdb(&seen)),
            Dumped::Neigh(seen) => observed.neighbours.push(convert::seen_neigh(&seen)),
            Dumped::Route(seen) => observed.routes.extend(convert::seen_route(ifindex, &seen)),
            Dumped::Link(_) | Dumped::Address(_) | Dumped::NeighParams(_) => {}
            Dumped::DefaultRoute(_) | Dumped::Nexthop(_) | Dumped::Rule(_) => {}
        })?;
        Ok((observed, progress == Progress::Done))
    }
}
