//! Three members on 127.0.0.1 to 127.0.0.3, behind TLS with client certificates, with users and the role that
//! `deploy/etcd/node-role.sh` makes.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use twill_agent::store::etcd::{EtcdOptions, EtcdStore};

use super::pki::Pki;
use super::{LIMIT, PREFIX, Release, node_role};

/// How many members.
pub(crate) const MEMBERS: usize = 3;
/// A quorum that comes back may take its time before it takes writes.
const ELECTED: Duration = Duration::from_secs(60);

/// A cluster of one test's own.
pub(crate) struct Cluster {
    release: Release,
    dir: tempfile::TempDir,
    pki: Pki,
    /// The same ones on each member's address.
    client_port: u16,
    peer_port: u16,
    members: [Option<Child>; MEMBERS],
}

impl Cluster {
    /// A new cluster with users `root` and `node`, known by their certificates, and auth enabled.
    pub(crate) fn start(release: Release) -> Self {
        let pki = Pki::new();
        pki.sign("server", "IP:127.0.0.1,IP:127.0.0.2,IP:127.0.0.3", 2);
        pki.sign("root", "DNS:root", 2);
        pki.sign("node", "DNS:node", 2);
        let dir = tempfile::tempdir().unwrap();
        let (client_port, peer_port) = (free_port(), free_port());
        let mut cluster = Self { release, dir, pki, client_port, peer_port, members: [const { None }; MEMBERS] };
        (0..MEMBERS).for_each(|member| cluster.launch(member));
        cluster.wait_healthy();
        cluster.ctl(&["user", "add", "root", "--no-password"]);
        cluster.ctl(&["user", "grant-role", "root", "root"]);
        cluster.script(&["--user", "node", "--certificate"]);
        cluster.ctl(&["auth", "enable"]);
        cluster
    }

    /// Runs `deploy/etcd/node-role.sh` as root.
    pub(crate) fn script(&self, arguments: &[&str]) {
        let [ca, cert, key] = ["ca.crt", "root.crt", "root.key"].map(|name| self.pki.file(name));
        let endpoints = self.urls().join(",");
        let env = [("ENDPOINTS", &endpoints), ("CACERT", &ca), ("CERT", &cert), ("KEY", &key)];
        node_role(self.release, &env, arguments, "");
    }

    /// kill -9.
    pub(crate) fn kill(&mut self, member: usize) {
        if let Some(mut child) = self.members[member].take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts a killed member again, on its data. Does not wait.
    pub(crate) fn restart(&mut self, member: usize) {
        self.launch(member);
    }

    /// SIGSTOP or SIGCONT.
    pub(crate) fn signal(&self, member: usize, signal: Signal) {
        let pid = self.members[member].as_ref().unwrap().id();
        kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
    }

    /// Cuts every TCP connection with a member's clients.
    pub(crate) fn cut(&self, member: usize) {
        let port = format!(":{}", self.client_port);
        let to = ["-K", "-t", "state", "established", "dst", &address(member), "dport", "=", &port];
        let cut = Command::new("ss").args(to).stdout(Stdio::null()).status();
        assert!(cut.unwrap().success(), "ss -K");
    }

    /// Whether this process has a connection with a member.
    pub(crate) fn is_connected(&self, member: usize) -> bool {
        let to =
            ["-tnpH", "state", "established", "dst", &address(member), "dport", "=", &format!(":{}", self.client_port)];
        let output = Command::new("ss").args(to).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains(&format!("pid={},", std::process::id()))
    }

    /// The member that leads, as the members at `ask` have it.
    pub(crate) fn leader(&self, ask: usize) -> usize {
        let fields = self.ctl_at(&[ask], &["endpoint", "status", "-w", "fields"]).unwrap();
        let field = |name: &str| {
            let line = fields.lines().find(|line| line.starts_with(&format!("\"{name}\""))).unwrap();
            line.rsplit(' ').next().unwrap().to_owned()
        };
        let leader = field("Leader");
        let leads = |member: &usize| {
            let fields = self.ctl_at(&[*member], &["endpoint", "status", "-w", "fields"]).unwrap_or_default();
            fields.lines().any(|line| line.starts_with("\"MemberID\"") && line.ends_with(&leader))
        };
        (0..MEMBERS).find(leads).unwrap()
    }

    /// What `etcdctl` prints, as root, with all members as endpoints. Tried again until it works: elections take time.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        let end = Instant::now() + ELECTED;
        loop {
            match self.ctl_at(&[0, 1, 2], arguments) {
                Ok(text) => return text,
                Err(error) if Instant::now() > end => panic!("etcdctl {arguments:?}: {error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    pub(crate) fn ctl_at(&self, members: &[usize], arguments: &[&str]) -> Result<String, String> {
        let urls: Vec<_> = members.iter().map(|member| self.url(*member)).collect();
        let output = Command::new(self.release.program("etcdctl"))
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &urls.join(","), "--command-timeout", "5s", "--dial-timeout", "2s"])
            .args(["--cacert", &self.pki.file("ca.crt")])
            .args(["--cert", &self.pki.file("root.crt"), "--key", &self.pki.file("root.key")])
            .args(arguments)
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// All that are alive serve reads that need a quorum.
    pub(crate) fn wait_healthy(&self) {
        let end = Instant::now() + ELECTED;
        for member in (0..MEMBERS).filter(|member| self.members[*member].is_some()) {
            while let Err(error) = self.ctl_at(&[member], &["endpoint", "health"]) {
                assert!(Instant::now() < end, "{} is not healthy: {error}\n{}", self.url(member), self.log(member));
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// A node's way in, through these members.
    pub(crate) fn options(&self, members: &[usize]) -> EtcdOptions {
        EtcdOptions {
            endpoints: members.iter().map(|member| self.url(*member)).collect(),
            prefix: PREFIX.to_owned(),
            tls: Some(self.pki.client(Some("node"))),
            ..EtcdOptions::default()
        }
    }

    pub(crate) fn store(&self) -> EtcdStore {
        EtcdStore::connect(self.options(&[0, 1, 2])).unwrap()
    }

    fn url(&self, member: usize) -> String {
        format!("https://{}:{}", address(member), self.client_port)
    }

    fn urls(&self) -> Vec<String> {
        (0..MEMBERS).map(|member| self.url(member)).collect()
    }

    fn log(&self, member: usize) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("log{member}"))).unwrap_or_default()
    }

    fn launch(&mut self, member: usize) {
        let peer = |member: usize| format!("http://{}:{}", address(member), self.peer_port);
        let all: Vec<_> = (0..MEMBERS).map(|member| format!("m{member}={}", peer(member))).collect();
        let log = std::fs::File::create(self.dir.path().join(format!("log{member}"))).unwrap();
        let (client, peer) = (self.url(member), peer(member));
        // setpriv: it goes when the test's thread does, however that ends.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(self.release.program("etcd"))
            .args(["--name", &format!("m{member}"), "--data-dir"])
            .arg(self.dir.path().join(format!("data{member}")))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &all.join(",")])
            .args(self.pki.server("server", true))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.members[member] = Some(child);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for member in 0..MEMBERS {
                let log = self.log(member);
                let last: Vec<_> = log.lines().rev().take(10).collect();
                eprintln!("--- etcd {member}\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
        (0..MEMBERS).for_each(|member| self.kill(member));
    }
}

fn address(member: usize) -> String {
    format!("127.0.0.{}", member + 1)
}

/// Free on each member's address, as far as can be told.
fn free_port() -> u16 {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        let others: Vec<_> = (1..MEMBERS).map(|member| TcpListener::bind((address(member), port))).collect();
        if others.iter().all(Result::is_ok) {
            return port;
        }
    }
}

/// Longer than any of a cluster's faults is noticed and got over.
pub(crate) const OVER: Duration = Duration::from_secs(2 * LIMIT.as_secs());
