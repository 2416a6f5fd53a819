//! Observed against wanted, between dumps: one notification of the kernel, compared with what is wanted.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::Plane;
use super::ours::is_strangers_neigh;
use crate::overlay::kernel::{NeighState, Notification, PROTOCOL, Route, Row, SeenFdb, SeenNeigh, SeenRoute, Via};
use crate::overlay::sighting::PeerRow;

impl Plane {
    /// Compares what a notification showed with what is wanted; what differs is due.
    pub fn saw(&mut self, notification: &Notification) {
        match notification {
            Notification::Fdb(seen) => self.saw_fdb(seen),
            Notification::Neigh(seen) => self.saw_neigh(seen),
            Notification::Route(seen) => self.saw_route(seen),
            Notification::DeviceDown(ifindex) => self.strangers.device_down(*ifindex),
            Notification::Gone(row) => {
                if let Row::Route(route) = row {
                    self.others_route(route);
                }
                self.strangers.row_gone(row);
                self.row_gone(row);
            }
        }
    }

    fn saw_fdb(&mut self, seen: &SeenFdb) {
        let row = seen.row;
        let holder = self.desired.peers.of_mac(row.mac);
        if let Some((subnet, endpoint)) = holder.and_then(|subnet| Some((subnet, self.desired.target(&subnet)?))) {
            let is_right = endpoint.fdb() == Some(row);
            if !is_right || seen.ages {
                self.drifted(subnet);
            }
            if is_right {
                return;
            }
        } else if self.desired.is_learned(seen) {
            return;
        }
        // A row with a second remote has ours as well; putting ours again takes nothing away.
        self.strangers.note_fdb(row);
        self.work.delete(Row::Fdb(row));
    }

    fn saw_neigh(&mut self, seen: &SeenNeigh) {
        let address = seen.address;
        if let Some((subnet, endpoint)) = self.desired.target_of_gateway(address) {
            if seen.state != NeighState::Permanent || seen.mac != endpoint.mac {
                self.strangers.note_overwritten(seen);
                self.drifted(subnet);
            }
        } else if let Some(subnet) = self.temporary_of(address) {
            let mac = self.desired.peers.get(&subnet).and_then(|peer| peer.endpoint.mac);
            if let Some(mac) = mac.filter(|mac| seen.mac != Some(*mac)) {
                self.strangers.note_overwritten(seen);
                self.work.answer(address, mac);
            }
        } else if self.desired.owns_neigh(seen) {
            self.work.delete(Row::Neigh(address));
        } else if is_strangers_neigh(seen) {
            self.strangers.saw_neigh(seen, &self.desired, &mut self.work);
        }
    }

    /// The subnet of an address that has a temporary neighbour.
    fn temporary_of(&self, address: IpAddr) -> Option<IpNetwork> {
        self.desired.setup.net.subnet_of(address).filter(|_| self.desired.temporary.contains(&address))
    }

    fn saw_route(&mut self, seen: &SeenRoute) {
        let route = &seen.route;
        if self.desired.is_wanted(&Row::Route(*route)) {
            return;
        }
        self.others_route(route);
        if let Some(replaced) = self.desired.wanted_in_place_of(route) {
            self.row_gone(&Row::Route(replaced));
        }
        if self.desired.owns_route(route) {
            self.work.delete(Row::Route(*route));
        } else {
            self.strangers.saw_route(seen, &self.desired, &mut self.work);
        }
    }

    /// Another program's route came or went: with DirectRouting, peers may be behind it.
    fn others_route(&mut self, route: &Route) {
        if route.protocol != PROTOCOL {
            self.redecide(Some(route.destination));
        }
    }

    /// A row is gone, whoever took it out: it is put again if it is wanted.
    fn row_gone(&mut self, row: &Row) {
        self.withdraw(row);
        if !self.desired.is_wanted(row) {
            return;
        }
        match row {
            Row::Route(route) if self.desired.base().any(|base| base == *route) => {
                self.work.set_base_due(true);
                self.comparison.withdraw_base(route);
            }
            Row::Route(route) if route.via == Via::Unreachable => self.work.refuse(route.destination),
            Row::Route(route) => self.drifted(route.destination),
            Row::Neigh(address) => {
                if let Some((subnet, _)) = self.desired.target_of_gateway(*address) {
                    self.drifted(subnet);
                }
            }
            Row::Fdb(fdb) => {
                if let Some(subnet) = self.desired.peers.of_mac(fdb.mac) {
                    self.drifted(subnet);
                }
            }
        }
    }

    /// The dump under way may have shown a row that is gone now.
    fn withdraw(&mut self, row: &Row) {
        let (subnet, row) = match row {
            Row::Route(route) => (Some(route.destination), PeerRow::Route),
            Row::Neigh(address) => (self.desired.subnet_of_gateway(*address), PeerRow::Neigh),
            Row::Fdb(fdb) => (self.desired.peers.of_mac(fdb.mac), PeerRow::Fdb),
        };
        if let Some(mut peer) = subnet.and_then(|subnet| self.desired.peers.get_mut(&subnet)) {
            peer.sighting.withdraw(row);
        }
    }

    /// A wanted peer's rows are not what they should be.
    fn drifted(&mut self, subnet: IpNetwork) {
        let Some(mut peer) = self.desired.peers.get_mut(&subnet) else { return };
        // The dump under way may have shown rows of the peer as they are no longer.
        peer.sighting.clear();
        if peer.presence.lose() {
            self.counts.peers_mended += 1;
            self.work.put_peer(subnet);
        }
    }
}
