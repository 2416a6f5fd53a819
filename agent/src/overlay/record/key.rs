//! The key of a record: the node's subnet, or its two subnets, as flannel spells them.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use super::Family;
use crate::overlay::shown;

/// A node's subnet as its key below `<prefix>/subnets/` names it: `10.5.52.0-24`, `10.5.52.0-24&fc00:0:0:22::-64`, or
/// IPv6 alone, `0.0.0.0-0&fd00:16:0:13::-64`. At least one side is there, and neither has host bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubnetKey {
    /// The IPv4 side.
    pub ipv4: Option<Ipv4Network>,
    /// The IPv6 side.
    pub ipv6: Option<Ipv6Network>,
}

/// Why a key names no subnet. What is kept of the key is fit to be shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It has another form altogether.
    #[error("\"{0}\" is not a subnet: expected a key like \"10.5.52.0-24\" or \"10.5.52.0-24&fc00:0:0:22::-64\"")]
    Form(String),
    /// A prefix length is impossible.
    #[error("\"{0}\" is not a subnet: its prefix length is out of range")]
    Length(String),
    /// The address is not the first one of the subnet.
    #[error("\"{0}\" is not a subnet: its address has host bits")]
    HostBits(String),
    /// It means a subnet that is spelled differently; two keys for one subnet must not both count.
    #[error("\"{text}\" is not how \"{canonical}\" is written")]
    Spelling {
        /// The key.
        text: String,
        /// The one spelling that counts.
        canonical: String,
    },
}

impl KeyError {
    /// The variants' names for metrics: stable, lower case.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Form(_) => "key_form",
            Self::Length(_) => "key_length",
            Self::HostBits(_) => "key_host_bits",
            Self::Spelling { .. } => "key_spelling",
        }
    }
}

/// The two sides as they stand in the text, not yet checked.
struct Sides {
    ipv4: (Ipv4Addr, u8),
    ipv6: Option<(Ipv6Addr, u8)>,
}

impl SubnetKey {
    /// One side as a network.
    pub fn side(&self, family: Family) -> Option<IpNetwork> {
        match family {
            Family::V4 => self.ipv4.map(IpNetwork::V4),
            Family::V6 => self.ipv6.map(IpNetwork::V6),
        }
    }

    /// As people write it and `twill` takes it: `10.5.52.0/24` or `10.5.52.0/24,fc00:0:0:22::/64`.
    pub fn slashed(&self) -> String {
        let sides = [Family::V4, Family::V6].into_iter().filter_map(|family| self.side(family));
        sides.map(|side| side.to_string()).collect::<Vec<_>>().join(",")
    }

    /// What a key occupies, even one that no record may have (host bits, an odd spelling): allocation keeps away from
    /// it. `None` where it names no addresses at all.
    pub fn occupied(text: &str) -> Option<Self> {
        let sides = sides(text).ok()?;
        // A length of 0 would keep every node from ever getting a subnet.
        let ipv4 = Ipv4Network::new(sides.ipv4.0, sides.ipv4.1).ok().filter(|net| net.prefix() > 0);
        let ipv6 = sides.ipv6.and_then(|(ip, len)| Ipv6Network::new(ip, len).ok()).filter(|net| net.prefix() > 0);
        let ipv4 = ipv4.and_then(|net| Ipv4Network::new(net.network(), net.prefix()).ok());
        let ipv6 = ipv6.and_then(|net| Ipv6Network::new(net.network(), net.prefix()).ok());
        (ipv4.is_some() || ipv6.is_some()).then_some(Self { ipv4, ipv6 })
    }
}

impl From<IpNetwork> for SubnetKey {
    /// A key of one side.
    fn from(subnet: IpNetwork) -> Self {
        match subnet {
            IpNetwork::V4(subnet) => Self { ipv4: Some(subnet), ipv6: None },
            IpNetwork::V6(subnet) => Self { ipv4: None, ipv6: Some(subnet) },
        }
    }
}

impl FromStr for SubnetKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let shown = || shown(text);
        let sides = sides(text)?;
        let ipv6 = match sides.ipv6 {
            None => None,
            Some((_, 0)) => return Err(KeyError::Length(shown())),
            Some((ip, len)) => Some(Ipv6Network::new(ip, len).map_err(|_| KeyError::Length(shown()))?),
        };
        let ipv4 = match sides.ipv4 {
            // How flannel writes "no IPv4".
            (Ipv4Addr::UNSPECIFIED, 0) if ipv6.is_some() => None,
            (_, 0) => return Err(KeyError::Length(shown())),
            (ip, len) => Some(Ipv4Network::new(ip, len).map_err(|_| KeyError::Length(shown()))?),
        };
        if ipv4.is_some_and(|net| net.ip() != net.network()) || ipv6.is_some_and(|net| net.ip() != net.network()) {
            return Err(KeyError::HostBits(shown()));
        }
        let key = Self { ipv4, ipv6 };
        let canonical = key.to_string();
        if canonical == text { Ok(key) } else { Err(KeyError::Spelling { text: shown(), canonical }) }
    }
}

impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ipv4 {
            Some(net) => write!(f, "{}-{}", net.ip(), net.prefix())?,
            None => f.write_str("0.0.0.0-0")?,
        }
        match self.ipv6 {
            // Rust and Go both follow RFC 5952, and the addresses where they differ are refused by `sides`.
            Some(net) => write!(f, "&{}-{}", net.ip(), net.prefix()),
            None => Ok(()),
        }
    }
}

fn sides(text: &str) -> Result<Sides, KeyError> {
    let form = || KeyError::Form(shown(text));
    let (ipv4, ipv6) = text.split_once('&').map_or((text, None), |(ipv4, ipv6)| (ipv4, Some(ipv6)));
    let ipv4 = side(ipv4).ok_or_else(form)?;
    // Flannel's pattern has no room for dots in the IPv6 side, so a mapped address is junk to it.
    let side6 = |text| side::<Ipv6Addr>(text).filter(|(ip, _)| ip.to_ipv4_mapped().is_none());
    let ipv6 = ipv6.map(|text| side6(text).ok_or_else(form)).transpose()?;
    Ok(Sides { ipv4, ipv6 })
}

fn side<A: FromStr>(text: &str) -> Option<(A, u8)> {
    let (address, len) = text.split_once('-')?;
    let digits = !len.is_empty() && len.bytes().all(|b| b.is_ascii_digit());
    Some((address.parse().ok()?, if digits { len.parse().ok()? } else { return None }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for text in [
            "10.5.52.0-24",
            "10.5.52.0-24&fc00:0:0:22::-64",
            "0.0.0.0-0&fd00:16:0:13::-64",
            "10.0.0.0-8",
            "10.5.0.4-30",
        ] {
            assert_eq!(text.parse::<SubnetKey>().unwrap().to_string(), text);
        }
        let key: SubnetKey = "0.0.0.0-0&fd00:16:0:13::-64".parse().unwrap();
        assert_eq!((key.side(Family::V4), key.side(Family::V6)), (None, Some("fd00:16:0:13::/64".parse().unwrap())));
    }

    #[test]
    fn junk_is_refused_by_kind() {
        let cases = [
            ("", "key_form"),
            ("config", "key_form"),
            ("10.5.52.0/24", "key_form"),
            ("10.5.52.0-24-1", "key_form"),
            ("10.5.52-24", "key_form"),
            ("10.5.52.0-", "key_form"),
            ("10.5.52.0-+24", "key_form"),
            ("10.5.52.0-24&", "key_form"),
            ("10.5.52.0-24&fc00::", "key_form"),
            ("10.5.52.0-24&fc00::-64&", "key_form"),
            ("fc00::-64", "key_form"),
            ("0.0.0.0-0&::ffff:10.0.0.0-104", "key_form"),
            ("10.5.52.0-33", "key_length"),
            ("0.0.0.0-0", "key_length"),
            ("10.0.0.0-0&fc00::-64", "key_length"),
            ("10.5.52.0-24&fc00::-129", "key_length"),
            ("10.5.52.0-24&::-0", "key_length"),
            ("10.5.52.7-24", "key_host_bits"),
            ("10.5.52.0-24&fc00::1-64", "key_host_bits"),
            ("10.5.52.0-024", "key_spelling"),
            ("10.5.52.0-24&FC00::-64", "key_spelling"),
            ("10.5.52.0-24&fc00:0:0:0::-64", "key_spelling"),
        ];
        for (text, reason) in cases {
            assert_eq!(text.parse::<SubnetKey>().unwrap_err().reason(), reason, "{text:?}");
        }
    }

    #[test]
    fn junk_occupies_what_it_names() {
        let occupied = |text| SubnetKey::occupied(text).map(|key| key.to_string());
        assert_eq!(occupied("10.5.52.7-24").as_deref(), Some("10.5.52.0-24"));
        assert_eq!(occupied("10.5.52.0-024&FC00::-64").as_deref(), Some("10.5.52.0-24&fc00::-64"));
        for nothing in ["0.0.0.0-0", "1.2.3.4-0", "config", "10.5.52.0-40"] {
            assert_eq!(occupied(nothing), None, "{nothing}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read(v4: Option<u32>, len4 in 1u8..=32, v6: Option<u128>, len6 in 1u8..=128) {
            let ipv4 = v4.map(|bits| Ipv4Network::new(bits.into(), len4).unwrap()).map(|net| Ipv4Network::new(net.network(), len4).unwrap());
            let ipv6 = v6.map(|bits| Ipv6Network::new(bits.into(), len6).unwrap()).map(|net| Ipv6Network::new(net.network(), len6).unwrap());
            let ipv6 = ipv6.filter(|net| net.ip().to_ipv4_mapped().is_none());
            if ipv4.is_some() || ipv6.is_some() {
                let key = SubnetKey { ipv4, ipv6 };
                assert_eq!(key.to_string().parse::<SubnetKey>().unwrap(), key);
                assert_eq!(SubnetKey::occupied(&key.to_string()), Some(key));
            }
        }

        #[test]
        fn junk_never_panics(text: String, near in "[0-9.]{0,12}[-&:a-f0-9]{0,12}") {
            let _ = (text.parse::<SubnetKey>(), SubnetKey::occupied(&text));
            let _ = (near.parse::<SubnetKey>(), SubnetKey::occupied(&near));
        }
    }
}
