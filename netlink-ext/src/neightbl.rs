//! How neighbour tables resolve on one device: `ip ntable change name arp_cache dev <device> app_probes ...`.
//!
//! With `app_probes` above 0 the kernel asks user space for an unknown address, which is where L3 misses come from.
//! By netlink this needs no writable /proc/sys. Kernel: `neightbl_set`, net/core/neighbour.c.

use crate::Family;
use crate::wire::{Attributes, Body, Message, u32_value};

const NDTA_NAME: u16 = 1;
const NDTA_PARMS: u16 = 6;
const NDTPA_IFINDEX: u16 = 1;
const NDTPA_APP_PROBES: u16 = 9;
const NDTPA_UCAST_PROBES: u16 = 10;
const NDTPA_MCAST_PROBES: u16 = 11;

/// How often the kernel asks for an unknown neighbour before it gives up, and whom it asks. It waits a second after each question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Params {
    /// The device.
    pub ifindex: u32,
    /// The table: `arp_cache` or `ndisc_cache`.
    pub family: Family,
    /// Questions to user space.
    pub app_probes: u32,
    /// Questions to the MAC that answered last.
    pub ucast_probes: u32,
    /// Questions to everybody.
    pub mcast_probes: u32,
}

impl Params {
    pub(crate) fn encode(&self, body: &mut Body<'_>) {
        let (family, name) = match self.family {
            Family::V4 => (Family::V4, "arp_cache"),
            Family::V6 => (Family::V6, "ndisc_cache"),
        };
        body.header(&header(family));
        body.string(NDTA_NAME, name);
        body.nested(NDTA_PARMS, |parms| {
            parms.u32(NDTPA_IFINDEX, self.ifindex);
            parms.u32(NDTPA_APP_PROBES, self.app_probes);
            parms.u32(NDTPA_MCAST_PROBES, self.mcast_probes);
            parms.u32(NDTPA_UCAST_PROBES, self.ucast_probes);
        });
    }

    /// `None` for the table's own message and its defaults, which name no device.
    pub(crate) fn parse(message: &Message<'_>) -> Option<Self> {
        let (header, mut attributes) = message.split::<4>()?;
        let family = Family::from_number(header[0])?;
        let (_, parms) = attributes.find(|(kind, _)| *kind == NDTA_PARMS)?;
        let mut params = Self { ifindex: 0, family, app_probes: 0, ucast_probes: 0, mcast_probes: 0 };
        for (kind, value) in Attributes::new(parms) {
            let field = match kind {
                NDTPA_IFINDEX => &mut params.ifindex,
                NDTPA_APP_PROBES => &mut params.app_probes,
                NDTPA_UCAST_PROBES => &mut params.ucast_probes,
                NDTPA_MCAST_PROBES => &mut params.mcast_probes,
                _ => continue,
            };
            *field = u32_value(value)?;
        }
        (params.ifindex != 0).then_some(params)
    }
}

/// `struct ndtmsg`
pub(crate) fn header(family: Family) -> [u8; 4] {
    [family.number(), 0, 0, 0]
}
