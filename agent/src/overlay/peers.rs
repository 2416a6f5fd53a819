//! The peers of one network, by subnet and by MAC: what the records say, and what of it is in the kernel.
//!
//! Two records may not share a MAC, since an FDB row leads to one host: the one written last holds it, the other is
//! kept aside ("shadowed") until the MAC is free.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::MacAddr;
use super::kernel::Fdb;

/// A peer's VXLAN endpoint: where its frames go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vtep {
    /// The MAC of its `flannel.1`.
    pub mac: MacAddr,
    /// The underlay address of its host.
    pub remote: IpAddr,
}

impl Vtep {
    /// The FDB row that leads to it.
    pub fn fdb(self) -> Fdb {
        Fdb { mac: self.mac, remote: self.remote }
    }
}

/// One peer.
#[derive(Debug, Clone)]
pub struct Peer {
    /// What its record says.
    pub vtep: Vtep,
    /// The revision of that record.
    pub revision: i64,
    /// All that its record says is in the kernel, as far as is known.
    pub installed: bool,
    /// On demand: traffic asked for it.
    pub active: bool,
    /// Which of its rows the dump under way has shown.
    pub(super) seen: u8,
    /// Named by the complete read under way.
    listed: bool,
}

/// What a record changed for one peer.
#[derive(Debug, Clone)]
pub enum Delta {
    /// A peer that was not known.
    Joined(IpNetwork),
    /// A known peer has another endpoint.
    Changed {
        /// Its subnet.
        subnet: IpNetwork,
        /// Its endpoint until now.
        old: Vtep,
    },
    /// A peer is gone: its record was deleted or became unusable.
    Left {
        /// Its subnet.
        subnet: IpNetwork,
        /// What was known of it.
        peer: Peer,
    },
}

/// All peers of one network.
#[derive(Debug, Default)]
pub struct Peers {
    by_subnet: BTreeMap<IpNetwork, Peer>,
    by_mac: HashMap<MacAddr, IpNetwork>,
    shadowed: BTreeMap<IpNetwork, (Vtep, i64)>,
}

impl Peers {
    /// The peer of this subnet.
    pub fn get(&self, subnet: &IpNetwork) -> Option<&Peer> {
        self.by_subnet.get(subnet)
    }

    /// The peer of this subnet, to change what is in the kernel for it.
    pub fn get_mut(&mut self, subnet: &IpNetwork) -> Option<&mut Peer> {
        self.by_subnet.get_mut(subnet)
    }

    /// The subnet whose peer holds this MAC.
    pub fn of_mac(&self, mac: MacAddr) -> Option<IpNetwork> {
        self.by_mac.get(&mac).copied()
    }

    /// All peers in the order of their subnets.
    pub fn iter(&self) -> impl Iterator<Item = (&IpNetwork, &Peer)> {
        self.by_subnet.iter()
    }

    /// All peers, to change them.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&IpNetwork, &mut Peer)> {
        self.by_subnet.iter_mut()
    }

    /// The shadowed ones: subnet, endpoint, and the subnet whose peer holds the MAC.
    pub fn shadowed(&self) -> impl Iterator<Item = (&IpNetwork, Vtep, Option<IpNetwork>)> {
        self.shadowed.iter().map(|(subnet, (vtep, _))| (subnet, *vtep, self.of_mac(vtep.mac)))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_subnet.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_subnet.is_empty()
    }

    /// Takes in a record. The newer of two records with one MAC holds it.
    pub fn put(&mut self, subnet: IpNetwork, vtep: Vtep, revision: i64) -> Vec<Delta> {
        self.shadowed.remove(&subnet);
        let mut deltas = Vec::new();
        if let Some(holder) = self.of_mac(vtep.mac).filter(|holder| *holder != subnet) {
            if self.by_subnet.get(&holder).is_some_and(|peer| peer.revision > revision) {
                self.take(subnet, &mut deltas);
                self.shadowed.insert(subnet, (vtep, revision));
                return deltas;
            }
            if let Some(peer) = self.by_subnet.remove(&holder) {
                self.shadowed.insert(holder, (peer.vtep, peer.revision));
                deltas.push(Delta::Left { subnet: holder, peer });
            }
        }
        self.by_mac.insert(vtep.mac, subnet);
        match self.by_subnet.get_mut(&subnet) {
            Some(peer) => {
                let old = std::mem::replace(&mut peer.vtep, vtep);
                peer.revision = revision;
                peer.listed = true;
                if old != vtep {
                    deltas.push(Delta::Changed { subnet, old });
                }
                if old.mac != vtep.mac {
                    self.free(old.mac, &mut deltas);
                }
            }
            None => {
                let peer = Peer { vtep, revision, installed: false, active: false, seen: 0, listed: true };
                self.by_subnet.insert(subnet, peer);
                deltas.push(Delta::Joined(subnet));
            }
        }
        deltas
    }

    /// Drops the record of a subnet.
    pub fn remove(&mut self, subnet: IpNetwork) -> Vec<Delta> {
        self.shadowed.remove(&subnet);
        let mut deltas = Vec::new();
        self.take(subnet, &mut deltas);
        deltas
    }

    fn take(&mut self, subnet: IpNetwork, deltas: &mut Vec<Delta>) {
        if let Some(peer) = self.by_subnet.remove(&subnet) {
            let mac = peer.vtep.mac;
            deltas.push(Delta::Left { subnet, peer });
            self.free(mac, deltas);
        }
    }

    /// Nobody holds this MAC any more: the newest shadowed record with it takes its place.
    fn free(&mut self, mac: MacAddr, deltas: &mut Vec<Delta>) {
        self.by_mac.remove(&mac);
        let with_mac = self.shadowed.iter().filter(|(_, (vtep, _))| vtep.mac == mac);
        let heir =
            with_mac.max_by_key(|(_, (_, revision))| *revision).map(|(subnet, (vtep, rev))| (*subnet, *vtep, *rev));
        if let Some((subnet, vtep, revision)) = heir {
            deltas.extend(self.put(subnet, vtep, revision));
        }
    }

    /// A complete read begins: what it does not name is gone.
    pub fn listing(&mut self) {
        self.shadowed.clear();
        self.by_subnet.values_mut().for_each(|peer| peer.listed = false);
    }

    /// The complete read is done: the subnets that it did not name.
    pub fn unlisted(&self) -> Vec<IpNetwork> {
        self.by_subnet.iter().filter(|(_, peer)| !peer.listed).map(|(subnet, _)| *subnet).collect()
    }
}
