//! `subnet.env` as the plugin uses it: what the daemon leased, checked before a pod gets an address of it, and why it is
//! not there. `handoff` writes the file and takes its text apart.

use std::io;
use std::path::Path;

use ipnetwork::IpNetwork;

use super::error::{Error, code, excerpt, os_text};
use crate::files;
use crate::handoff::env::{Assignments, IP_MASQ, MTU, Wrong, network_key, subnet_key};
use crate::handoff::status_file;
use crate::overlay::record::Family;

/// host-local needs two addresses beside the subnet's first and last one, and refuses smaller subnets in words of its own
/// (<https://github.com/containernetworking/plugins/blob/v1.1.1/plugins/ipam/host-local/backend/allocator/range.go>).
const SPARE_BITS: u8 = 2;

/// What a pod's configuration is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SubnetEnv {
    /// All networks, each once: those of `FLANNEL_NETWORK` (a comma list), then those of `FLANNEL_IPV6_NETWORK`.
    pub networks: Vec<IpNetwork>,
    /// This node's subnets: IPv4, then IPv6.
    pub subnets: Vec<IpNetwork>,
    /// `FLANNEL_MTU` in bytes.
    pub mtu: u32,
    /// `FLANNEL_IPMASQ`: whether the daemon masquerades.
    pub ip_masq: bool,
}

/// Reads the file. The error keeps flannel's words, for which people search, and adds what the daemon last reported.
pub fn read(file: &Path) -> Result<SubnetEnv, Error> {
    let text = files::read(file, files::SMALL).map_err(|e| no_open(file, &e))?;
    parse(&text, file).map_err(|wrong| unusable(file, &wrong, "its writer has not finished, or it was edited"))
}

/// What the text says; `file` is for messages.
pub fn parse(text: &[u8], file: &Path) -> Result<SubnetEnv, String> {
    let has = |wrong: Wrong| format!("{} has {wrong}", file.display());
    let there = Assignments::read(text).ok_or_else(|| format!("{} is no UTF-8 text", file.display()))?;
    let mut env = SubnetEnv::default();
    let mut missing = Vec::new();
    for family in [Family::V4, Family::V6] {
        let (networks, subnet) = (there.networks(family).map_err(has)?, there.subnet(family).map_err(has)?);
        match (networks, subnet) {
            (Some(networks), Some(subnet)) => {
                check(&there, family, &networks, subnet).map_err(has)?;
                env.networks.extend(networks);
                env.subnets.push(subnet);
            }
            (Some(_), None) => missing.push(subnet_key(family)),
            (None, Some(_)) => missing.push(network_key(family)),
            (None, None) => {}
        }
    }
    if env.subnets.is_empty() && missing.is_empty() {
        missing.extend([network_key, subnet_key].map(|key| [key(Family::V4), key(Family::V6)]).concat());
    }
    let mtu = there.mtu(env.subnets.iter().any(IpNetwork::is_ipv6)).map_err(has)?;
    let ip_masq = there.ip_masq().map_err(has)?;
    missing.extend(mtu.is_none().then_some(MTU));
    missing.extend(ip_masq.is_none().then_some(IP_MASQ));
    if missing.is_empty() {
        return Ok(SubnetEnv { mtu: mtu.unwrap_or_default(), ip_masq: ip_masq.unwrap_or_default(), ..env });
    }
    let cased = missing.iter().find_map(|key| there.in_other_case(key));
    let cased = cased.map(|key| format!(" (it has {key}: keys are upper case)")).unwrap_or_default();
    Err(format!("{} is missing {}{cased}", file.display(), missing.join(", ")))
}

/// Whether pods can have addresses of the subnet, and the nodes of its networks reach them.
fn check(there: &Assignments, family: Family, networks: &[IpNetwork], subnet: IpNetwork) -> Result<(), Wrong> {
    let key = subnet_key(family);
    let within = |network: &IpNetwork| network.prefix() <= subnet.prefix() && network.contains(subnet.network());
    if !networks.iter().any(within) {
        let networks: Vec<String> = networks.iter().map(ToString::to_string).collect();
        let why = format!("expected a subnet of {}={}", network_key(family), networks.join(","));
        return Err(there.wrong(key, why));
    }
    let longest = if subnet.is_ipv4() { 32 } else { 128 } - SPARE_BITS;
    if subnet.prefix() > longest {
        return Err(there.wrong(key, format!("expected a subnet of /{longest} or larger, with room for a pod")));
    }
    Ok(())
}

fn no_open(file: &Path, error: &io::Error) -> Error {
    let what = format!("open {}: {}", file.display(), os_text(error));
    let hint = if error.kind() == io::ErrorKind::NotFound {
        "twilld writes it once it has a lease; is it running on this node, with this --subnet-file?"
    } else {
        "the plugin must be able to read it"
    };
    unusable(file, &what, hint)
}

fn unusable(file: &Path, what: &str, hint: &str) -> Error {
    // Not through a link: this plugin may read what its owner may not, and shows it to others.
    let cause = match files::read_unlinked(&status_file(file), files::SMALL) {
        Ok(text) if !text.trim_ascii().is_empty() => format!(" (twilld last reported: {})", excerpt(&text)),
        _ => String::new(),
    };
    Error::new(code::TRY_AGAIN, format!("loadFlannelSubnetEnv failed: {what}{cause}")).details(hint)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const FILE: &str = "/run/flannel/subnet.env";
    const IPV4: &str = "FLANNEL_NETWORK=10.5.0.0/16,192.168.0.0/16,10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\n";
    const IPV6: &str = "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00:0:0:22::1/64\n";
    const REST: &str = "FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";

    fn nets(list: &[&str]) -> Vec<IpNetwork> {
        list.iter().map(|n| n.parse().unwrap()).collect()
    }

    #[track_caller]
    fn refusal(text: &str) -> String {
        parse(text.as_bytes(), Path::new(FILE)).unwrap_err()
    }

    #[test]
    fn reads_both_families_and_lists() {
        let env = parse(format!("{IPV4}{IPV6}{REST}").as_bytes(), Path::new(FILE)).unwrap();
        assert_eq!(env.networks, nets(&["10.5.0.0/16", "192.168.0.0/16", "fc00::/48"]));
        assert_eq!(env.subnets, nets(&["10.5.52.0/24", "fc00:0:0:22::/64"]));
        assert_eq!((env.mtu, env.ip_masq), (1430, true));
    }

    #[test]
    fn says_what_is_missing_in_flannels_words() {
        let all = "FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET";
        assert_eq!(refusal(""), format!("{FILE} is missing {all}, FLANNEL_MTU, FLANNEL_IPMASQ"));
        assert_eq!(refusal(REST), format!("{FILE} is missing {all}"));
        let one = "FLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_IPMASQ=false";
        assert_eq!(refusal(one), format!("{FILE} is missing FLANNEL_NETWORK, FLANNEL_MTU"));
        // A family that the pod would have a route to and no address of.
        let half = format!("{IPV4}FLANNEL_IPV6_NETWORK=fc00::/48\n{REST}");
        assert_eq!(refusal(&half), format!("{FILE} is missing FLANNEL_IPV6_SUBNET"));
        let lower = format!("{IPV4}{REST}").replace("FLANNEL_MTU", "flannel_mtu");
        let said = format!("{FILE} is missing FLANNEL_MTU (it has flannel_mtu: keys are upper case)");
        assert_eq!(refusal(&lower), said);
        assert_eq!(parse(b"\xff\xfeF\0", Path::new(FILE)).unwrap_err(), format!("{FILE} is no UTF-8 text"));
    }

    #[test]
    fn names_the_value_that_is_wrong_and_what_was_expected() {
        let good = format!("{IPV4}{IPV6}{REST}");
        for (from, to, said) in [
            ("16,192.168", "16,x,192.168", ": invalid CIDR address: x"),
            ("SUBNET=10.5.52.1/24", "SUBNET=::1/64", "has FLANNEL_SUBNET=::1/64: expected IPv4, as in 10.5.52.1/24"),
            (
                "SUBNET=10.5.52.1/24",
                "SUBNET=10.6.52.1/24",
                "10.6.52.1/24: expected a subnet of FLANNEL_NETWORK=10.5.0.0/16,",
            ),
            ("SUBNET=10.5.52.1/24", "SUBNET=10.0.0.0/8", "10.0.0.0/8: expected a subnet of FLANNEL_NETWORK="),
            ("SUBNET=10.5.52.1/24", "SUBNET=10.5.52.1/31", "10.5.52.1/31: expected a subnet of /30 or larger"),
            ("SUBNET=fc00:0:0:22::1", "SUBNET=fd00::1", "expected a subnet of FLANNEL_IPV6_NETWORK=fc00::/48"),
            ("SUBNET=fc00:0:0:22::1/64", "SUBNET=fc00::1/127", "expected a subnet of /126 or larger"),
            ("MTU=1430", "MTU=0", "has FLANNEL_MTU=0: expected a number of bytes, 1280 to 65535 with IPv6"),
            ("IPMASQ=true", "IPMASQ=1", "has FLANNEL_IPMASQ=1: expected true or false"),
        ] {
            let said_now = refusal(&good.replace(from, to));
            assert!(said_now.starts_with(&format!("{FILE} has ")) && said_now.contains(said), "{to}: {said_now}");
        }
        // The whole network on one node, and the smallest subnet, are what somebody may want.
        for subnet in ["10.5.0.1/16", "10.5.52.1/30", "192.168.7.1/24"] {
            let text = good.replace("10.5.52.1/24", subnet);
            assert!(parse(text.as_bytes(), Path::new(FILE)).is_ok(), "{subnet}");
        }
    }

    #[test]
    fn a_missing_file_keeps_flannels_message_and_the_daemons_cause() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("subnet.env");
        let message = format!("loadFlannelSubnetEnv failed: open {}: no such file or directory", file.display());
        let error = read(&file).unwrap_err();
        assert_eq!((error.code, &error.msg), (code::TRY_AGAIN, &message));
        fs::write(status_file(&file), "no etcd endpoint answers\n").unwrap();
        let error = read(&file).unwrap_err();
        assert_eq!(error.msg, format!("{message} (twilld last reported: no etcd endpoint answers)"));
        // Whoever may write in the folder doesn't get to see what root may read.
        fs::rename(status_file(&file), dir.path().join("secret")).unwrap();
        std::os::unix::fs::symlink("secret", status_file(&file)).unwrap();
        assert_eq!(read(&file).unwrap_err().msg, message);
    }
}
