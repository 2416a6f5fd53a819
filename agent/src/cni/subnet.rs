//! `subnet.env` as the plugin reads it: what the daemon leased, and why it is not there.
//!
//! Shell assignments, one a line, as `loadFlannelSubnetEnv` of flannel's plugin reads them. `handoff` writes the file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;

use super::error::{Error, code, excerpt, os_text};

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

/// Where a daemon may say why there is no usable `subnet.env`: beside it, its name and `.status`, so that several
/// daemons with several files don't mix. Text for people, one line; removed once the daemon is ready.
pub fn status_file(subnet_file: &Path) -> PathBuf {
    let mut name = subnet_file.as_os_str().to_os_string();
    name.push(".status");
    name.into()
}

/// Reads the file. The error keeps flannel's words, for which people search, and adds what the daemon last reported.
pub fn read(file: &Path) -> Result<SubnetEnv, Error> {
    let text = fs::read_to_string(file).map_err(|e| no_open(file, &e))?;
    parse(&text, file).map_err(|wrong| unusable(file, &wrong, "its writer has not finished, or it was edited"))
}

/// What the text says; `file` is for messages.
pub fn parse(text: &str, file: &Path) -> Result<SubnetEnv, String> {
    let mut env = SubnetEnv::default();
    let (mut networks, mut subnets) = ([Vec::new(), Vec::new()], [None, None]);
    let (mut mtu, mut ip_masq) = (None, None);
    for line in text.lines() {
        let Some((key, value)) = line.split_once('=') else { continue };
        let value = value.trim();
        let wrong = |why: String| format!("{} has {key}={value}: {why}", file.display());
        match key.trim() {
            "FLANNEL_NETWORK" => networks[0] = cidrs(value).map_err(wrong)?,
            "FLANNEL_IPV6_NETWORK" => networks[1] = cidrs(value).map_err(wrong)?,
            "FLANNEL_SUBNET" => subnets[0] = Some(cidr(value).map_err(wrong)?),
            "FLANNEL_IPV6_SUBNET" => subnets[1] = Some(cidr(value).map_err(wrong)?),
            "FLANNEL_MTU" => mtu = Some(value.parse().map_err(|_| wrong("not a number of bytes".into()))?),
            "FLANNEL_IPMASQ" => ip_masq = Some(value == "true"),
            _ => {}
        }
    }
    env.networks = networks.into_iter().flatten().collect();
    env.subnets = subnets.into_iter().flatten().collect();
    let missing = [
        (env.networks.is_empty(), "FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK"),
        (env.subnets.is_empty(), "FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET"),
        (mtu.is_none(), "FLANNEL_MTU"),
        (ip_masq.is_none(), "FLANNEL_IPMASQ"),
    ];
    let missing: Vec<&str> = missing.iter().filter(|(is, _)| *is).map(|(_, what)| *what).collect();
    if !missing.is_empty() {
        return Err(format!("{} is missing {}", file.display(), missing.join(", ")));
    }
    Ok(SubnetEnv { mtu: mtu.unwrap_or_default(), ip_masq: ip_masq.unwrap_or_default(), ..env })
}

fn cidrs(list: &str) -> Result<Vec<IpNetwork>, String> {
    let mut networks = Vec::new();
    for network in list.split(',') {
        let network = cidr(network)?;
        if !networks.contains(&network) {
            networks.push(network);
        }
    }
    Ok(networks)
}

/// The network that an address with its length lies in. A bare address is none, as in Go.
pub(crate) fn cidr(text: &str) -> Result<IpNetwork, String> {
    let invalid = || format!("invalid CIDR address: {text}");
    let parsed: IpNetwork = text.trim().parse().map_err(|_| invalid())?;
    if !text.contains('/') {
        return Err(invalid());
    }
    IpNetwork::new(parsed.network(), parsed.prefix()).map_err(|_| invalid())
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
    let cause = match fs::read(status_file(file)) {
        Ok(text) if !text.trim_ascii().is_empty() => format!(" (twilld last reported: {})", excerpt(&text)),
        _ => String::new(),
    };
    Error::new(code::TRY_AGAIN, format!("loadFlannelSubnetEnv failed: {what}{cause}")).details(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "/run/flannel/subnet.env";

    fn nets(list: &[&str]) -> Vec<IpNetwork> {
        list.iter().map(|n| n.parse().unwrap()).collect()
    }

    #[test]
    fn reads_both_families_and_lists() {
        let text = "FLANNEL_NETWORK=10.5.0.0/16,192.168.0.0/16,10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\n\
                    FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00:0:0:22::1/64\n\
                    FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";
        let env = parse(text, Path::new(FILE)).unwrap();
        assert_eq!(env.networks, nets(&["10.5.0.0/16", "192.168.0.0/16", "fc00::/48"]));
        assert_eq!(env.subnets, nets(&["10.5.52.0/24", "fc00:0:0:22::/64"]));
        assert_eq!((env.mtu, env.ip_masq), (1430, true));
    }

    #[test]
    fn says_what_is_missing_in_flannels_words() {
        let wrong = parse("FLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_IPMASQ=false", Path::new(FILE)).unwrap_err();
        assert_eq!(wrong, format!("{FILE} is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_MTU"));
    }

    #[test]
    fn names_the_line_that_is_wrong() {
        for (line, word) in [
            ("FLANNEL_NETWORK=10.5.0.0/16,x", "invalid CIDR address: x"),
            ("FLANNEL_SUBNET=10.5.52.1", "invalid CIDR address: 10.5.52.1"),
            ("FLANNEL_MTU=many", "FLANNEL_MTU=many"),
        ] {
            let wrong = parse(line, Path::new(FILE)).unwrap_err();
            assert!(wrong.contains(word), "{wrong}");
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
    }
}
