//! A peer as the rest of the network sees it, and what a node's kernel should hold for it.
//!
//! The forms are flannel's (a record and its key, FDB row, neighbour and route of flannel >= 0.9), written down here
//! a second time on purpose: a test that shared the daemon's code would agree with its mistakes.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use ipnetwork::Ipv4Network;

use crate::kernel::{FdbRow, Neighbour, Route};
use crate::lab::PREFIX;
use crate::node::Node;

/// A node of the network, real or only a record in etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The subnet it leases, as the network address: 10.5.52.0/24.
    pub subnet: Ipv4Network,
    /// Where it takes VXLAN packets.
    pub public_ip: Ipv4Addr,
    /// The MAC of its flannel.1, in lower case.
    pub mac: String,
}

/// The subnet's first address, which flannel.1 of its node carries and peers route by.
pub fn first_address(subnet: Ipv4Network) -> Ipv4Addr {
    subnet.network()
}

impl Peer {
    /// A peer that is only a record.
    #[track_caller]
    pub fn new(subnet: &str, public_ip: &str, mac: &str) -> Peer {
        match (subnet.parse(), public_ip.parse()) {
            (Ok(subnet), Ok(public_ip)) => Peer { subnet, public_ip, mac: mac.to_string() },
            bad => panic!("a peer with {bad:?}"),
        }
    }

    /// Its key in etcd.
    pub fn key(&self) -> String {
        format!("{PREFIX}/subnets/{}-{}", self.subnet.network(), self.subnet.prefix())
    }

    /// Its record, to the byte as flannel writes it with the default VNI.
    pub fn record(&self) -> String {
        format!(
            r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{}"}}}}"#,
            self.public_ip, self.mac
        )
    }

    fn fdb_row(&self) -> FdbRow {
        FdbRow { mac: self.mac.clone(), dst: self.public_ip.into(), state: "permanent".into() }
    }

    fn neighbour(&self) -> Neighbour {
        Neighbour {
            dst: first_address(self.subnet).into(),
            lladdr: Some(self.mac.clone()),
            state: vec!["PERMANENT".into()],
        }
    }
}

impl Node {
    /// Whether the kernel holds exactly these peers on flannel.1 (FDB row, neighbour and route of each) and nothing of
    /// any other; the error says what differs. Made to be polled.
    pub fn holds_exactly(&self, peers: &[Peer]) -> Result<()> {
        let wanted = |name: fn(&Peer) -> String| -> Vec<String> {
            let mut all: Vec<String> = peers.iter().map(name).collect();
            all.sort();
            all
        };
        same("FDB rows", &listed(self.fdb()), &wanted(|p| p.fdb_row().to_string()))?;
        same("neighbours", &listed(self.neighbours()), &wanted(|p| p.neighbour().to_string()))?;
        same("routes", &listed(self.peer_routes()), &wanted(|p| route_line(p.subnet)))
    }

    /// Whether the kernel holds all of one peer, whatever else it holds.
    pub fn holds(&self, peer: &Peer) -> Result<()> {
        ensure!(self.fdb().contains(&peer.fdb_row()), "no FDB row {}: {:?}", peer.fdb_row(), self.fdb());
        ensure!(self.neighbours().contains(&peer.neighbour()), "no {}: {:?}", peer.neighbour(), self.neighbours());
        let line = route_line(peer.subnet);
        ensure!(listed(self.peer_routes()).contains(&line), "no route {line}: {:?}", self.peer_routes());
        Ok(())
    }

    /// The routes of peers: those through a gateway on flannel.1.
    pub fn peer_routes(&self) -> Vec<Route> {
        let on_device = |r: &Route| r.dev.as_deref() == Some("flannel.1") && r.gateway.is_some();
        self.routes().into_iter().filter(on_device).collect()
    }
}

/// A peer's route without its metric, which is Twill's own to choose.
fn route_line(subnet: Ipv4Network) -> String {
    format!("{subnet} via {} dev flannel.1 onlink proto 116", first_address(subnet))
}

fn listed<T: ToString>(entries: Vec<T>) -> Vec<String> {
    let mut lines: Vec<String> = entries.iter().map(T::to_string).collect();
    lines.sort();
    lines
}

fn same(what: &str, found: &[String], wanted: &[String]) -> Result<()> {
    ensure!(found == wanted, "{what} are {found:?}, not {wanted:?}");
    Ok(())
}
