//! A real etcd in the fabric's namespace, one member, and etcdctl beside it.
//!
//! Owns the server's life (it keeps its data over `kill` and `start`) and reading and writing keys.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::netns::{Namespace, finish};
use crate::process::Process;
use crate::wait::wait_for;

const PEER_URL: &str = "http://127.0.0.1:2380";
/// A loaded machine with two cores needs a second at worst.
const START_LIMIT: Duration = Duration::from_secs(30);

/// The etcd server of a lab.
#[derive(Debug)]
pub struct Etcd {
    netns: Arc<Namespace>,
    dir: PathBuf,
    url: String,
    process: Mutex<Option<Process>>,
}

/// A key as etcd holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The whole key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// The etcd lease it is attached to, 0 for none.
    pub lease: i64,
    /// The revision that created it: the same as long as nobody deleted it.
    pub create_revision: i64,
    /// The revision of the last write.
    pub mod_revision: i64,
}

impl Etcd {
    /// Starts a server that listens on `url` inside `netns` and keeps its data below `dir`.
    pub(crate) fn new(netns: Arc<Namespace>, dir: PathBuf, url: String) -> Result<Etcd> {
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let etcd = Etcd { netns, dir, url, process: Mutex::new(None) };
        etcd.launch()?;
        Ok(etcd)
    }

    /// The endpoint for `--etcd-endpoints`, reachable from every node.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Starts it again after [`Etcd::kill`], with the data it had, and waits until it serves.
    #[track_caller]
    pub fn start(&self) {
        if let Err(e) = self.launch() {
            panic!("start etcd: {e:#}\n{}", self.log());
        }
    }

    /// SIGKILL: connections are refused from now on.
    pub fn kill(&self) {
        self.process().take();
    }

    /// Forgets all data of a killed etcd.
    #[track_caller]
    pub fn wipe(&self) {
        fs::remove_dir_all(self.dir.join("data")).unwrap_or_else(|e| panic!("remove etcd's data: {e}"));
    }

    /// Saves a snapshot, for [`Etcd::restore`].
    #[track_caller]
    pub fn save(&self) {
        self.must(&["snapshot", "save", &self.path("snapshot")]);
    }

    /// Replaces the data of a killed etcd by the snapshot.
    #[track_caller]
    pub fn restore(&self) {
        self.wipe();
        let data = format!("--data-dir={}", self.path("data"));
        let peers = format!("--initial-cluster=default={PEER_URL}");
        let own = format!("--initial-advertise-peer-urls={PEER_URL}");
        self.must(&["snapshot", "restore", &self.path("snapshot"), &data, &peers, &own]);
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    #[track_caller]
    fn must(&self, args: &[&str]) {
        if let Err(e) = self.ctl(args) {
            panic!("etcdctl {args:?}: {e:#}");
        }
    }

    /// SIGSTOP: the server hangs, connections stay open.
    #[track_caller]
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// SIGCONT, after [`Etcd::pause`].
    #[track_caller]
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// What the running server has logged: errors only.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("etcd.log")).unwrap_or_default()
    }

    /// Runs etcdctl, which gives up after two seconds.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        let endpoints = format!("--endpoints={}", self.url);
        let words: Vec<&str> =
            ["etcdctl", &endpoints, "--command-timeout=2s"].into_iter().chain(args.iter().copied()).collect();
        // 3.4's default too, but not that of the 3.3 in older distributions.
        finish(self.netns.command("etcdctl")?.env("ETCDCTL_API", "3").args(&words[1..]), &words)
    }

    /// All keys that begin with `prefix`, in order.
    pub(crate) fn range(&self, prefix: &str) -> Result<Vec<KeyValue>> {
        parse_fields(&self.ctl(&["get", "--prefix", "--write-out=fields", prefix])?)
    }

    fn launch(&self) -> Result<()> {
        let mut command = self.netns.command("etcd")?;
        command.arg("--data-dir").arg(self.dir.join("data"));
        for (flag, value) in [
            ("--listen-client-urls", self.url.as_str()),
            ("--advertise-client-urls", &self.url),
            ("--listen-peer-urls", PEER_URL),
            ("--initial-advertise-peer-urls", PEER_URL),
            ("--initial-cluster", &format!("default={PEER_URL}")),
            ("--logger", "zap"),
            ("--log-level", "error"),
            // Alone, it elects itself after one timeout; the defaults are for members in other data centres.
            ("--heartbeat-interval", "10"),
            ("--election-timeout", "50"),
        ] {
            command.args([flag, value]);
        }
        if has_no_fsync() {
            command.arg("--unsafe-no-fsync");
        }
        *self.process() = Some(Process::start(command, &self.dir.join("etcd.log"))?);
        wait_for("etcd serves", START_LIMIT, || {
            if self.process().as_mut().is_none_or(|p| p.ended().is_some()) {
                // No use in waiting on: the log says why.
                return Ok(Err(anyhow::anyhow!("etcd ended at once: {}", self.log())));
            }
            self.ctl(&["get", "--keys-only", "x"]).map(|_| Ok(()))
        })?
    }

    #[track_caller]
    fn signal(&self, signal: Signal) {
        let sent = self.process().as_mut().map(|p| p.signal(signal));
        assert!(matches!(sent, Some(Ok(()))), "{signal} to etcd: {sent:?}");
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Whether this etcd can skip its fsyncs (3.5 and later). Tests gain time by it and lose nothing.
fn has_no_fsync() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let help = Command::new("etcd").arg("--help").output();
        help.is_ok_and(|h| {
            [h.stdout, h.stderr].iter().any(|out| String::from_utf8_lossy(out).contains("--unsafe-no-fsync"))
        })
    })
}

/// Parses etcdctl's `fields` output: `"Name" : value` lines, each key's beginning with `"Key"`. The strings are
/// quoted as Go quotes them, which for printable text is as JSON does.
fn parse_fields(text: &str) -> Result<Vec<KeyValue>> {
    let mut found: Vec<KeyValue> = Vec::new();
    for line in text.lines() {
        let Some((name, value)) = line.split_once(" : ") else { continue };
        let string = || serde_json::from_str::<String>(value).with_context(|| format!("a string in {line}"));
        let number = || value.parse::<i64>().with_context(|| format!("a number in {line}"));
        if name == r#""Key""# {
            let (value, lease, create_revision, mod_revision) = (String::new(), 0, 0, 0);
            found.push(KeyValue { key: string()?, value, lease, create_revision, mod_revision });
            continue;
        }
        let Some(last) = found.last_mut() else { continue };
        match name {
            r#""Value""# => last.value = string()?,
            r#""Lease""# => last.lease = number()?,
            r#""CreateRevision""# => last.create_revision = number()?,
            r#""ModRevision""# => last.mod_revision = number()?,
            r#""Version""# | r#""More""# | r#""Count""# => {}
            other => bail!("an unknown field {other} from etcdctl"),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_etcdctl_3_4_prints() {
        let text = concat!(
            "\"ClusterID\" : 14841639068965178418\n\"MemberID\" : 10276657743932975437\n\"Revision\" : 3\n",
            "\"RaftTerm\" : 2\n\"Key\" : \"/a\"\n\"CreateRevision\" : 2\n\"ModRevision\" : 3\n\"Version\" : 2\n",
            "\"Value\" : \"{\\\"Network\\\":\\\"10.5.0.0/16\\\"}\"\n\"Lease\" : 7587864561\n",
            "\"More\" : false\n\"Count\" : 1\n"
        );
        let expected = KeyValue {
            key: "/a".into(),
            value: r#"{"Network":"10.5.0.0/16"}"#.into(),
            lease: 7_587_864_561,
            create_revision: 2,
            mod_revision: 3,
        };
        assert_eq!(parse_fields(text).unwrap(), [expected]);
    }
}
