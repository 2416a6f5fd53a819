//! In what a VXLAN device is not what it should be.

use std::fmt;
use std::net::IpAddr;

use crate::Mac;

const VXLAN_DF_SET: u8 = 1;

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
    /// The outer packets have a TTL of their own, which may end before the peer's host.
    Ttl {
        seen: u8,
    },
    /// The outer packets must not be fragmented, or only if the inner ones may be.
    Df {
        seen: u8,
    },
    /// The kernel resolves no address on it, so user space is not asked.
    NoArp,
    /// A program holds it without a carrier.
    ProtoDown,
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
            Self::Ttl { .. } | Self::Df { .. } | Self::NoArp | Self::ProtoDown => true,
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
            Self::Mac { wanted, seen: Some(seen) } => write!(formatter, "mac {}, not {}", Hex(seen), Hex(wanted)),
            Self::Mac { wanted, seen: None } => write!(formatter, "no mac, not {}", Hex(wanted)),
            Self::Mtu { wanted, seen } => write!(formatter, "mtu {seen}, not {wanted}"),
            Self::Master { seen } => write!(formatter, "a port of ifindex {seen}, not of any device"),
            Self::Ttl { seen } => write!(formatter, "ttl {seen}, not auto"),
            Self::Df { seen } => {
                write!(formatter, "df {}, not unset", if *seen == VXLAN_DF_SET { "set" } else { "inherit" })
            }
            Self::NoArp => write!(formatter, "arp off, not on"),
            Self::ProtoDown => write!(formatter, "protodown on, not off"),
            Self::Down => write!(formatter, "down"),
        }
    }
}

/// A MAC as iproute2 writes it.
struct Hex<'a>(&'a Mac);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_written_as_an_operator_types_it() {
        let (wanted, seen) = ([0x12, 0xfe, 0, 1, 2, 3], Some([2, 0, 0, 0, 0, 0x97]));
        let different = Difference::Mac { wanted, seen };
        assert_eq!(different.to_string(), "mac 02:00:00:00:00:97, not 12:fe:00:01:02:03");
        assert_eq!(Difference::Mac { wanted, seen: None }.to_string(), "no mac, not 12:fe:00:01:02:03");
    }
}
