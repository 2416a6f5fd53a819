//! What can be dumped: the request for it, and the rows in its answer.

use crate::wire::{Body, Datagram, Message};
use crate::{Family, addr, fdb, ifi, link, ndm, neigh, neightbl, nexthop, route, rule};

/// What to dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// The FDB rows of one VXLAN device.
    Fdb {
        /// The device.
        ifindex: u32,
    },
    /// The neighbours of one device.
    Neigh {
        /// The device.
        ifindex: u32,
        /// Which table.
        family: Family,
    },
    /// Routes of all tables that fit each filter that is given.
    Routes {
        /// Which tables.
        family: Family,
        /// Of this device.
        ifindex: Option<u32>,
        /// Written by this protocol.
        protocol: Option<u8>,
        /// Of this kind.
        kind: Option<route::Kind>,
    },
    /// All routes of the main table.
    MainTable {
        /// Of this family.
        family: Family,
    },
    /// Routes of one table and kind, whichever table that is. The kernel goes through the whole table and tells these only.
    TableRoutes {
        /// Of this family.
        family: Family,
        /// The table.
        table: u32,
        /// Of this kind.
        kind: route::Kind,
    },
    /// The route that the kernel takes to one address, as `ip route get` asks for it. It refuses with ENETUNREACH and
    /// the like if there is none.
    RouteTo {
        /// The address.
        target: std::net::IpAddr,
        /// An address of this host that is sent from, where that matters.
        source: Option<std::net::IpAddr>,
    },
    /// Default routes that send, of the main table. IPv4's local table is part of it until there is a policy rule, and a dump
    /// of both looks through 100,000 routes again, in one go, for the few local ones.
    DefaultRoutes {
        /// Which tables.
        family: Family,
    },
    /// The policy rules. The kernel refuses with EOPNOTSUPP or EAFNOSUPPORT where it has none.
    Rules {
        /// Of this family.
        family: Family,
    },
    /// The next hop objects. The kernel refuses with EOPNOTSUPP where it has none (Linux before 5.3).
    Nexthops,
    /// All links.
    Links,
    /// One link. The kernel refuses with ENODEV if there is none.
    LinkNamed {
        /// Its name.
        name: String,
    },
    /// Addresses of both families.
    Addresses {
        /// Of this device.
        ifindex: Option<u32>,
    },
    /// The parameters of a neighbour table for each device.
    NeighParams {
        /// Which table.
        family: Family,
    },
}

/// One row of a dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// Of [`Query::Fdb`].
    Fdb(fdb::Seen),
    /// Of [`Query::Neigh`].
    Neigh(neigh::Seen),
    /// Of [`Query::Routes`], [`Query::MainTable`], [`Query::TableRoutes`] and [`Query::RouteTo`].
    Route(route::Route),
    /// Of [`Query::DefaultRoutes`].
    DefaultRoute(nexthop::DefaultRoute),
    /// Of [`Query::Rules`].
    Rule(rule::Rule),
    /// Of [`Query::Nexthops`].
    Nexthop(nexthop::Object),
    /// Of [`Query::Links`] and [`Query::LinkNamed`].
    Link(Box<link::Link>),
    /// Of [`Query::Addresses`].
    Address(addr::Seen),
    /// Of [`Query::NeighParams`].
    NeighParams(neightbl::Params),
}

impl Query {
    pub(super) fn write(&self, datagram: &mut Datagram, sequence: u32) {
        let kind = match self {
            Self::Fdb { .. } | Self::Neigh { .. } => libc::RTM_GETNEIGH,
            Self::Routes { .. } | Self::RouteTo { .. } => libc::RTM_GETROUTE,
            Self::MainTable { .. } | Self::TableRoutes { .. } | Self::DefaultRoutes { .. } => libc::RTM_GETROUTE,
            Self::Rules { .. } => libc::RTM_GETRULE,
            Self::Nexthops => nexthop::RTM_GETNEXTHOP,
            Self::Links | Self::LinkNamed { .. } => libc::RTM_GETLINK,
            Self::Addresses { .. } => libc::RTM_GETADDR,
            Self::NeighParams { .. } => libc::RTM_GETNEIGHTBL,
        };
        // One link or route is no dump: its end is an acknowledgement.
        let one = matches!(self, Self::LinkNamed { .. } | Self::RouteTo { .. });
        let how = if one { libc::NLM_F_ACK } else { libc::NLM_F_DUMP };
        datagram.message(kind, (libc::NLM_F_REQUEST | how) as u16, sequence, |body| self.encode(body));
    }

    /// Where the kernel wants a filter differs from message to message; with strict checking it refuses one in the
    /// wrong place and ignores none.
    fn encode(&self, body: &mut Body<'_>) {
        match self {
            Self::Fdb { ifindex } => body.header(&ndm::header(libc::AF_BRIDGE as u8, *ifindex, 0, 0)),
            Self::Neigh { ifindex, family } => {
                body.header(&ndm::header(family.number(), 0, 0, 0));
                body.u32(ndm::NDA_IFINDEX, *ifindex);
            }
            Self::Routes { family, ifindex, protocol, kind } => {
                let kind = kind.map_or(0, route::Kind::number);
                body.header(&route::query_header(*family, 0, protocol.unwrap_or(0), kind));
                if let Some(ifindex) = ifindex {
                    body.u32(route::RTA_OIF, *ifindex);
                }
            }
            Self::MainTable { family } => {
                body.header(&route::query_header(*family, libc::RT_TABLE_MAIN, 0, 0));
            }
            Self::TableRoutes { family, table, kind } => {
                let short = u8::try_from(*table).unwrap_or(0);
                body.header(&route::query_header(*family, short, 0, kind.number()));
                if short == 0 {
                    body.u32(route::RTA_TABLE, *table);
                }
            }
            Self::RouteTo { target, source } => route::encode_lookup(body, *target, *source),
            Self::DefaultRoutes { family } => {
                body.header(&route::query_header(*family, libc::RT_TABLE_MAIN, 0, route::Kind::Unicast.number()));
            }
            Self::Rules { family } => body.header(&rule::query_header(*family)),
            Self::Nexthops => body.header(&nexthop::Object::query_header()),
            Self::Links => {
                body.header(&ifi::header(0));
                body.u32(link::IFLA_EXT_MASK, link::RTEXT_FILTER_SKIP_STATS);
            }
            Self::LinkNamed { name } => {
                body.header(&ifi::header(0));
                body.u32(link::IFLA_EXT_MASK, link::RTEXT_FILTER_SKIP_STATS);
                body.string(link::IFLA_IFNAME, name);
            }
            // Not filtered by the kernel: a dump of one device's addresses is never marked as interrupted. Measured on
            // Linux 6.18, where the same change between two steps marks the dump of all devices.
            Self::Addresses { .. } => body.header(&addr::header(None, 0, 0)),
            Self::NeighParams { family } => body.header(&neightbl::header(*family)),
        }
    }

    pub(super) fn is_of_one_table(&self) -> bool {
        matches!(self, Self::MainTable { .. } | Self::TableRoutes { .. } | Self::DefaultRoutes { .. })
    }

    /// The row in a message, if it is one that was asked for, whatever the kernel filtered.
    pub(super) fn read(&self, message: &Message<'_>) -> Option<Row> {
        match self {
            Self::Fdb { ifindex } => {
                let seen = fdb::Seen::parse(message)?;
                (seen.row.ifindex == *ifindex).then_some(Row::Fdb(seen))
            }
            Self::Neigh { ifindex, .. } => {
                let seen = neigh::Seen::parse(message)?;
                (seen.ifindex == *ifindex).then_some(Row::Neigh(seen))
            }
            Self::Routes { ifindex, protocol, kind, .. } => {
                let route = route::Route::parse(message)?;
                let fits = protocol.is_none_or(|protocol| protocol == route.protocol)
                    && kind.is_none_or(|kind| kind == route.kind)
                    && ifindex.is_none_or(|ifindex| route.ifindex == Some(ifindex));
                fits.then_some(Row::Route(route))
            }
            Self::MainTable { .. } => {
                let route = route::Route::parse(message)?;
                (route.table == route::TABLE_MAIN).then_some(Row::Route(route))
            }
            Self::TableRoutes { table, kind, .. } => {
                let route = route::Route::parse(message)?;
                (route.table == *table && route.kind == *kind).then_some(Row::Route(route))
            }
            Self::RouteTo { .. } => route::Route::parse_answer(message).map(Row::Route),
            Self::DefaultRoutes { .. } => {
                let route = nexthop::DefaultRoute::parse(message)?;
                (route.table == route::TABLE_MAIN).then_some(Row::DefaultRoute(route))
            }
            Self::Rules { .. } => rule::Rule::parse(message).map(Row::Rule),
            Self::Nexthops => nexthop::Object::parse(message).map(Row::Nexthop),
            Self::Links | Self::LinkNamed { .. } => Some(Row::Link(Box::new(link::Link::parse(message)?))),
            Self::Addresses { ifindex } => {
                let seen = addr::Seen::parse(message)?;
                ifindex.is_none_or(|ifindex| ifindex == seen.address.ifindex).then_some(Row::Address(seen))
            }
            Self::NeighParams { .. } => neightbl::Params::parse(message).map(Row::NeighParams),
        }
    }
}
