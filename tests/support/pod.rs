//! A pod: a namespace behind its node's `cni0`, connected as the CNI plugins flannel, bridge and host-local do.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::netns::Namespace;
use crate::node::{Node, SubnetEnv};
use crate::ping::{self, Ping};
use crate::wait::wait_for;

/// For a link to come up on a loaded machine.
const READY: Duration = Duration::from_secs(20);

/// A pod; gone with this value.
#[derive(Debug)]
pub struct Pod {
    // Before the node: a pod's namespace goes first.
    netns: Namespace,
    addr: Option<Ipv4Addr>,
    addr6: Option<Ipv6Addr>,
    node: Node,
}

impl Pod {
    pub(crate) fn new(node: &Node, n: u8) -> Result<Pod> {
        let env = node.subnet_env()?;
        ensure!(env.subnet.is_some() || env.ipv6_subnet.is_some(), "subnet.env has no subnet");
        bridge(node, &env)?;
        let netns = Namespace::new(format!("{}-pod{n}", node.netns().name()))?;
        // host-local begins behind the gateway, which has the subnet's first address + 1.
        let addr = env.subnet.map(|own| Ipv4Addr::from(u32::from(own.ip()) + u32::from(n)));
        let addr6 = env.ipv6_subnet.map(|own| Ipv6Addr::from(u128::from(own.ip()) + u128::from(n)));
        let mtu = env.mtu;
        node.netns().ip_batch([
            format!("link add veth{n} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}", netns.name()),
            format!("link set veth{n} master cni0 up"),
        ])?;
        let mut lines = vec!["link set eth0 up".to_string()];
        if let (Some(addr), Some(gateway)) = (addr, env.subnet) {
            lines.push(format!("addr add {addr}/{} dev eth0", gateway.prefix()));
            lines.push(format!("route add default via {}", gateway.ip()));
        }
        if let (Some(addr6), Some(gateway6)) = (addr6, env.ipv6_subnet) {
            lines.push(format!("addr add {addr6}/{} dev eth0 nodad", gateway6.prefix()));
            lines.push(format!("route add default via {} dev eth0", gateway6.ip()));
        }
        netns.ip_batch(lines)?;
        // The kernel may take IPv6 on a link whose other end has just come up for unready for a moment, and has no route
        // to its own address then.
        if let Some(addr6) = addr6 {
            wait_for("the pod's IPv6 address serves", READY, || ping::once(&netns, addr6.into(), 1.0))?;
        }
        Ok(Pod { netns, addr, addr6, node: node.clone() })
    }

    /// Its IPv4 address, which it has where the network has IPv4.
    #[track_caller]
    pub fn addr(&self) -> Ipv4Addr {
        match self.addr {
            Some(addr) => addr,
            None => panic!("{} has no IPv4 address", self.netns.name()),
        }
    }

    /// Its addresses of both families, as far as the network has them.
    pub fn addrs(&self) -> Vec<IpAddr> {
        self.addr.map(IpAddr::V4).into_iter().chain(self.addr6.map(IpAddr::V6)).collect()
    }

    /// Its IPv6 address, where the network has IPv6.
    pub fn addr6(&self) -> Option<Ipv6Addr> {
        self.addr6
    }

    /// Its namespace.
    pub fn netns(&self) -> &Namespace {
        &self.netns
    }

    /// The node it is on.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Runs a command line in the pod; see [`Namespace::exec`].
    pub fn exec(&self, line: &str) -> Result<String> {
        self.netns.exec(line)
    }

    /// Sends one ping and waits for its answer, at most five seconds; the round-trip time.
    pub fn ping(&self, to: impl Into<IpAddr>) -> Result<Duration> {
        ping::once(&self.netns, to.into(), 5.0)
    }

    /// Sends one packet and does not care for an answer: makes the kernel ask for a peer that is only a record.
    pub fn send(&self, to: impl Into<IpAddr>) {
        // ping fails without an answer; whether the kernel acted is for the caller to see.
        let _ = ping::once(&self.netns, to.into(), 0.05);
    }

    /// Pings until stopped, every `interval_ms`, and counts.
    #[track_caller]
    pub fn ping_running(&self, to: impl Into<IpAddr>, interval_ms: u32) -> Ping {
        match Ping::start(&self.netns, to.into(), interval_ms) {
            Ok(ping) => ping,
            Err(e) => panic!("start ping in {}: {e:#}", self.netns.name()),
        }
    }
}

/// The node's `cni0`, made with its first pod.
fn bridge(node: &Node, env: &SubnetEnv) -> Result<()> {
    if node.link("cni0").is_ok() {
        return Ok(());
    }
    // A bridge takes the lowest MAC of its ports unless it has been given one, and pods that had learned the old one
    // are cut off when a port joins. The bridge plugin gives it one of this form for the same reason.
    let [a, b, c, d] = env.subnet.map_or([0, 0, 0, 1], |gateway| gateway.ip().octets());
    let mut lines =
        vec![format!("link add cni0 mtu {} address 0a:58:{a:02x}:{b:02x}:{c:02x}:{d:02x} type bridge", env.mtu)];
    lines.extend(env.subnet.map(|own| format!("addr add {own} dev cni0")));
    lines.push("link set cni0 up".to_string());
    lines.extend(env.ipv6_subnet.map(|own| format!("addr add {own} dev cni0 nodad")));
    node.netns().ip_batch(lines)
}
