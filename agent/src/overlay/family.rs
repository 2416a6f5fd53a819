//! The two address families: the sides of a dual-stack network, of its records and of its devices.

use std::fmt;

use ipnetwork::IpNetwork;

/// Which side of a dual-stack record is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 inside the overlay.
    V4,
    /// IPv6 inside the overlay.
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl Family {
    /// The family of a network.
    pub fn of(network: &IpNetwork) -> Self {
        if network.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}
