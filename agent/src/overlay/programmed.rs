//! Which peers were put into the kernel, and why, and which can't be: what the log says of them.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// How many are remembered by name; more than that at once are only counted.
const NAMED: usize = 10;

/// Peers that were put into the kernel since somebody asked last. Rows that were put back are none.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Programmed {
    /// The first ones.
    pub first: Vec<(IpNetwork, Cause)>,
    /// How many came after them.
    pub more: usize,
}

/// Peers that turned out to have no way to them since somebody asked last.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unreached {
    /// The first ones, with their hosts.
    pub first: Vec<(IpNetwork, IpAddr)>,
    /// How many came after them.
    pub more: usize,
}

/// Why a peer is in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// On demand: a packet to the peer waited.
    Packet,
    /// Every peer is in the kernel.
    Record,
    /// DirectRouting: the peer's host needs no tunnel.
    Direct,
}

impl Programmed {
    pub(super) fn add(&mut self, subnet: IpNetwork, cause: Cause) {
        if self.first.len() < NAMED {
            self.first.push((subnet, cause));
        } else {
            self.more += 1;
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }
}

impl Unreached {
    pub(super) fn add(&mut self, subnet: IpNetwork, host: IpAddr) {
        if self.first.len() < NAMED {
            self.first.push((subnet, host));
        } else {
            self.more += 1;
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Packet => "a packet asked for it",
            Self::Record => "its record is in etcd",
            Self::Direct => "its host is on a link of this node",
        })
    }
}
