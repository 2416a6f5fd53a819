//! The lab's names on the machine: who makes one, and how a later run recognises what a dead one left.
//!
//! Everything that a lab leaves visible outside its process is a namespace name `tw<pid>-<lab>-…` or a directory
//! `twill-lab-<pid>-…`. Both carry the owner, so leftovers of a killed run are removed by the next one, and
//! those of a live one never. Nothing else needs sweeping: links live in the namespaces, children die with us.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use tempfile::TempDir;

const NETNS_DIR: &str = "/run/netns";
const NETNS_PREFIX: &str = "tw";
const DIR_PREFIX: &str = "twill-lab-";

/// The name that all namespaces of one lab begin with, unique on the machine: `tw1234-1`.
#[derive(Debug, Clone)]
pub(crate) struct LabName(String);

impl LabName {
    /// A name that no lab of this process has had.
    pub(crate) fn next() -> LabName {
        static COUNT: AtomicUsize = AtomicUsize::new(1);
        LabName(format!("{NETNS_PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    /// The name of the namespace `part`, as `tw1234-1-node1`.
    pub(crate) fn netns(&self, part: &str) -> String {
        format!("{}-{part}", self.0)
    }
}

/// A directory of this process, removed with the value or, should we be killed, by the next run.
pub(crate) fn temp_dir() -> Result<TempDir> {
    let prefix = format!("{DIR_PREFIX}{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir().context("make a directory for the lab")
}

/// Where iproute2 keeps the namespace `name`.
pub(crate) fn netns_path(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

/// Removes the namespaces and directories of labs whose process is gone. Done once in a process.
pub fn sweep_dead() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| remove_where(|pid| !lives(pid)));
}

/// Removes all namespaces and directories of this process: for one that is about to end without its destructors.
pub fn remove_own() {
    remove_where(|pid| pid == std::process::id());
}

/// Whether the process still runs. One that has ended stays in /proc until its parent asks for it, which the first
/// process of a container often never does.
fn lives(pid: u32) -> bool {
    // pid (name) state ...; the name may hold anything, a parenthesis too.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn remove_where(unwanted: impl Fn(u32) -> bool) {
    for path in entries(Path::new(NETNS_DIR)) {
        if owner(&path, NETNS_PREFIX).is_some_and(&unwanted) {
            // Another run may sweep the same name at this moment: whoever is second finds it gone, as wanted.
            let name = path.file_name().unwrap_or_default();
            let _ = Command::new("ip").args(["netns", "del"]).arg(name).stderr(Stdio::null()).status();
        }
    }
    for path in entries(&std::env::temp_dir()) {
        if owner(&path, DIR_PREFIX).is_some_and(&unwanted) {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).map(|found| found.flatten().map(|e| e.path()).collect()).unwrap_or_default()
}

/// The process id in a name of ours, `None` for names of others.
fn owner(path: &Path, prefix: &str) -> Option<u32> {
    let (pid, _) = path.file_name()?.to_str()?.strip_prefix(prefix)?.split_once('-')?;
    pid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_carries_its_owner() {
        let name = LabName::next();
        assert_eq!(owner(&netns_path(&name.netns("node1-pod1")), NETNS_PREFIX), Some(std::process::id()));
        assert_eq!(owner(temp_dir().unwrap().path(), DIR_PREFIX), Some(std::process::id()));
    }

    #[test]
    fn names_of_others_have_no_owner() {
        for name in ["twelve-1", "tw-1", "cni-1", "tw12", "twx-1-node1"] {
            assert_eq!(owner(Path::new(name), NETNS_PREFIX), None, "{name}");
        }
    }

    #[test]
    fn a_zombie_does_not_live() {
        assert!(lives(std::process::id()));
        let mut child = Command::new("true").spawn().unwrap();
        crate::wait_until("the child is seen as dead", std::time::Duration::from_secs(10), || !lives(child.id()));
        child.wait().unwrap();
    }

    #[test]
    fn no_two_labs_share_a_name() {
        assert_ne!(LabName::next().0, LabName::next().0);
    }
}
