//! The peers that everything is measured with, by number: a subnet, a MAC and a metric of its own for each.
//!
//! They lie in 10.128.0.0/9, a /26 each, so that 100,000 fit. All live at one underlay address.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use netlink_ext::neigh::{Entry, State};
use netlink_ext::route::{Kind, Route, TABLE_MAIN};
use netlink_ext::{Mac, Request, fdb};

/// The network of all peers.
pub(crate) const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
pub(crate) const NETWORK_PREFIX: u8 = 9;
/// The size of a peer's subnet.
pub(crate) const PREFIX: u8 = 26;
/// `rtm_protocol` and `NDA_PROTOCOL`.
pub(crate) const PROTOCOL: u8 = 116;
/// The pod that is written to, counted from the subnet's first address.
const POD: u32 = 5;

/// One peer. Number 0 stands for this host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) u32);

/// What is written for a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Fdb,
    Neigh,
    Route,
    /// All three.
    Peer,
}

impl Peer {
    /// The peer whose subnet has this address.
    pub(crate) fn of(address: Ipv4Addr) -> Self {
        Self((u32::from(address) - u32::from(NETWORK)) >> (32 - PREFIX))
    }

    /// The first address of its subnet.
    pub(crate) fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(NETWORK) + (self.0 << (32 - PREFIX)))
    }

    pub(crate) fn pod(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.gateway()) + POD)
    }

    pub(crate) fn mac(self) -> Mac {
        let [a, b, c, d] = self.0.to_be_bytes();
        [2, 0, a, b, c, d]
    }

    pub(crate) fn mac_text(self) -> String {
        self.mac().map(|byte| format!("{byte:02x}")).join(":")
    }

    pub(crate) fn metric(self) -> u32 {
        1_000 + self.0
    }

    pub(crate) fn fdb(self, ifindex: u32, remote: Ipv4Addr) -> Request {
        Request::PutFdb(fdb::Row { ifindex, mac: self.mac(), remote: remote.into() })
    }

    pub(crate) fn neigh(self, ifindex: u32, address: Ipv4Addr) -> Request {
        Request::PutNeigh(Entry {
            ifindex,
            address: address.into(),
            mac: self.mac(),
            state: State::Permanent,
            ext_learned: false,
            protocol: PROTOCOL,
        })
    }

    pub(crate) fn route(self, ifindex: u32) -> Request {
        let destination = Ipv4Network::new(self.gateway(), PREFIX).expect("a prefix of 26 bits");
        Request::PutRoute(Route {
            destination: destination.into(),
            kind: Kind::Unicast,
            ifindex: Some(ifindex),
            gateway: Some(self.gateway().into()),
            onlink: true,
            source: None,
            protocol: PROTOCOL,
            metric: self.metric(),
            table: TABLE_MAIN,
        })
    }
}

/// netlink-ext's requests for the peers from 1 to `count`.
pub(crate) fn requests(work: Work, count: u32, ifindex: u32, remote: Ipv4Addr) -> Vec<Request> {
    let of_one = |n| -> Vec<Request> {
        let peer = Peer(n);
        match work {
            Work::Fdb => vec![peer.fdb(ifindex, remote)],
            Work::Neigh => vec![peer.neigh(ifindex, peer.gateway())],
            Work::Route => vec![peer.route(ifindex)],
            Work::Peer => {
                vec![peer.fdb(ifindex, remote), peer.neigh(ifindex, peer.gateway()), peer.route(ifindex)]
            }
        }
    };
    (1..=count).flat_map(of_one).collect()
}
