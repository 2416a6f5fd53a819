//! A real etcd of one test's own: on free ports of 127.0.0.1, in a directory of its own, gone with its value.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::mpsc;
use twill_agent::store::StoreEvent;
use twill_agent::store::etcd::{EtcdOptions, EtcdStore};

pub(crate) mod agents;
pub(crate) mod cluster;
pub(crate) mod mirror;
pub(crate) mod pki;
mod release;

#[allow(unused_imports, reason = "the chaos test runs on one etcd")]
pub(crate) use release::{Release, on_each_etcd};

/// Longer than anything here takes on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
/// The prefix of the network under test.
pub(crate) const PREFIX: &str = "/coreos.com/network";

/// A running (or killed) etcd with one member.
pub(crate) struct Etcd {
    release: Release,
    dir: tempfile::TempDir,
    child: Option<Child>,
    client_port: u16,
    peer_port: u16,
    /// Arguments for TLS; without any, plain HTTP.
    tls: Vec<String>,
    /// Further arguments.
    more: Vec<String>,
}

impl Etcd {
    /// A new, empty etcd.
    pub(crate) fn start(release: Release) -> Self {
        Self::start_with(release, Vec::new())
    }

    /// The same, behind TLS.
    pub(crate) fn start_with(release: Release, tls: Vec<String>) -> Self {
        Self::start_as(release, tls, Vec::new())
    }

    /// The same with further arguments and without TLS.
    pub(crate) fn start_plain_with(release: Release, more: Vec<String>) -> Self {
        Self::start_as(release, Vec::new(), more)
    }

    fn start_as(release: Release, tls: Vec<String>, more: Vec<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut etcd = Self { release, dir, child: None, client_port: 0, peer_port: 0, tls, more };
        // A free port may be taken by the time it is used: another try has another.
        for _ in 0..5 {
            (etcd.client_port, etcd.peer_port) = (free_port(), free_port());
            if etcd.launch(etcd.client_port) {
                return etcd;
            }
        }
        panic!("etcd does not start: {}", std::fs::read_to_string(etcd.dir.path().join("log")).unwrap_or_default());
    }

    /// Starts the killed etcd again, on its data, its port and its peer port.
    pub(crate) fn restart(&mut self) {
        assert!(self.launch(self.client_port), "etcd does not start again");
    }

    /// Runs etcd on its data where nobody else looks for it, for `work`.
    pub(crate) fn aside(&mut self, work: impl FnOnce(&Self)) {
        let port = std::mem::replace(&mut self.client_port, free_port());
        self.restart();
        work(self);
        self.kill();
        self.client_port = port;
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Forgets all data of a killed etcd.
    pub(crate) fn wipe(&self) {
        std::fs::remove_dir_all(self.dir.path().join("data")).unwrap();
    }

    /// Saves a snapshot, for [`Self::restore`].
    pub(crate) fn save(&self) {
        self.ctl(&["snapshot", "save", &self.snapshot()]);
    }

    /// Replaces the data of a killed etcd by the snapshot.
    pub(crate) fn restore(&self) {
        self.wipe();
        let data = self.dir.path().join("data").display().to_string();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        self.ctl(
            &["snapshot", "restore", &self.snapshot(), "--data-dir", &data, "--name", "test"]
                .into_iter()
                .chain(["--initial-cluster", &format!("test={peer}"), "--initial-advertise-peer-urls", &peer])
                .collect::<Vec<_>>(),
        );
    }

    fn snapshot(&self) -> String {
        self.dir.path().join("snapshot").display().to_string()
    }

    /// SIGSTOP or SIGCONT.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().unwrap().id();
        kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
    }

    /// What `etcdctl` prints.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        let output = Command::new(self.release.program("etcdctl"))
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.url(), "--command-timeout", "20s"])
            .args(arguments)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "etcdctl {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// The full key of a record.
    pub(crate) fn key(record: &str) -> String {
        format!("{PREFIX}/subnets/{record}")
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme(), self.client_port)
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_empty() { "http" } else { "https" }
    }

    pub(crate) fn options(&self) -> EtcdOptions {
        EtcdOptions { endpoints: vec![self.url()], prefix: PREFIX.to_owned(), ..EtcdOptions::default() }
    }

    pub(crate) fn store(&self) -> EtcdStore {
        EtcdStore::connect(self.options()).unwrap()
    }

    /// The sum of etcd's own counter over the gRPC methods whose line contains all of `parts`.
    pub(crate) fn counter(&self, name: &str, parts: &[&str]) -> u64 {
        let mut stream = TcpStream::connect(("127.0.0.1", self.client_port)).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let lines = text.lines().filter(|line| line.starts_with(name) && parts.iter().all(|part| line.contains(part)));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
    }

    fn launch(&mut self, client_port: u16) -> bool {
        let client = format!("{}://127.0.0.1:{client_port}", self.scheme());
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        // setpriv: etcd goes when the test's thread does, however that ends.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(self.release.program("etcd"))
            .args(["--name", "test", "--data-dir"])
            .arg(self.dir.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("test={peer}")])
            .args(&self.tls)
            .args(&self.more)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let start = Instant::now();
        while start.elapsed() < LIMIT {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            if (!self.tls.is_empty() && self.listens(client_port)) || is_healthy(client_port) {
                self.child = Some(child);
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = child.kill();
        let _ = child.wait();
        false
    }
}

/// Runs `deploy/etcd/node-role.sh` with these `ETCDCTL_` variables and this on its standard input.
pub(crate) fn node_role(release: Release, env: &[(&str, &String)], arguments: &[&str], input: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/etcd/node-role.sh");
    let mut path = std::env::var("PATH").unwrap();
    if let Some(dir) = release.program("etcdctl").parent().filter(|dir| dir.is_absolute()) {
        path = format!("{}:{path}", dir.display());
    }
    let mut command = Command::new("bash");
    command.arg(script).args(arguments).env("PATH", path).stdin(Stdio::piped()).stderr(Stdio::piped());
    command.envs(env.iter().map(|(name, value)| (format!("ETCDCTL_{name}"), value)));
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "node-role.sh {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Etcd {
    /// Runs `deploy/etcd/node-role.sh`, before there is any need to log in.
    pub(crate) fn node_role(&self, arguments: &[&str], input: &str) {
        node_role(self.release, &[("ENDPOINTS", &self.url())], arguments, input);
    }

    /// Behind TLS, what the log says has to do.
    fn listens(&self, port: u16) -> bool {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        log.contains("serving client") && TcpStream::connect(("127.0.0.1", port)).is_ok()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The next event, or the end of the test.
pub(crate) async fn next(events: &mut mpsc::Receiver<StoreEvent>) -> StoreEvent {
    tokio::time::timeout(LIMIT, events.recv()).await.expect("no event").expect("the follower ended")
}

/// Events up to and including the first one that `is_last` accepts.
pub(crate) async fn until(
    events: &mut mpsc::Receiver<StoreEvent>,
    is_last: impl Fn(&StoreEvent) -> bool,
) -> Vec<StoreEvent> {
    let mut seen = Vec::new();
    loop {
        seen.push(next(events).await);
        if seen.last().is_some_and(&is_last) {
            return seen;
        }
    }
}

fn is_healthy(port: u16) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok::<_, std::io::Error>(text)
    };
    ask().is_ok_and(|text| text.contains(r#""health":"true""#))
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
