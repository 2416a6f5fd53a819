//! FDB rows of a VXLAN device: which host stands behind a MAC.
//!
//! `bridge fdb replace <mac> dev <device> dst <remote> self permanent`. Kernel: drivers/net/vxlan/vxlan_core.c.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::ndm::{self, Ndm};
use crate::wire::{Body, Message};
use crate::{Mac, ndm::NUD_NOARP, ndm::NUD_PERMANENT};

/// A row with one remote, written as `self permanent`: it does not age and is not learnt over.
///
/// Putting a row that exists swaps its first remote (`vxlan_fdb_replace`), unless the wanted remote is among its
/// remotes already. Deleting a row with a remote that it does not have does nothing and is no error
/// (`__vxlan_fdb_delete`); deleting the only remote deletes the row. An IPv6 remote needs a device whose local address
/// is IPv6.
///
/// The all-zero MAC and multicast MACs can't be put: the kernel answers EOPNOTSUPP to a replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Row {
    /// The VXLAN device.
    pub ifindex: u32,
    /// The inner destination.
    pub mac: Mac,
    /// The host that gets the encapsulated packets.
    pub remote: IpAddr,
}

/// A row as the kernel tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The row; its remote is `0.0.0.0` if the kernel gave none (a row with a nexthop group).
    pub row: Row,
    /// `NUD_*` bits; a permanent row has `NUD_PERMANENT`.
    pub state: u16,
    /// `NTF_*` bits.
    pub flags: u8,
    /// Time since a packet last used the row, in steps of 10 ms, or since the row was created. A put that finds the row
    /// leaves it.
    pub used: Duration,
    /// Its frames go to another port, VNI or interface than the device's own. Deleting such a remote takes naming it
    /// whole; deleting the row without a remote takes it away too.
    pub diverted: bool,
}

impl Seen {
    /// Whether the row was written by hand and does not age, as [`Row`]s are.
    pub fn is_permanent(&self) -> bool {
        self.state & NUD_PERMANENT != 0
    }

    /// Whether the row ages (`vxlan_cleanup`): the kernel learned it, or somebody wrote it as `dynamic`.
    pub fn ages(&self) -> bool {
        self.state & (NUD_PERMANENT | NUD_NOARP) == 0
    }

    /// `None` for what is no row of a device's own table (a bridge's rows, other families).
    pub(crate) fn parse(message: &Message<'_>) -> Option<Self> {
        let ndm = Ndm::parse(message)?;
        if ndm.family != libc::AF_BRIDGE as u8 || ndm.flags & ndm::NTF_SELF == 0 {
            return None;
        }
        let remote = ndm.destination.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let row = Row { ifindex: ndm.ifindex, mac: ndm.mac?, remote };
        Some(Self { row, state: ndm.state, flags: ndm.flags, used: ndm.used, diverted: ndm.diverted })
    }
}

impl Row {
    /// The same for adding and for deleting: without `NDA_DST` a delete takes away the row whatever its remotes.
    ///
    /// The state is what bridge(8) sends for `permanent`. Without `NTF_SELF` the kernel looks for a bridge and answers
    /// EOPNOTSUPP.
    pub(crate) fn encode(&self, body: &mut Body<'_>) {
        let state = NUD_NOARP | NUD_PERMANENT;
        body.header(&ndm::header(libc::AF_BRIDGE as u8, self.ifindex, state, ndm::NTF_SELF));
        body.attribute(ndm::NDA_LLADDR, &self.mac);
        body.address(ndm::NDA_DST, self.remote);
    }
}
