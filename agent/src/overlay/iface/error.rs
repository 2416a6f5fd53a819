//! Why no interface was chosen, for people.

use std::net::IpAddr;

/// Why none was chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChooseError {
    /// Nothing that was asked for led to an interface.
    #[error("no interface for {family}: {}; this host has {present}", tried.join("; "))]
    NoMatch {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// Each flag, and why it led to none.
        tried: Vec<String>,
        /// One led to an interface that has a link-local address, and none that will do.
        link_local: bool,
        /// What there is.
        present: String,
    },
    /// Nothing was named and there is no default route.
    #[error(
        "no {family} default route and no --iface: name the interface that reaches the other nodes; this host has {present}"
    )]
    NoDefault {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// What there is.
        present: String,
    },
    /// The interface has no address of the family, or none that will do.
    #[error("{name} has no {family} address{}", why_none(left_out))]
    NoAddress {
        /// The interface's name.
        name: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// Those that it has, each with what is wrong with it.
        left_out: Vec<String>,
        /// One of them is link-local.
        link_local: bool,
    },
    /// The address that a flag names is there, and nothing can be sent from it.
    #[error("{flag} {address}: {address} {obstacle}")]
    Unusable {
        /// The flag.
        flag: &'static str,
        /// The address.
        address: IpAddr,
        /// What is wrong with it.
        obstacle: String,
    },
}

impl ChooseError {
    /// The same without what else there is on this host, which changes with each pod.
    pub fn brief(&self) -> String {
        match self {
            Self::NoMatch { tried, .. } => tried.join("; "),
            Self::NoDefault { family, .. } => format!("no {family} default route and no --iface"),
            Self::NoAddress { .. } | Self::Unusable { .. } => self.to_string(),
        }
    }

    /// Whether the interface is there and has a link-local address: mostly another one comes, from a router or DHCP.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::NoMatch { link_local: true, .. } | Self::NoAddress { link_local: true, .. })
    }
}

/// How many addresses an error or a log line names.
const NAMED: usize = 8;

fn why_none(left_out: &[String]) -> String {
    if left_out.is_empty() { String::new() } else { format!(" that can carry the tunnel: {}", list(left_out)) }
}

/// Some of these, and how many more there are: a node may have a thousand addresses of services.
pub(super) fn list(all: &[String]) -> String {
    let named = all[..all.len().min(NAMED)].join(", ");
    match all.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}
