//! What a dump has shown, and what its comparison with the wanted rows finds.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::desired::Desired;
use crate::overlay::kernel::{Route, Row};

/// What a comparison found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Findings {
    /// Peers whose rows are all in the kernel.
    pub right: usize,
    /// Peers of which rows are missing or wrong.
    pub due: usize,
    /// Rows of ours that nobody wants.
    pub strays: usize,
    /// Peers unused for long, whose rows are taken out.
    pub idle: usize,
}

/// What the dump under way has shown so far. The rows of peers are noted in each peer's
/// [`Sighting`](crate::overlay::sighting::Sighting), the rows of other programs in `strangers`.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    strays: BTreeSet<Row>,
    base: BTreeSet<Route>,
    refusals: BTreeSet<IpNetwork>,
    waiting: Vec<IpAddr>,
}

impl Comparison {
    /// The dump shows a row of ours that nobody wants. It is deleted when all is known, since a route goes before what it
    /// leads through.
    pub(super) fn stray(&mut self, row: Row) {
        self.strays.insert(row);
    }

    /// The dump shows this base route.
    pub(super) fn show_base(&mut self, route: Route) {
        self.base.insert(route);
    }

    /// A base route is gone, which the dump may have shown.
    pub(super) fn withdraw_base(&mut self, route: &Route) {
        self.base.remove(route);
    }

    /// The dump shows the route that refuses this block.
    pub(super) fn show_refusal(&mut self, block: IpNetwork) {
        self.refusals.insert(block);
    }

    /// The dump shows packets that wait for the answer to this address.
    pub(super) fn show_waiting(&mut self, address: IpAddr) {
        self.waiting.push(address);
    }

    /// Whether a base route is missing.
    pub(super) fn lacks_base(&self, desired: &Desired) -> bool {
        desired.base().any(|base| !self.base.contains(&base))
    }

    /// The refusals that the dump did not show: somebody took them out, or they came while it ran.
    pub(super) fn missing_refusals(&self, desired: &Desired) -> impl Iterator<Item = IpNetwork> {
        desired.refusals.blocks().filter(|block| !self.refusals.contains(block)).copied()
    }

    /// The rows that nobody wants, and the addresses that wait for an answer.
    pub(super) fn into_rest(self) -> (BTreeSet<Row>, Vec<IpAddr>) {
        (self.strays, self.waiting)
    }
}
