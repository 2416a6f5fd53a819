//! Neighbours: which MAC answers for an address ("ARP" and neighbour discovery).
//!
//! `ip neigh replace <address> lladdr <mac> dev <device> nud <state> [extern_learn] protocol <n>`.
//! Kernel: net/core/neighbour.c.

use std::net::IpAddr;

use crate::ndm::{self, Ndm};
use crate::wire::{Body, Message};
use crate::{Family, Mac};

/// What the kernel shall think of an entry that we write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Never ages, never probed, not counted against `gc_thresh`.
    Permanent,
    /// Ages: probed after some 30 s without use, and then deleted if nobody answers.
    Reachable,
    /// Probed at the next use.
    Stale,
    /// Never probed, but may be collected.
    NoArp,
}

impl State {
    fn bits(self) -> u16 {
        match self {
            Self::Permanent => ndm::NUD_PERMANENT,
            Self::Reachable => ndm::NUD_REACHABLE,
            Self::Stale => ndm::NUD_STALE,
            Self::NoArp => ndm::NUD_NOARP,
        }
    }
}

/// An entry to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry {
    /// The device.
    pub ifindex: u32,
    /// The address that is answered for.
    pub address: IpAddr,
    /// The MAC that answers.
    pub mac: Mac,
    /// The state to put it in.
    pub state: State,
    /// `NTF_EXT_LEARNED`: like a permanent entry it is neither collected nor counted, but goes when the carrier does.
    pub ext_learned: bool,
    /// Who wrote it (`NDA_PROTOCOL`, the numbers of /etc/iproute2/rt_protos); 0 for nobody in particular.
    pub protocol: u8,
}

/// An entry as the kernel tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The device.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
    /// The MAC, if the kernel has one.
    pub mac: Option<Mac>,
    /// `NUD_*` bits.
    pub state: u16,
    /// `NTF_*` bits.
    pub flags: u8,
    /// Who wrote it, 0 if unknown.
    pub protocol: u8,
}

impl Seen {
    /// Packets wait for an answer.
    pub fn is_incomplete(&self) -> bool {
        self.state & ndm::NUD_INCOMPLETE != 0
    }

    /// The kernel asks whether the MAC still holds; packets pass meanwhile.
    pub fn is_probed(&self) -> bool {
        self.state & ndm::NUD_PROBE != 0
    }

    /// Nobody answered: the next packet asks again.
    pub fn is_failed(&self) -> bool {
        self.state & ndm::NUD_FAILED != 0
    }

    /// Written by hand; does not age.
    pub fn is_permanent(&self) -> bool {
        self.state & ndm::NUD_PERMANENT != 0
    }

    /// Learnt from outside the kernel; does not age.
    pub fn is_ext_learned(&self) -> bool {
        self.flags & ndm::NTF_EXT_LEARNED != 0
    }

    /// `None` for what is no neighbour of an IP address (FDB rows).
    pub(crate) fn parse(message: &Message<'_>) -> Option<Self> {
        let ndm = Ndm::parse(message)?;
        Family::from_number(ndm.family)?;
        let address = ndm.destination?;
        let Ndm { ifindex, mac, state, flags, protocol, .. } = ndm;
        Some(Self { ifindex, address, mac, state, flags, protocol })
    }
}

impl Entry {
    pub(crate) fn encode(&self, body: &mut Body<'_>) {
        let flags = if self.ext_learned { ndm::NTF_EXT_LEARNED } else { 0 };
        let family = Family::from(self.address).number();
        body.header(&ndm::header(family, self.ifindex, self.state.bits(), flags));
        if self.protocol != 0 {
            body.attribute(ndm::NDA_PROTOCOL, &[self.protocol]);
        }
        body.address(ndm::NDA_DST, self.address);
        body.attribute(ndm::NDA_LLADDR, &self.mac);
    }
}

/// Names an entry, for deleting it.
pub(crate) fn encode_key(ifindex: u32, address: IpAddr, body: &mut Body<'_>) {
    body.header(&ndm::header(Family::from(address).number(), ifindex, 0, 0));
    body.address(ndm::NDA_DST, address);
}
