//! The interfaces of this host and their default routes: what the choice of the underlay rests on.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_ext::addr::Seen;
use netlink_ext::change::Change;
use netlink_ext::nexthop::DefaultRoute;
use netlink_ext::{Dumper, Family, route};

use super::Error;
use crate::overlay::iface::{Address, DefaultHop, Interface, Scope};

/// What the answer to [`interfaces`] rested on: a change of any of it may change the answer.
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
            Change::Neigh { .. } | Change::Fdb { .. } | Change::Overrun => false,
        }
    }
}

/// Every interface, with its addresses and its place among the default routes; the one through which the kernel would send
/// to `reach` says from which address.
pub(super) fn interfaces(dumper: &mut Dumper, reach: Option<IpAddr>) -> Result<(Vec<Interface>, Watched), Error> {
    let links = dumper.links()?;
    let addresses = dumper.addresses(None)?;
    let mut interfaces: Vec<Interface> = links
        .into_iter()
        .map(|link| Interface {
            index: link.index,
            addresses: addresses.iter().filter(|seen| seen.address.ifindex == link.index).map(address).collect(),
            name: link.name,
            mtu: link.mtu,
            default_v4: None,
            default_v6: None,
            reaches_from: None,
        })
        .collect();
    let mut watched = Watched { addresses: addresses.into_iter().collect(), ..Watched::default() };
    for family in Family::BOTH {
        let routes = dumper.default_routes(family)?;
        let routes: Vec<_> = routes.into_iter().filter(|route| route.table == route::TABLE_MAIN).collect();
        watched.nexthops.extend(routes.iter().flat_map(|route| &route.objects));
        watched.links.extend(routes.iter().flat_map(|route| &route.hops).map(|hop| hop.ifindex));
        for (ifindex, hop) in hops(&routes) {
            let interface = interfaces.iter_mut().find(|interface| interface.index == ifindex);
            let Some(interface) = interface else { continue };
            let best = match family {
                Family::V4 => &mut interface.default_v4,
                Family::V6 => &mut interface.default_v6,
            };
            *best = Some(best.map_or(hop, |other| other.min(hop)));
        }
    }
    if let Some(target) = reach
        && let Some(route) = dumper.route_to(target)?
        && let Some(interface) = interfaces.iter_mut().find(|interface| Some(interface.index) == route.ifindex)
    {
        interface.reaches_from = route.source;
    }
    Ok((interfaces, watched))
}

/// The living next hops, each by the index of its interface.
fn hops(routes: &[DefaultRoute]) -> Vec<(u32, DefaultHop)> {
    let mut living = Vec::new();
    for metric in routes.iter().map(|route| route.metric).collect::<BTreeSet<_>>() {
        let equal: Vec<_> =
            routes.iter().filter(|route| route.metric == metric).flat_map(|route| &route.hops).collect();
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
        tentative: seen.is_tentative(),
        duplicate: seen.is_duplicate(),
        scope,
        barred: None,
    }
}
