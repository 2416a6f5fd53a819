//! Whose a subnet is, by the record that stands under its key.
//!
//! A subnet is held by a record that the other nodes follow ([`fits`]); a reservation that waits for its node keeps it
//! from being given out. An unusable record changes nothing: the node that held the
//! subnet before still holds it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::overlay::config::NetworkConfig;
use crate::overlay::record::{BadRecord, Record, SubnetKey, fits, is_host};

/// The addresses of a record.
pub type Addresses = (Ipv4Addr, Option<Ipv6Addr>);

/// How a record with our public IP stands to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// This machine wrote it, or whoever did left no id that tells it from us.
    Same,
    /// Another instance of a machine with our node id: this machine before its last boot, or a clone of it.
    Instance,
    /// A machine with another node id.
    Stranger,
}

/// Tells by the ids of two sides, each the node's and the instance's, how the other side stands to ours.
pub fn relation(ours: (Option<&str>, Option<&str>), theirs: &Record) -> Relation {
    let instance = ours.1.zip(instance_of(theirs));
    let node = ours.0.zip(theirs.node.as_deref());
    match (instance, node) {
        // One boot and one network namespace are one machine, whatever its node id was when it wrote this.
        (Some((ours, theirs)), _) if ours == theirs => Relation::Same,
        (_, Some((ours, theirs))) if ours != theirs => Relation::Stranger,
        (Some(_), _) => Relation::Instance,
        (None, _) => Relation::Same,
    }
}

/// What a record means for the subnet of its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    /// The nodes follow it: whoever wrote it has the subnet.
    Followed,
    /// It is a reservation that its node has not used yet.
    Reserved,
    /// No node follows it, for this reason.
    Void(BadRecord),
}

/// Judges a record that hangs on this etcd lease (0: on none).
pub fn hold(config: &NetworkConfig, key: &SubnetKey, record: &Record, lease: i64) -> Hold {
    let check = |family| fits(record, key, family, &config.backend);
    match config.families().map(check).find_map(Result::err) {
        None => Hold::Followed,
        Some(BadRecord::Reserved(whom)) => match not_reservable(record) {
            None if lease == 0 => Hold::Reserved,
            None => Hold::Void(BadRecord::Reserved(whom)),
            Some(bad) => Hold::Void(bad),
        },
        Some(bad) => Hold::Void(bad),
    }
}

/// A reservation that names an address names a host's.
fn not_reservable(record: &Record) -> Option<BadRecord> {
    let address = match (record.public_ip.is_unspecified(), record.public_ipv6) {
        (false, _) => IpAddr::V4(record.public_ip),
        (true, Some(address)) => IpAddr::V6(address),
        (true, None) => return None,
    };
    (!is_host(address)).then_some(BadRecord::RemoteNotUnicast(address))
}

/// Ourselves, as we hold a subnet.
#[derive(Debug, Clone, Copy)]
pub struct Holder<'a> {
    /// The network.
    pub config: &'a NetworkConfig,
    /// What our record says.
    pub record: &'a Record,
    /// The addresses that our record may have: the one last written, and those asked for since.
    pub addresses: &'a [Addresses],
    /// The `create_revision` of its key as we know it.
    pub created: i64,
    /// The etcd lease it hangs on; 0: none.
    pub lease: i64,
    /// Our lease has ended, and our record with it: the subnet was free.
    pub has_ended: bool,
}

/// What stands under the key of a living holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyOwner {
    /// Our record, perhaps changed. `follow`: somebody moved it to this etcd lease on purpose, so we renew that lease from
    /// now on.
    Ours {
        /// It is complete with our address, or a reservation for us, and names us, with an instance that can be read or none.
        follow: bool,
    },
    /// Another agent's with our public IP that left no id to tell it from us: its MAC is not ours.
    SameAddress,
    /// A machine with our node id and public IP that took the record over while we could not answer.
    Later,
    /// Another node has the subnet.
    Another(Relation),
    /// No other node has it.
    Void(BadRecord),
    /// It would be followed, but hangs on our own lease: no other node writes such a record.
    OnOurLease,
    /// It would be followed, but was written over ours: no other node does that.
    WrittenOver,
    /// It would be followed and has our node id, but its writer cannot have the subnet by it: while our lease lives, our key
    /// is never free for another node. A copy of an earlier record of ours, or a forged one.
    Copy(Copied),
}

/// What tells a copy of our record from ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// Our public IP, another instance, and no etcd lease: a clone that takes a record over takes its lease over too.
    WithoutLease,
    /// Another public IP: a clone with an address of its own looks for a subnet of its own.
    WithAnotherAddress,
}

impl Holder<'_> {
    /// Judges a record under the key `key`, which was created at this revision and hangs on `lease`.
    pub fn owner_of(&self, key: &SubnetKey, record: &Record, (created, lease): (i64, i64)) -> KeyOwner {
        let hold = hold(self.config, key, record, lease);
        let relation = relation((self.record.node.as_deref(), self.instance()), record);
        let is_our_instance = self.instance().is_some() && self.instance() == instance_of(record);
        let is_for_our_id = !record.has_address() && self.has_our_id(record);
        if is_our_instance || is_for_our_id || (relation == Relation::Same && self.has_our_address(record)) {
            let is_named = is_our_instance || self.is_named(record);
            // Whoever moves a record on purpose leaves the address in it.
            let may_be_moved = (is_for_our_id || self.has_our_address(record)) && !record.has_bad_instance;
            return match hold {
                Hold::Void(_) if is_named => KeyOwner::Ours { follow: false },
                Hold::Void(bad) => KeyOwner::Void(bad),
                Hold::Followed if !is_named && record.macs() != self.record.macs() => KeyOwner::SameAddress,
                _ => KeyOwner::Ours { follow: (is_named || lease == 0) && may_be_moved },
            };
        }
        match hold {
            Hold::Void(bad) => KeyOwner::Void(bad),
            Hold::Reserved if self.has_ended => KeyOwner::Another(relation),
            // While its holder lives, a subnet can't be set aside for another node.
            Hold::Reserved => KeyOwner::Void(BadRecord::Reserved(record.holder())),
            Hold::Followed if relation == Relation::Instance && self.has_our_address(record) => {
                let is_ours_to_give = lease == self.lease && !self.has_ended;
                if is_ours_to_give && self.came_first(record) {
                    KeyOwner::Later
                } else if lease == 0 && self.lease != 0 {
                    KeyOwner::Copy(Copied::WithoutLease)
                } else {
                    KeyOwner::Another(relation)
                }
            }
            Hold::Followed if lease != 0 && lease == self.lease => KeyOwner::OnOurLease,
            // Another node makes its record only where there is none. A node with our address may take a record over.
            Hold::Followed if created == self.created && !self.has_ended && !self.may_take_over(record) => {
                KeyOwner::WrittenOver
            }
            // If our lease has ended without our knowing, etcd refuses to put ours back, and this is judged again.
            Hold::Followed if self.has_our_id(record) && !self.has_ended => KeyOwner::Copy(Copied::WithAnotherAddress),
            Hold::Followed => KeyOwner::Another(relation),
        }
    }

    /// Whether a record has our node id. Where neither side has any id, the MACs decide.
    fn is_named(&self, record: &Record) -> bool {
        match (&self.record.node, &record.node) {
            (None, None) => self.instance().is_none() && record.macs() == self.record.macs(),
            (ours, theirs) => ours == theirs,
        }
    }

    /// Whether the record's node may write over ours, if we don't answer it.
    fn may_take_over(&self, record: &Record) -> bool {
        self.has_our_address(record) || self.has_our_id(record)
    }

    fn has_our_id(&self, record: &Record) -> bool {
        record.node.is_some() && record.node == self.record.node
    }

    fn instance(&self) -> Option<&str> {
        instance_of(self.record)
    }

    fn has_our_address(&self, record: &Record) -> bool {
        self.addresses.iter().any(|(ipv4, ipv6)| {
            record.public_ip == *ipv4 && (!ipv4.is_unspecified() || (ipv6.is_some() && record.public_ipv6 == *ipv6))
        })
    }

    /// Whether we held the record before that instance did. Both sides come to the same answer, so that just one goes on.
    fn came_first(&self, record: &Record) -> bool {
        let order = |record: &Record| record.instance.as_ref().map(|instance| (instance.since, instance.id.clone()));
        order(self.record) < order(record)
    }
}

fn instance_of(record: &Record) -> Option<&str> {
    record.instance.as_ref().map(|instance| instance.id.as_str())
}

#[cfg(test)]
mod tests;
