//! Next hops: where a default route leads, over one way or several, and the next hop objects that a route may name
//! instead of a way (`ip nexthop add id 1 via 10.0.0.1 dev eth0`, `ip route add default nhid 1`).
//!
//! The kernel shows the ways of such a route beside the object's id, unless `net.ipv4.nexthop_compat_mode` is 0: then
//! the id stands alone, and the objects have to be dumped as well. Kernel: net/ipv4/nexthop.c, net/ipv4/fib_semantics.c
//! (`fib_dump_info`, `fib_nexthop_info`), net/ipv6/route.c (`rt6_fill_node`).

use crate::Family;
use crate::route::{Kind, RTA_OIF, RTA_PRIORITY, RTA_TABLE};
use crate::wire::{Message, u32_at, u32_value};

const RTA_MULTIPATH: u16 = 9;
const RTA_NH_ID: u16 = 30;
const RTNH_F_DEAD: u32 = 1;
const RTNH_F_LINKDOWN: u32 = 16;

const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_BLACKHOLE: u16 = 4;
const NHA_OIF: u16 = 5;
/// Length of `struct nexthop_grp`, which begins with the member's id.
const GROUP_MEMBER: usize = 8;

pub(crate) const RTM_NEWNEXTHOP: u16 = 104;
pub(crate) const RTM_DELNEXTHOP: u16 = 105;
pub(crate) const RTM_GETNEXTHOP: u16 = 106;
pub(crate) const RTNLGRP_NEXTHOP: u32 = 32;

/// One way of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The device.
    pub ifindex: u32,
    /// The kernel sends nothing this way: the device is down, or it has no carrier and
    /// `ignore_routes_with_linkdown` is set.
    pub dead: bool,
    /// The device has no carrier.
    pub linkdown: bool,
}

/// A default route, with all its ways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultRoute {
    /// The family that it is for.
    pub family: Family,
    /// Its metric.
    pub metric: u32,
    /// Its table.
    pub table: u32,
    /// Its ways, in the order in which they were given.
    pub hops: Vec<Hop>,
    /// The id of its next hop object, where it has one, and those of a group's members.
    pub objects: Vec<u32>,
}

/// A next hop object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its id.
    pub id: u32,
    /// Its way, unless it is a group or drops what it gets.
    pub hop: Option<Hop>,
    /// The ids of a group's members, in their order.
    pub members: Vec<u32>,
}

impl Hop {
    fn new(ifindex: u32, flags: u32) -> Self {
        Self { ifindex, dead: flags & RTNH_F_DEAD != 0, linkdown: flags & RTNH_F_LINKDOWN != 0 }
    }
}

impl DefaultRoute {
    /// `None` for what is no default route, and for one that drops what it gets.
    pub(crate) fn parse(message: &Message<'_>) -> Option<Self> {
        let (header, attributes) = message.split::<12>()?;
        let prefix = header[1];
        if (prefix, header[7]) != (0, Kind::Unicast.number()) {
            return None;
        }
        let flags = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let (family, table) = (Family::from_number(header[0])?, header[4].into());
        let mut route = Self { family, metric: 0, table, hops: Vec::new(), objects: Vec::new() };
        for (kind, value) in attributes {
            match kind {
                RTA_OIF => route.hops.extend(u32_value(value).map(|ifindex| Hop::new(ifindex, flags))),
                RTA_MULTIPATH => route.hops.extend(hops(value)),
                RTA_PRIORITY => route.metric = u32_value(value)?,
                RTA_TABLE => route.table = u32_value(value)?,
                RTA_NH_ID => route.objects.extend(u32_value(value)),
                _ => (),
            }
        }
        Some(route)
    }

    /// Fills in the ways that only the objects tell.
    pub fn resolve(&mut self, objects: &[Object]) {
        let Some(id) = self.objects.first().copied() else { return };
        let find = |id: u32| objects.iter().find(|object| object.id == id);
        let Some(object) = find(id) else { return };
        self.objects.extend(&object.members);
        if self.hops.is_empty() {
            // A group has no groups in it (`nh_check_attr_group`).
            let of_group = object.members.iter().filter_map(|member| find(*member)?.hop);
            self.hops = object.hop.into_iter().chain(of_group).collect();
        }
    }
}

/// The ways in `RTA_MULTIPATH`: each is a `struct rtnexthop` (length as u16, flags, weight, ifindex) and its attributes.
fn hops(mut bytes: &[u8]) -> Vec<Hop> {
    const HEADER: usize = 8;
    let mut hops = Vec::new();
    while let (Some(ifindex), &[l0, l1, flags, ..]) = (u32_at(bytes, 4), bytes) {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        if length < HEADER || length > bytes.len() {
            break;
        }
        hops.push(Hop::new(ifindex, flags.into()));
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    hops
}

impl Object {
    /// Length of `struct nhmsg`: family, scope, protocol, reserved, flags.
    const HEADER: usize = 8;

    pub(crate) fn parse(message: &Message<'_>) -> Option<Self> {
        let (header, attributes) = message.split::<{ Self::HEADER }>()?;
        let flags = u32_at(header, 4)?;
        let (mut id, mut ifindex, mut drops, mut members) = (None, None, false, Vec::new());
        for (kind, value) in attributes {
            match kind {
                NHA_ID => id = u32_value(value),
                NHA_OIF => ifindex = u32_value(value),
                NHA_BLACKHOLE => drops = true,
                NHA_GROUP => members = value.chunks_exact(GROUP_MEMBER).filter_map(|one| u32_at(one, 0)).collect(),
                _ => (),
            }
        }
        let hop = ifindex.filter(|_| !drops).map(|ifindex| Hop::new(ifindex, flags));
        Some(Self { id: id?, hop, members })
    }

    /// The header of a dump request, and of the request for one object.
    pub(crate) fn query_header() -> [u8; Self::HEADER] {
        [0; Self::HEADER]
    }
}
