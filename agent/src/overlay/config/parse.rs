//! From the config's JSON to [`NetworkConfig`], with errors that name key, value and what was expected.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{FamilyConfig, NetworkConfig, address, number, width};
use crate::overlay::backend::Backend;
use crate::overlay::json::Object;
use crate::overlay::settings::{ConfigError, bad, flag, integer, shown};

/// The names and limits of one address family.
struct Names {
    ipv4: bool,
    network: &'static str,
    len: &'static str,
    min: &'static str,
    max: &'static str,
    /// The longest subnet: it must hold a tunnel's and a bridge's address.
    longest: u8,
    /// The subnet length where the config names none and the network has four of them.
    default_len: u8,
    example: &'static str,
}

const IPV4: Names = Names {
    ipv4: true,
    network: "Network",
    len: "SubnetLen",
    min: "SubnetMin",
    max: "SubnetMax",
    longest: 30,
    default_len: 24,
    example: "an IPv4 network, as in \"10.5.0.0/16\"",
};

const IPV6: Names = Names {
    ipv4: false,
    network: "IPv6Network",
    len: "IPv6SubnetLen",
    min: "IPv6SubnetMin",
    max: "IPv6SubnetMax",
    longest: 126,
    default_len: 64,
    example: "an IPv6 network, as in \"fc00::/48\"",
};

pub(super) fn network_config(bytes: &[u8]) -> Result<NetworkConfig, ConfigError> {
    let object = Object::parse(bytes).map_err(|error| ConfigError::NotJson(crate::overlay::shown(&error)))?;
    let (enable4, enable6) = (flag(&object, "EnableIPv4", true)?, flag(&object, "EnableIPv6", false)?);
    if !enable4 && !enable6 {
        return Err(bad("EnableIPv4", "false", "leaves no address family", "true, or EnableIPv6 true"));
    }
    // Checked as flannel does, though it is nftables here either way.
    flag(&object, "EnableNFTables", false)?;
    Ok(NetworkConfig {
        ipv4: if enable4 { Some(family(&object, &IPV4)?) } else { None },
        ipv6: if enable6 { Some(family(&object, &IPV6)?) } else { None },
        backend: object.get("Backend").map_or(Ok(Backend::default()), |value| Backend::parse(value, enable6))?,
    })
}

fn family(object: &Object, names: &Names) -> Result<FamilyConfig, ConfigError> {
    let network = network(object, names)?;
    let subnet_len = subnet_len(object, names, network)?;
    let size = 1u128 << (width(names.ipv4) - u32::from(subnet_len));
    let (first, last) = (number(network.ip()), number(network.broadcast()));
    // The first subnet is left out: its first address is the network's own.
    let subnet_min = limit(object, names, names.min, network, subnet_len, first + size)?;
    let subnet_max = limit(object, names, names.max, network, subnet_len, last - size + 1)?;
    if subnet_min > subnet_max {
        let expected = format!("at least {} {subnet_min}", names.min);
        return Err(bad(names.max, &subnet_max.to_string(), "comes too early", &expected));
    }
    Ok(FamilyConfig { network, subnet_len, subnet_min, subnet_max })
}

fn network(object: &Object, names: &Names) -> Result<IpNetwork, ConfigError> {
    let missing = || ConfigError::Missing { key: names.network.to_owned(), expected: names.example.to_owned() };
    let value = object.get(names.network).ok_or_else(missing)?;
    let no_network = || bad(names.network, &shown(value), "is not a network", names.example);
    let network = value.as_str().and_then(cidr).filter(|net| net.is_ipv4() == names.ipv4).ok_or_else(no_network)?;
    if network.prefix() == 0 {
        return Err(no_network());
    }
    let longest = names.longest - 2;
    if network.prefix() > longest {
        let expected = format!("a network of at most /{longest}, which has four subnets");
        return Err(bad(names.network, &network.to_string(), "is too small", &expected));
    }
    Ok(network)
}

/// An address, a slash, a length, and no other form; host bits are cleared, as Go's `net.ParseCIDR` does.
fn cidr(text: &str) -> Option<IpNetwork> {
    let (address, len) = text.split_once('/')?;
    if len.is_empty() || len.len() > 3 || !len.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let network = IpNetwork::new(address.parse().ok()?, len.parse().ok()?).ok()?;
    IpNetwork::new(network.network(), network.prefix()).ok()
}

fn subnet_len(object: &Object, names: &Names, network: IpNetwork) -> Result<u8, ConfigError> {
    let shortest = network.prefix() + 2;
    let range = u32::from(shortest)..=u32::from(names.longest);
    let problem = format!("does not fit {} {network}", names.network);
    let unit = format!("a length from {shortest} to {}", names.longest);
    // 0 is how Go says "not given".
    let given = integer(object, names.len, &problem, &unit, range)?;
    Ok(given.map_or(names.default_len.max(shortest), |len| len as u8))
}

/// `SubnetMin` or `SubnetMax`: in the network, on a boundary, `default` where the config has none.
fn limit(
    object: &Object,
    names: &Names,
    key: &str,
    network: IpNetwork,
    subnet_len: u8,
    default: u128,
) -> Result<IpAddr, ConfigError> {
    let default = address(default, names.ipv4);
    let Some(value) = object.get(key) else { return Ok(default) };
    let expected = format!("the first address of a /{subnet_len} in {network}");
    let given = value.as_str().and_then(|text| text.parse::<IpAddr>().ok()).filter(|ip| ip.is_ipv4() == names.ipv4);
    let Some(given) = given else { return Err(bad(key, &shown(value), "is not an address", &expected)) };
    if given.is_unspecified() {
        return Ok(default);
    }
    if !network.contains(given) {
        let problem = format!("is not in {} {network}", names.network);
        return Err(bad(key, &given.to_string(), &problem, &expected));
    }
    let size = 1u128 << (width(names.ipv4) - u32::from(subnet_len));
    if !number(given).is_multiple_of(size) {
        let problem = format!("is not on a {} boundary", names.len);
        return Err(bad(key, &given.to_string(), &problem, &expected));
    }
    Ok(given)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::backend::Vxlan;

    fn parse(text: &str) -> Result<NetworkConfig, String> {
        network_config(text.as_bytes()).map_err(|error| error.to_string())
    }

    fn v4(text: &str) -> FamilyConfig {
        parse(text).unwrap().ipv4.unwrap()
    }

    fn v6(rest: &str) -> FamilyConfig {
        parse(&format!(r#"{{"EnableIPv4":false,"EnableIPv6":true,{rest}}}"#)).unwrap().ipv6.unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn defaults() {
        let config = parse(r#"{"Network":"10.5.0.0/16"}"#).unwrap();
        let family = config.ipv4.unwrap();
        assert_eq!(family.network, "10.5.0.0/16".parse().unwrap());
        assert_eq!((family.subnet_len, family.subnet_min, family.subnet_max), (24, ip("10.5.1.0"), ip("10.5.255.0")));
        assert_eq!((config.ipv6, config.backend), (None, Backend::default()));
        assert_eq!(Vxlan::default().port, 8472);
    }

    #[test]
    fn subnet_lengths_follow_the_network() {
        assert_eq!(v4(r#"{"Network":"10.5.0.0/22"}"#).subnet_len, 24);
        assert_eq!(v4(r#"{"Network":"10.5.0.0/23"}"#).subnet_len, 25);
        assert_eq!(v4(r#"{"Network":"10.5.0.0/28"}"#).subnet_len, 30);
        assert_eq!(v4(r#"{"Network":"10.5.0.0/16","SubnetLen":18}"#).subnet_len, 18);
        assert_eq!(v4(r#"{"Network":"10.5.0.0/16","SubnetLen":0}"#).subnet_len, 24);
        assert_eq!(v6(r#""IPv6Network":"fc00::/62""#).subnet_len, 64);
        assert_eq!(v6(r#""IPv6Network":"fc00::/63""#).subnet_len, 65);
        assert_eq!(v6(r#""IPv6Network":"fc00::/124""#).subnet_len, 126);
        let v6 = v6(r#""IPv6Network":"fc00::/48""#);
        assert_eq!((v6.subnet_min, v6.subnet_max), (ip("fc00:0:0:1::"), ip("fc00:0:0:ffff::")));
    }

    #[test]
    fn keys_in_any_case_and_host_bits() {
        let config = parse(
            r#"{"network":"10.5.3.4/16","SUBNETMIN":"10.5.10.0","subnetMax":"10.5.20.0",
                "backend":{"type":"VXLAN","vni":7,"Port":4789,"mtu":9000,"gbp":true,"DirectRouting":true},"other":[1]}"#,
        )
        .unwrap();
        let family = config.ipv4.unwrap();
        assert_eq!(family.network, "10.5.0.0/16".parse().unwrap());
        assert_eq!((family.subnet_min, family.subnet_max), (ip("10.5.10.0"), ip("10.5.20.0")));
        let backend = Backend::Vxlan(Vxlan {
            vni: 7,
            port: 4789,
            mtu: Some(9000),
            gbp: true,
            learning: false,
            direct_routing: true,
        });
        assert_eq!(config.backend, backend);
    }

    #[test]
    fn each_backend_is_known_in_any_case_and_one_without_settings_has_none() {
        let backend = |text: &str| parse(&format!(r#"{{"Network":"10.5.0.0/16","Backend":{text}}}"#)).unwrap().backend;
        for (text, name) in [
            (r#"{"Type":"VXLAN"}"#, "vxlan"),
            (r#"{"type":"Host-GW","VNI":"junk","MTU":-1}"#, "host-gw"),
            (r#"{"Type":"alloc"}"#, "alloc"),
        ] {
            assert_eq!(backend(text).name(), name, "{text}");
        }
        assert_eq!(
            (backend(r#"{"Type":"host-gw","MTU":9000}"#).mtu(), backend(r#"{"Type":"alloc"}"#).record_type()),
            (None, "")
        );
    }

    #[test]
    fn dual_stack() {
        let config = parse(r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}"#).unwrap();
        assert_eq!(config.families().count(), 2);
    }

    #[test]
    fn errors_name_key_value_and_expectation() {
        let cases = [
            (
                r#"{"Network":"10.5.0.0/16","SubnetLen":31}"#,
                "SubnetLen: 31 does not fit Network 10.5.0.0/16: expected a length from 18 to 30",
            ),
            (
                r#"{"Network":"10.5.0.0/16","SubnetLen":17}"#,
                "SubnetLen: 17 does not fit Network 10.5.0.0/16: expected a length from 18 to 30",
            ),
            (
                r#"{"Network":"10.5.0.0/16","SubnetLen":"24"}"#,
                "SubnetLen: 24 is not a number: expected a length from 18 to 30",
            ),
            (r#"{}"#, "Network is missing: expected an IPv4 network, as in \"10.5.0.0/16\""),
            (
                r#"{"Network":"10.5.0.0"}"#,
                "Network: 10.5.0.0 is not a network: expected an IPv4 network, as in \"10.5.0.0/16\"",
            ),
            (
                r#"{"Network":"fc00::/48"}"#,
                "Network: fc00::/48 is not a network: expected an IPv4 network, as in \"10.5.0.0/16\"",
            ),
            (
                r#"{"Network":"10.5.0.0/29"}"#,
                "Network: 10.5.0.0/29 is too small: expected a network of at most /28, which has four subnets",
            ),
            (
                r#"{"Network":"10.5.0.0/16","SubnetMin":"10.6.0.0"}"#,
                "SubnetMin: 10.6.0.0 is not in Network 10.5.0.0/16: expected the first address of a /24 in 10.5.0.0/16",
            ),
            (
                r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.2.1"}"#,
                "SubnetMax: 10.5.2.1 is not on a SubnetLen boundary: expected the first address of a /24 in 10.5.0.0/16",
            ),
            (
                r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.8.0"}"#,
                "SubnetMax: 10.5.8.0 comes too early: expected at least SubnetMin 10.5.9.0",
            ),
            (
                r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}"#,
                "Backend.Type: udp is a backend that Twill does not have: expected \"vxlan\", \"host-gw\" or \"alloc\"",
            ),
            (
                r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}"#,
                "Backend.VNI: 16777216 is out of range: expected a number from 1 to 9999999",
            ),
            (
                r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fc00::/48","Backend":{"Type":"vxlan","VNI":10000}}"#,
                "Backend.VNI: 10000 is out of range: expected a number from 1 to 9999",
            ),
            (
                r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fc00::/48","Backend":{"Type":"vxlan","MTU":1349}}"#,
                "Backend.MTU: 1349 is out of range: expected a number from 1350 to 65535",
            ),
            (
                r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","MTU":100}}"#,
                "Backend.MTU: 100 is out of range: expected a number from 118 to 65535",
            ),
            (
                r#"{"EnableIPv4":false}"#,
                "EnableIPv4: false leaves no address family: expected true, or EnableIPv6 true",
            ),
            (r#"{"EnableIPv4":"no"}"#, "EnableIPv4: no is not a boolean: expected true or false"),
            (
                r#"{"EnableIPv6":true,"Network":"10.5.0.0/16"}"#,
                "IPv6Network is missing: expected an IPv6 network, as in \"fc00::/48\"",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text).unwrap_err(), expected, "{text}");
        }
        assert!(parse("Network=10.5.0.0/16").unwrap_err().starts_with("the network config is not a JSON object: "));
    }

    proptest::proptest! {
        #[test]
        fn any_network_and_length_is_coherent_or_refused(bits in 0u32.., prefix in 0u8..=32, len in 0u8..=40) {
            let text = format!(r#"{{"Network":"{}/{prefix}","SubnetLen":{len}}}"#, std::net::Ipv4Addr::from(bits));
            if let Ok(config) = network_config(text.as_bytes()) {
                let family = config.ipv4.unwrap();
                let (min, max) = (IpNetwork::new(family.subnet_min, family.subnet_len).unwrap(), IpNetwork::new(family.subnet_max, family.subnet_len).unwrap());
                assert!(family.fits(&min) && family.fits(&max));
                assert_eq!(family.index(&min), 1);
                assert_eq!(family.nth(family.index(&max)), Some(max));
                assert_eq!(family.nth(family.index(&max) + 1), None);
            }
        }

        #[test]
        fn junk_never_panics(bytes: Vec<u8>) {
            let _ = network_config(&bytes);
        }
    }
}
