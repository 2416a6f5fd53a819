//! What disqualifies a record before it touches the kernel. A bad record touches only itself.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Family, KeyError, Record, RecordError, SubnetKey};
use crate::overlay::backend::{Backend, Objection};
use crate::overlay::config::FamilyConfig;
use crate::overlay::mac::MacAddr;
use crate::overlay::shown;

/// One family's side of a record: a subnet and the host that serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerRecord {
    /// The peer's subnet.
    pub subnet: IpNetwork,
    /// The host's address, where to send what is for the subnet.
    pub remote: IpAddr,
    /// The MAC of the host's device, where the backend has one.
    pub mac: Option<MacAddr>,
}

/// Ourselves, in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    /// The subnet that we hold.
    pub subnet: IpNetwork,
    /// The address that peers send to.
    pub public_ip: IpAddr,
    /// The MAC of our device, once we have one.
    pub mac: Option<MacAddr>,
}

/// Why a record is ignored. [`BadRecord::reason`] is for metrics, `Display` for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    /// The key names no subnet.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The value can't be read.
    #[error(transparent)]
    Value(#[from] RecordError),
    /// The record has no side of this family, or no VTEP or public IP for it.
    #[error("the record has no {}", .0)]
    Incomplete(&'static str),
    /// It is a reservation that its node has not used yet.
    #[error("reserved for {0}, which has not used it yet")]
    Reserved(String),
    /// It belongs to another backend.
    #[error("the record is of the backend \"{0}\", not \"{1}\"")]
    OtherBackend(String, &'static str),
    /// Our backend has no use for it.
    #[error(transparent)]
    Backend(#[from] Objection),
    /// The subnet has not the network's `SubnetLen`.
    #[error("{subnet} has the wrong length: the network's subnets are /{expected}")]
    WrongLength {
        /// The record's subnet.
        subnet: IpNetwork,
        /// The network's `SubnetLen`.
        expected: u8,
    },
    /// The subnet is not part of the network.
    #[error("{subnet} is outside the network {network}")]
    OutsideNetwork {
        /// The record's subnet.
        subnet: IpNetwork,
        /// The network.
        network: IpNetwork,
    },
    /// The subnet overlaps the one that we hold.
    #[error("{subnet} of {holder} overlaps our own subnet {own}{}", if subnet.prefix() == own.prefix() { "" } else { FLANNEL_FOLLOWS })]
    OverlapsOurs {
        /// The record's subnet.
        subnet: IpNetwork,
        /// Ours.
        own: IpNetwork,
        /// Who wrote it.
        holder: String,
    },
    /// The peer's public IP is our own.
    #[error("the public IP of {holder} is our own")]
    RemoteIsOurs {
        /// Who wrote it.
        holder: String,
    },
    /// The peer's public IP names no single host.
    #[error("the public IP {0} is not a host's address")]
    RemoteNotUnicast(IpAddr),
    /// The peer's public IP is one of the addresses that the network gives to pods and tunnel devices: packets to it would
    /// enter the tunnel again and again.
    #[error("the public IP {remote} lies in {range}, whose addresses are reached through the tunnel itself")]
    RemoteInTunnel {
        /// The peer's public IP.
        remote: IpAddr,
        /// The network, or the peer's own subnet.
        range: IpNetwork,
    },
    /// The peer's MAC is our own.
    #[error("the VTEP's MAC {mac} of {holder} is our own")]
    MacIsOurs {
        /// The MAC.
        mac: MacAddr,
        /// Who wrote it.
        holder: String,
    },
    /// Another peer has this MAC. Found by whoever keeps the table of peers, not by [`check`].
    #[error("the VTEP's MAC {mac} is also that of {other}, whose record takes precedence")]
    MacOfAnother {
        /// The MAC.
        mac: MacAddr,
        /// The subnet of the peer whose record counts.
        other: IpNetwork,
    },
    /// Another key is for the same subnet. Found like [`BadRecord::MacOfAnother`].
    #[error("{subnet} is also the subnet of another key, of {other}, whose record takes precedence")]
    SubnetOfAnother {
        /// The subnet.
        subnet: IpNetwork,
        /// The host whose record counts.
        other: IpAddr,
    },
}

/// Said of a subnet that is a part of ours, or that ours is a part of.
const FLANNEL_FOLLOWS: &str =
    ", with another prefix length: Twill nodes ignore this record, flannel nodes send traffic to it";

impl BadRecord {
    /// What is wrong, in words that stand behind a number of records.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Key(_) => "whose key names no subnet",
            Self::Value(_) => "whose value can't be read",
            Self::Incomplete(_) => "with a part missing",
            Self::Reserved(_) => "reserved for a node that has not used it yet",
            Self::OtherBackend(..) => "of another backend",
            Self::Backend(objection) => objection.kind,
            Self::WrongLength { .. } => "with a subnet of the wrong length",
            Self::OutsideNetwork { .. } => "with a subnet outside the network",
            Self::OverlapsOurs { .. } => "that overlap this node's subnet",
            Self::RemoteIsOurs { .. } => "with this node's public IP",
            Self::RemoteNotUnicast(_) => "whose public IP is not a unicast address",
            Self::RemoteInTunnel { .. } => "whose public IP lies in the network",
            Self::MacIsOurs { .. } => "with this node's MAC",
            Self::MacOfAnother { .. } => "with the MAC of another peer",
            Self::SubnetOfAnother { .. } => "with the subnet of another peer",
        }
    }

    /// A short stable label, one for each kind, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Key(error) => error.reason(),
            Self::Value(_) => "value",
            Self::Incomplete(_) => "incomplete",
            Self::Reserved(_) => "reserved",
            Self::OtherBackend(..) => "other_backend",
            Self::Backend(objection) => objection.reason,
            Self::WrongLength { .. } => "wrong_length",
            Self::OutsideNetwork { .. } => "outside_network",
            Self::OverlapsOurs { .. } => "overlaps_ours",
            Self::RemoteIsOurs { .. } => "remote_is_ours",
            Self::RemoteNotUnicast(_) => "remote_not_unicast",
            Self::RemoteInTunnel { .. } => "remote_in_tunnel",
            Self::MacIsOurs { .. } => "mac_is_ours",
            Self::MacOfAnother { .. } => "mac_of_another",
            Self::SubnetOfAnother { .. } => "subnet_of_another",
        }
    }
}

/// Whether a peer may be programmed from this record, and what of it in this family. Not for our own record.
///
/// # Errors
/// The first objection, those that each node has before ours.
pub fn check(
    record: &Record,
    key: &SubnetKey,
    family: &FamilyConfig,
    backend: &Backend,
    own: &Own,
) -> Result<PeerRecord, BadRecord> {
    let peer = fits(record, key, family, backend).map_err(|bad| match bad {
        // Its node may be one of flannel's, which look at no length.
        BadRecord::WrongLength { subnet, .. } if overlap(subnet, own.subnet) => {
            BadRecord::OverlapsOurs { subnet, own: own.subnet, holder: record.holder() }
        }
        bad => bad,
    })?;
    own.objection(&peer, || record.holder()).map_or(Ok(peer), Err)
}

impl Own {
    /// Why a record that fits the network cannot be a peer's for us: it claims what is ours.
    pub fn objection(&self, peer: &PeerRecord, holder: impl FnOnce() -> String) -> Option<BadRecord> {
        let PeerRecord { subnet, remote, mac, .. } = *peer;
        if overlap(subnet, self.subnet) {
            Some(BadRecord::OverlapsOurs { subnet, own: self.subnet, holder: holder() })
        } else if remote == self.public_ip {
            Some(BadRecord::RemoteIsOurs { holder: holder() })
        } else {
            let mac = mac.filter(|mac| self.mac == Some(*mac))?;
            Some(BadRecord::MacIsOurs { mac, holder: holder() })
        }
    }
}

/// Whether a record fits the network, as every node judges it that is not the record's own: what it says for this family.
///
/// # Errors
/// The first objection, those that concern the whole record before those that concern a side of it.
pub fn fits(
    record: &Record,
    key: &SubnetKey,
    family: &FamilyConfig,
    backend: &Backend,
) -> Result<PeerRecord, BadRecord> {
    if record.names_nobody() {
        return Err(BadRecord::Incomplete("PublicIP"));
    }
    // Where records name no backend, one that says where a host is may be that of a living node.
    if record.is_unused() && !(backend.record_type().is_empty() && record.has_address()) {
        return Err(BadRecord::Reserved(record.holder()));
    }
    if record.backend_type != backend.record_type() {
        return Err(BadRecord::OtherBackend(shown(&record.backend_type), backend.name()));
    }
    let side = Family::of(&family.network);
    let subnet = key.side(side).ok_or(BadRecord::Incomplete(no_subnet(side)))?;
    if subnet.prefix() != family.subnet_len {
        return Err(BadRecord::WrongLength { subnet, expected: family.subnet_len });
    }
    if !family.contains_subnet(&subnet) {
        return Err(BadRecord::OutsideNetwork { subnet, network: family.network });
    }
    let peer = peer(record, key, side, backend)?;
    if family.leases(peer.remote) {
        return Err(BadRecord::RemoteInTunnel { remote: peer.remote, range: family.network });
    }
    backend.agrees(record.data(side))?;
    Ok(peer)
}

/// Whether the nodes of some network would follow a record: what can be judged without the network's config.
pub fn is_complete(record: &Record, key: &SubnetKey) -> bool {
    let mut sides = [Family::V4, Family::V6].into_iter().filter(|side| key.side(*side).is_some());
    Backend::of_record_type(&record.backend_type)
        .is_some_and(|backend| sides.all(|side| peer(record, key, side, &backend).is_ok()))
}

/// What a side says, if some network of this backend could do with it.
fn peer(record: &Record, key: &SubnetKey, side: Family, backend: &Backend) -> Result<PeerRecord, BadRecord> {
    let mac = backend.endpoint(record.data(side), side)?;
    let peer = record.peer(key, side).ok_or(BadRecord::Incomplete("PublicIPv6"))?;
    if !is_host(peer.remote) {
        return Err(BadRecord::RemoteNotUnicast(peer.remote));
    }
    if peer.subnet.contains(peer.remote) {
        return Err(BadRecord::RemoteInTunnel { remote: peer.remote, range: peer.subnet });
    }
    Ok(PeerRecord { mac, ..peer })
}

fn no_subnet(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4 subnet",
        Family::V6 => "IPv6 subnet",
    }
}

/// Whether two subnets have an address in common.
pub fn overlap(one: IpNetwork, other: IpNetwork) -> bool {
    one.contains(other.network()) || other.contains(one.network())
}

/// Whether an address names a single host that others can send to. 240.0.0.0/4 does on the networks of some clouds, and a
/// link-local address among hosts of one link.
pub fn is_host(address: IpAddr) -> bool {
    let is_nobodys = match address {
        // The whole of 0.0.0.0/8 is "this host", RFC 1122.
        IpAddr::V4(v4) => v4.octets()[0] == 0 || v4.is_broadcast(),
        // An IPv4 address in the form of an IPv6 one is never on the wire.
        IpAddr::V6(v6) => v6.is_unspecified() || v6.to_ipv4_mapped().is_some(),
    };
    !(is_nobodys || address.is_loopback() || address.is_multicast())
}

#[cfg(test)]
mod tests;
