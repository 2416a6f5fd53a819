//! The network config: the JSON object under `<prefix>/config` that every node of the network reads.
//!
//! Names, defaults and limits are flannel's
//! (<https://github.com/flannel-io/flannel/blob/v0.28.9/pkg/subnet/config.go>). Where the bytes come from is not known
//! here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

mod parse;

pub use super::backend::{Backend, DEFAULT_PORT, DEFAULT_VNI};
pub use super::settings::ConfigError;

/// What the nodes of a network agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The IPv4 side, if enabled. At least one family is.
    pub ipv4: Option<FamilyConfig>,
    /// The IPv6 side, if enabled.
    pub ipv6: Option<FamilyConfig>,
    /// How packets travel.
    pub backend: Backend,
}

/// One address family of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FamilyConfig {
    /// The whole network, host bits cleared.
    pub network: IpNetwork,
    /// The prefix length of each node's subnet.
    pub subnet_len: u8,
    /// The first subnet that allocation may give out.
    pub subnet_min: IpAddr,
    /// The last subnet that allocation may give out.
    pub subnet_max: IpAddr,
}

impl NetworkConfig {
    /// Reads the config as flannel does: names in any case, unknown ones ignored, network addresses with host bits
    /// taken for their network.
    ///
    /// # Errors
    /// Names the key, its value and what was expected.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        parse::network_config(bytes)
    }

    /// The enabled families, IPv4 first.
    pub fn families(&self) -> impl Iterator<Item = &FamilyConfig> {
        self.ipv4.iter().chain(&self.ipv6)
    }
}

impl FamilyConfig {
    /// Whether this could be a node's subnet at all: of the right length, inside the network, without host bits.
    pub fn contains_subnet(&self, subnet: &IpNetwork) -> bool {
        subnet.prefix() == self.subnet_len && self.subnet_of(subnet.ip()) == Some(*subnet)
    }

    /// Whether allocation may give this subnet out: [`Self::contains_subnet`], and from `subnet_min` to `subnet_max`.
    pub fn fits(&self, subnet: &IpNetwork) -> bool {
        self.contains_subnet(subnet) && (self.subnet_min..=self.subnet_max).contains(&subnet.ip())
    }

    /// Whether allocation may give out the subnet that this address lies in.
    pub fn leases(&self, address: IpAddr) -> bool {
        self.subnet_of(address).is_some_and(|subnet| self.fits(&subnet))
    }

    /// The last address of the last subnet that allocation may give out.
    pub fn last_leased(&self) -> IpAddr {
        address(number(self.subnet_max) + (self.subnet_size() - 1), self.network.is_ipv4())
    }

    /// Which subnet of the network this is, counted from 0 at the network's first address. Only for subnets that
    /// [`Self::contains_subnet`] accepts; others give a number without meaning. Past 2^64, which takes an IPv6 network
    /// of more subnets than anybody has, only the low bits are given.
    pub fn index(&self, subnet: &IpNetwork) -> u64 {
        (number(subnet.ip()).wrapping_sub(number(self.network.ip())) / self.subnet_size()) as u64
    }

    /// The subnet with this number, the inverse of [`Self::index`]; `None` past the end of the network.
    pub fn nth(&self, index: u64) -> Option<IpNetwork> {
        let offset = u128::from(index).checked_mul(self.subnet_size())?;
        let first = number(self.network.ip()).checked_add(offset)?;
        if self.network.is_ipv4() && first > u128::from(u32::MAX) {
            return None;
        }
        self.subnet_of(address(first, self.network.is_ipv4()))
    }

    /// The subnet-sized block that holds an address of the network; `None` for an address outside it.
    ///
    /// This is on the path of each miss: a few instructions, no allocation.
    pub fn subnet_of(&self, address: IpAddr) -> Option<IpNetwork> {
        match (self.network, address) {
            (IpNetwork::V4(network), IpAddr::V4(address)) => {
                let (bits, net) = (address.to_bits(), network.ip().to_bits());
                let inside = (bits ^ net) & mask4(network.prefix()) == 0;
                let first = Ipv4Addr::from_bits(bits & mask4(self.subnet_len));
                inside.then(|| Ipv4Network::new_checked(first, self.subnet_len).map(IpNetwork::V4))?
            }
            (IpNetwork::V6(network), IpAddr::V6(address)) => {
                let (bits, net) = (address.to_bits(), network.ip().to_bits());
                let inside = (bits ^ net) & mask6(network.prefix()) == 0;
                let first = Ipv6Addr::from_bits(bits & mask6(self.subnet_len));
                inside.then(|| Ipv6Network::new_checked(first, self.subnet_len).map(IpNetwork::V6))?
            }
            _ => None,
        }
    }

    /// How many addresses a subnet has.
    pub(crate) fn subnet_size(&self) -> u128 {
        1 << (width(self.network.is_ipv4()) - u32::from(self.subnet_len))
    }
}

/// The netmask of this length. A shift by the full width is not a shift, hence the 0.
fn mask4(len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)
}

/// The netmask of this length.
fn mask6(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

fn width(ipv4: bool) -> u32 {
    if ipv4 { 32 } else { 128 }
}

/// An address as a number, for arithmetic that serves both families.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The inverse of [`number`].
pub(crate) fn address(number: u128, ipv4: bool) -> IpAddr {
    if ipv4 { Ipv4Addr::from_bits(number as u32).into() } else { Ipv6Addr::from_bits(number).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family(text: &str) -> FamilyConfig {
        let config = NetworkConfig::parse(text.as_bytes()).unwrap();
        *config.families().next().unwrap()
    }

    #[test]
    fn a_subnet_is_known_by_length_place_and_boundary() {
        let family = family(r#"{"Network":"10.5.0.0/16"}"#);
        let at = |text: &str| text.parse::<IpNetwork>().unwrap();
        assert!(family.contains_subnet(&at("10.5.0.0/24")));
        assert!(!family.fits(&at("10.5.0.0/24")), "the first subnet is not given out");
        assert!(family.fits(&at("10.5.1.0/24")));
        assert!(family.fits(&at("10.5.255.0/24")));
        for bad in ["10.6.1.0/24", "10.5.1.0/25", "10.5.1.1/24", "10.4.0.0/16", "fc00::/24"] {
            assert!(!family.contains_subnet(&at(bad)), "{bad}");
        }
    }

    #[test]
    fn subnets_are_numbered() {
        let v4 = family(r#"{"Network":"10.5.0.0/16"}"#);
        assert_eq!(v4.subnet_of("10.5.52.17".parse().unwrap()), Some("10.5.52.0/24".parse().unwrap()));
        assert_eq!(v4.subnet_of("10.6.0.1".parse().unwrap()), None);
        assert_eq!(v4.subnet_of("fc00::1".parse().unwrap()), None);
        assert_eq!(v4.index(&"10.5.52.0/24".parse().unwrap()), 52);
        assert_eq!(v4.nth(52), Some("10.5.52.0/24".parse().unwrap()));
        assert_eq!(v4.nth(256), None);

        let v6 = family(r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48"}"#);
        assert_eq!(v6.subnet_of("fc00:0:0:22::5".parse().unwrap()), Some("fc00:0:0:22::/64".parse().unwrap()));
        assert_eq!(v6.index(&"fc00:0:0:22::/64".parse().unwrap()), 0x22);
        assert_eq!(v6.nth(0x10000), None);
        assert_eq!(v6.nth(u64::MAX), None);
    }

    #[test]
    fn the_end_of_the_address_space_is_no_trap() {
        let family = family(r#"{"Network":"255.255.0.0/16"}"#);
        assert_eq!(family.subnet_max, "255.255.255.0".parse::<IpAddr>().unwrap());
        assert_eq!(family.nth(256), None);
        assert_eq!(family.nth(u32::MAX.into()), None);
    }

    #[test]
    fn masks() {
        assert_eq!((mask4(0), mask4(24), mask4(32)), (0, 0xffff_ff00, u32::MAX));
        assert_eq!((mask6(0), mask6(64), mask6(128)), (0, u128::from(u64::MAX) << 64, u128::MAX));
    }
}
