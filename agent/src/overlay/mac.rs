//! Ethernet addresses as records and the kernel write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A 48-bit Ethernet address, printed and parsed as `c6:d2:32:6f:8f:44`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

/// The text is not six pairs of hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a MAC address: expected six pairs of hexadecimal digits, as in \"c6:d2:32:6f:8f:44\"")]
pub struct BadMac(pub String);

impl MacAddr {
    /// A random locally administered unicast address (the two low bits of the first byte are 1 and 0, IEEE 802 clause 8).
    pub fn local(random: [u8; 6]) -> Self {
        let mut bytes = random;
        bytes[0] = (bytes[0] & 0xfc) | 0x02;
        Self(bytes)
    }

    /// Whether this names one station: not multicast, not broadcast, not all zeroes.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = BadMac;

    /// Reads `aa:bb:cc:dd:ee:ff`, also with dashes or capitals, as Go's `net.ParseMAC` does.
    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part =
                parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit())).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(bytes)) }
    }
}

impl TryFrom<String> for MacAddr {
    type Error = BadMac;

    fn try_from(text: String) -> Result<Self, BadMac> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let mac: MacAddr = "C6-d2:32:6f:8f:44".parse().unwrap();
        assert_eq!(mac.to_string(), "c6:d2:32:6f:8f:44");
    }

    #[test]
    fn refuses_what_is_not_a_mac() {
        for bad in
            ["", "c6:d2:32:6f:8f", "c6:d2:32:6f:8f:44:01", "c6:d2:32:6f:8f:4", "g6:d2:32:6f:8f:44", "+1:d2:32:6f:8f:44"]
        {
            let result = bad.parse::<MacAddr>();
            assert!(result.is_err(), "{bad:?} was read as {result:?}");
        }
    }

    #[test]
    fn random_addresses_are_local_and_unicast() {
        let mac = MacAddr::local([0xff; 6]);
        assert!(mac.is_unicast());
        assert_eq!(mac.0[0] & 0x02, 0x02);
    }
}
