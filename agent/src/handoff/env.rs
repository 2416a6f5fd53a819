//! The text of `subnet.env`: its keys, and its one reader, for a daemon that starts again and for the CNI plugin. Pure.
//!
//! Assignments of a shell, one a line, of which the last one of a key counts. Flannel's plugin wants them as its daemon
//! writes them (<https://github.com/flannel-io/cni-plugin/blob/v1.7.1-flannel1/flannel.go>); this reader also takes what
//! an editor or a script makes of them: a byte order mark, CR at the end of a line, `export`, blanks, quotes.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use ipnetwork::IpNetwork;

use crate::overlay::Shown;
use crate::overlay::record::Family;

/// The MTU of the pods' interfaces, in bytes.
pub(crate) const MTU: &str = "FLANNEL_MTU";
/// Whether the daemon masquerades.
pub(crate) const IP_MASQ: &str = "FLANNEL_IPMASQ";

/// What a veth may have as MTU: from `IPV4_MIN_MTU` (include/net/ip.h) to `ETH_MAX_MTU` (include/uapi/linux/if_ether.h).
const MTUS: RangeInclusive<u32> = 68..=65535;
/// A device with a smaller MTU has no IPv6 (`IPV6_MIN_MTU`, include/uapi/linux/ipv6.h).
const LEAST_IPV6_MTU: u32 = 1280;

/// The longest value that a message quotes, in characters.
const QUOTED: usize = 100;

/// The text, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Assignments {
    /// By key as it is written.
    values: BTreeMap<String, String>,
}

/// A value that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}={}: {why}", Shown::up_to(QUOTED, value))]
pub(crate) struct Wrong {
    key: &'static str,
    value: String,
    why: String,
}

/// The key of a family's network.
pub(crate) fn network_key(family: Family) -> &'static str {
    match family {
        Family::V4 => "FLANNEL_NETWORK",
        Family::V6 => "FLANNEL_IPV6_NETWORK",
    }
}

/// The key of a family's subnet.
pub(crate) fn subnet_key(family: Family) -> &'static str {
    match family {
        Family::V4 => "FLANNEL_SUBNET",
        Family::V6 => "FLANNEL_IPV6_SUBNET",
    }
}

impl Assignments {
    /// Takes the text apart; `None` if it is no text (as an editor's UTF-16 is not).
    pub(crate) fn read(text: &[u8]) -> Option<Assignments> {
        let text = str::from_utf8(text).ok()?;
        let lines = text.strip_prefix('\u{feff}').unwrap_or(text).lines();
        let values = lines.filter_map(|line| {
            let (key, value) = line.split_once('=')?;
            let key = key.trim();
            let key = key.strip_prefix("export").filter(|key| key.starts_with([' ', '\t'])).unwrap_or(key);
            Some((key.trim().to_owned(), unquoted(value.trim()).to_owned()))
        });
        Some(Assignments { values: values.collect() })
    }

    /// The networks of a family, each once: a comma list.
    pub(crate) fn networks(&self, family: Family) -> Result<Option<Vec<IpNetwork>>, Wrong> {
        let key = network_key(family);
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let mut networks = Vec::new();
        for text in value.split(',') {
            let network = of_family(text, family).map_err(|why| self.wrong(key, why))?;
            if !networks.contains(&network) {
                networks.push(network);
            }
        }
        Ok(Some(networks))
    }

    /// This node's subnet in a family.
    pub(crate) fn subnet(&self, family: Family) -> Result<Option<IpNetwork>, Wrong> {
        let key = subnet_key(family);
        let Some(value) = self.values.get(key) else { return Ok(None) };
        of_family(value, family).map(Some).map_err(|why| self.wrong(key, why))
    }

    /// The MTU of a pod with an address of this subnet.
    pub(crate) fn mtu(&self, has_ipv6: bool) -> Result<Option<u32>, Wrong> {
        let Some(value) = self.values.get(MTU) else { return Ok(None) };
        let least = if has_ipv6 { LEAST_IPV6_MTU } else { *MTUS.start() };
        let mtu = value.parse().ok().filter(|mtu| (least..=*MTUS.end()).contains(mtu));
        let with = if has_ipv6 { " with IPv6" } else { "" };
        let why = || format!("expected a number of bytes, {least} to {}{with}", MTUS.end());
        mtu.map(Some).ok_or_else(|| self.wrong(MTU, why()))
    }

    /// Whether the daemon masquerades. Flannel's plugin takes anything but `true` for no, and pods masquerade twice.
    pub(crate) fn ip_masq(&self) -> Result<Option<bool>, Wrong> {
        let Some(value) = self.values.get(IP_MASQ) else { return Ok(None) };
        value.parse().map(Some).map_err(|_| self.wrong(IP_MASQ, "expected true or false".into()))
    }

    /// A key that is written like this one but for its case.
    pub(crate) fn in_other_case(&self, key: &str) -> Option<&str> {
        self.values.keys().find(|k| k.eq_ignore_ascii_case(key) && *k != key).map(String::as_str)
    }

    /// What is wrong with the value of a key.
    pub(crate) fn wrong(&self, key: &'static str, why: String) -> Wrong {
        Wrong { key, value: self.values.get(key).cloned().unwrap_or_default(), why }
    }
}

/// The network that an address with its length lies in. A bare address is none, as in Go, whose words these are.
pub(crate) fn cidr(text: &str) -> Result<IpNetwork, String> {
    let invalid = || format!("invalid CIDR address: {}", Shown::up_to(QUOTED, text));
    let parsed: IpNetwork = text.trim().parse().map_err(|_| invalid())?;
    if !text.contains('/') {
        return Err(invalid());
    }
    IpNetwork::new(parsed.network(), parsed.prefix()).map_err(|_| invalid())
}

fn of_family(text: &str, family: Family) -> Result<IpNetwork, String> {
    let network = cidr(text)?;
    match (family, network) {
        (Family::V4, IpNetwork::V4(_)) | (Family::V6, IpNetwork::V6(_)) => Ok(network),
        (Family::V4, IpNetwork::V6(_)) => Err("expected IPv4, as in 10.5.52.1/24".into()),
        (Family::V6, IpNetwork::V4(_)) => Err("expected IPv6, as in fc00:0:0:22::1/64".into()),
    }
}

/// A value without the quotes around it.
fn unquoted(value: &str) -> &str {
    let within = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
    within('"').or_else(|| within('\'')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_IPV6_NETWORK=fc00::/48\n\
                         FLANNEL_IPV6_SUBNET=fc00:0:0:22::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";

    fn read(text: &str) -> Assignments {
        Assignments::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_editors_and_scripts_make_of_it_is_the_same() {
        let wanted = read(LINES);
        assert_eq!(wanted.subnet(Family::V4).unwrap().unwrap().to_string(), "10.5.52.0/24");
        let quoted = |quote: &str| LINES.replace('=', &format!("={quote}")).replace('\n', &format!("{quote}\n"));
        for text in [
            format!("\u{feff}{LINES}"),
            LINES.replace('\n', "\r\n"),
            format!("\u{feff}{}", LINES.replace('\n', "\r\n")),
            LINES.trim_end().to_owned(),
            LINES.replace("FLANNEL", "export FLANNEL"),
            LINES.replace('\n', "  \n\n").replace('=', " = ").replace("FLANNEL", " \tFLANNEL"),
            quoted("\""),
            quoted("'"),
            format!("# a comment=1\nFLANNEL\n=x\n{LINES}"),
            // The last one of a key counts, as in a shell.
            format!("FLANNEL_MTU=0\nFLANNEL_SUBNET=junk\n{LINES}"),
        ] {
            let there = read(&text);
            for family in [Family::V4, Family::V6] {
                assert_eq!(there.subnet(family), wanted.subnet(family), "{text:?}");
                assert_eq!(there.networks(family), wanted.networks(family), "{text:?}");
            }
            assert_eq!((there.mtu(true), there.ip_masq()), (Ok(Some(1430)), Ok(Some(true))), "{text:?}");
        }
    }

    #[test]
    fn utf_16_is_no_text_and_nothing_is_no_value() {
        let utf_16: Vec<u8> = LINES.encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(Assignments::read(&[&[0xff, 0xfe], utf_16.as_slice()].concat()), None);
        for text in ["", "\u{feff}", "FLANNEL_MTU", "\0\0\0"] {
            let there = read(text);
            assert_eq!((there.subnet(Family::V4), there.mtu(false), there.ip_masq()), (Ok(None), Ok(None), Ok(None)));
        }
        assert_eq!(read("exportFLANNEL_MTU=1450").mtu(false), Ok(None));
        assert_eq!(read("flannel_mtu=1450").in_other_case(MTU), Some("flannel_mtu"));
        assert_eq!(read(LINES).in_other_case(MTU), None);
    }

    #[test]
    fn a_wrong_value_is_named_with_what_was_expected() {
        let v4 = |text: &str| read(text).subnet(Family::V4).unwrap_err().to_string();
        let v6 = |text: &str| read(text).subnet(Family::V6).unwrap_err().to_string();
        assert_eq!(v4("FLANNEL_SUBNET=::1/64"), "FLANNEL_SUBNET=::1/64: expected IPv4, as in 10.5.52.1/24");
        assert!(v6("FLANNEL_IPV6_SUBNET=10.5.52.1/24").ends_with(": expected IPv6, as in fc00:0:0:22::1/64"));
        for bad in
            ["", "10.5.52.1", "10.5.52.1/33", "10.5.52.1/", "10.5.52.1/-1", "010.5.52.1/24", "x/24", "\"10.5.52.1/24"]
        {
            let wrong = v4(&format!("FLANNEL_SUBNET={bad}"));
            assert_eq!(wrong, format!("FLANNEL_SUBNET={bad}: invalid CIDR address: {bad}"));
        }
        for bad in ["10.5.0.0/16,fc00::/48", "10.5.0.0/16,", "10.5.0.0/16 10.6.0.0/16"] {
            assert!(read(&format!("FLANNEL_NETWORK={bad}")).networks(Family::V4).is_err(), "{bad}");
        }
        for bad in ["", "0", "67", "65536", "-1", "4294967296", "1450.0", "1.5e3", "1450 # of the device"] {
            let wrong = read(&format!("FLANNEL_MTU={bad}")).mtu(false).unwrap_err().to_string();
            assert_eq!(wrong, format!("FLANNEL_MTU={bad}: expected a number of bytes, 68 to 65535"));
        }
        let wrong = read("FLANNEL_MTU=1279").mtu(true).unwrap_err().to_string();
        assert_eq!(wrong, "FLANNEL_MTU=1279: expected a number of bytes, 1280 to 65535 with IPv6");
        for bad in ["", "True", "1", "yes"] {
            let wrong = read(&format!("FLANNEL_IPMASQ={bad}")).ip_masq().unwrap_err().to_string();
            assert_eq!(wrong, format!("FLANNEL_IPMASQ={bad}: expected true or false"));
        }
    }

    #[test]
    fn a_list_of_networks_is_read_and_repeats_count_once() {
        let networks = read("FLANNEL_NETWORK=10.5.0.0/16, 192.168.0.0/16,10.5.3.0/16").networks(Family::V4);
        let wanted = ["10.5.0.0/16", "192.168.0.0/16"].map(|network| network.parse().unwrap());
        assert_eq!(networks, Ok(Some(wanted.to_vec())));
    }

    #[test]
    fn a_message_shows_no_more_than_a_line() {
        let wrong = read(&format!("FLANNEL_MTU=\x1b[2J{}", "9".repeat(60_000))).mtu(false).unwrap_err().to_string();
        assert!(wrong.starts_with("FLANNEL_MTU=\\u{1b}[2J999") && wrong.len() < 300, "{wrong}");
        assert!(wrong.contains("999... (60,004 bytes): expected"), "{wrong}");
    }
}
