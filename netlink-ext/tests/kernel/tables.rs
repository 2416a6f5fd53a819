//! FDB rows, neighbours, routes, addresses and neighbour-table parameters: put, replaced, deleted and dumped.

use netlink_ext::addr::Address;
use netlink_ext::dump::{Query, Row};
use netlink_ext::neigh::{Entry, State};
use netlink_ext::neightbl::Params;
use netlink_ext::route::{Kind, Route};
use netlink_ext::{Dumper, Failure, Family, Refusal, Request};

use crate::support::{Host, address, asking, create, done, in_namespace, ip, mac, output, pod};

/// The one failure of a request sent alone.
#[track_caller]
fn refused(failures: Vec<Failure>) -> Refusal {
    assert_eq!(failures.len(), 1);
    failures[0].refusal.clone()
}

#[test]
fn an_fdb_row_is_put_replaced_and_deleted_by_its_remote() {
    in_namespace(|| {
        let mut host = Host::new();
        let ifindex = host.ifindex();
        done(host.batch.send(&[Request::PutFdb(host.row(1, "10.0.0.2")), Request::PutFdb(host.row(2, "10.0.0.2"))]));
        let swapped = host.row(1, "10.0.0.3");
        done(host.batch.send(&[Request::PutFdb(swapped)]));
        let mut seen = host.dumper.fdb(ifindex).unwrap();
        seen.sort_by_key(|seen| seen.row);
        assert_eq!(seen.iter().map(|seen| seen.row).collect::<Vec<_>>(), [swapped, host.row(2, "10.0.0.2")]);
        assert!(seen.iter().all(|seen| seen.is_permanent() && seen.used.as_secs() < 3600));
        let shown = output("bridge fdb show dev x0");
        assert!(shown.contains("02:00:00:01:00:01 dst 10.0.0.3 self permanent"), "{shown}");

        let other_remote = Request::DelFdb(host.row(1, "10.0.0.2"));
        done(host.batch.send(std::slice::from_ref(&other_remote)));
        assert_eq!(host.dumper.fdb(ifindex).unwrap().len(), 2, "success, says the kernel, and does nothing");
        done(host.batch.send(&[Request::DelFdb(swapped)]));
        assert_eq!(host.dumper.fdb(ifindex).unwrap().len(), 1);
        assert!(refused(host.batch.send(&[other_remote]).unwrap()).is_gone(), "only without any row it says so");
    });
}

#[test]
fn an_fdb_dump_shows_one_device() {
    in_namespace(|| {
        let mut host = Host::new();
        let other = create(&mut host.dumper, "x9", 9);
        let foreign = netlink_ext::fdb::Row { ifindex: other.index, ..host.row(9, "10.0.0.9") };
        done(host.batch.send(&[Request::PutFdb(host.row(1, "10.0.0.2")), Request::PutFdb(foreign)]));
        assert_eq!(host.dumper.fdb(host.overlay.index).unwrap()[0].row, host.row(1, "10.0.0.2"));
        assert_eq!(host.dumper.fdb(other.index).unwrap().iter().map(|seen| seen.row).collect::<Vec<_>>(), [foreign]);
    });
}

#[test]
fn neighbours_keep_state_protocol_and_flag() {
    in_namespace(|| {
        let mut host = Host::new();
        let ifindex = host.ifindex();
        let permanent = host.entry(pod(1), 1);
        let learnt =
            Entry { state: State::Reachable, ext_learned: true, protocol: 0, ..host.entry(address("fd01::1"), 2) };
        done(host.batch.send(&[Request::PutNeigh(permanent), Request::PutNeigh(learnt)]));

        let seen = host.dumper.neighbours(ifindex, Family::V4).unwrap();
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].address, seen[0].mac, seen[0].protocol), (pod(1), Some(mac(1)), 116));
        assert!(seen[0].is_permanent() && !seen[0].is_ext_learned());
        let seen = host.dumper.neighbours(ifindex, Family::V6).unwrap();
        let found = seen.iter().find(|seen| seen.address == learnt.address).expect("the learnt one");
        assert!(found.is_ext_learned() && !found.is_permanent());
        assert_eq!((found.mac, found.protocol), (Some(mac(2)), 0));

        done(host.batch.send(&[Request::PutNeigh(Entry { mac: mac(3), ..permanent })]));
        assert_eq!(host.dumper.neighbours(ifindex, Family::V4).unwrap()[0].mac, Some(mac(3)));
        let delete = Request::DelNeigh { ifindex, address: pod(1) };
        done(host.batch.send(std::slice::from_ref(&delete)));
        assert_eq!(host.dumper.neighbours(ifindex, Family::V4).unwrap(), []);
        assert!(refused(host.batch.send(&[delete]).unwrap()).is_gone());
    });
}

/// Routes of each form that come back from the kernel as they were given.
fn forms(host: &Host) -> Vec<Route> {
    let gateway = |text| Some(address(text));
    let dropped = |destination: &str, kind| Route { kind, ifindex: None, ..host.route(destination) };
    vec![
        Route { source: gateway("10.244.255.255"), ..host.route("10.244.0.0/16") },
        Route { gateway: gateway("10.244.1.0"), onlink: true, metric: 77, ..host.route("10.244.1.0/24") },
        Route { gateway: gateway("fd01:1::"), onlink: true, metric: 78, ..host.route("10.244.2.0/24") },
        Route { table: 1000, ..host.route("10.244.3.0/24") },
        dropped("10.244.9.0/24", Kind::Unreachable),
        dropped("10.244.10.0/24", Kind::Blackhole),
        Route { source: gateway("fd01::ffff"), ..host.route("fd01::/32") },
        Route { gateway: gateway("fd01:1::"), onlink: true, metric: 77, ..host.route("fd01:1::/64") },
        dropped("fd01:9::/64", Kind::Unreachable),
        dropped("fd01:10::/64", Kind::Blackhole),
        dropped("10.244.11.0/24", Kind::Prohibit),
        dropped("10.244.12.0/24", Kind::Throw),
        dropped("fd01:11::/64", Kind::Prohibit),
        dropped("fd01:12::/64", Kind::Throw),
    ]
}

#[test]
fn routes_come_back_as_they_were_put() {
    in_namespace(|| {
        let mut host = Host::new();
        host.ask_user_space();
        let forms = forms(&host);
        let puts: Vec<_> = forms.iter().map(|route| Request::PutRoute(*route)).collect();
        done(host.batch.send(&puts));
        done(host.batch.send(&puts)); // replacing the same changes nothing
        let mut seen = Vec::new();
        for family in Family::BOTH {
            seen.extend(host.dumper.routes(family, None, Some(116), None).unwrap());
        }
        let sorted = |mut routes: Vec<Route>| {
            routes.sort();
            routes
        };
        assert_eq!(sorted(seen), sorted(forms.clone()));

        done(host.batch.send(&forms.iter().map(|route| Request::DelRoute(*route)).collect::<Vec<_>>()));
        for family in Family::BOTH {
            assert_eq!(host.dumper.routes(family, None, Some(116), None).unwrap(), []);
        }
        assert!(refused(host.batch.send(&[Request::DelRoute(forms[1])]).unwrap()).is_gone());
    });
}

#[test]
fn each_filter_of_a_route_dump_holds() {
    in_namespace(|| {
        let mut host = Host::new();
        host.ask_user_space();
        let foreign = Route { protocol: 99, ..host.route("10.245.0.0/16") };
        let mut routes = forms(&host);
        routes.push(foreign);
        done(host.batch.send(&routes.iter().map(|route| Request::PutRoute(*route)).collect::<Vec<_>>()));
        let ifindex = host.ifindex();
        let mut dump = |device, protocol, kind| host.dumper.routes(Family::V4, device, protocol, kind).unwrap();
        assert_eq!(dump(None, Some(99), None), [foreign]);
        assert_eq!(dump(None, Some(116), Some(Kind::Unreachable)), [routes[4]]);
        assert_eq!(dump(Some(ifindex), Some(116), None).len(), 4);
        let all = dump(Some(ifindex), None, None);
        assert!(all.contains(&foreign) && all.iter().all(|route| route.ifindex == Some(ifindex)), "{all:?}");
        let v6 = host.dumper.routes(Family::V6, None, Some(116), Some(Kind::Unreachable)).unwrap();
        assert_eq!(v6, [routes[8]]);
    });
}

#[test]
fn the_main_table_is_shown_whole_and_alone_and_may_not_be_there_yet() {
    in_namespace(|| {
        let mut dumper = Dumper::open().unwrap();
        let mut main = |family| -> Vec<Route> {
            let rows = dumper.collect(&Query::MainTable { family }).unwrap();
            let routes =
                rows.into_iter().map(|row| if let Row::Route(route) = row { route } else { panic!("{row:?}") });
            routes.filter(|route| route.protocol == 116).collect()
        };
        assert_eq!(Family::BOTH.map(&mut main), [vec![], vec![]]);
        let mut host = Host::new();
        host.ask_user_space();
        let forms = forms(&host);
        done(host.batch.send(&forms.iter().map(|route| Request::PutRoute(*route)).collect::<Vec<_>>()));
        let mut shown: Vec<Route> = Family::BOTH.into_iter().flat_map(main).collect();
        let mut expected: Vec<Route> = forms.into_iter().filter(|route| route.table == 254).collect();
        shown.sort();
        expected.sort();
        assert_eq!(shown, expected);
    });
}

#[test]
fn replacing_a_route_swaps_its_gateway() {
    in_namespace(|| {
        let mut host = Host::new();
        for (subnet, old, new) in
            [("10.244.1.0/24", "10.244.1.0", "10.244.1.9"), ("fd01:1::/64", "fd01:1::", "fd01:1::9")]
        {
            let old = Route { gateway: Some(address(old)), onlink: true, ..host.route(subnet) };
            let new = Route { gateway: Some(address(new)), ..old };
            done(host.batch.send(&[Request::PutRoute(old), Request::PutRoute(new)]));
            let family = Family::from(old.destination.ip());
            assert_eq!(host.dumper.routes(family, None, Some(116), None).unwrap(), [new]);
        }
    });
}

#[test]
fn the_kernels_own_metric_is_zero_in_ipv4_and_1024_in_ipv6() {
    in_namespace(|| {
        let mut host = Host::new();
        let routes = ["10.244.0.0/16", "fd01::/32"].map(|text| Route { metric: 0, ..host.route(text) });
        done(host.batch.send(&routes.map(Request::PutRoute)));
        let metrics = Family::BOTH.map(|family| host.dumper.routes(family, None, Some(116), None).unwrap()[0].metric);
        assert_eq!(metrics, [0, 1024]);
        done(host.batch.send(&routes.map(Request::DelRoute)));
    });
}

#[test]
fn addresses_are_put_dumped_and_deleted() {
    in_namespace(|| {
        let mut host = Host::new();
        let ifindex = host.ifindex();
        let addresses = ["10.244.0.0/32", "fd01::/128"].map(|text| Address { ifindex, address: text.parse().unwrap() });
        done(host.batch.send(&addresses.map(Request::PutAddress)));
        done(host.batch.send(&addresses.map(Request::PutAddress)));
        // An IPv6 address that still waited for duplicate address detection could not be a source.
        let source = Route { source: Some(address("fd01::")), ..host.route("fd01::/32") };
        done(host.batch.send(&[Request::PutRoute(source)]));
        let seen: Vec<_> = host.dumper.addresses(Some(ifindex)).unwrap().into_iter().map(|seen| seen.address).collect();
        assert!(addresses.iter().all(|address| seen.contains(address)), "{seen:?}");
        assert!(seen.iter().all(|address| address.ifindex == ifindex));
        assert!(host.dumper.addresses(None).unwrap().len() > seen.len(), "lo and u0 have some too");

        done(host.batch.send(&addresses.map(Request::DelAddress)));
        let again = host.batch.send(&addresses.map(Request::DelAddress)).unwrap();
        assert!(again.len() == 2 && again.iter().all(|failure| failure.refusal.is_gone()), "{again:?}");
    });
}

#[test]
fn neighbour_table_parameters_are_of_one_device_and_family() {
    in_namespace(|| {
        let mut host = Host::new();
        let ifindex = host.ifindex();
        let default = host.dumper.neigh_params(ifindex, Family::V6).unwrap().expect("IPv6 is on");
        assert_eq!((default.app_probes, default.ucast_probes, default.mcast_probes), (0, 3, 3));
        let [v4, _] = asking(ifindex);
        done(host.batch.send(&[v4]));
        let wanted = Params { ifindex, family: Family::V4, app_probes: 3, ucast_probes: 0, mcast_probes: 0 };
        assert_eq!(host.dumper.neigh_params(ifindex, Family::V4).unwrap(), Some(wanted));
        assert_eq!(host.dumper.neigh_params(ifindex, Family::V6).unwrap(), Some(default));
        assert_eq!(host.dumper.neigh_params(9999, Family::V4).unwrap(), None);
        let nowhere = Request::SetNeighParams(Params { ifindex: 9999, ..wanted });
        assert!(refused(host.batch.send(&[nowhere]).unwrap()).is_gone());
    });
}

#[test]
fn a_missing_device_is_gone_for_every_request() {
    in_namespace(|| {
        let mut host = Host::new();
        host.overlay.index = 9999;
        let (ifindex, address) = (9999, Address { ifindex: 9999, address: "10.9.9.9/32".parse().unwrap() });
        let requests = [
            Request::PutFdb(host.row(1, "10.0.0.2")),
            Request::DelFdb(host.row(1, "10.0.0.2")),
            Request::PutNeigh(host.entry(pod(1), 1)),
            Request::DelNeigh { ifindex, address: pod(1) },
            Request::PutRoute(host.route("10.244.0.0/16")),
            Request::DelRoute(host.route("10.244.0.0/16")),
            Request::PutAddress(address),
            Request::DelAddress(address),
        ];
        let failures = host.batch.send(&requests).unwrap();
        assert_eq!(failures.len(), requests.len());
        assert!(failures.iter().all(|failure| failure.refusal.is_gone()), "{failures:?}");
        assert_eq!(host.dumper.fdb(9999).unwrap(), [], "the kernel has no complaint here");
        assert!(host.dumper.neighbours(9999, Family::V4).is_ok_and(|seen| seen.is_empty()));
    });
}

#[test]
fn a_dumper_sees_the_namespace_that_it_was_opened_in() {
    let mut dumper = in_namespace(|| {
        ip("link add dev here type bridge");
        Dumper::open().unwrap()
    });
    assert!(in_namespace(move || dumper.link_named("here").unwrap()).is_some());
}
