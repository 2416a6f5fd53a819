//! Between the overlay's rows and netlink's: no decision is made here but what a row of ours looks like on the wire.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_ext::link::Link;
use netlink_ext::{Request, fdb, neigh, route, rule};

use crate::overlay::MacAddr;
use crate::overlay::kernel::{
    Fdb, NeighState, Op, OtherDevice, PROTOCOL, Route, Row, SeenFdb, SeenNeigh, SeenRoute, Via,
};
use crate::overlay::rules::{DeadEnd, Does, Rule};

/// The request that carries out an operation on the device of this index.
pub(super) fn request(ifindex: u32, op: &Op) -> Request {
    match *op {
        Op::PutFdb(row) => Request::PutFdb(fdb_row(ifindex, row)),
        Op::PutNeigh(row) => Request::PutNeigh(neigh::Entry {
            ifindex,
            address: row.address,
            mac: row.mac.0,
            state: neigh::State::Permanent,
            ext_learned: false,
            protocol: PROTOCOL,
        }),
        Op::PutRoute(row) => Request::PutRoute(route_row(ifindex, row)),
        Op::Delete(Row::Route(row)) => Request::DelRoute(route_row(ifindex, row)),
        Op::Delete(Row::Neigh(address)) => Request::DelNeigh { ifindex, address },
        Op::Delete(Row::Fdb(row)) => Request::DelFdb(fdb_row(ifindex, row)),
    }
}

fn fdb_row(ifindex: u32, row: Fdb) -> fdb::Row {
    fdb::Row { ifindex, mac: row.mac.0, remote: row.remote }
}

fn route_row(ifindex: u32, row: Route) -> route::Route {
    let (kind, gateway, source) = match row.via {
        Via::Link { source } => (route::Kind::Unicast, None, Some(source)),
        Via::Gateway(gateway) | Via::Direct(gateway) => (route::Kind::Unicast, Some(gateway), None),
        Via::Blackhole => (route::Kind::Blackhole, None, None),
        Via::Prohibit => (route::Kind::Prohibit, None, None),
        Via::Throw => (route::Kind::Throw, None, None),
        Via::Unreachable | Via::Elsewhere => (route::Kind::Unreachable, None, None),
    };
    // To a host of the underlay's own link, the kernel finds the device.
    let ours = matches!(row.via, Via::Link { .. } | Via::Gateway(_));
    route::Route {
        destination: row.destination,
        kind,
        ifindex: ours.then_some(ifindex),
        gateway,
        onlink: ours && gateway.is_some(),
        source,
        protocol: row.protocol,
        metric: row.metric,
        table: route::TABLE_MAIN,
    }
}

/// An FDB row as the overlay sees it.
pub(super) fn seen_fdb(seen: &fdb::Seen) -> SeenFdb {
    let remote = if seen.diverted { IpAddr::from([0; 4]) } else { seen.row.remote };
    SeenFdb { row: Fdb { mac: MacAddr(seen.row.mac), remote }, idle: seen.used, ages: seen.ages() }
}

/// A neighbour as the overlay sees it.
pub(super) fn seen_neigh(seen: &neigh::Seen) -> SeenNeigh {
    let state = match seen {
        _ if seen.is_incomplete() => NeighState::Incomplete,
        _ if seen.is_permanent() => NeighState::Permanent,
        _ => NeighState::Other,
    };
    SeenNeigh { address: seen.address, mac: seen.mac.map(MacAddr), state, protocol: seen.protocol }
}

/// A route of the main table as the overlay sees it; our device, if there is one, has this index.
pub(super) fn seen_route(ifindex: Option<u32>, seen: &route::Route) -> Option<SeenRoute> {
    let is_on_device = ifindex.is_some() && seen.ifindex == ifindex;
    let via = match (seen.kind, seen.gateway) {
        (route::Kind::Unreachable, _) => Via::Unreachable,
        (route::Kind::Blackhole, _) => Via::Blackhole,
        (route::Kind::Prohibit, _) => Via::Prohibit,
        (route::Kind::Throw, _) => Via::Throw,
        (route::Kind::Unicast, Some(gateway)) if is_on_device => Via::Gateway(gateway),
        (route::Kind::Unicast, None) if is_on_device => Via::Link { source: seen.source.unwrap_or(unspecified(seen)) },
        (route::Kind::Unicast, Some(host)) => Via::Direct(host),
        _ => Via::Elsewhere,
    };
    let route = Route { destination: seen.destination, via, metric: seen.metric, protocol: seen.protocol };
    let others = seen.ifindex.filter(|_| !is_on_device);
    (seen.table == route::TABLE_MAIN).then_some(SeenRoute { route, ifindex: others })
}

/// A policy rule as the overlay sees it.
pub(super) fn seen_rule(seen: rule::Rule) -> Rule {
    let rule::Rule { priority, from, to, iif, is_conditional, action, suppress_prefixlength } = seen;
    let does = match action {
        rule::Action::Lookup(table) => Does::Lookup(table),
        rule::Action::Goto(target) => Does::Goto(target),
        rule::Action::Blackhole => Does::Drop("blackhole"),
        rule::Action::Unreachable => Does::Drop("unreachable"),
        rule::Action::Prohibit => Does::Drop("prohibit"),
    };
    Rule { priority, from, to, has_device: iif.is_some(), is_conditional, does, suppress_prefixlength }
}

/// The kinds of routes that send a packet nowhere.
pub(super) const DEAD_ENDS: [route::Kind; 4] =
    [route::Kind::Unreachable, route::Kind::Blackhole, route::Kind::Prohibit, route::Kind::Throw];

/// A route of such a kind as the overlay sees it.
pub(super) fn dead_end(seen: &route::Route) -> DeadEnd {
    DeadEnd { to: seen.destination, metric: seen.metric, is_throw: seen.kind == route::Kind::Throw }
}

/// The devices by their indices. A bridge may be one of pods unless it has a port that is no veth: that one leads to other hosts.
pub(super) fn devices(links: Vec<Link>) -> BTreeMap<u32, OtherDevice> {
    let has_kind = |link: &Link, kind: &str| link.kind.as_deref() == Some(kind);
    let of_hosts: BTreeSet<u32> =
        links.iter().filter(|link| !has_kind(link, "veth")).filter_map(|link| link.master).collect();
    let device = |link: Link| {
        let may_be_pods_bridge = has_kind(&link, "bridge") && !of_hosts.contains(&link.index);
        (link.index, OtherDevice { name: link.name, may_be_pods_bridge })
    };
    links.into_iter().map(device).collect()
}

fn unspecified(route: &route::Route) -> IpAddr {
    match route.destination {
        ipnetwork::IpNetwork::V4(_) => IpAddr::from([0; 4]),
        ipnetwork::IpNetwork::V6(_) => IpAddr::from([0; 16]),
    }
}

/// Whether an address is IPv6's link-local: the kernel gives each device one by itself.
pub(super) fn is_link_local(address: IpNetwork) -> bool {
    matches!(address, IpNetwork::V6(net) if net.ip().is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, kind: &str, master: Option<u32>) -> Link {
        Link {
            index,
            name: format!("if{index}"),
            up: true,
            lower_up: true,
            no_arp: false,
            proto_down: false,
            mac: None,
            mtu: 1500,
            master,
            kind: Some(kind.to_owned()),
            vxlan: None,
            conf: netlink_ext::conf::Conf::default(),
        }
    }

    #[test]
    fn a_bridge_of_veths_may_be_the_pods_one_and_no_other_device() {
        let links = vec![
            link(1, "bridge", None),
            link(2, "bridge", None),
            link(3, "veth", Some(2)),
            link(4, "bridge", None),
            link(5, "veth", Some(4)),
            link(6, "tun", Some(4)),
            link(7, "veth", None),
            link(8, "vlan", None),
        ];
        let may_be: Vec<u32> = devices(links)
            .into_iter()
            .filter(|(_, device)| device.may_be_pods_bridge)
            .map(|(index, _)| index)
            .collect();
        assert_eq!(may_be, [1, 2]);
    }
}
