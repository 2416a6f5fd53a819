//! A node: a namespace with one leg on the fabric, in which a twilld may run and behind which pods live.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use ipnetwork::{Ipv4Network, Ipv6Network};
use serde_json::Value;

use crate::kernel::{self, FdbRow, Link, Neighbour, Route};
use crate::netns::Namespace;
use crate::peer::Peer;
use crate::pod::Pod;
use crate::twilld::Twilld;

/// A node of the lab; clones are the same node.
#[derive(Debug, Clone)]
pub struct Node(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    index: usize,
    netns: Namespace,
    addrs: (Ipv4Addr, Ipv6Addr),
    etcd_url: String,
    /// The lab's directory, which holds all logs.
    logs: PathBuf,
    /// The node's own directory, in place of /run/flannel.
    run: PathBuf,
    daemons: AtomicUsize,
}

/// What a node's `subnet.env` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetEnv {
    /// `FLANNEL_SUBNET`: the address for `cni0` with the subnet's length.
    pub subnet: Option<Ipv4Network>,
    /// `FLANNEL_IPV6_SUBNET`.
    pub ipv6_subnet: Option<Ipv6Network>,
    /// `FLANNEL_MTU`.
    pub mtu: u32,
}

impl Node {
    pub(crate) fn new(
        index: usize,
        netns: Namespace,
        addrs: (Ipv4Addr, Ipv6Addr),
        etcd_url: &str,
        lab: &Path,
    ) -> Result<Node> {
        let run = lab.join(format!("node{index}"));
        fs::create_dir(&run).with_context(|| format!("make {}", run.display()))?;
        let (etcd_url, logs, daemons) = (etcd_url.to_string(), lab.to_path_buf(), AtomicUsize::new(0));
        Ok(Node(Arc::new(Inner { index, netns, addrs, etcd_url, logs, run, daemons })))
    }

    /// Its number, from 1.
    pub fn index(&self) -> usize {
        self.0.index
    }

    /// Its namespace.
    pub fn netns(&self) -> &Namespace {
        &self.0.netns
    }

    /// Its address on the fabric, on `eth0`.
    pub fn addr(&self) -> Ipv4Addr {
        self.0.addrs.0
    }

    /// Its IPv6 address on the fabric.
    pub fn addr6(&self) -> Ipv6Addr {
        self.0.addrs.1
    }

    /// The directory for the daemon's files, in place of /run/flannel.
    pub fn run_dir(&self) -> &Path {
        &self.0.run
    }

    /// Where the daemon writes `subnet.env`.
    pub fn subnet_file(&self) -> PathBuf {
        self.0.run.join("subnet.env")
    }

    /// Starts twilld here, with the lab's etcd and the node's subnet file before `args`. Does not wait.
    #[track_caller]
    pub fn twilld(&self, args: &[&str]) -> Twilld {
        self.twilld_under(&[], args)
    }

    /// [`Node::twilld`] run by another program, as `["setpriv", "--bounding-set=-net_admin"]`.
    #[track_caller]
    pub fn twilld_under(&self, wrapper: &[&str], args: &[&str]) -> Twilld {
        let run = self.0.daemons.fetch_add(1, Ordering::Relaxed) + 1;
        let log = self.0.logs.join(format!("node{}-twilld-{run}.log", self.0.index));
        match Twilld::start(self.clone(), &self.0.etcd_url, wrapper, args, &log) {
            Ok(daemon) => daemon,
            Err(e) => panic!("start twilld on node {}: {e:#}", self.0.index),
        }
    }

    /// Makes pod `n` (from 1) on this node, as flannel's CNI plugin and `bridge` do: the node needs its subnet.env.
    #[track_caller]
    pub fn pod(&self, n: u8) -> Pod {
        match Pod::new(self, n) {
            Ok(pod) => pod,
            Err(e) => panic!("pod {n} on node {}: {e:#}", self.0.index),
        }
    }

    /// Runs a command line in the node; see [`Namespace::exec`].
    pub fn exec(&self, line: &str) -> Result<String> {
        self.0.netns.exec(line)
    }

    /// Runs `ip -j <line>` and returns its JSON: `ip_json("-d link show flannel.1")`.
    pub fn ip_json(&self, line: &str) -> Result<Value> {
        kernel::json(&self.exec(&format!("ip -j {line}"))?)
    }

    /// The rows with a remote of flannel.1's forwarding table.
    #[track_caller]
    pub fn fdb(&self) -> Vec<FdbRow> {
        self.read("the FDB", kernel::fdb(&self.0.netns, "flannel.1"))
    }

    /// The IPv4 neighbours on flannel.1.
    #[track_caller]
    pub fn neighbours(&self) -> Vec<Neighbour> {
        self.read("the neighbours", kernel::neighbours(&self.0.netns, "-4", "flannel.1"))
    }

    /// The IPv4 routes of the main table.
    #[track_caller]
    pub fn routes(&self) -> Vec<Route> {
        self.read("the routes", kernel::routes(&self.0.netns, "-4"))
    }

    /// A device, an error if there is none of that name.
    pub fn link(&self, dev: &str) -> Result<Link> {
        kernel::link(&self.0.netns, dev)
    }

    /// What `subnet.env` says, an error if it is not there or has not what every agent writes.
    pub fn subnet_env(&self) -> Result<SubnetEnv> {
        let path = self.subnet_file();
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        parse_subnet_env(&text).with_context(|| format!("in {}", path.display()))
    }

    /// Its subnets of both families as the log writes them: `10.5.52.0/24`. It must have its lease.
    #[track_caller]
    pub fn leased(&self) -> Vec<String> {
        let env = self.read("subnet.env", self.subnet_env());
        let v4 = env.subnet.map(|own| format!("{}/{}", own.network(), own.prefix()));
        let v6 = env.ipv6_subnet.map(|own| format!("{}/{}", own.network(), own.prefix()));
        v4.into_iter().chain(v6).collect()
    }

    /// This node as its peers see it. It must have its lease and flannel.1.
    #[track_caller]
    pub fn as_peer(&self) -> Peer {
        let found = || -> Result<Peer> {
            let leased = self.subnet_env()?.subnet.context("no FLANNEL_SUBNET")?;
            let subnet = Ipv4Network::new(leased.network(), leased.prefix())?;
            Ok(Peer { subnet, public_ip: self.addr(), mac: self.link("flannel.1")?.mac })
        };
        self.read("its subnet and MAC", found())
    }

    #[track_caller]
    fn read<T>(&self, what: &str, result: Result<T>) -> T {
        match result {
            Ok(value) => value,
            Err(e) => panic!("{what} of node {}: {e:#}", self.0.index),
        }
    }
}

fn parse_subnet_env(text: &str) -> Result<SubnetEnv> {
    let lines: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let get = |key: &str| lines.get(key).copied();
    Ok(SubnetEnv {
        subnet: get("FLANNEL_SUBNET").map(str::parse).transpose().context("FLANNEL_SUBNET")?,
        ipv6_subnet: get("FLANNEL_IPV6_SUBNET").map(str::parse).transpose().context("FLANNEL_IPV6_SUBNET")?,
        mtu: get("FLANNEL_MTU").context("no FLANNEL_MTU")?.parse().context("FLANNEL_MTU")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_families() {
        let text = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_IPV6_NETWORK=fc00::/48\n\
                    FLANNEL_IPV6_SUBNET=fc00:0:0:22::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";
        let env = parse_subnet_env(text).unwrap();
        assert_eq!(env.subnet.unwrap().to_string(), "10.5.52.1/24");
        assert_eq!(env.ipv6_subnet.unwrap().to_string(), "fc00:0:0:22::1/64");
        assert_eq!(env.mtu, 1430);
    }

    #[test]
    fn an_address_that_is_none_is_named() {
        let error = parse_subnet_env("FLANNEL_SUBNET=10.5.52\nFLANNEL_MTU=1450\n").unwrap_err();
        assert_eq!(error.to_string(), "FLANNEL_SUBNET");
    }
}
