//! The interfaces of this host and their default routes: what the choice of the underlay rests on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink_ext::addr::Seen;
use netlink_ext::change::Change;
use netlink_ext::dump::{Query, Row};
use netlink_ext::link::Link;
use netlink_ext::nexthop::DefaultRoute;
use netlink_ext::{Dumper, Error, Family, route};

use super::queries::{Progress, Queries};
use crate::overlay::iface::{Address, DefaultHop, Interface, Scope};

/// What a [`Look`] rested on: a change of any of it may change its answer.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// The interfaces that are next hops of default routes, living or dead.
    links: BTreeSet<u32>,
    /// The next hop objects that those routes name, with the members of groups.
    nexthops: BTreeSet<u32>,
    /// The addresses as they were seen.
    addresses: BTreeSet<Seen>,
}

impl Watched {
    /// A look begins: until it is done, an address that is told may be another than the one it has read.
    pub(super) fn forget_addresses(&mut self) {
        self.addresses.clear();
    }

    /// Whether a change may be one of the underlay. `underlay` is the interface in use, `local` the address.
    pub(super) fn concerns(&self, change: &Change, underlay: u32, local: IpAddr) -> bool {
        let is_way = |ifindex: u32| ifindex == underlay || self.links.contains(&ifindex);
        match change {
            Change::Link(link) => is_way(link.index),
            Change::LinkGone { ifindex, .. } => is_way(*ifindex),
            // A router's advertisement renews the lifetimes of an address, and changes nothing else.
            Change::Address { address: seen, gone } => {
                // Ours may have moved to another interface.
                let is_near = is_way(seen.address.ifindex) || seen.address.address.ip() == local;
                is_near && (*gone || !self.addresses.contains(seen))
            }
            Change::Route { route, .. } => route.destination.prefix() == 0 && route.table == route::TABLE_MAIN,
            Change::Nexthop { id } => self.nexthops.contains(id),
            Change::Rule { .. } | Change::Neigh { .. } | Change::Fdb { .. } | Change::Overrun => false,
        }
    }
}

/// A look at the interfaces, a datagram at a time: the main table may be the Internet's, and misses go before it.
pub(super) struct Look {
    /// Its own: those of the kernel side have other dumps under way.
    dumper: Dumper,
    queries: Queries,
    links: Vec<Link>,
    addresses: Vec<Seen>,
    routes: Vec<DefaultRoute>,
}

impl Look {
    /// Begins, with a dumper that has nothing else under way.
    pub(super) fn begin(mut dumper: Dumper) -> Result<Self, Error> {
        let [v4, v6] = Family::BOTH.map(|family| Query::DefaultRoutes { family });
        let queries = Queries::start(&mut dumper, [Query::Links, Query::Addresses { ifindex: None }, v6, v4])?;
        Ok(Self { dumper, queries, links: Vec::new(), addresses: Vec::new(), routes: Vec::new() })
    }

    /// Reads one datagram; whether it was the last one.
    pub(super) fn step(&mut self) -> Result<bool, Error> {
        let Self { dumper, queries, links, addresses, routes } = self;
        let progress = queries.step(dumper, &mut |row| match row {
            Row::Link(link) => links.push(*link),
            Row::Address(address) => addresses.push(address),
            Row::DefaultRoute(route) => routes.push(route),
            _ => (),
        })?;
        if progress == Progress::Again {
            self.forget_current();
        }
        Ok(progress == Progress::Done)
    }

    /// Forgets what the query under way has shown, since it was made again.
    fn forget_current(&mut self) {
        match self.queries.current() {
            Some(Query::Links) => self.links.clear(),
            Some(Query::Addresses { .. }) => self.addresses.clear(),
            Some(Query::DefaultRoutes { family }) => self.routes.retain(|route| route.family != *family),
            _ => (),
        }
    }

    /// Every interface, with its addresses and its place among the default routes; the one through which the kernel would
    /// send to `reach` says from which address. With them comes the dumper, for the next look.
    pub(super) fn finish(mut self, reach: Option<IpAddr>) -> Result<(Vec<Interface>, Watched, Dumper), Error> {
        if self.routes.iter().any(|route| !route.objects.is_empty()) {
            let objects = self.dumper.nexthops()?;
            self.routes.iter_mut().for_each(|route| route.resolve(&objects));
        }
        let mut interfaces = interfaces(self.links, &self.addresses);
        let routes = &self.routes;
        let watched = Watched {
            links: routes.iter().flat_map(|route| &route.hops).map(|hop| hop.ifindex).collect(),
            nexthops: routes.iter().flat_map(|route| &route.objects).copied().collect(),
            addresses: self.addresses.into_iter().collect(),
        };
        for family in Family::BOTH {
            for (ifindex, hop) in hops(routes.iter().filter(|route| route.family == family)) {
                let Some(interface) = interfaces.get_mut(&ifindex) else { continue };
                let best = match family {
                    Family::V4 => &mut interface.default_v4,
                    Family::V6 => &mut interface.default_v6,
                };
                *best = Some(best.map_or(hop, |other| other.min(hop)));
            }
        }
        if let Some(target) = reach
            && let Some(route) = self.dumper.route_to(target, None)?
            && let Some(interface) = route.ifindex.and_then(|ifindex| interfaces.get_mut(&ifindex))
        {
            interface.reaches_from = route.source;
        }
        Ok((interfaces.into_values().collect(), watched, self.dumper))
    }
}

/// The interfaces by their indices, each with its addresses.
fn interfaces(links: Vec<Link>, addresses: &[Seen]) -> BTreeMap<u32, Interface> {
    let mut interfaces: BTreeMap<u32, Interface> = links
        .into_iter()
        .map(|Link { index, name, mtu, up, lower_up, .. }| {
            let down = match (up, lower_up) {
                (false, _) => Some("is down"),
                (true, false) => Some("is down: it has no carrier"),
                (true, true) => None,
            };
            (index, Interface { index, name, mtu, down, ..Interface::default() })
        })
        .collect();
    for seen in addresses {
        if let Some(interface) = interfaces.get_mut(&seen.address.ifindex) {
            interface.addresses.push(address(seen));
        }
    }
    interfaces
}

/// The living next hops, each by the index of its interface.
fn hops<'a>(routes: impl Iterator<Item = &'a DefaultRoute> + Clone) -> Vec<(u32, DefaultHop)> {
    let mut living = Vec::new();
    for metric in routes.clone().map(|route| route.metric).collect::<BTreeSet<_>>() {
        let equal: Vec<_> =
            routes.clone().filter(|route| route.metric == metric).flat_map(|route| &route.hops).collect();
        let of = equal.len();
        let placed = equal.into_iter().zip(1..).filter(|(hop, _)| !hop.dead);
        living
            .extend(placed.map(|(hop, place)| (hop.ifindex, DefaultHop { metric, linkdown: hop.linkdown, place, of })));
    }
    living
}

fn address(seen: &Seen) -> Address {
    let scope = match seen {
        seen if seen.is_host_local() => Scope::Host,
        seen if seen.is_link_local() => Scope::Link,
        _ => Scope::Global,
    };
    Address {
        net: seen.address.address,
        peer: seen.peer,
        temporary: seen.is_temporary(),
        deprecated: seen.is_deprecated(),
        ends: seen.ends(),
        secondary: seen.is_secondary(),
        tentative: seen.is_tentative(),
        duplicate: seen.is_duplicate(),
        scope,
        barred: None,
    }
}
