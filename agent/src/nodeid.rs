//! The ids of this node, which stand in its record after flannel's members: the node's own, which tells two nodes with one
//! public IP apart, and that of its instance, which tells cloned machines apart.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::files;

/// Where systemd and D-Bus keep the machine's id, <https://www.freedesktop.org/software/systemd/man/machine-id.html>.
const MACHINE_ID: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
/// A UUID that the kernel draws at each boot, <https://docs.kernel.org/admin-guide/sysctl/kernel.html#random>.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The network namespace of this process: its inode number tells it from all others of this boot.
const NETWORK_NAMESPACE: &str = "/proc/self/ns/net";
/// The longest id that a flag may give.
const LONGEST: usize = 128;

/// The id that a flag gives, else the machine's. `None` where there is neither: then nothing is told apart.
pub fn id(flag: Option<&str>) -> Option<String> {
    flag.map(str::to_owned).or_else(|| machine_id(&MACHINE_ID.map(Path::new)))
}

/// The id of this instance: the beginning of the kernel's boot id and the number of the network namespace. The daemon has
/// the same one whenever it is started again; a machine that was booted, or cloned and booted, has another one, and so has
/// another namespace of this machine. Virtual machines that are resumed from one memory snapshot share the boot id and the
/// number of the namespace: they are not told apart unless they have different node ids. `None` where /proc does not tell: then instances are not told apart.
pub fn instance() -> Option<String> {
    let boot = std::fs::read_to_string(BOOT_ID).ok()?;
    instance_of(&boot, std::fs::metadata(NETWORK_NAMESPACE).ok()?.ino())
}

fn instance_of(boot: &str, namespace: u64) -> Option<String> {
    // 32 random bits are enough to tell a few clones apart, and every node reads every record.
    let start = boot.trim().get(..8).filter(|start| start.bytes().all(|b| b.is_ascii_hexdigit()))?;
    Some(format!("{start}-{namespace}"))
}

/// Reads an id from a command line.
pub fn parse(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if text.is_empty() || text.len() > LONGEST || !text.chars().all(fits) {
        return Err(format!("expected up to {LONGEST} letters, digits and -_.: as in a host name, got {text:?}"));
    }
    Ok(text.to_owned())
}

/// The first of these files with an id in it: 32 hexadecimal digits, not all of them 0. An image that is yet to be booted
/// has an empty file or the word "uninitialized".
fn machine_id(files: &[&Path]) -> Option<String> {
    files.iter().find_map(|file| {
        let text = files::read(file, files::SMALL).ok()?;
        let id = str::from_utf8(&text).ok()?.trim();
        let is_id = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()) && id.bytes().any(|b| b != b'0');
        is_id.then(|| id.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_file_with_an_id_counts() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["a", "b", "c"].map(|name| dir.path().join(name));
        let files = files.each_ref().map(std::path::PathBuf::as_path);
        assert_eq!(machine_id(&files), None);
        for not_one in ["", "uninitialized\n", "00000000000000000000000000000000\n", "d8a2"] {
            std::fs::write(files[0], not_one).unwrap();
            assert_eq!(machine_id(&files), None, "{not_one:?}");
        }
        nix::unistd::mkfifo(files[1], nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::write(files[2], "d8a2e05ac1b94a5c8a3a3f0d0c1b2a39\n").unwrap();
        assert_eq!(machine_id(&files).as_deref(), Some("d8a2e05ac1b94a5c8a3a3f0d0c1b2a39"));
        assert_eq!(id(Some("worker-1")).as_deref(), Some("worker-1"));
    }

    #[test]
    fn an_instance_is_a_boot_and_a_namespace() {
        assert_eq!(
            instance_of("1b4e28ba-2fa1-11d2-883f-0016d3cca427\n", 4_026_531_840).as_deref(),
            Some("1b4e28ba-4026531840")
        );
        for not_one in ["", "1b4e28b", "1b4e28bx-2fa1", "\u{fc}\u{fc}\u{fc}\u{fc}"] {
            assert_eq!(instance_of(not_one, 1), None, "{not_one:?}");
        }
        assert_eq!(instance(), instance());
        assert!(instance().is_some());
    }

    #[test]
    fn ids_of_a_flag() {
        for good in ["worker-1.example", "d8a2e05ac1b94a5c8a3a3f0d0c1b2a39", "a:b_c"] {
            assert_eq!(parse(good).as_deref(), Ok(good));
        }
        for bad in ["", "two words", "\"", &"x".repeat(129)] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
