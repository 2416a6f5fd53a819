//! `subnet.env`: what the CNI plugin reads, and where a restarted daemon finds its last subnet.
//!
//! The form is flannel's to the byte: shell assignments, unquoted, in a fixed order, mode 0644. [`env`] reads it.

pub(crate) mod env;

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::files::{self, Form};
use crate::overlay::record::Family;
use crate::overlay::{Shown, SubnetKey};
use env::{Assignments, IP_MASQ, MTU, network_key, subnet_key};

/// Mode and way of both files. Neither is synced: the event loop writes them, and must not wait for a disk; a machine that
/// loses power has a daemon that writes them again.
const FORM: Form<'static> = Form { mode: 0o644, prefix: ".subnet.env.", suffix: "", lasting: false };

/// The longest reason that the status file holds, in characters.
const LONGEST_REASON: usize = 1000;

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
        let ipv4 = self.ipv4.map(|(network, subnet)| (Family::V4, network.into(), subnet.into()));
        let ipv6 = self.ipv6.map(|(network, subnet)| (Family::V6, network.into(), subnet.into()));
        for (family, network, subnet) in [ipv4, ipv6].into_iter().flatten() {
            let network: IpNetwork = network;
            text += &format!("{}={network}\n{}={}\n", network_key(family), subnet_key(family), host_address(subnet));
        }
        text + &format!("{MTU}={}\n{IP_MASQ}={}\n", self.mtu, self.ip_masq)
    }

    /// Writes the file so that a reader sees the old or the new one, never a part, and takes the place of a link. Whether
    /// it was any different.
    pub fn write(&self, path: &Path) -> Result<bool, Error> {
        let text = self.render();
        if files::is_there(path, text.as_bytes(), FORM.mode) {
            return Ok(false);
        }
        files::sweep(files::folder(path), FORM.prefix);
        let failed = |e: files::PutError| Error { step: e.step, path: path.display().to_string(), source: e.source };
        files::put(path, text.as_bytes(), FORM).map_err(failed)?;
        Ok(true)
    }
}

/// Where a daemon says why there is no usable `subnet.env`: beside it, its name and `.status`, so that several daemons
/// with several files don't mix. Text for people, one line; removed once the daemon is ready.
pub fn status_file(subnet_file: &Path) -> PathBuf {
    let mut name = subnet_file.as_os_str().to_os_string();
    name.push(".status");
    name.into()
}

/// Tells the CNI plugin why there is no usable `subnet.env`, in one line that it shows to people; `None`: there is one.
///
/// For what it is worth: a failure is only logged, since the reason itself is logged as well.
pub fn explain(subnet_file: &Path, reason: Option<&str>) {
    let path = status_file(subnet_file);
    let done = match reason {
        Some(reason) => files::put(&path, status(reason).as_bytes(), FORM).map_err(|e| e.to_string()),
        None => match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e.to_string()),
            _ => Ok(()),
        },
    };
    if let Err(error) = done {
        tracing::debug!(file = %path.display(), %error, "cannot leave word for the CNI plugin");
    }
}

/// A reason as one line of a bounded length, with nothing in it that a terminal obeys.
fn status(reason: &str) -> String {
    let words = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{}\n", Shown::up_to(LONGEST_REASON, &words))
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
    let there = Assignments::read(&files::read(path, files::SMALL).ok()?)?;
    // One family's junk doesn't spoil the other's.
    let subnet = |family| there.subnet(family).ok().flatten();
    let ipv4 = if let Some(IpNetwork::V4(subnet)) = subnet(Family::V4) { Some(subnet) } else { None };
    let ipv6 = if let Some(IpNetwork::V6(subnet)) = subnet(Family::V6) { Some(subnet) } else { None };
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
    use std::os::unix::fs::{PermissionsExt, symlink};

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
    fn neither_file_is_written_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (path, theirs) = (folder.path().join("subnet.env"), folder.path().join("theirs"));
        // The very text, so that only what it is behind makes the difference.
        fs::write(&theirs, env().render()).unwrap();
        for link in [path.clone(), status_file(&path)] {
            symlink(&theirs, link).unwrap();
        }
        assert!(env().write(&path).unwrap());
        explain(&path, Some("no etcd\nendpoint \x1b[2Janswers"));
        for (ours, text) in
            [(&path, env().render()), (&status_file(&path), "no etcd endpoint \\u{1b}[2Janswers\n".into())]
        {
            assert!(fs::symlink_metadata(ours).unwrap().is_file());
            assert_eq!(fs::read_to_string(ours).unwrap(), text);
        }
        assert_eq!(fs::read_to_string(&theirs).unwrap(), env().render());
        withdraw(&path, &"x".repeat(100_000));
        assert!(!path.exists() && fs::metadata(status_file(&path)).unwrap().len() < LONGEST_REASON as u64 + 50);
        explain(&path, None);
        assert!(!status_file(&path).exists() && theirs.exists());
    }

    #[test]
    fn a_previous_file_that_is_none_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("subnet.env");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(previous(&path), None);
        assert!(env().write(&path).unwrap(), "a file takes the place of a FIFO");
        fs::remove_file(&path).unwrap();
        symlink("/dev/zero", &path).unwrap();
        assert_eq!(previous(&path), None);
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
