//! The stored configurations: what a delegate was given at ADD, kept until its DEL succeeded.
//!
//! An attachment is (container id, network, interface), and its file `<dataDir>/<container id>:<network>:<interface>`;
//! no id, name or interface can hold a colon. Flannel's plugin knows one file per container, `<dataDir>/<container id>`,
//! and loses all but the last attachment of a pod with several. So that one also finds what we stored (a node may go
//! back to it), the first attachment has a second name, a hard link, in flannel's form. Whose a file of that form is
//! tells its link count: two names is an attachment of ours and belongs to the longer name; one name was written by
//! flannel's plugin and belongs to the network that its `name` says, or to whichever asks for it where it can't be read:
//! a machine that lost power while it was written, perhaps.
//!
//! Files are 0600 in a directory 0700, complete from the first moment (written aside, renamed) and synced before the
//! delegate is called. Names with a leading dot are files that are being written; DEL and GC remove those of killed ADDs.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// What a stored configuration belongs to: the key that the specification asks plugins to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key<'a> {
    /// `CNI_CONTAINERID`.
    pub container_id: &'a str,
    /// The network's `name`.
    pub network: &'a str,
    /// `CNI_IFNAME`.
    pub ifname: &'a str,
}

/// The directory of stored configurations.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

/// A configuration that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its text, as the delegate was given it.
    pub text: Vec<u8>,
    path: PathBuf,
}

/// What of a file of flannel's form says whose it is.
#[derive(Deserialize)]
struct Named {
    name: String,
}

/// Begins the names of files that are being written; no container id begins with a dot.
const NEW: &str = ".new-";

impl Key<'_> {
    /// Whether the file's name is longer than any file system takes; and how long the three may be together.
    pub fn too_long(&self) -> Option<usize> {
        // A colon between each two, and before them what a file that is being written has: random letters and a colon.
        const MOST: usize = 255 - 2 - NEW.len() - 7;
        let length = self.container_id.len() + self.network.len() + self.ifname.len();
        (length > MOST).then_some(MOST)
    }

    fn file_name(&self) -> String {
        format!("{}:{}:{}", self.container_id, self.network, self.ifname)
    }

    /// The key that a file name holds, with or without the mark of an unfinished one.
    fn from_file_name(name: &str) -> Option<Key<'_>> {
        let name = match name.strip_prefix(NEW) {
            Some(rest) => rest.split_once(':')?.1,
            None => name,
        };
        let mut parts = name.split(':');
        let key = Key { container_id: parts.next()?, network: parts.next()?, ifname: parts.next()? };
        parts.next().is_none().then_some(key)
    }
}

impl Store {
    /// The store in `dir`, which need not be there yet.
    pub fn new(dir: &Path) -> Store {
        Store { dir: dir.to_path_buf() }
    }

    /// Keeps a configuration, in place of an earlier one of the same key. It is on the disk when this returns.
    pub fn save(&self, key: Key<'_>, text: &[u8]) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let path = self.dir.join(key.file_name());
        let suffix = format!(":{}", key.file_name());
        // 0600 is tempfile's own mode.
        let mut file = tempfile::Builder::new().prefix(NEW).suffix(&suffix).tempfile_in(&self.dir)?;
        file.write_all(text)?;
        let file = file.persist(&path).map_err(|e| e.error)?;
        self.link(key, &path);
        // After the renaming, so that one flush makes both the content and (where the file system has a journal) its
        // names durable; the directory's own then finds nothing left to do.
        file.sync_all()?;
        File::open(&self.dir)?.sync_all()
    }

    /// What is stored under the key, by us or by flannel's plugin.
    pub fn load(&self, key: Key<'_>) -> io::Result<Option<Stored>> {
        let path = self.dir.join(key.file_name());
        if let Some(text) = found(fs::read(&path))? {
            return Ok(Some(Stored { text, path }));
        }
        let path = self.dir.join(key.container_id);
        let Some(metadata) = found(fs::symlink_metadata(&path))? else { return Ok(None) };
        if !flannels_own(&metadata) {
            return Ok(None);
        }
        let text = found(fs::read(&path))?.filter(|text| network_of(text).is_none_or(|name| name == key.network));
        Ok(text.map(|text| Stored { text, path }))
    }

    /// Forgets what is stored under the key: its delegate has taken everything down, or was never called.
    pub fn remove(&self, key: Key<'_>) -> io::Result<()> {
        match self.load(key)? {
            Some(stored) => self.forget(&stored.path, key.container_id),
            None => Ok(()),
        }
    }

    /// Removes what ADDs of this key that were killed left unfinished.
    pub fn sweep(&self, key: Key<'_>) -> io::Result<()> {
        let Some(entries) = found(fs::read_dir(&self.dir))? else { return Ok(()) };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names
            .filter(|name| name.starts_with(NEW) && Key::from_file_name(name) == Some(key))
            .try_for_each(|name| gone(fs::remove_file(self.dir.join(name))))
    }

    /// Forgets all of `network` but the attachments (container id, interface) in `valid`. Goes on after an error and
    /// returns the first one.
    pub fn retain(&self, network: &str, valid: &BTreeSet<(String, String)>) -> io::Result<()> {
        let Some(entries) = found(fs::read_dir(&self.dir))? else { return Ok(()) };
        let names: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
        let mut result = Ok(());
        for name in names.iter().filter(|name| name.contains(':')) {
            let Some(key) = Key::from_file_name(name) else { continue };
            if key.network == network && !valid.contains(&(key.container_id.into(), key.ifname.into())) {
                result = result.and(self.forget(&self.dir.join(name), key.container_id));
            }
        }
        // Flannel's form names no interface: such a file stays as long as the container has any.
        for id in names.iter().filter(|name| !name.contains(':')) {
            let path = self.dir.join(id);
            let stale = fs::symlink_metadata(&path).is_ok_and(|m| flannels_own(&m))
                && fs::read(&path).is_ok_and(|text| network_of(&text).as_deref() == Some(network))
                && !valid.iter().any(|(container, _)| container == id);
            if stale {
                result = result.and(gone(fs::remove_file(&path)));
            }
        }
        result
    }

    /// Gives the file its second name, unless that one is another attachment's. Flannel's plugin would overwrite its
    /// own file of the same network, so do we. Not being able to is no failure: some file systems have no links.
    fn link(&self, key: Key<'_>, path: &Path) {
        let alias = self.dir.join(key.container_id);
        match fs::symlink_metadata(&alias) {
            Err(_) => drop(fs::hard_link(path, &alias)),
            Ok(there) if flannels_own(&there) => {
                if !fs::read(&alias).is_ok_and(|text| network_of(&text).is_some_and(|name| name != key.network)) {
                    let aside = self.dir.join(format!("{NEW}link:{}", key.file_name()));
                    let _ = fs::remove_file(&aside);
                    let _ = fs::hard_link(path, &aside).and_then(|()| fs::rename(&aside, &alias));
                }
            }
            Ok(_) => {}
        }
    }

    /// Removes a file, and before it (a crash between the two must leave the longer name) its second name.
    fn forget(&self, path: &Path, container_id: &str) -> io::Result<()> {
        let alias = self.dir.join(container_id);
        if let (Ok(one), Ok(other)) = (fs::symlink_metadata(path), fs::symlink_metadata(&alias))
            && (one.dev(), one.ino()) == (other.dev(), other.ino())
        {
            gone(fs::remove_file(&alias))?;
        }
        gone(fs::remove_file(path))
    }
}

/// Whether a file of flannel's form is flannel's plugin's own. In doubt (a directory, a link) it is nobody's.
fn flannels_own(metadata: &Metadata) -> bool {
    metadata.is_file() && metadata.nlink() == 1
}

fn network_of(text: &[u8]) -> Option<String> {
    serde_json::from_slice::<Named>(text).ok().map(|named| named.name)
}

fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        // A name too long for a file is that of no file.
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENAMETOOLONG) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Removing what is gone is a success.
fn gone(result: io::Result<()>) -> io::Result<()> {
    found(result).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const ETH0: Key<'static> = Key { container_id: "c1", network: "net", ifname: "eth0" };

    struct Dir {
        store: Store,
        _root: tempfile::TempDir,
    }

    fn dir() -> Dir {
        let root = tempfile::tempdir().unwrap();
        Dir { store: Store::new(&root.path().join("deep/data")), _root: root }
    }

    impl Dir {
        fn names(&self) -> Vec<String> {
            let mut names: Vec<_> =
                fs::read_dir(&self.store.dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }

        fn text(&self, key: Key<'_>) -> Option<String> {
            self.store.load(key).unwrap().map(|stored| String::from_utf8(stored.text).unwrap())
        }

        fn save(&self, key: Key<'_>) {
            self.store.save(key, format!(r#"{{"name":"{}","if":"{}"}}"#, key.network, key.ifname).as_bytes()).unwrap();
        }

        fn flannel_saves(&self, id: &str, text: &str) {
            fs::create_dir_all(&self.store.dir).unwrap();
            fs::write(self.store.dir.join(id), text).unwrap();
        }
    }

    #[test]
    fn keeps_it_private_and_under_both_names() {
        let dir = dir();
        dir.save(ETH0);
        assert_eq!(dir.names(), ["c1", "c1:net:eth0"]);
        assert_eq!(fs::metadata(&dir.store.dir).unwrap().permissions().mode() & 0o7777, 0o700);
        assert_eq!(fs::metadata(dir.store.dir.join("c1")).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(dir.text(ETH0).unwrap(), r#"{"name":"net","if":"eth0"}"#);
        dir.store.remove(ETH0).unwrap();
        assert!(dir.names().is_empty());
        dir.store.remove(ETH0).unwrap();
    }

    #[test]
    fn a_repeated_save_replaces_both_names() {
        let dir = dir();
        dir.save(ETH0);
        dir.store.save(ETH0, br#"{"name":"net","second":true}"#).unwrap();
        assert_eq!(dir.names(), ["c1", "c1:net:eth0"]);
        assert_eq!(fs::read(dir.store.dir.join("c1")).unwrap(), br#"{"name":"net","second":true}"#);
    }

    #[test]
    fn attachments_of_one_container_do_not_mix() {
        let dir = dir();
        let others = [
            Key { ifname: "net1", ..ETH0 },
            Key { network: "blue", ..ETH0 },
            Key { container_id: "c2", network: "net", ifname: "eth0" },
        ];
        dir.save(ETH0);
        for key in others {
            assert_eq!(dir.text(key), None, "{key:?}");
            dir.save(key);
        }
        dir.store.remove(ETH0).unwrap();
        dir.store.remove(ETH0).unwrap();
        for key in others {
            assert_eq!(dir.text(key).unwrap(), format!(r#"{{"name":"{}","if":"{}"}}"#, key.network, key.ifname));
            dir.store.remove(key).unwrap();
        }
        assert!(dir.names().is_empty());
    }

    #[test]
    fn finds_what_flannels_plugin_stored() {
        let dir = dir();
        dir.flannel_saves("c1", r#"{"name":"net","type":"bridge"}"#);
        assert_eq!(dir.text(Key { network: "blue", ..ETH0 }), None);
        assert_eq!(dir.text(ETH0).unwrap(), r#"{"name":"net","type":"bridge"}"#);
        // Of another network: both stay.
        dir.save(Key { network: "blue", ..ETH0 });
        assert_eq!(dir.names(), ["c1", "c1:blue:eth0"]);
        dir.store.remove(ETH0).unwrap();
        assert_eq!(dir.names(), ["c1:blue:eth0"]);
        // Of the same: replaced.
        dir.flannel_saves("c2", r#"{"name":"net"}"#);
        let c2 = Key { container_id: "c2", ..ETH0 };
        dir.save(c2);
        dir.store.remove(c2).unwrap();
        assert_eq!(dir.names(), ["c1:blue:eth0"]);
    }

    #[test]
    fn what_nobody_can_read_is_whose_name_it_has() {
        let dir = dir();
        for cut in ["", r#"{"name":"n"#] {
            dir.flannel_saves("c1", cut);
            assert_eq!(dir.text(ETH0).unwrap(), cut);
            dir.store.remove(ETH0).unwrap();
            assert!(dir.names().is_empty());
        }
        fs::create_dir(dir.store.dir.join("c3")).unwrap();
        assert_eq!(dir.text(Key { container_id: "c3", ..ETH0 }), None);
    }

    #[test]
    fn retain_spares_the_valid_and_other_networks() {
        let dir = dir();
        let stale = Key { container_id: "c2", ..ETH0 };
        let blue = Key { container_id: "c2", network: "blue", ifname: "net1" };
        dir.save(ETH0);
        dir.save(stale);
        dir.save(blue);
        dir.flannel_saves("old", r#"{"name":"net"}"#);
        dir.flannel_saves("old-valid", r#"{"name":"net"}"#);
        dir.flannel_saves("old-blue", r#"{"name":"blue"}"#);
        dir.flannel_saves("rubbish", "");
        dir.flannel_saves(".new-abc:c9:net:eth0", "");
        dir.flannel_saves(".new-abc:c9:blue:eth0", "");
        let valid = BTreeSet::from([("c1".into(), "eth0".into()), ("old-valid".into(), "eth0".into())]);
        dir.store.retain("net", &valid).unwrap();
        let left = [".new-abc:c9:blue:eth0", "c1", "c1:net:eth0", "c2:blue:net1", "old-blue", "old-valid", "rubbish"];
        assert_eq!(dir.names(), left);
        dir.store.retain("net", &valid).unwrap();
        assert_eq!(dir.names(), left);
    }

    #[test]
    fn sweep_removes_what_was_left_unfinished_of_its_own() {
        let dir = dir();
        dir.save(ETH0);
        for name in [".new-abc123:c1:net:eth0", ".new-link:c1:net:eth0", ".new-abc:c1:net:eth1", ".new-abc:c2:net:eth0"]
        {
            dir.flannel_saves(name, "");
        }
        dir.store.sweep(ETH0).unwrap();
        assert_eq!(dir.names(), [".new-abc:c1:net:eth1", ".new-abc:c2:net:eth0", "c1", "c1:net:eth0"]);
    }

    #[test]
    fn names_that_fit_can_be_stored_and_longer_ones_are_not_there() {
        let dir = dir();
        let long = "n".repeat(300);
        let most = Key { network: &long, ..ETH0 }.too_long().unwrap();
        let longest = &long[..most - ETH0.container_id.len() - ETH0.ifname.len()];
        let key = Key { network: longest, ..ETH0 };
        assert_eq!(key.too_long(), None);
        dir.save(key);
        dir.save(key);
        assert!(dir.text(key).is_some());
        assert_eq!(dir.text(Key { network: &long, ..ETH0 }), None);
        assert_eq!(dir.text(Key { container_id: &long, ..ETH0 }), None);
    }

    #[test]
    fn no_directory_is_nothing_stored() {
        let dir = dir();
        assert_eq!(dir.text(ETH0), None);
        dir.store.retain("net", &BTreeSet::new()).unwrap();
    }
}
