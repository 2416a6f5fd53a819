//! The lab: the fabric, its etcd, the nodes, and the end of all of them.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::etcd::{Etcd, KeyValue};
use crate::names::{self, LabName};
use crate::netns::Namespace;
use crate::node::Node;
use crate::peer::Peer;
use crate::pod::Pod;
use crate::twilld::Twilld;

/// flannel's default `--etcd-prefix`, under which the lab keeps everything.
pub const PREFIX: &str = "/coreos.com/network";

/// The network config most tests use.
pub const NODE_CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// The fabric's own addresses: the nodes' default route, and where etcd listens.
const FABRIC: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(10, 99, 0, 1), Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1));

/// For a record to reach every other node's daemon.
const KNOWN: Duration = Duration::from_secs(20);

/// A lab's size and shape.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many nodes, 1 to 200.
    pub nodes: usize,
    /// MTU of the fabric and of every node's `eth0`.
    pub mtu: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options { nodes: 3, mtu: 1500 }
    }
}

/// A network of nodes and an etcd. Everything is gone when it is dropped, also while a panic unwinds.
#[derive(Debug)]
pub struct Lab {
    // Dropped in this order: etcd before its namespace, the files last.
    etcd: Etcd,
    nodes: Vec<Node>,
    fabric: Arc<Namespace>,
    dir: TempDir,
}

impl Lab {
    /// A lab of [`Options::default`]: three nodes.
    #[track_caller]
    #[expect(clippy::new_without_default, reason = "it makes namespaces and processes, no mere value")]
    pub fn new() -> Lab {
        Lab::with(Options::default())
    }

    /// A lab with `nodes` nodes.
    #[track_caller]
    pub fn with_nodes(nodes: usize) -> Lab {
        Lab::with(Options { nodes, ..Options::default() })
    }

    /// [`Lab::build`] that panics.
    #[track_caller]
    pub fn with(options: Options) -> Lab {
        match Lab::build(&options) {
            Ok(lab) => lab,
            Err(e) => panic!("the lab can't be built: {e:#}"),
        }
    }

    /// Makes the fabric, starts etcd on it and connects the nodes. Removes what dead runs left behind first.
    pub fn build(options: &Options) -> Result<Lab> {
        ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run as root");
        ensure!((1..=200).contains(&options.nodes), "a lab has 1 to 200 nodes, not {}", options.nodes);
        names::sweep_dead();
        let name = LabName::next();
        let dir = names::temp_dir()?;
        let fabric = Arc::new(fabric(&name, options.mtu)?);
        let etcd = Etcd::new(fabric.clone(), dir.path().join("etcd"), format!("http://{}:2379", FABRIC.0))?;
        let nodes = (1..=options.nodes)
            .map(|n| {
                let netns = Namespace::new(name.netns(&format!("node{n}")))?;
                let addrs = join_fabric(&fabric, &netns, n, options.mtu)?;
                Node::new(n, netns, addrs, etcd.url(), dir.path())
            })
            .collect::<Result<_>>()?;
        Ok(Lab { etcd, nodes, fabric, dir })
    }

    /// Node `n`, counted from 1 as in its name.
    #[track_caller]
    pub fn node(&self, n: usize) -> Node {
        match self.nodes.get(n.wrapping_sub(1)) {
            Some(node) => node.clone(),
            None => panic!("the lab has nodes 1 to {}, not {n}", self.nodes.len()),
        }
    }

    /// All nodes, in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The namespace between the nodes, where etcd runs.
    pub fn fabric(&self) -> &Namespace {
        &self.fabric
    }

    /// A lab with this network config, and a ready twilld and a pod on each of so many nodes.
    #[track_caller]
    pub fn running(nodes: usize, config: &str, args: &[&str]) -> (Self, Vec<Twilld>, Vec<Pod>) {
        let lab = Self::with_nodes(nodes);
        lab.put_config(config);
        let daemons = lab.start_all(args);
        let pods = lab.nodes().iter().map(|node| node.pod(1)).collect();
        (lab, daemons, pods)
    }

    /// Starts twilld on every node with the same further arguments; when it returns all are ready and know each other.
    ///
    /// For nodes that have no record yet: they start one after the other, so each reads the records of those before
    /// it, and those log it as a peer that joined.
    #[track_caller]
    pub fn start_all(&self, args: &[&str]) -> Vec<Twilld> {
        let mut daemons: Vec<Twilld> = Vec::new();
        for node in &self.nodes {
            let mut new = node.twilld(args);
            new.wait_ready();
            for subnet in node.leased() {
                for earlier in &mut daemons {
                    earlier.wait_log(&["peer joined", &subnet], KNOWN);
                }
            }
            daemons.push(new);
        }
        daemons
    }

    /// The etcd server.
    pub fn etcd(&self) -> &Etcd {
        &self.etcd
    }

    /// Runs etcdctl.
    pub fn etcdctl(&self, args: &[&str]) -> Result<String> {
        self.etcd.ctl(args)
    }

    /// Writes a key.
    #[track_caller]
    pub fn put(&self, key: &str, value: &str) {
        if let Err(e) = self.etcd.ctl(&["put", "--", key, value]) {
            panic!("put {key}: {e:#}");
        }
    }

    /// Deletes a key that is there.
    #[track_caller]
    pub fn delete(&self, key: &str) {
        match self.etcd.ctl(&["del", key]) {
            Ok(count) if count.trim() == "1" => {}
            other => panic!("delete {key}: {other:?}"),
        }
    }

    /// Reads a key, `None` if there is none.
    #[track_caller]
    pub fn get(&self, key: &str) -> Option<KeyValue> {
        self.range(key).into_iter().find(|kv| kv.key == key)
    }

    /// Writes the network config, [`NODE_CONFIG`] or another.
    #[track_caller]
    pub fn put_config(&self, json: &str) {
        self.put(&format!("{PREFIX}/config"), json);
    }

    /// All subnet records, by key.
    #[track_caller]
    pub fn records(&self) -> Vec<KeyValue> {
        self.range(&format!("{PREFIX}/subnets/"))
    }

    /// Writes a peer's record, as its node would.
    #[track_caller]
    pub fn put_peer(&self, peer: &Peer) {
        self.put(&peer.key(), &peer.record());
    }

    /// Has another node take the subnet of a daemon that can do nothing meanwhile: its record goes, and the other one comes.
    #[track_caller]
    pub fn take_subnet(&self, daemon: &mut Twilld, thief: &Peer) {
        daemon.signal(Signal::SIGSTOP);
        self.delete(&thief.key());
        self.put_peer(thief);
        daemon.signal(Signal::SIGCONT);
    }

    /// The seconds that the etcd lease `id` was granted for.
    pub fn lease_ttl(&self, id: i64) -> Result<Duration> {
        let text = self.etcd.ctl(&["lease", "timetolive", &format!("{id:x}")])?;
        let ttl = text.split_once("granted with TTL(").and_then(|(_, rest)| rest.split_once("s)"));
        let (seconds, _) = ttl.with_context(|| format!("a TTL in `{}`", text.trim()))?;
        Ok(Duration::from_secs(seconds.parse()?))
    }

    #[track_caller]
    fn range(&self, prefix: &str) -> Vec<KeyValue> {
        match self.etcd.range(prefix) {
            Ok(found) => found,
            Err(e) => panic!("read {prefix}: {e:#}"),
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            print_logs(self.dir.path());
            let etcd = self.etcd.log();
            if !etcd.is_empty() {
                eprintln!("--- etcd\n{etcd}");
            }
        }
    }
}

/// Prints the daemons' logs: what a failed test is understood by.
fn print_logs(dir: &Path) {
    let mut logs: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    logs.retain(|path| path.extension().is_some_and(|e| e == "log"));
    logs.sort();
    for path in logs {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        eprintln!("--- {name}\n{}", fs::read_to_string(&path).unwrap_or_default());
    }
}

/// The namespace with the bridge that every node hangs on.
fn fabric(name: &LabName, mtu: u32) -> Result<Namespace> {
    let netns = Namespace::new(name.netns("fabric"))?;
    netns.ip_batch([
        // No snooping: it holds multicast back until the bridge has seen queries.
        format!("link add fabric mtu {mtu} type bridge mcast_snooping 0"),
        format!("addr add {}/16 dev fabric", FABRIC.0),
        format!("addr add {}/64 dev fabric nodad", FABRIC.1),
        "link set fabric up".to_string(),
    ])?;
    forward(&netns)?;
    Ok(netns)
}

/// Connects node `n`'s namespace with the fabric by `eth0`, with addresses 10.99.0.(10+n) and fd99::(10+n) (in
/// decimal digits, so that both read alike) and default routes.
fn join_fabric(fabric: &Namespace, node: &Namespace, n: usize, mtu: u32) -> Result<(Ipv4Addr, Ipv6Addr)> {
    let v4 = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 99, 0, 10)) + u32::try_from(n)?);
    let v6: Ipv6Addr = format!("fd99::{}", 10 + n).parse()?;
    fabric.ip_batch([
        format!("link add node{n} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}", node.name()),
        format!("link set node{n} master fabric up"),
    ])?;
    node.ip_batch([
        format!("addr add {v4}/16 dev eth0"),
        format!("addr add {v6}/64 dev eth0 nodad"),
        "link set eth0 up".to_string(),
        format!("route add default via {}", FABRIC.0),
        format!("route add default via {} dev eth0", FABRIC.1),
    ])?;
    forward(node)?;
    Ok((v4, v6))
}

/// Makes a namespace a router, as every node of a container network is.
fn forward(netns: &Namespace) -> Result<()> {
    netns.sysctl("ipv4/ip_forward", "1")?;
    netns.sysctl("ipv6/conf/all/forwarding", "1")?;
    // A new namespace begins with the machine's values, and strict ones drop what comes out of a tunnel.
    netns.sysctl("ipv4/conf/all/rp_filter", "0")?;
    netns.sysctl("ipv4/conf/default/rp_filter", "0")
}
