//! The peers of one network, by subnet and by MAC: what the records say, and what of it is in the kernel.
//!
//! Two records may not share a MAC, since an FDB row leads to one host, nor a subnet, as the keys `10.5.52.0-24` and
//! `10.5.52.0-24&fc00::-64` of a node that went dual-stack do: the one written last counts, the other is kept aside
//! ("shadowed") until that is gone.

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

/// Which key a record stands under: a number that no other key of the same subnet has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(pub u64);

/// One peer.
#[derive(Debug, Clone)]
pub struct Peer {
    /// What its record says.
    pub vtep: Vtep,
    /// The revision of that record.
    pub revision: i64,
    /// The key of that record.
    pub source: Source,
    /// All that its record says is in the kernel, as far as is known.
    pub installed: bool,
    /// On demand: traffic asked for it.
    pub active: bool,
    /// Its host is reached without a gateway, and DirectRouting is on: no tunnel.
    pub direct: bool,
    /// The log has that it is in the kernel.
    pub(super) told: bool,
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
        /// The subnet whose newer record has its MAC, if that is why.
        displaced_by: Option<IpNetwork>,
    },
}

/// All peers of one network.
#[derive(Debug, Default)]
pub struct Peers {
    // Hashed, not ordered: a miss finds its peer in one step.
    by_subnet: HashMap<IpNetwork, Peer>,
    by_mac: HashMap<MacAddr, IpNetwork>,
    shadowed: BTreeMap<(IpNetwork, Source), (Vtep, i64)>,
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

    /// All peers, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&IpNetwork, &Peer)> + Clone {
        self.by_subnet.iter()
    }

    /// All peers, in no order, to change them.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&IpNetwork, &mut Peer)> {
        self.by_subnet.iter_mut()
    }

    /// The subnets of records that are kept aside.
    pub fn aside(&self) -> impl Iterator<Item = IpNetwork> + Clone {
        self.shadowed.keys().map(|(subnet, _)| *subnet)
    }

    /// Why the record of this key is kept aside, if it is: the subnet whose peer has its MAC, or its own.
    pub fn shadow_of(&self, subnet: IpNetwork, source: Source) -> Option<(MacAddr, IpNetwork)> {
        let (vtep, _) = self.shadowed.get(&(subnet, source))?;
        Some((vtep.mac, self.of_mac(vtep.mac).unwrap_or(subnet)))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_subnet.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_subnet.is_empty()
    }

    /// Takes in a record. The newer of two with one MAC or one subnet counts.
    pub fn put(&mut self, subnet: IpNetwork, vtep: Vtep, revision: i64, source: Source) -> Vec<Delta> {
        self.shadowed.remove(&(subnet, source));
        let mut deltas = Vec::new();
        if self.has_newer_rival(subnet, source, vtep.mac, revision) {
            self.shadowed.insert((subnet, source), (vtep, revision));
            self.take(subnet, Some(source), &mut deltas);
        } else {
            self.place(subnet, source, (vtep, revision), &mut deltas);
        }
        self.promote(&mut deltas);
        deltas
    }

    /// Drops the record of a key.
    pub fn remove(&mut self, subnet: IpNetwork, source: Source) -> Vec<Delta> {
        self.shadowed.remove(&(subnet, source));
        let mut deltas = Vec::new();
        self.take(subnet, Some(source), &mut deltas);
        self.promote(&mut deltas);
        deltas
    }

    /// Drops the peer of a subnet, and what is kept aside for it.
    pub fn evict(&mut self, subnet: IpNetwork) -> Vec<Delta> {
        self.shadowed.retain(|(shadowed, _), _| *shadowed != subnet);
        let mut deltas = Vec::new();
        self.take(subnet, None, &mut deltas);
        self.promote(&mut deltas);
        deltas
    }

    fn has_newer_rival(&self, subnet: IpNetwork, source: Source, mac: MacAddr, revision: i64) -> bool {
        let newer = |peer: &Peer| peer.revision > revision;
        let holder = self.of_mac(mac).filter(|holder| *holder != subnet).and_then(|holder| self.by_subnet.get(&holder));
        let same = self.by_subnet.get(&subnet).filter(|peer| peer.source != source);
        holder.is_some_and(newer) || same.is_some_and(newer)
    }

    /// Makes a record the one that counts for its subnet and its MAC; older rivals are kept aside.
    fn place(&mut self, subnet: IpNetwork, source: Source, record: (Vtep, i64), deltas: &mut Vec<Delta>) {
        let (vtep, revision) = record;
        let holder = self.of_mac(vtep.mac).filter(|holder| *holder != subnet);
        if let Some((holder, peer)) = holder.and_then(|holder| Some((holder, self.by_subnet.remove(&holder)?))) {
            self.shadowed.insert((holder, peer.source), (peer.vtep, peer.revision));
            deltas.push(Delta::Left { subnet: holder, peer, displaced_by: Some(subnet) });
        }
        match self.by_subnet.get_mut(&subnet) {
            Some(peer) => {
                if peer.source != source {
                    self.shadowed.insert((subnet, peer.source), (peer.vtep, peer.revision));
                }
                let old = std::mem::replace(&mut peer.vtep, vtep);
                (peer.revision, peer.source, peer.listed) = (revision, source, true);
                if old != vtep {
                    deltas.push(Delta::Changed { subnet, old });
                    self.by_mac.remove(&old.mac);
                }
            }
            None => {
                let peer = Peer {
                    vtep,
                    revision,
                    source,
                    installed: false,
                    active: false,
                    direct: false,
                    told: false,
                    seen: 0,
                    listed: true,
                };
                self.by_subnet.insert(subnet, peer);
                deltas.push(Delta::Joined(subnet));
            }
        }
        self.by_mac.insert(vtep.mac, subnet);
    }

    fn take(&mut self, subnet: IpNetwork, source: Option<Source>, deltas: &mut Vec<Delta>) {
        let counts = |peer: &Peer| source.is_none_or(|source| source == peer.source);
        if self.by_subnet.get(&subnet).is_some_and(counts)
            && let Some(peer) = self.by_subnet.remove(&subnet)
        {
            self.by_mac.remove(&peer.vtep.mac);
            deltas.push(Delta::Left { subnet, peer, displaced_by: None });
        }
    }

    /// Records kept aside come into their own, the newest first, once no newer rival counts. There are few.
    fn promote(&mut self, deltas: &mut Vec<Delta>) {
        while !self.shadowed.is_empty() {
            let free = |((subnet, source), (vtep, revision)): &(&(IpNetwork, Source), &(Vtep, i64))| {
                !self.has_newer_rival(*subnet, *source, vtep.mac, *revision)
            };
            let heir = self.shadowed.iter().filter(free).max_by_key(|(_, (_, revision))| *revision);
            let Some((key, record)) = heir.map(|(key, record)| (*key, *record)) else { return };
            self.shadowed.remove(&key);
            self.place(key.0, key.1, record, deltas);
        }
    }

    /// A complete read begins: what it does not name is gone.
    pub fn listing(&mut self) {
        self.shadowed.clear();
        self.by_subnet.values_mut().for_each(|peer| peer.listed = false);
    }

    /// The complete read is done: the peers that it did not name, in order.
    pub fn unlisted(&self) -> Vec<(IpNetwork, Source)> {
        let unlisted = self.by_subnet.iter().filter(|(_, peer)| !peer.listed);
        let mut unlisted: Vec<_> = unlisted.map(|(subnet, peer)| (*subnet, peer.source)).collect();
        unlisted.sort_unstable();
        unlisted
    }
}
