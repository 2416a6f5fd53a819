//! Which subnet a node shall have, given what the records say: flannel's order of "getting a lease".
//!
//! 1. a record with our public IP and a subnet that fits the config is taken over, and one that doesn't fit goes;
//! 2. else the previous subnet, if it fits and nobody holds it; a record that no node follows does not hold it;
//! 3. else a random one of the first 100 free ones.
//!
//! Pure: records and random numbers come in, a decision goes out. Carrying it out is `lease`'s work.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use rand::Rng;

use super::config::{FamilyConfig, NetworkConfig, address, number};
use super::record::{Record, SubnetKey};

mod key_owner;

pub use key_owner::{Addresses, Copied, Hold, Holder, KeyOwner, Relation, hold, relation};

/// Among how many free subnets the random choice is made, as in flannel: nodes that boot together seldom collide, and
/// subnets stay near the start of the range.
pub const CHOICES: usize = 100;

/// Who asks for a subnet, and for which.
#[derive(Debug, Clone)]
pub struct SubnetRequest<'a> {
    /// The network.
    pub config: &'a NetworkConfig,
    /// Our public IPv4 address: what our own record is known by. Needed where IPv4 is enabled.
    pub public_ip: Option<Ipv4Addr>,
    /// Our public IPv6 address: what our own record is known by in an IPv6-only network.
    pub public_ipv6: Option<Ipv6Addr>,
    /// The subnet we had before, as `subnet.env` has it.
    pub previous: Option<SubnetKey>,
    /// Our node id.
    pub node: Option<&'a str>,
    /// The id of our instance.
    pub instance: Option<&'a str>,
}

/// A key under `<prefix>/subnets/`, as allocation sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownRecord {
    /// What the key occupies ([`SubnetKey::occupied`] also for keys that no record may have).
    pub key: SubnetKey,
    /// The record; `None` where it can't be read, or is known not to be ours.
    pub record: Option<Record>,
    /// The key's `mod_revision`.
    pub revision: i64,
    /// The etcd lease that the key hangs on, 0 for a reservation.
    pub lease: i64,
    /// It stands under the key of our previous subnet, and no node follows it.
    pub is_void: bool,
}

/// What to do, in this order: delete `stale`, then carry out `decision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Records of our own that don't fit the config, or that would go before the one that is taken over, with the revisions
    /// they were seen at.
    pub stale: Vec<(SubnetKey, i64)>,
    /// How to get the subnet.
    pub decision: Decision,
}

/// How to get a subnet, if at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Write our attributes into this record of ours, if it still is at this revision.
    TakeOver {
        /// The subnet.
        key: SubnetKey,
        /// The `mod_revision` it was seen at.
        revision: i64,
        /// The etcd lease it hangs on; 0: a reservation, which stays one.
        lease: i64,
    },
    /// Write a new record, if the key still is free.
    Create {
        /// The subnet.
        key: SubnetKey,
    },
    /// Replace this record, which no node follows, under the key of our previous subnet.
    Restore {
        /// The subnet.
        key: SubnetKey,
        /// The `mod_revision` it was seen at.
        revision: i64,
    },
    /// Every subnet of this network from `SubnetMin` to `SubnetMax` is held.
    NoFreeSubnet {
        /// The network.
        network: IpNetwork,
    },
    /// A record has our public IP but another node's id, or another instance's: two machines with one address, or the
    /// earlier life of one.
    Doubled {
        /// The other's subnet.
        key: SubnetKey,
        /// What tells it from us.
        relation: Relation,
    },
}

impl<'a> SubnetRequest<'a> {
    /// The request of the node that this record, our own, describes. It names no previous subnet.
    pub fn of(config: &'a NetworkConfig, ours: &'a Record) -> Self {
        let public_ip = Some(ours.public_ip).filter(|ip| !ip.is_unspecified());
        let (node, instance) = (ours.node.as_deref(), ours.instance.as_ref().map(|instance| instance.id.as_str()));
        Self { config, public_ip, public_ipv6: ours.public_ipv6, previous: None, node, instance }
    }

    /// Whether a record has our public IP: the IPv4 one or, in an IPv6-only network, where flannel's nodes all have
    /// `0.0.0.0`, the IPv6 one. A record without any address is ours if it has our node id: a reservation made for it. One of
    /// our own instance is ours whatever its address: ours has changed since.
    ///
    /// A node id alone, beside another address, says nothing: machines that were cloned have the same one.
    pub fn is_own(&self, record: &Record) -> bool {
        if self.is_our_instance(record) {
            true
        } else if !record.has_address() {
            self.node.is_some() && self.node == record.node.as_deref()
        } else if self.config.ipv4.is_some() {
            self.public_ip.is_some_and(|ip| ip == record.public_ip)
        } else {
            self.public_ipv6.is_some() && self.public_ipv6 == record.public_ipv6
        }
    }

    /// Whether a key has just the families of the config, each in the range that allocation may give out.
    pub fn fits(&self, key: &SubnetKey) -> bool {
        let fits = |family: &Option<FamilyConfig>, side: Option<IpNetwork>| match (family, side) {
            (Some(family), Some(subnet)) => family.fits(&subnet),
            (None, None) => true,
            _ => false,
        };
        fits(&self.config.ipv4, key.ipv4.map(IpNetwork::V4)) && fits(&self.config.ipv6, key.ipv6.map(IpNetwork::V6))
    }

    /// How a record with our public IP stands to us.
    pub fn relation(&self, record: &Record) -> Relation {
        relation((self.node, self.instance), record)
    }

    /// Whether our own instance wrote this record.
    pub fn is_our_instance(&self, record: &Record) -> bool {
        self.instance.is_some_and(|ours| record.instance.as_ref().is_some_and(|theirs| theirs.id == ours))
    }
}

/// Decides on a subnet. `taken` are keys that are held although `records` doesn't show it: those of peers, and lost
/// races.
///
/// Cost: where a new subnet is needed, one sort of what is held.
pub fn decide<'r>(
    wanted: &SubnetRequest<'_>,
    records: impl IntoIterator<Item = &'r KnownRecord>,
    taken: impl Iterator<Item = SubnetKey> + Clone,
    random: &mut impl Rng,
) -> Plan {
    let mut others: Vec<SubnetKey> = Vec::new();
    let (mut fitting, mut stale): (Vec<&KnownRecord>, Vec<(SubnetKey, i64)>) = (Vec::new(), Vec::new());
    let mut void = None;
    for seen in records {
        match &seen.record {
            Some(record) if wanted.is_own(record) => {
                let relation = wanted.relation(record);
                if relation != Relation::Same {
                    let decision = Decision::Doubled { key: seen.key, relation };
                    return Plan { stale: Vec::new(), decision };
                }
                if wanted.fits(&seen.key) {
                    fitting.push(seen);
                } else {
                    stale.push((seen.key, seen.revision));
                }
            }
            _ if seen.is_void => void = Some(seen),
            _ => others.push(seen.key),
        }
    }
    // Pods may still have addresses of the previous subnet; else a reservation is somebody's explicit wish.
    let best = fitting.iter().min_by_key(|seen| (Some(seen.key) != wanted.previous, seen.lease != 0, seen.key));
    let decision = match best {
        Some(seen) => {
            // A record of ours with a lease would go before a reservation, in whatever order the two were written.
            let leased = fitting.iter().filter(|other| seen.lease == 0 && other.lease != 0);
            stale.extend(leased.map(|other| (other.key, other.revision)));
            Decision::TakeOver { key: seen.key, revision: seen.revision, lease: seen.lease }
        }
        None => match (choose(wanted, taken.chain(others), stale.first().map(|(key, _)| *key), random), void) {
            (Decision::Create { key }, Some(void)) if key == void.key => {
                Decision::Restore { key, revision: void.revision }
            }
            (decision, _) => decision,
        },
    };
    Plan { stale, decision }
}

/// A free subnet in each family: the previous one, or that of a record that is about to go, or a random one.
fn choose(
    wanted: &SubnetRequest<'_>,
    others: impl Iterator<Item = SubnetKey> + Clone,
    leaving: Option<SubnetKey>,
    random: &mut impl Rng,
) -> Decision {
    let before = [wanted.previous, leaving];
    let before =
        |side: fn(&SubnetKey) -> Option<IpNetwork>| before.iter().flatten().filter_map(side).collect::<Vec<_>>();
    let mut key = SubnetKey { ipv4: None, ipv6: None };
    let mut index = None;
    if let Some(family) = &wanted.config.ipv4 {
        let free = Free::new(family, others.clone().filter_map(|key| key.ipv4.map(IpNetwork::V4)));
        match free.pick(&before(|key| key.ipv4.map(IpNetwork::V4)), None, random) {
            Some(IpNetwork::V4(subnet)) => {
                key.ipv4 = Some(subnet);
                index = Some(family.index(&subnet.into()));
            }
            _ => return Decision::NoFreeSubnet { network: family.network },
        }
    }
    if let Some(family) = &wanted.config.ipv6 {
        let free = Free::new(family, others.filter_map(|key| key.ipv6.map(IpNetwork::V6)));
        match free.pick(&before(|key| key.ipv6.map(IpNetwork::V6)), index, random) {
            Some(IpNetwork::V6(subnet)) => key.ipv6 = Some(subnet),
            _ => return Decision::NoFreeSubnet { network: family.network },
        }
    }
    Decision::Create { key }
}

/// What is free in one family.
struct Free<'a> {
    family: &'a FamilyConfig,
    /// First and last address of what is held, in order, without overlaps.
    held: Vec<(u128, u128)>,
}

impl<'a> Free<'a> {
    fn new(family: &'a FamilyConfig, held: impl Iterator<Item = IpNetwork>) -> Self {
        let mut held: Vec<_> = held.map(|net| (number(net.network()), number(net.broadcast()))).collect();
        held.sort_unstable();
        held.dedup_by(|next, before| {
            let overlaps = next.0 <= before.1;
            before.1 = if overlaps { before.1.max(next.1) } else { before.1 };
            overlaps
        });
        Self { family, held }
    }

    /// One of `preferred` if possible. Else the subnet with this number, so that nodes that race for IPv4 subnets, which
    /// etcd decides, don't meet in IPv6, where it can't: the two are one key. Else a random one.
    fn pick(&self, preferred: &[IpNetwork], index: Option<u64>, random: &mut impl Rng) -> Option<IpNetwork> {
        let paired = index.and_then(|index| self.family.nth(index));
        if let Some(subnet) = preferred.iter().copied().chain(paired).find(|subnet| self.is_free(subnet)) {
            return Some(subnet);
        }
        let first = self.first(CHOICES);
        (!first.is_empty()).then(|| first[random.random_range(0..first.len())])
    }

    fn is_free(&self, subnet: &IpNetwork) -> bool {
        let (first, last) = (number(subnet.network()), number(subnet.broadcast()));
        let at = self.held.partition_point(|held| held.1 < first);
        self.family.fits(subnet) && self.held.get(at).is_none_or(|held| held.0 > last)
    }

    /// The first free subnets from `SubnetMin` on.
    fn first(&self, limit: usize) -> Vec<IpNetwork> {
        let (size, max) = (self.family.subnet_size(), number(self.family.subnet_max));
        let mut free = Vec::new();
        let mut next = Some(number(self.family.subnet_min));
        let mut held = self.held.iter().peekable();
        while let Some(at) = next.filter(|at| *at <= max && free.len() < limit) {
            while held.next_if(|(_, last)| *last < at).is_some() {}
            match held.peek() {
                // A held range hides every block up to its end, however long it is.
                Some((first, last)) if *first - at.min(*first) < size => next = (last / size + 1).checked_mul(size),
                _ => {
                    free.extend(self.family.subnet_of(address(at, self.family.network.is_ipv4())));
                    next = at.checked_add(size);
                }
            }
        }
        free
    }
}

#[cfg(test)]
mod tests;
