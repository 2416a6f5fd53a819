//! The stored configurations: what a delegate was given at ADD, kept until what it made is taken down.
//!
//! An attachment is (container id, network, interface). Flannel's plugin knows one file per container,
//! `<dataDir>/<container id>`, and loses all but the last attachment of a pod with several. The first attachment of a
//! container has that name here too, and no other, so that a node may go back to flannel's plugin: its DEL finds the file
//! and leaves nothing behind. Each further one is `<dataDir>/<container id>:<network>:<interface>`; no id, name or
//! interface can hold a colon. Behind the delegate's own keys stands one of ours, which says whose a file is
//! ([`Attachment`]). Without it a file of flannel's name was written by flannel's plugin and belongs to the network that
//! its `name` says, or to whichever asks for it where it can't be read: a machine that lost power while it was written,
//! perhaps.
//!
//! Files are 0600 in a directory 0700, complete from the first moment (written aside, renamed) and synced before the
//! delegate is called. Names with a leading dot are files that are being written; DEL and GC remove those of killed ADDs.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::conf::Object;
use super::error::Error;
use crate::files::{self, Form};

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
#[derive(Debug, Clone)]
pub struct Stored {
    /// What the delegate was given; or why it can't be read.
    pub config: Result<Object, String>,
    /// The delegate's error, if the ADD failed in the delegate and nothing was added under this key before.
    pub failed: Option<Error>,
    ifname: Option<String>,
    text: Vec<u8>,
    path: PathBuf,
}

/// What we add to a stored configuration, under a key of our own, behind all that the delegate was given.
#[derive(Debug, Serialize, Deserialize)]
struct Attachment {
    ifname: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<Error>,
}

/// The key of [`Attachment`].
const ATTACHMENT: &str = "twill.attachment";

/// Begins the names of files that are being written; no container id begins with a dot.
const NEW: &str = ".new-";

/// No configuration is longer: what a runtime may pass (4 MiB), with the subnets and routes of `subnet.env`.
const LONGEST: u64 = 8 << 20;

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

impl Stored {
    /// The network's name, where it can be read.
    fn network(&self) -> Option<String> {
        serde_json::from_str(self.config.as_ref().ok()?.get("name")?.get()).ok()
    }

    /// Whether a file of flannel's name may be this key's.
    fn may_be(&self, key: Key<'_>) -> bool {
        self.network().is_none_or(|name| name == key.network)
            && self.ifname.as_ref().is_none_or(|ifname| ifname == key.ifname)
    }
}

impl Store {
    /// The store in `dir`, which need not be there yet.
    pub fn new(dir: &Path) -> Store {
        Store { dir: dir.to_path_buf() }
    }

    /// Keeps what the delegate is given, in place of an earlier configuration of the same key; `failed` is what it then
    /// said. It is on the disk when this returns.
    pub fn save(&self, key: Key<'_>, config: &[u8], failed: Option<Error>) -> io::Result<()> {
        let attachment = serde_json::to_string(&Attachment { ifname: key.ifname.to_owned(), failed })?;
        let open = config.trim_ascii().strip_suffix(b"}").ok_or(io::ErrorKind::InvalidData)?;
        let text = [open, format!(",\"{ATTACHMENT}\":{attachment}}}").as_bytes()].concat();
        self.put(key, &text)
    }

    /// Puts an earlier configuration back that a [`Store::save`] has replaced.
    pub fn restore(&self, key: Key<'_>, earlier: &Stored) -> io::Result<()> {
        self.put(key, &earlier.text)
    }

    /// What is stored under the key, by us or by flannel's plugin.
    pub fn load(&self, key: Key<'_>) -> io::Result<Option<Stored>> {
        if let Some(stored) = self.read(self.dir.join(key.file_name()))? {
            return Ok(Some(stored));
        }
        Ok(self.read_flannels(key.container_id)?.filter(|stored| stored.may_be(key)))
    }

    /// Forgets what is stored under the key: its delegate has taken everything down, or was never called.
    pub fn remove(&self, key: Key<'_>) -> io::Result<()> {
        match self.load(key)? {
            Some(stored) => {
                self.forget_second_name(&stored.path, key)?;
                gone(fs::remove_file(stored.path))
            }
            None => Ok(()),
        }
    }

    /// Removes what ADDs of this key that were killed left unfinished.
    pub fn sweep(&self, key: Key<'_>) -> io::Result<()> {
        let unfinished = |name: &String| name.starts_with(NEW) && Key::from_file_name(name) == Some(key);
        let mut names = self.names()?.into_iter().filter(unfinished);
        names.try_for_each(|name| gone(fs::remove_file(self.dir.join(name))))
    }

    /// Forgets all of `network` but the attachments (container id, interface) in `valid`. Goes on after an error and
    /// returns the first one.
    pub fn retain(&self, network: &str, valid: &BTreeSet<(String, String)>) -> io::Result<()> {
        let is_valid = |id: &str, ifname: &str| valid.contains(&(id.to_owned(), ifname.to_owned()));
        let mut result = Ok(());
        // The longer names first: a second name goes with them.
        let (longer, flannels) = self.names()?.into_iter().partition::<Vec<_>, _>(|name| name.contains(':'));
        for name in longer {
            let Some(key) = Key::from_file_name(&name) else { continue };
            if key.network == network && !is_valid(key.container_id, key.ifname) {
                let path = self.dir.join(&name);
                result = result.and(self.forget_second_name(&path, key).and_then(|()| gone(fs::remove_file(path))));
            }
        }
        for id in flannels {
            let Ok(Some(stored)) = self.read_flannels(&id) else { continue };
            let is_spared = match &stored.ifname {
                Some(ifname) => is_valid(&id, ifname),
                // Flannel's plugin named no interface: such a file stays as long as the container has any.
                None => valid.iter().any(|(container, _)| *container == id),
            };
            if stored.network().as_deref() == Some(network) && !is_spared {
                result = result.and(gone(fs::remove_file(stored.path)));
            }
        }
        result
    }

    fn put(&self, key: Key<'_>, text: &[u8]) -> io::Result<()> {
        let suffix = format!(":{}", key.file_name());
        let form = Form { mode: 0o600, prefix: NEW, suffix: &suffix, lasting: false };
        files::make_folder(&self.dir, 0o700)?;
        let file = files::write_aside(&self.dir, text, form).map_err(|e| e.source)?;
        let own = self.dir.join(key.file_name());
        let flannels = self.dir.join(key.container_id);
        let file = if fs::symlink_metadata(&own).is_ok() {
            self.forget_second_name(&own, key)?;
            file.persist(own)
        } else {
            file.persist_noclobber(&flannels).or_else(|taken| {
                // Flannel's plugin would overwrite its own file of the same network, so do we. Where the file system can't
                // tell whether the name is free, the longer one serves.
                let ours = self.read_flannels(key.container_id).ok().flatten().is_some_and(|there| there.may_be(key));
                taken.file.persist(if ours { flannels } else { own })
            })
        };
        // After the renaming, so that one flush makes both the content and (where the file system has a journal) the name
        // durable; the directory's own then finds nothing left to do.
        file.map_err(|e| e.error)?.sync_all()?;
        files::sync_folder(&self.dir).map_err(|e| e.source)
    }

    /// Removes the second name, in flannel's form, that an earlier Twill gave to the file at `path`: before that one, so
    /// that a crash between the two leaves the longer name.
    fn forget_second_name(&self, path: &Path, key: Key<'_>) -> io::Result<()> {
        let second = self.dir.join(key.container_id);
        match (fs::symlink_metadata(path), fs::symlink_metadata(&second)) {
            (Ok(one), Ok(other)) if path != second && (one.dev(), one.ino()) == (other.dev(), other.ino()) => {
                gone(fs::remove_file(second))
            }
            _ => Ok(()),
        }
    }

    /// The file of flannel's name; not if it is the second name of another one.
    fn read_flannels(&self, container_id: &str) -> io::Result<Option<Stored>> {
        let path = self.dir.join(container_id);
        let is_second_name = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.nlink() > 1);
        Ok(self.read(path)?.filter(|stored| stored.ifname.is_some() || !is_second_name))
    }

    /// A file of the store. What is no regular file (a directory, a link) is nobody's.
    fn read(&self, path: PathBuf) -> io::Result<Option<Stored>> {
        let (text, mut config) = match found(files::read_unlinked(&path, LONGEST)) {
            Ok(Some(text)) => {
                let config = serde_json::from_slice::<Object>(&text).map_err(|e| e.to_string());
                (text, config)
            }
            Ok(None) => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::FileTooLarge => (Vec::new(), Err(e.to_string())),
            Err(e) => return Err(e),
        };
        let attachment = config.as_mut().ok().and_then(|config| config.remove(ATTACHMENT));
        let attachment = attachment.and_then(|text| serde_json::from_str::<Attachment>(text.get()).ok());
        let (ifname, failed) = attachment.map(|a| (a.ifname, a.failed)).unzip();
        Ok(Some(Stored { config, failed: failed.flatten(), ifname, text, path }))
    }

    /// The names in the directory; none if there is no directory.
    fn names(&self) -> io::Result<Vec<String>> {
        let Some(entries) = found(fs::read_dir(&self.dir))? else { return Ok(Vec::new()) };
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }
}

fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    const NO_FILE: [i32; 2] = [libc::ENAMETOOLONG, libc::ENOTDIR];
    match result {
        Ok(value) => Ok(Some(value)),
        // Nothing can have been stored under a name too long for a file, or in what is no directory.
        Err(e) if e.raw_os_error().is_some_and(|number| NO_FILE.contains(&number)) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Removing what is gone is a success.
fn gone(result: io::Result<()>) -> io::Result<()> {
    found(result).map(|_| ())
}

#[cfg(test)]
mod tests;
