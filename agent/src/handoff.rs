//! `subnet.env`: what the CNI plugin reads, and where a restarted daemon finds its last subnet.
//!
//! The form is flannel's to the byte: shell assignments, unquoted, in a fixed order, mode 0644.

use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::overlay::SubnetKey;

/// What `subnet.env` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The IPv4 network and our subnet in it.
    pub ipv4: Option<(Ipv4Network, Ipv4Network)>,
    /// The IPv6 network and our subnet in it.
    pub ipv6: Option<(Ipv6Network, Ipv6Network)>,
    /// The MTU of our devices in bytes; the smaller one where there are two.
    pub mtu: u32,
    /// Whether this daemon masquerades.
    pub ip_masq: bool,
}

/// A step on `subnet.env` that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step} {path}: {source}")]
pub struct Error {
    step: &'static str,
    path: String,
    source: io::Error,
}

impl SubnetEnv {
    /// The file's text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if let Some((network, subnet)) = self.ipv4 {
            text += &format!("FLANNEL_NETWORK={network}\nFLANNEL_SUBNET={}\n", host_address(subnet.into()));
        }
        if let Some((network, subnet)) = self.ipv6 {
            text += &format!("FLANNEL_IPV6_NETWORK={network}\nFLANNEL_IPV6_SUBNET={}\n", host_address(subnet.into()));
        }
        text + &format!("FLANNEL_MTU={}\nFLANNEL_IPMASQ={}\n", self.mtu, self.ip_masq)
    }

    /// Writes the file so that a reader sees the old or the new one, never a part. Whether it was any different.
    pub fn write(&self, path: &Path) -> Result<bool, Error> {
        let text = self.render();
        if fs::read_to_string(path).is_ok_and(|there| there == text) {
            return Ok(false);
        }
        let failed = |step| move |source| Error { step, path: path.display().to_string(), source };
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(failed("make the folder of"))?;
        let mut file = tempfile::Builder::new().prefix(".subnet.env.").tempfile_in(folder).map_err(failed("write"))?;
        file.write_all(text.as_bytes()).map_err(failed("write"))?;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).map_err(failed("set the mode of"))?;
        file.as_file().sync_all().map_err(failed("sync"))?;
        file.persist(path).map_err(|e| failed("replace")(e.error))?;
        Ok(true)
    }
}

/// Tells the CNI plugin why there is no usable `subnet.env`, in one line that it shows to people; `None`: there is one.
///
/// For what it is worth: a failure is only logged, since the reason itself is logged as well.
pub fn explain(subnet_file: &Path, reason: Option<&str>) {
    let path = crate::cni::status_file(subnet_file);
    let done = match reason {
        Some(reason) => {
            let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
            folder.and_then(|()| fs::write(&path, format!("{}\n", reason.replace('\n', " "))))
        }
        None => fs::remove_file(&path).or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) }),
    };
    if let Err(error) = done {
        tracing::debug!(file = %path.display(), %error, "cannot leave word for the CNI plugin");
    }
}

/// Takes the subnet back that `subnet.env` names, for this reason: nothing may be added to it any more.
pub fn withdraw(subnet_file: &Path, reason: &str) {
    explain(subnet_file, Some(reason));
    match fs::remove_file(subnet_file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(file = %subnet_file.display(), %error, "cannot remove subnet.env, which names a subnet that is not ours");
        }
        _ => {}
    }
}

/// The subnets that an earlier daemon left in `subnet.env`, if there is such a file and it can be read.
pub fn previous(path: &Path) -> Option<SubnetKey> {
    let text = fs::read_to_string(path).ok()?;
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    // A bare address would be taken for a subnet of one.
    let subnet = |key| value(key).map(str::trim).filter(|v| v.contains('/'));
    let ipv4 = subnet("FLANNEL_SUBNET").and_then(|v| v.parse::<Ipv4Network>().ok());
    let ipv6 = subnet("FLANNEL_IPV6_SUBNET").and_then(|v| v.parse::<Ipv6Network>().ok());
    let ipv4 = ipv4.and_then(|net| Ipv4Network::new(net.network(), net.prefix()).ok());
    let ipv6 = ipv6.and_then(|net| Ipv6Network::new(net.network(), net.prefix()).ok());
    (ipv4.is_some() || ipv6.is_some()).then_some(SubnetKey { ipv4, ipv6 })
}

/// The subnet's second address with its length: what `FLANNEL_SUBNET` holds (the bridge of the pods takes it).
pub(crate) fn host_address(subnet: IpNetwork) -> String {
    let address = match subnet.network() {
        IpAddr::V4(first) => IpAddr::from(Ipv4Addr::from(u32::from(first) + 1)),
        IpAddr::V6(first) => IpAddr::from(Ipv6Addr::from(u128::from(first) + 1)),
    };
    format!("{address}/{}", subnet.prefix())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> SubnetEnv {
        let ipv4 = Some(("10.5.0.0/16".parse().unwrap(), "10.5.52.0/24".parse().unwrap()));
        SubnetEnv { ipv4, ipv6: None, mtu: 1450, ip_masq: false }
    }

    #[test]
    fn the_text_is_flannels() {
        let text = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
        assert_eq!(env().render(), text);
        let ipv6 = Some(("fc00::/48".parse().unwrap(), "fc00:0:0:22::/64".parse().unwrap()));
        let text = SubnetEnv { ipv6, ip_masq: true, ..env() }.render();
        assert!(text.contains("\nFLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00:0:0:22::1/64\nFLANNEL_MTU"));
        assert!(text.ends_with("FLANNEL_IPMASQ=true\n"));
    }

    #[test]
    fn written_once_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/subnet.env");
        assert!(env().write(&path).unwrap());
        assert!(!env().write(&path).unwrap(), "the same text is not written again");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        let key = previous(&path).unwrap();
        assert_eq!(key.ipv4, Some("10.5.52.0/24".parse().unwrap()));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let error = env().write(Path::new("/proc/nosuch/subnet.env")).unwrap_err().to_string();
        assert!(error.starts_with("make the folder of /proc/nosuch/subnet.env: "), "{error}");
    }

    #[test]
    fn junk_is_no_previous_subnet() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for junk in
            ["", "FLANNEL_SUBNETX=10.5.1.1/24\n", "FLANNEL_SUBNET=\nFLANNEL_MTU=1450\n", "FLANNEL_SUBNET=x/24\n"]
        {
            fs::write(file.path(), junk).unwrap();
            assert_eq!(previous(file.path()), None, "{junk:?}");
        }
        // A bare address is no subnet, and one family's junk doesn't spoil the other's.
        fs::write(file.path(), "FLANNEL_SUBNET=10.5.52.1\nFLANNEL_IPV6_SUBNET=fc00:0:0:22::1/64\n").unwrap();
        let ipv6 = Some("fc00:0:0:22::/64".parse().unwrap());
        assert_eq!(previous(file.path()), Some(SubnetKey { ipv4: None, ipv6 }));
        assert_eq!(previous(Path::new("/nosuch")), None);
    }
}
