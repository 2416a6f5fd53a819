//! Network namespaces by name, removed with their value.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Several namespaces that are made and removed together.
pub(crate) struct Netns {
    names: Vec<String>,
}

impl Netns {
    /// Makes `count` namespaces with `lo` up.
    pub(crate) fn make(count: usize) -> Netns {
        assert!(nix::unistd::geteuid().is_root(), "network namespaces need root: run as root");
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        // Names of the lab's form (twill-lab, names.rs): should we be killed, its next run removes them.
        let prefix = format!("tw{}-cni{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let made = Netns { names: (1..=count).map(|n| format!("{prefix}-{n}")).collect() };
        let lines: Vec<String> = made.names.iter().map(|name| format!("netns add {name}")).collect();
        // The lab's lock: two that make the first namespace ever hide each other's.
        batch(&["flock", "/run/twill-lab.lock", "ip", "-batch", "-"], &lines);
        for index in 0..count {
            made.run(index, &["ip", "link", "set", "lo", "up"]);
        }
        made
    }

    /// The path of one, for `CNI_NETNS`.
    pub(crate) fn path(&self, index: usize) -> String {
        format!("/run/netns/{}", self.names[index])
    }

    /// The words that run a program in one of them.
    pub(crate) fn enter(&self, index: usize) -> [String; 2] {
        ["nsenter".into(), format!("--net={}", self.path(index))]
    }

    /// Runs a program in one of them; what it printed, or its failure.
    pub(crate) fn try_run(&self, index: usize, words: &[&str]) -> Result<String, String> {
        let enter = self.enter(index);
        let output = Command::new(&enter[0]).arg(&enter[1]).args(words).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            return Ok(text(&output.stdout));
        }
        Err(format!("{words:?}: {}{}", text(&output.stdout), text(&output.stderr)))
    }

    #[track_caller]
    pub(crate) fn run(&self, index: usize, words: &[&str]) -> String {
        self.try_run(index, words).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Removes one now; `drop` then minds the others.
    pub(crate) fn remove(&mut self, index: usize) {
        batch(&["ip", "-batch", "-"], &[format!("netns del {}", self.names[index])]);
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let there = |name: &&String| std::path::Path::new("/run/netns").join(name).exists();
        let lines: Vec<String> = self.names.iter().filter(there).map(|name| format!("netns del {name}")).collect();
        if !lines.is_empty() && !std::thread::panicking() {
            batch(&["ip", "-batch", "-"], &lines);
        } else if !lines.is_empty() {
            let _ = try_batch(&["ip", "-batch", "-"], &lines);
        }
    }
}

#[track_caller]
fn batch(words: &[&str], lines: &[String]) {
    if let Err(e) = try_batch(words, lines) {
        panic!("{words:?}: {e}");
    }
}

fn try_batch(words: &[&str], lines: &[String]) -> Result<(), String> {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let mut stdin = child.stdin.take().ok_or("no pipe")?;
    stdin.write_all((lines.join("\n") + "\n").as_bytes()).map_err(|e| e.to_string())?;
    drop(stdin);
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}
