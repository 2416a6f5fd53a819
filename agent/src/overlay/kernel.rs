//! The rows that Twill keeps in the kernel, as data: what can be asked of it and what a dump of it shows.
//!
//! A peer is three rows: an FDB row (which host stands behind a MAC), a neighbour (which MAC answers for the peer's
//! gateway address) and a route. This module knows no netlink; `dataplane` translates.

use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::MacAddr;

/// `rtm_protocol` and `NDA_PROTOCOL` of everything that Twill writes: how a restarted agent knows its own.
pub const PROTOCOL: u8 = 116;

/// The metric of the peer route of the network's first subnet; each following subnet has the next one.
///
/// A metric of its own keeps the kernel's next-hop hash chains short: it hashes a gateway route's next hop by device,
/// protocol, source and metric, not by gateway, so equal metrics make insertion quadratic (`fib_info_hashfn_result` in
/// net/ipv4/fib_semantics.c).
const PEER_METRIC: u32 = 1_000;

/// How many metrics peers may use; a larger network (IPv6) goes round.
const PEER_METRICS: u64 = 1 << 30;

/// The metric of a route that refuses an unleased block: higher than any peer's, so that a peer's route wins.
const REFUSAL_METRIC: u32 = 1 << 31;

/// An FDB row: frames to `mac` go to the host `remote`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fdb {
    /// The VTEP's MAC.
    pub mac: MacAddr,
    /// The underlay address of its host.
    pub remote: IpAddr,
}

/// A neighbour: packets for the next hop `address` go in frames to `mac`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neigh {
    /// The next hop.
    pub address: IpAddr,
    /// The VTEP's MAC.
    pub mac: MacAddr,
}

/// A route in the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The prefix.
    pub destination: IpNetwork,
    /// How it is reached.
    pub via: Via,
    /// The metric (priority); 0 is the kernel's default.
    pub metric: u32,
    /// Who wrote it (`rtm_protocol`): [`PROTOCOL`], unless it is somebody else's that we look at. A deletion has to name
    /// it: the kernel takes metric 0 for any metric, and would delete the wrong one of two.
    pub protocol: u8,
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// On the link of our VXLAN device: the kernel asks for each address (an L3 miss).
    Link {
        /// The source address of what this host itself sends.
        source: IpAddr,
    },
    /// Through a gateway on our VXLAN device, on-link.
    Gateway(IpAddr),
    /// Through a host on a link of the underlay, without a tunnel.
    Direct(IpAddr),
    /// Nowhere: senders get an error at once.
    Unreachable,
    /// Nowhere, without a word.
    Blackhole,
    /// Nowhere: senders are told that they may not. Somebody else's.
    Prohibit,
    /// Out of the main table. Somebody else's.
    Throw,
    /// Not through our device: somebody else's.
    Elsewhere,
}

impl Route {
    /// The base route of the on-demand mode: the whole network on our device.
    pub fn base(network: IpNetwork, source: IpAddr) -> Self {
        // The kernel's own defaults. IPv6 has no 0: it would show 1024 for it (IP6_RT_PRIO_USER, include/net/ip6_route.h).
        let metric = if network.is_ipv6() { 1024 } else { 0 };
        Self { destination: network, via: Via::Link { source }, metric, protocol: PROTOCOL }
    }

    /// The route of a peer's subnet, which is the `index`th of its network.
    pub fn peer(subnet: IpNetwork, index: u64) -> Self {
        let offset = u32::try_from(index % PEER_METRICS).unwrap_or(0);
        let (via, metric) = (Via::Gateway(subnet.network()), PEER_METRIC + offset);
        Self { destination: subnet, via, metric, protocol: PROTOCOL }
    }

    /// The route of such a peer whose host needs no tunnel.
    pub fn direct(subnet: IpNetwork, index: u64, host: IpAddr) -> Self {
        // The same metric, so that the one takes the other's place in one step.
        Self { via: Via::Direct(host), ..Self::peer(subnet, index) }
    }

    /// The route that drops what nothing else of our own subnet takes (`--ip-blackhole-route`).
    pub fn blackhole(own: IpNetwork) -> Self {
        Self { destination: own, via: Via::Blackhole, metric: REFUSAL_METRIC, protocol: PROTOCOL }
    }

    /// The route that refuses a block nobody has leased.
    pub fn refusal(block: IpNetwork) -> Self {
        Self { destination: block, via: Via::Unreachable, metric: REFUSAL_METRIC, protocol: PROTOCOL }
    }
}

/// A row that can be deleted, in the order in which the rows of one peer are: route, neighbour, FDB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    /// A route, known by its prefix, metric, protocol and where it leads.
    Route(Route),
    /// The neighbour of this address.
    Neigh(IpAddr),
    /// An FDB row, known by its MAC and its remote.
    Fdb(Fdb),
}

/// One operation on the kernel. Each may be repeated: putting what is there and deleting what is gone are successes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Create or replace an FDB row.
    PutFdb(Fdb),
    /// Create or replace a permanent neighbour.
    PutNeigh(Neigh),
    /// Create or replace a route.
    PutRoute(Route),
    /// Delete a row.
    Delete(Row),
}

/// A question of the kernel that only user space can answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Miss {
    /// L3 miss: this address has no MAC.
    Address(IpAddr),
    /// L2 miss: this MAC has no host.
    Mac(MacAddr),
}

/// What a dump of the kernel shows of our device and our routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The FDB of our device.
    pub fdb: Vec<SeenFdb>,
    /// The neighbours on our device.
    pub neighbours: Vec<SeenNeigh>,
    /// The routes of the main table.
    pub routes: Vec<SeenRoute>,
}

/// What one notification of the kernel tells: a row as it is now, or that rows are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notification {
    /// An FDB row of our device.
    Fdb(SeenFdb),
    /// A neighbour on our device.
    Neigh(SeenNeigh),
    /// A route of any program. Putting a route replaces another one with its prefix and metric, and the kernel sends no
    /// notification of the one replaced.
    Route(SeenRoute),
    /// A row that is no longer there.
    Gone(Row),
    /// Another device than ours is down or gone, and its IPv4 routes with it, of which the kernel sends no notification.
    DeviceDown(u32),
}

/// An FDB row as a dump or a notification shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenFdb {
    /// The row. The remote is unspecified where the kernel names none, or more than a remote: then the row can be deleted
    /// only as a whole.
    pub row: Fdb,
    /// Since when no packet used it.
    pub idle: Duration,
    /// The kernel learned it, or somebody wrote it like that: it goes by itself.
    pub ages: bool,
}

/// A route as a dump or a notification shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenRoute {
    /// The route.
    pub route: Route,
    /// The device that it leads through, where it is one and not ours.
    pub ifindex: Option<u32>,
}

impl From<Route> for SeenRoute {
    /// One through our device, or through none.
    fn from(route: Route) -> Self {
        Self { route, ifindex: None }
    }
}

/// A neighbour as a dump or a notification shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenNeigh {
    /// The next hop.
    pub address: IpAddr,
    /// Its MAC, where it has one.
    pub mac: Option<MacAddr>,
    /// What the kernel thinks of it.
    pub state: NeighState,
    /// `NDA_PROTOCOL`, 0 where unset.
    pub protocol: u8,
}

/// The neighbour states that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeighState {
    /// Packets wait for an answer.
    Incomplete,
    /// Neither ages nor counts against the table's limits.
    Permanent,
    /// Any other.
    Other,
}

/// A device that is not ours, as far as a route through it concerns us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherDevice {
    /// Its name.
    pub name: String,
    /// It is a bridge whose ports are veths or that has none, as the CNI plugin `bridge` makes it for pods.
    pub may_be_pods_bridge: bool,
}
