//! `struct ndmsg`, the header that FDB rows, neighbours and misses share (`include/uapi/linux/neighbour.h`).

use std::net::IpAddr;
use std::time::Duration;

use crate::Mac;
use crate::wire::{Attributes, Message, address, u32_at};

pub(crate) const NDA_DST: u16 = 1;
pub(crate) const NDA_LLADDR: u16 = 2;
const NDA_CACHEINFO: u16 = 3;
const NDA_PORT: u16 = 6;
const NDA_VNI: u16 = 7;
pub(crate) const NDA_IFINDEX: u16 = 8;
pub(crate) const NDA_PROTOCOL: u16 = 12;

pub(crate) const NTF_SELF: u8 = 1 << 1;
pub(crate) const NTF_EXT_LEARNED: u8 = 1 << 4;

pub(crate) const NUD_INCOMPLETE: u16 = 0x01;
pub(crate) const NUD_REACHABLE: u16 = 0x02;
pub(crate) const NUD_STALE: u16 = 0x04;
pub(crate) const NUD_PROBE: u16 = 0x10;
pub(crate) const NUD_FAILED: u16 = 0x20;
pub(crate) const NUD_NOARP: u16 = 0x40;
pub(crate) const NUD_PERMANENT: u16 = 0x80;

/// The kernel gives ages in ticks of `USER_HZ`, which is 100 on every architecture that Rust's std supports.
const TICK: Duration = Duration::from_millis(10);

/// The bytes of the header. `ndm_type` is left 0; the kernel ignores it in requests.
pub(crate) fn header(family: u8, ifindex: u32, state: u16, flags: u8) -> [u8; 12] {
    let [i0, i1, i2, i3] = ifindex.to_ne_bytes();
    let [s0, s1] = state.to_ne_bytes();
    [family, 0, 0, 0, i0, i1, i2, i3, s0, s1, flags, 0]
}

/// A received header with the attributes that matter. Of `NDA_VNI` only that it is there: its byte order varies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ndm {
    pub(crate) family: u8,
    pub(crate) ifindex: u32,
    pub(crate) state: u16,
    pub(crate) flags: u8,
    pub(crate) destination: Option<IpAddr>,
    pub(crate) mac: Option<Mac>,
    pub(crate) protocol: u8,
    /// Since the last use.
    pub(crate) used: Duration,
    /// A port, a VNI or an interface is named. Of an FDB row the kernel names each only where it is not the device's own.
    pub(crate) diverted: bool,
}

impl Ndm {
    /// `None` if the message is too short for the header.
    pub(crate) fn parse(message: &Message<'_>) -> Option<Self> {
        let (header, attributes) = message.split::<12>()?;
        let mut ndm = Self {
            family: header[0],
            ifindex: u32::from_ne_bytes([header[4], header[5], header[6], header[7]]),
            state: u16::from_ne_bytes([header[8], header[9]]),
            flags: header[10],
            destination: None,
            mac: None,
            protocol: 0,
            used: Duration::ZERO,
            diverted: false,
        };
        ndm.read(attributes);
        Some(ndm)
    }

    fn read(&mut self, attributes: Attributes<'_>) {
        for (kind, value) in attributes {
            match kind {
                NDA_DST => self.destination = address(value),
                NDA_LLADDR => self.mac = value.try_into().ok(),
                NDA_PORT | NDA_VNI | NDA_IFINDEX => self.diverted = true,
                NDA_PROTOCOL => self.protocol = value.first().copied().unwrap_or(0),
                // struct nda_cacheinfo: confirmed, used, updated, refcnt
                NDA_CACHEINFO => self.used = u32_at(value, 4).map_or(Duration::ZERO, |ticks| TICK * ticks),
                _ => (),
            }
        }
    }
}
