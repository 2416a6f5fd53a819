//! A twilld in a node: started with the lab's etcd, stopped in every way, read by its log.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::node::Node;
use crate::process::{Exit, Process, program};
use crate::wait::wait_until;

/// The word by which a daemon's log says that it is ready: lease held, device up, subnet.env written, and the first
/// complete read of the peers applied.
pub const READY: &str = "ready";

/// For states that take milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running (or ended) twilld; killed on drop.
#[derive(Debug)]
pub struct Twilld {
    process: Process,
    node: Node,
}

impl Twilld {
    pub(crate) fn start(node: Node, etcd_url: &str, wrapper: &[&str], args: &[&str], log: &Path) -> Result<Twilld> {
        let twilld = program("twilld")?;
        let mut command = match wrapper.split_first() {
            None => node.netns().command(&twilld)?,
            Some((outer, rest)) => {
                let mut command = node.netns().command(outer)?;
                command.args(rest).arg(&twilld);
                command
            }
        };
        command.arg(format!("--etcd-endpoints={etcd_url}"));
        command.arg(format!("--subnet-file={}", node.subnet_file().display()));
        // All nodes of a lab are one machine.
        command.arg(format!("--node-id=node{}", node.index()));
        command.args(args);
        // Tests read the log: the daemon's own default level and no colours. And every flag is also a variable, so
        // nothing of what the caller's environment says about flannel or systemd may reach it.
        command.env("NO_COLOR", "1").env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FLANNELD_")) {
            command.env_remove(name);
        }
        Ok(Twilld { process: Process::start(command, log)?, node })
    }

    /// Its process id (of the wrapper where there is one that does not exec).
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The node it runs in.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The lines of its log with all of these words.
    pub fn lines(&self, words: &[&str]) -> Vec<String> {
        let has_all = |line: &&str| words.iter().all(|word| line.contains(word));
        self.log().lines().filter(has_all).map(str::to_owned).collect()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// Waits until it is ready: `subnet.env` is there and the log says so.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        let what = format!("twilld of node {} is ready", self.node.index());
        self.await_log(&what, PATIENCE, |twilld| {
            twilld.node.subnet_file().exists() && twilld.log().lines().any(says_ready)
        });
    }

    /// Waits until one line of the log contains all of `words`, whatever their case.
    #[track_caller]
    pub fn wait_log(&mut self, words: &[&str], limit: Duration) {
        let words: Vec<String> = words.iter().map(|w| w.to_lowercase()).collect();
        let what = format!("a line with {words:?} in the log of twilld of node {}", self.node.index());
        self.await_log(&what, limit, |twilld| {
            twilld.log().to_lowercase().lines().any(|line| words.iter().all(|w| line.contains(w)))
        });
    }

    /// Waits for its end without a signal.
    #[track_caller]
    pub fn wait_exit(&mut self, limit: Duration) -> Exit {
        self.or_panic("wait for its end", |twilld| twilld.process.wait(limit))
    }

    /// SIGTERM, and waits for its end.
    #[track_caller]
    pub fn terminate(&mut self) -> Exit {
        self.signal(Signal::SIGTERM);
        self.wait_exit(PATIENCE)
    }

    /// Sends it a signal.
    #[track_caller]
    pub fn signal(&mut self, signal: Signal) {
        self.or_panic("signal", |twilld| twilld.process.signal(signal));
    }

    /// SIGKILL; it has ended when this returns.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Waits for a state that only a running daemon reaches: gives up at once when it ends.
    #[track_caller]
    fn await_log(&mut self, what: &str, limit: Duration, mut there: impl FnMut(&Twilld) -> bool) {
        let ended = wait_until(what, limit, || {
            // Looked at before the log: what it wrote last is in the log when it has ended.
            let ended = self.process.ended();
            if there(self) {
                return Some(None);
            }
            ended.map(Some)
        });
        assert!(ended.is_none(), "waited for: {what}; but it ended with {}", ended.unwrap_or_default());
    }

    #[track_caller]
    fn or_panic<T>(&mut self, what: &str, work: impl FnOnce(&mut Twilld) -> Result<T>) -> T {
        match work(self).with_context(|| format!("{what}: twilld of node {}", self.node.index())) {
            Ok(value) => value,
            Err(e) => panic!("{e:#}"),
        }
    }
}

/// Whether a log line says "ready", and not "already" or "not ready".
fn says_ready(line: &str) -> bool {
    let words: Vec<&str> = line.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).collect();
    words.iter().enumerate().any(|(i, word)| *word == READY && (i == 0 || words[i - 1] != "not"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_a_word_of_its_own() {
        assert!(says_ready("2026-11-21T10:00:00Z  INFO twilld: ready subnet=10.5.52.0/24 peers=2"));
        assert!(says_ready("INFO ready"));
        assert!(!says_ready("INFO flannel.1 is already there"));
        assert!(!says_ready("WARN not ready: the lease is lost"));
    }
}
