//! Misses: the kernel asks user space.
//!
//! **L3 miss**: an IP address has no MAC. Any device asks so whose neighbour table has `app_probes` above 0
//! (`neigh_app_ns`, net/core/neighbour.c); packets wait for the answer, as far as `unres_qlen_bytes` goes, and the
//! question is repeated each second. **L2 miss**: a MAC has no FDB row, on a VXLAN device with `l2miss`; the packet is
//! dropped at once (`vxlan_fdb_miss`, drivers/net/vxlan/vxlan_core.c). Both are RTM_GETNEIGH messages on RTNLGRP_NEIGH,
//! a group that also carries the echo of every write: hence the filter.

use std::io;
use std::net::IpAddr;

use crate::listen::{Event, Listener};
use crate::ndm::Ndm;
use crate::wire::Message;
use crate::{Dumper, Error, Family, Mac, filter};

/// A question of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Miss {
    /// Which MAC has this address?
    L3 {
        /// The device.
        ifindex: u32,
        /// The address.
        address: IpAddr,
    },
    /// Which host has this MAC?
    L2 {
        /// The device.
        ifindex: u32,
        /// The MAC.
        mac: Mac,
    },
    /// Questions were lost because the receive buffer was full: see [`pending_misses`].
    Overrun,
}

impl Miss {
    /// An L3 miss has a destination and an L2 miss has none, whatever the family says: an L2 miss says IPv4.
    pub(crate) fn parse(message: &Message<'_>) -> Option<Self> {
        let ndm = Ndm::parse(message)?;
        let ifindex = ndm.ifindex;
        match ndm.destination {
            Some(address) => Some(Self::L3 { ifindex, address }),
            None => ndm.mac.map(|mac| Self::L2 { ifindex, mac }),
        }
    }
}

/// A socket that receives the misses of one device and nothing else.
#[derive(Debug)]
pub struct MissSocket(Listener);

impl MissSocket {
    /// Opens a socket in the network namespace of the calling thread, which has to be in a tokio runtime with I/O.
    ///
    /// `receive_buffer` is in bytes; the kernel doubles it and charges some 830 for each miss. Beyond
    /// `net.core.rmem_max` it takes `CAP_NET_ADMIN` in the first user namespace, without which it is cut to that.
    pub fn open(ifindex: u32, receive_buffer: usize) -> Result<Self, Error> {
        Listener::open(&[libc::RTNLGRP_NEIGH], &filter::misses(ifindex), receive_buffer).map(Self)
    }

    /// Waits until [`MissSocket::try_next`] may have something. Cancel-safe.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable().await
    }

    /// The next miss, `None` if there is none now.
    pub fn try_next(&mut self) -> Result<Option<Miss>, Error> {
        loop {
            match self.0.next("read miss")? {
                None => return Ok(None),
                Some(Event::Overrun) => return Ok(Some(Miss::Overrun)),
                Some(Event::Message(message)) => {
                    if let Some(miss) = Miss::parse(&message) {
                        return Ok(Some(miss));
                    }
                }
            }
        }
    }
}

/// The addresses of a device for which the kernel waits for an answer, of both families: those with no MAC
/// (INCOMPLETE) and those whose MAC it wants confirmed (PROBE). After an overrun this is what was lost, except for L2
/// misses, which leave no trace: the sender's next packet asks again.
pub fn pending_misses(dumper: &mut Dumper, ifindex: u32) -> Result<Vec<IpAddr>, Error> {
    let mut pending = Vec::new();
    for family in Family::BOTH {
        let neighbours = dumper.neighbours(ifindex, family)?;
        let asked = neighbours.iter().filter(|seen| seen.is_incomplete() || seen.is_probed());
        pending.extend(asked.map(|seen| seen.address));
    }
    Ok(pending)
}
