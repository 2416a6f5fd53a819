//! In what a VXLAN device is not what it should be.

use std::fmt;
use std::net::IpAddr;

use crate::Mac;

/// Where a device is not as its [`VxlanSpec`] wants it: `wanted` against `seen`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // the fields say the same in each variant
pub enum Difference {
    /// Something else has the name; nothing more is compared.
    NotVxlan {
        seen: Option<String>,
    },
    Vni {
        wanted: u32,
        seen: u32,
    },
    Port {
        wanted: u16,
        seen: u16,
    },
    Local {
        wanted: IpAddr,
        seen: Option<IpAddr>,
    },
    Underlay {
        wanted: u32,
        seen: Option<u32>,
    },
    /// A default remote, where none is wanted.
    Remote {
        seen: IpAddr,
    },
    Learning {
        wanted: bool,
        seen: bool,
    },
    Gbp {
        wanted: bool,
        seen: bool,
    },
    L2Miss {
        wanted: bool,
        seen: bool,
    },
    Mac {
        wanted: Mac,
        seen: Option<Mac>,
    },
    Mtu {
        wanted: u32,
        seen: u32,
    },
    /// It is a port of another device (a bridge, a bond, a VRF), which gets what it receives.
    Master {
        seen: u32,
    },
    /// The device is not set up.
    Down,
}

impl Difference {
    /// Whether the kernel changes it on the living device, so that no FDB row, neighbour or route is lost.
    ///
    /// Tried on Linux 6.18 with a device that was up. Not: "Cannot change VNI", "Cannot change port", "cannot change
    /// GBP flag", "cannot change L2MISS flag", and `local` only within its address family. Another
    /// kernel may refuse more, so a refusal of the change has to be reckoned with.
    pub fn live_change(&self) -> bool {
        match self {
            Self::NotVxlan { .. }
            | Self::Vni { .. }
            | Self::Port { .. }
            | Self::Remote { .. }
            | Self::Gbp { .. }
            | Self::L2Miss { .. } => false,
            // A device without a local address is IPv4, unless its default remote says otherwise.
            Self::Local { wanted, seen } => wanted.is_ipv4() == seen.is_none_or(|seen| seen.is_ipv4()),
            Self::Underlay { .. } | Self::Learning { .. } | Self::Mac { .. } | Self::Mtu { .. } => true,
            Self::Master { .. } | Self::Down => true,
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotVxlan { seen } => write!(formatter, "kind {}, not vxlan", seen.as_deref().unwrap_or("unknown")),
            Self::Vni { wanted, seen } => write!(formatter, "vni {seen}, not {wanted}"),
            Self::Port { wanted, seen } => write!(formatter, "port {seen}, not {wanted}"),
            Self::Local { wanted, seen: Some(seen) } => write!(formatter, "local {seen}, not {wanted}"),
            Self::Local { wanted, seen: None } => write!(formatter, "no local address, not {wanted}"),
            Self::Underlay { wanted, seen: Some(seen) } => write!(formatter, "underlay ifindex {seen}, not {wanted}"),
            Self::Underlay { wanted, seen: None } => write!(formatter, "no underlay, not ifindex {wanted}"),
            Self::Remote { seen } => write!(formatter, "default remote {seen}, not none"),
            Self::Learning { wanted, seen } => write!(formatter, "learning {seen}, not {wanted}"),
            Self::Gbp { wanted, seen } => write!(formatter, "gbp {seen}, not {wanted}"),
            Self::L2Miss { wanted, seen } => write!(formatter, "l2miss {seen}, not {wanted}"),
            Self::Mac { wanted, seen } => write!(formatter, "mac {seen:02x?}, not {wanted:02x?}"),
            Self::Mtu { wanted, seen } => write!(formatter, "mtu {seen}, not {wanted}"),
            Self::Master { seen } => write!(formatter, "a port of ifindex {seen}, not of any device"),
            Self::Down => write!(formatter, "down"),
        }
    }
}
