//! Routes: `ip route replace <destination> via <gateway> dev <device> onlink proto <n> metric <n>`.
//!
//! Kernel: net/ipv4/fib_frontend.c, net/ipv4/fib_trie.c, net/ipv6/route.c.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::Family;
use crate::wire::{Body, Message, address, u32_value};

const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
pub(crate) const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
pub(crate) const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
pub(crate) const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;

const RTNH_F_ONLINK: u32 = 4;
/// A cached exception of a route (a redirect, a path MTU), not a route.
const RTM_F_CLONED: u32 = 0x200;
/// The answer to a lookup names the table that has the route, which need not be the main one.
const RTM_F_LOOKUP_TABLE: u32 = 0x1000;

/// The main table.
pub const TABLE_MAIN: u32 = 254;

/// What happens to a packet that takes the route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// It is sent.
    Unicast,
    /// It is dropped, and its sender is told so (`EHOSTUNREACH`).
    Unreachable,
    /// It is dropped without a word.
    Blackhole,
    /// It is dropped, and its sender is told that it may not (`EACCES`).
    Prohibit,
    /// The table is left; in the main table that mostly means that there is no route.
    Throw,
}

impl Kind {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Unicast => libc::RTN_UNICAST,
            Self::Unreachable => libc::RTN_UNREACHABLE,
            Self::Blackhole => libc::RTN_BLACKHOLE,
            Self::Prohibit => libc::RTN_PROHIBIT,
            Self::Throw => libc::RTN_THROW,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        let all = [Self::Unicast, Self::Unreachable, Self::Blackhole, Self::Prohibit, Self::Throw];
        all.into_iter().find(|kind| kind.number() == number)
    }
}

/// A route with at most one next hop.
///
/// Its scope follows from the rest, as with ip(8): `link` for an IPv4 unicast route without a gateway, else `global`.
/// The kernel takes a route for the same as another, and a put replaces it, if table, destination and metric are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    /// Where to; bits behind the prefix are not sent.
    pub destination: IpNetwork,
    /// What the route does.
    pub kind: Kind,
    /// The device. None for the kinds that drop; the kernel refuses one there in IPv4, and its `lo` of IPv6 is not
    /// told.
    pub ifindex: Option<u32>,
    /// The next hop. An IPv4 route may have an IPv6 one.
    pub gateway: Option<IpAddr>,
    /// The gateway is on the device's link whatever the routes say.
    pub onlink: bool,
    /// The source address that the kernel shall prefer.
    pub source: Option<IpAddr>,
    /// Who wrote it (the numbers of /etc/iproute2/rt_protos).
    pub protocol: u8,
    /// Lower wins; 0 asks for the kernel's own choice, which is 0 in IPv4 and 1024 in IPv6. A delete with 0 takes any.
    pub metric: u32,
    /// [`TABLE_MAIN`] mostly.
    pub table: u32,
}

impl Route {
    pub(crate) fn encode(&self, body: &mut Body<'_>, delete: bool) {
        let family = Family::from(self.destination.ip());
        body.header(&self.header(family, delete));
        if self.destination.prefix() > 0 {
            body.address(RTA_DST, self.destination.network());
        }
        match self.gateway {
            Some(gateway @ IpAddr::V6(via)) if family == Family::V4 => {
                let mut bytes = [0; 18]; // struct rtvia: the family as u16, then the address
                bytes[..2].copy_from_slice(&u16::from(Family::from(gateway).number()).to_ne_bytes());
                bytes[2..].copy_from_slice(&via.octets());
                body.attribute(RTA_VIA, &bytes);
            }
            Some(gateway) => body.address(RTA_GATEWAY, gateway),
            None => (),
        }
        if let Some(source) = self.source {
            body.address(RTA_PREFSRC, source);
        }
        if self.metric != 0 {
            body.u32(RTA_PRIORITY, self.metric);
        }
        if let Some(ifindex) = self.ifindex {
            body.u32(RTA_OIF, ifindex);
        }
        if self.table > u32::from(u8::MAX) {
            body.u32(RTA_TABLE, self.table);
        }
    }

    /// `struct rtmsg`: family, destination and source length, tos, table, protocol, scope, type, flags.
    fn header(&self, family: Family, delete: bool) -> [u8; 12] {
        // A delete with RT_SCOPE_NOWHERE matches every scope (fib_table_delete); IPv6 has no scopes.
        let scope = match (delete, self.kind, family, self.gateway) {
            (true, ..) => libc::RT_SCOPE_NOWHERE,
            (false, Kind::Unicast, Family::V4, None) => libc::RT_SCOPE_LINK,
            _ => libc::RT_SCOPE_UNIVERSE,
        };
        let table = u8::try_from(self.table).unwrap_or(libc::RT_TABLE_UNSPEC);
        let [f0, f1, f2, f3] = if self.onlink { RTNH_F_ONLINK.to_ne_bytes() } else { [0; 4] };
        let prefix = self.destination.prefix();
        [family.number(), prefix, 0, 0, table, self.protocol, scope, self.kind.number(), f0, f1, f2, f3]
    }

    /// `None` for what a [`Route`] can't say: local, broadcast and multicast kinds, a route of one TOS, cached exceptions.
    /// Of a route with several next hops, neither device nor gateway are told.
    pub(crate) fn parse(message: &Message<'_>) -> Option<Self> {
        let (header, _) = message.split::<12>()?;
        let (tos, flags) = (header[3], u32::from_ne_bytes([header[8], header[9], header[10], header[11]]));
        if flags & RTM_F_CLONED != 0 || tos != 0 { None } else { Self::parse_answer(message) }
    }

    /// The same for the answer to a lookup, which the kernel always marks as a cached one in IPv4.
    pub(crate) fn parse_answer(message: &Message<'_>) -> Option<Self> {
        let (header, attributes) = message.split::<12>()?;
        let family = Family::from_number(header[0])?;
        let flags = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let mut destination = match family {
            Family::V4 => IpAddr::from([0; 4]),
            Family::V6 => IpAddr::from([0; 16]),
        };
        let mut route = Self {
            destination: IpNetwork::from(destination),
            kind: Kind::from_number(header[7])?,
            ifindex: None,
            gateway: None,
            onlink: flags & RTNH_F_ONLINK != 0,
            source: None,
            protocol: header[5],
            metric: 0,
            table: header[4].into(),
        };
        for (kind, value) in attributes {
            match kind {
                RTA_DST => destination = address(value)?,
                RTA_OIF => route.ifindex = u32_value(value),
                RTA_GATEWAY => route.gateway = address(value),
                RTA_VIA => route.gateway = value.get(2..).and_then(address),
                RTA_PREFSRC => route.source = address(value),
                RTA_PRIORITY => route.metric = u32_value(value)?,
                RTA_TABLE => route.table = u32_value(value)?,
                _ => (),
            }
        }
        if route.kind != Kind::Unicast {
            route.ifindex = None; // IPv6 hangs such routes on `lo`, whoever made them
        }
        route.destination = IpNetwork::new(destination, header[1]).ok()?;
        Some(route)
    }
}

/// The header of a dump request. The kernel filters by table, protocol and kind where they are not 0.
pub(crate) fn query_header(family: Family, table: u8, protocol: u8, kind: u8) -> [u8; 12] {
    [family.number(), 0, 0, 0, table, protocol, 0, kind, 0, 0, 0, 0]
}

/// The header of a lookup of one address, as `ip route get` sends it. In IPv4 the answer names the route's table only if it
/// is asked for; in IPv6 it always does, and the flag is refused.
fn lookup_header(target: IpAddr, has_source: bool) -> [u8; 12] {
    let family = Family::from(target);
    let bits = if family == Family::V4 { 32 } else { 128 };
    let flags = if family == Family::V4 { RTM_F_LOOKUP_TABLE } else { 0 };
    let [f0, f1, f2, f3] = flags.to_ne_bytes();
    [family.number(), bits, if has_source { bits } else { 0 }, 0, 0, 0, 0, 0, f0, f1, f2, f3]
}

pub(crate) fn encode_lookup(body: &mut Body<'_>, target: IpAddr, source: Option<IpAddr>) {
    body.header(&lookup_header(target, source.is_some()));
    body.address(RTA_DST, target);
    if let Some(source) = source {
        body.address(RTA_SRC, source);
    }
}
