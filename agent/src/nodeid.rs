//! The id of this node: what tells two nodes with one public IP apart. It stands in the record after flannel's members.

use std::path::Path;

use crate::files;

/// Where systemd and D-Bus keep the machine's id, <https://www.freedesktop.org/software/systemd/man/machine-id.html>.
const MACHINE_ID: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
/// The longest id that a flag may give.
const LONGEST: usize = 128;

/// The id that a flag gives, else the machine's. `None` where there is neither: then nothing is told apart.
pub fn id(flag: Option<&str>) -> Option<String> {
    flag.map(str::to_owned).or_else(|| machine_id(&MACHINE_ID.map(Path::new)))
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
    fn ids_of_a_flag() {
        for good in ["worker-1.example", "d8a2e05ac1b94a5c8a3a3f0d0c1b2a39", "a:b_c"] {
            assert_eq!(parse(good).as_deref(), Ok(good));
        }
        for bad in ["", "two words", "\"", &"x".repeat(129)] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
