//! The neighbours that let waiting packets go until the peer's own rows serve.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::overlay::kernel::Row;

/// Addresses of peers that have a neighbour of their own: the answer to an L3 miss. Each is deleted when its peer's route is
/// in the kernel, since the route leads to the peer's gateway.
#[derive(Debug, Default)]
pub(super) struct TemporaryNeighbours(BTreeSet<IpAddr>);

impl TemporaryNeighbours {
    pub(super) fn contains(&self, address: &IpAddr) -> bool {
        self.0.contains(address)
    }

    pub(super) fn add(&mut self, address: IpAddr) {
        self.0.insert(address);
    }

    pub(super) fn forget(&mut self, address: &IpAddr) {
        self.0.remove(address);
    }

    /// The addresses of a subnet.
    pub(super) fn of(&self, subnet: IpNetwork) -> impl Iterator<Item = IpAddr> {
        self.0.range(subnet.network()..=subnet.broadcast()).copied()
    }

    /// Forgets the addresses of a subnet. Returns their rows.
    pub(super) fn take(&mut self, subnet: IpNetwork) -> Vec<Row> {
        let addresses: Vec<IpAddr> = self.of(subnet).collect();
        addresses.iter().for_each(|address| self.forget(address));
        addresses.into_iter().map(Row::Neigh).collect()
    }
}
