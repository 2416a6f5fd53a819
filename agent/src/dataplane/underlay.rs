//! The interfaces of this host and their default routes: what the choice of the underlay rests on.

use netlink_ext::{Dumper, Family, route};

use super::Error;
use crate::overlay::iface::Interface;

/// Every interface, with its addresses and the metric of its default route.
pub(super) fn interfaces(dumper: &mut Dumper) -> Result<Vec<Interface>, Error> {
    let links = dumper.links()?;
    let addresses = dumper.addresses(None)?;
    let mut interfaces: Vec<Interface> = links
        .into_iter()
        .map(|link| Interface {
            index: link.index,
            addresses: addresses.iter().filter(|a| a.ifindex == link.index).map(|a| a.address).collect(),
            name: link.name,
            mtu: link.mtu,
            up: link.up,
            default_v4: None,
            default_v6: None,
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
    Ok(interfaces)
}

fn default_routes(dumper: &mut Dumper, family: Family) -> Result<Vec<route::Route>, Error> {
    let routes = dumper.routes(family, None, None, Some(route::Kind::Unicast))?;
    let default = |route: &route::Route| route.destination.prefix() == 0 && route.table == route::TABLE_MAIN;
    Ok(routes.into_iter().filter(default).collect())
}
