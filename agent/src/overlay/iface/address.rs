//! One address of an interface: whether it lasts, and how it stands beside the others.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::{IpNetwork, IpNetworkError};

const LINK_LOCAL: &str = "is a link-local address: expected one that means this host on other links too";

/// An address of an interface, as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The address with the prefix of its link.
    pub net: IpNetwork,
    /// The other end of a point-to-point address; the prefix is that of this end then.
    pub peer: Option<IpAddr>,
    /// Made by privacy extensions: another one takes its place within days, and at each boot.
    pub temporary: bool,
    /// Its preferred lifetime is over.
    pub deprecated: bool,
    /// It goes when its lifetime is over, unless a DHCP client or a router renews that.
    pub ends: bool,
    /// In IPv4: an address of the same prefix came before it.
    pub secondary: bool,
    /// Duplicate address detection is not through: nothing can be sent from it yet.
    pub tentative: bool,
    /// Another host on the link has it: nothing can be sent from it.
    pub duplicate: bool,
    /// How far it means this host.
    pub scope: Scope,
    /// Why it can't carry the tunnel, where that is not the kernel's affair.
    pub barred: Option<Barred>,
}

/// How far an address means this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Everywhere that routes lead from.
    Global,
    /// On its link.
    Link,
    /// Within itself.
    Host,
}

/// Why the network itself keeps an address from carrying the tunnel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Barred {
    /// A node may lease the subnet that it lies in.
    #[error("lies in the network's leased range {first} to {last} (SubnetMin to SubnetMax of {network})")]
    Leased {
        /// The network.
        network: IpNetwork,
        /// The first address of the range.
        first: IpAddr,
        /// The last one.
        last: IpAddr,
    },
    /// The route of the on-demand mode covers it.
    #[error("lies in the network {network}, which --peer-mode=on-demand routes into the tunnel as a whole")]
    Routed {
        /// The network.
        network: IpNetwork,
    },
    /// The device that it is on is the tunnel's own.
    #[error("is on the tunnel's own device")]
    OwnDevice,
}

impl From<IpNetwork> for Address {
    /// One that lasts.
    fn from(net: IpNetwork) -> Self {
        let (temporary, deprecated, tentative, duplicate) = (false, false, false, false);
        let scope = Scope::Global;
        let (ends, secondary) = (false, false);
        Self { net, peer: None, temporary, deprecated, ends, secondary, tentative, duplicate, scope, barred: None }
    }
}

impl FromStr for Address {
    type Err = IpNetworkError;

    fn from_str(text: &str) -> Result<Self, IpNetworkError> {
        text.parse::<IpNetwork>().map(Self::from)
    }
}

impl fmt::Display for Address {
    /// The address, and what is wrong with it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.blemish() {
            Some(blemish) => write!(f, "{} {blemish}", self.ip()),
            None => write!(f, "{}", self.ip()),
        }
    }
}

impl Address {
    /// The address alone.
    pub fn ip(&self) -> IpAddr {
        self.net.ip()
    }

    /// The addresses of its link.
    pub fn link(&self) -> IpNetwork {
        self.peer.and_then(|peer| IpNetwork::new(peer, self.net.prefix()).ok()).unwrap_or(self.net)
    }

    pub(super) fn is_of(&self, v6: bool) -> bool {
        self.net.is_ipv6() == v6
    }

    fn is_loopback(&self) -> bool {
        self.ip().is_loopback()
    }

    /// Why the tunnel can't have it, not even where it is named: words that follow the address.
    pub(super) fn obstacle(&self) -> Option<String> {
        if let Some(barred) = &self.barred {
            return Some(barred.to_string());
        }
        let obstacle = if self.is_loopback() {
            "is a loopback address: nothing sent from it leaves this host"
        } else if self.duplicate {
            "failed duplicate address detection: another host on the link has it"
        } else if self.net.is_ipv6() && self.is_of_its_link() {
            LINK_LOCAL
        } else if self.tentative {
            "is tentative: duplicate address detection is not through"
        } else {
            return None;
        };
        Some(obstacle.to_owned())
    }

    /// Why another one would be better, or why it can't be had.
    pub(super) fn blemish(&self) -> Option<String> {
        const TEMPORARY: &str = "is temporary (privacy extensions)";
        if self.temporary && !self.duplicate && self.barred.is_none() {
            return Some(TEMPORARY.to_owned());
        }
        self.obstacle().or_else(|| {
            let blemish = if self.scope == Scope::Host {
                "has the scope host"
            } else if self.is_of_its_link() {
                LINK_LOCAL
            } else if self.deprecated {
                "is deprecated (its preferred lifetime is over)"
            } else {
                return None;
            };
            Some(blemish.to_owned())
        })
    }

    /// The same in a word or two, for a list.
    pub(super) fn mark(&self) -> Option<&'static str> {
        match &self.barred {
            Some(Barred::Leased { .. }) => Some("in the leased range"),
            Some(Barred::Routed { .. }) => Some("in the network"),
            Some(Barred::OwnDevice) => Some("the tunnel's own"),
            None if self.duplicate => Some("duplicate"),
            None if self.tentative => Some("tentative"),
            None if self.temporary => Some("temporary"),
            None if self.deprecated => Some("deprecated"),
            None if self.is_of_its_link() => Some("link-local"),
            None => None,
        }
    }

    /// Its place in the order of preference, the lowest first; `None` where it serves only if it is named.
    pub(super) fn rank(&self) -> Option<Rank> {
        let lasts = self.obstacle().is_none() && !self.temporary && self.scope != Scope::Host;
        (lasts && !self.is_of_its_link()).then(|| Rank {
            link_local: self.is_link_local(),
            deprecated: self.deprecated,
            alone: self.net.is_ipv4() && self.link().prefix() == 32 && self.peer.is_none(),
            ends: self.ends || self.secondary,
        })
    }

    /// Whether it serves on its link only.
    pub(super) fn is_link_local(&self) -> bool {
        self.is_of_its_link() || self.scope != Scope::Global
    }

    /// Whether it is one that each link gives out anew (fe80::/10, 169.254.0.0/16): peers can't be told it.
    pub(super) fn is_of_its_link(&self) -> bool {
        match self.ip() {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        }
    }
}

/// An address's place among those of an interface. What stands first here weighs most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) link_local: bool,
    pub(super) deprecated: bool,
    /// An IPv4 /32: beside an address with a link's prefix it is mostly a virtual one, which moves to another node
    /// (keepalived, kube-vip, MetalLB).
    pub(super) alone: bool,
    /// It has a lifetime, or is one that was added beside the first of its prefix: that one is the host's own although a DHCP
    /// client renews it, and a permanent one beside it is mostly a virtual one (pacemaker) or a second one for other uses.
    pub(super) ends: bool,
}
