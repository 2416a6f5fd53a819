//! The interfaces of this host and their default routes: what the choice of the underlay rests on.

use std::net::IpAddr;

use netlink_ext::dump::{Query, Row, Step};
use netlink_ext::{Dumper, Family, route};

use super::Error;
use crate::overlay::iface::Interface;

/// Every interface, with its addresses and the metric of its default route; the one through which the kernel would send
/// to `reach` says from which address.
pub(super) fn interfaces(dumper: &mut Dumper, reach: Option<IpAddr>) -> Result<Vec<Interface>, Error> {
    let links = dumper.links()?;
    let addresses = dumper.addresses(None)?;
    let mut interfaces: Vec<Interface> = links
        .into_iter()
        .map(|link| Interface {
            index: link.index,
            addresses: addresses.iter().filter(|a| a.ifindex == link.index).map(|a| a.address).collect(),
            name: link.name,
            mtu: link.mtu,
            default_v4: None,
            default_v6: None,
            reaches_from: None,
        })
        .collect();
    for family in Family::BOTH {
        for route in default_routes(dumper, family)? {
            let interface = interfaces.iter_mut().find(|interface| Some(interface.index) == route.ifindex);
            let Some(interface) = interface else { continue };
            let best = match family {
                Family::V4 => &mut interface.default_v4,
                Family::V6 => &mut interface.default_v6,
            };
            *best = Some(best.map_or(route.metric, |metric| metric.min(route.metric)));
        }
    }
    if let Some(target) = reach
        && let Some(route) = dumper.route_to(target)?
        && let Some(interface) = interfaces.iter_mut().find(|interface| Some(interface.index) == route.ifindex)
    {
        interface.reaches_from = route.source;
    }
    Ok(interfaces)
}

fn default_routes(dumper: &mut Dumper, family: Family) -> Result<Vec<route::Route>, Error> {
    let default = |route: &route::Route| route.destination.prefix() == 0 && route.table == route::TABLE_MAIN;
    let mut routes = Vec::new();
    dumper.start(Query::Routes { family, ifindex: None, protocol: None, kind: Some(route::Kind::Unicast) })?;
    // Not collected first: there is a route for each peer, and perhaps a full table of the Internet's.
    while let Step::More = dumper.step(&mut |row| {
        if let Row::Route(route) = row {
            routes.extend(Some(route).filter(default));
        }
    })? {}
    Ok(routes)
}
