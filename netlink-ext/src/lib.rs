//! What rtnetlink lacks for an overlay agent: neighbour misses, batches, FDB rows, neighbour-table parameters, dumps
//! that notice an interruption, and the kernel's own words (ext-ack) in every refusal.
//!
//! Writing and dumping are synchronous. rtnetlink handles a request inside `sendmsg(2)`, so every answer lies in the
//! socket's queue when the call returns, and there is nothing to await. Only the two sockets that listen
//! ([`MissSocket`], [`ChangeSocket`]) are asynchronous, and of these only the readiness.
//!
//! Each job has a socket of its own: a request on a socket that has overrun loses its acknowledgement, and the echo of
//! our writes must not drown a miss. A socket belongs to the network namespace of the thread that opened it.
//!
//! ```no_run
//! use netlink_ext::{BatchSocket, Request, fdb::Row};
//!
//! let mut batch = BatchSocket::open()?;
//! let row = Row { ifindex: 4, mac: [2, 0, 0, 0, 0, 7], remote: [192, 0, 2, 7].into() };
//! for failure in batch.send(&[Request::PutFdb(row)])? {
//!     eprintln!("request {}: {}", failure.index, failure.refusal);
//! }
//! # Ok::<(), netlink_ext::Error>(())
//! ```
//!
//! The crate knows the kernel and nothing of who uses it. What is said of the kernel was measured on Linux 6.18; the
//! functions named are where to look.

pub mod addr;
pub mod batch;
#[cfg(test)]
mod captured;
pub mod change;
pub mod conf;
pub mod dump;
mod error;
pub mod fdb;
mod filter;
mod ifi;
pub mod link;
mod listen;
pub mod miss;
mod ndm;
pub mod neigh;
pub mod neightbl;
mod netlink;
pub mod nexthop;
pub mod route;
pub mod rule;
mod sys;
pub mod unix;
mod wire;

pub use batch::{BatchSocket, Failure, Request};
pub use change::{Change, ChangeScope, ChangeSocket};
pub use dump::Dumper;
pub use error::{Error, Refusal, is_passing};
pub use miss::{Miss, MissSocket, pending_misses};
pub use netlink::uninterrupted;

/// An Ethernet address, in the order of the wire.
pub type Mac = [u8; 6];

/// IPv4 or IPv6, where the kernel keeps two tables for one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// `AF_INET`
    V4,
    /// `AF_INET6`
    V6,
}

impl Family {
    /// Both families, for what is asked of each in turn.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn number(self) -> u8 {
        match self {
            Self::V4 => libc::AF_INET as u8,
            Self::V6 => libc::AF_INET6 as u8,
        }
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::BOTH.into_iter().find(|family| family.number() == number)
    }
}

impl From<std::net::IpAddr> for Family {
    fn from(address: std::net::IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}
