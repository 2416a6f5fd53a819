//! Rows of other programs: what is removed, what is named, and what is left alone.

use twill_agent::overlay::kernel::{SeenFdb, SeenRoute};
use twill_agent::overlay::plane::contradiction::{Contested, Contradiction};

use super::*;

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

/// A route of another program.
fn route(to: &str, via: Via, metric: u32) -> Route {
    Route { destination: net(to), via, metric, protocol: 4 }
}

fn through(gateway: &str) -> Via {
    Via::Gateway(gateway.parse().unwrap())
}

/// A world with the peers 2 and 3, of which 2 is programmed.
fn world(mode: PeerMode) -> World {
    let mut world = World::new(mode);
    world.put(subnet(2), endpoint(2, 2), 1, KEY);
    world.put(subnet(3), endpoint(3, 3), 1, KEY);
    world.settle();
    world.miss(pod(2, 9));
    world
}

impl World {
    /// Another program puts a route.
    fn strange(&mut self, route: Route) {
        self.kernel.routes.insert((route.destination, route.metric), (route.via, route.protocol));
    }

    fn has(&self, route: Route) -> bool {
        self.kernel.routes.get(&(route.destination, route.metric)) == Some(&(route.via, route.protocol))
    }

    /// What goes before our routes, as a notification or a dump of this route shows it.
    fn contested_by(&mut self, route: Route) -> Option<IpNetwork> {
        self.plane.saw(&Notification::Route(SeenRoute { route, ifindex: Some(7) }));
        let noticed = self.plane.contested();
        self.strange(route);
        self.resync(false);
        let dumped: Vec<IpNetwork> = self.plane.contested().iter().map(|contested| contested.part).collect();
        assert_eq!(noticed.iter().map(|contested| contested.part).collect::<Vec<_>>(), dumped, "{route:?}");
        assert!(self.has(route), "it is not ours to remove");
        self.kernel.routes.remove(&(route.destination, route.metric));
        self.plane.saw(&Notification::Gone(Row::Route(route)));
        assert_eq!(self.plane.contested(), [], "it is gone");
        dumped.first().copied()
    }
}

#[test]
fn a_route_on_our_device_that_leads_astray_goes_at_the_notification_and_at_the_comparison() {
    let wrong = [
        route("10.5.2.0/24", through("10.5.9.0"), 0),
        route("10.5.2.0/24", through("10.5.9.0"), 9_000),
        route("10.5.2.0/24", Via::Link { source: pod(1, 0) }, 0),
        route("10.5.2.9/32", through("10.5.9.0"), 0),
        route("10.5.3.128/25", through("10.5.2.0"), 0),
        route("10.5.0.0/17", through("10.5.9.0"), 0),
        route("10.5.0.0/16", through("10.5.9.0"), 7),
        // Our own pods.
        route("10.5.1.7/32", Via::Link { source: pod(1, 0) }, 0),
    ];
    for mode in [PeerMode::OnDemand, PeerMode::All] {
        for route in wrong {
            for notified in [true, false] {
                let mut world = world(mode);
                world.strange(route);
                if notified {
                    world.plane.saw(&Notification::Route(route.into()));
                    world.settle();
                } else {
                    world.resync(false);
                }
                assert!(!world.has(route), "{mode:?} {route:?} {notified}");
                let mended = world.plane.take_mended();
                assert_eq!(mended.kinds, [Some((Contradiction::Route(route), 1)), None, None], "{notified}");
                assert!(!world.plane.has_mended());
                // And by a daemon that starts.
                world.strange(route);
                let world = world.restarted();
                assert!(!world.has(route), "{mode:?} {route:?} at the start");
            }
        }
    }
}

#[test]
fn a_route_on_our_device_that_harms_no_peer_stays() {
    let harmless = [
        route("10.5.77.0/24", through("10.5.9.0"), 5),
        route("192.168.7.0/24", through("10.5.2.0"), 0),
        route("10.0.0.0/8", through("10.5.9.0"), 0),
        // Through the peer's own gateway.
        route("10.5.2.128/25", through("10.5.2.0"), 0),
        // The kernel's, with an address.
        Route { protocol: 2, ..route("10.5.1.0/32", Via::Link { source: pod(1, 0) }, 256) },
    ];
    for mode in [PeerMode::OnDemand, PeerMode::All] {
        for route in harmless {
            let mut world = world(mode);
            world.strange(route);
            world.plane.saw(&Notification::Route(route.into()));
            world.settle();
            world.resync(false);
            let mut world = world.restarted();
            assert!(world.has(route), "{mode:?} {route:?}");
            assert!(!world.plane.has_mended());
            world.put(subnet(77), endpoint(77, 77), 3, KEY);
            world.settle();
            assert_eq!(world.has(route), route.destination != subnet(77), "its record has come");
        }
    }
}

#[test]
fn a_neighbour_with_a_wrong_mac_goes_and_the_right_one_stays() {
    for mode in [PeerMode::OnDemand, PeerMode::All] {
        for state in [NeighState::Permanent, NeighState::Other] {
            for notified in [true, false] {
                let mut world = world(mode);
                let wrong = endpoint(66, 0).mac.unwrap();
                for (address, mac) in [
                    (pod(2, 5), wrong),
                    (pod(3, 5), wrong),
                    (pod(2, 6), endpoint(2, 2).mac.unwrap()),
                    (pod(77, 5), wrong),
                ] {
                    world.kernel.neighbours.insert(address, (Some(mac), state, 0));
                    if notified {
                        world.plane.saw(&Notification::Neigh(SeenNeigh {
                            address,
                            mac: Some(mac),
                            state,
                            protocol: 0,
                        }));
                    }
                }
                if !notified {
                    world.resync(false);
                }
                world.settle();
                let left: Vec<_> = world
                    .kernel
                    .neighbours
                    .iter()
                    .filter(|(_, (_, _, protocol))| *protocol == 0)
                    .map(|(a, _)| *a)
                    .collect();
                assert_eq!(left, [pod(2, 6), pod(77, 5)], "{mode:?} {state:?} {notified}");
                assert_eq!(world.plane.take_mended().kinds[1].map(|(_, count)| count), Some(2));
                // The peer's MAC changes: what was right is wrong now.
                world.put(subnet(2), endpoint(22, 2), 9, KEY);
                world.put(subnet(77), endpoint(77, 77), 9, KEY);
                world.settle();
                assert!(
                    !world.kernel.neighbours.contains_key(&pod(2, 6))
                        && !world.kernel.neighbours.contains_key(&pod(77, 5))
                );
            }
        }
    }
}

#[test]
fn an_fdb_row_that_ages_or_leads_elsewhere_is_put_right_and_what_the_kernel_learned_is_left() {
    let mut world = world(PeerMode::All);
    let elsewhere = Fdb { mac: endpoint(2, 2).mac.unwrap(), remote: "10.99.9.9".parse().unwrap() };
    for (row, ages) in [(elsewhere, false), (elsewhere, true), (endpoint(2, 2).fdb().unwrap(), true)] {
        world.kernel.fdb.insert(row.mac, (row.remote, Duration::ZERO));
        let before = world.kernel.applied;
        world.plane.saw(&Notification::Fdb(SeenFdb { row, idle: Duration::ZERO, ages }));
        world.settle();
        assert!(world.kernel.applied > before, "{row:?} {ages}");
        world.assert_exactly(&[subnet(2), subnet(3)]);
    }
    let learned = SeenFdb { row: endpoint(88, 88).fdb().unwrap(), idle: Duration::ZERO, ages: true };
    world.plane.saw(&Notification::Fdb(learned));
    assert!(!world.plane.is_due(), "nobody's");
    world.plane.take_mended();
    // The kernel tells of our own writes too, and late.
    world.put(subnet(2), endpoint(2, 4), 9, KEY);
    world.plane.saw(&Notification::Fdb(SeenFdb {
        row: endpoint(2, 2).fdb().unwrap(),
        idle: Duration::ZERO,
        ages: false,
    }));
    assert!(!world.plane.has_mended(), "it was ours until now");
}

#[test]
fn a_route_elsewhere_is_named_where_it_goes_before_ours() {
    let (unreachable, elsewhere) = (Via::Unreachable, Via::Elsewhere);
    let direct = Via::Direct("10.99.0.1".parse().unwrap());
    for mode in [PeerMode::OnDemand, PeerMode::All] {
        let (on_demand, mut world) = (mode == PeerMode::OnDemand, world(mode));
        let expected = [
            (route("10.5.2.0/24", direct, 0), Some("10.5.2.0/24")),
            (route("10.5.2.0/24", elsewhere, 1_001), Some("10.5.2.0/24")),
            (route("10.5.2.9/32", unreachable, 5_000), Some("10.5.2.0/24")),
            (route("10.5.3.0/25", Via::Prohibit, 5_000), Some("10.5.3.0/24")),
            // Behind ours, where ours is there.
            (route("10.5.2.0/24", elsewhere, 5_000), None),
            (route("10.5.3.0/24", elsewhere, 5_000), on_demand.then_some("10.5.3.0/24")),
            // Before the base route, which asks for peers.
            (route("10.5.2.0/23", direct, 5_000), on_demand.then_some("10.5.2.0/23")),
            (route("10.5.8.0/21", direct, 0), None),
            (route("10.5.0.0/16", elsewhere, 5_000), None),
            (route("10.0.0.0/8", elsewhere, 0), None),
            // To the peer's own host, to nobody, to our own pods.
            (route("10.5.2.0/24", Via::Direct(endpoint(2, 2).remote), 0), None),
            (route("10.5.77.0/24", direct, 0), None),
            (route("10.5.1.0/24", elsewhere, 0), None),
            (route("10.5.1.9/32", elsewhere, 0), None),
        ];
        for (route, part) in expected {
            assert_eq!(world.contested_by(route), part.map(net), "{mode:?} {route:?}");
        }
    }
}

#[test]
fn what_is_contested_follows_the_records_and_what_is_programmed() {
    let mut world = world(PeerMode::OnDemand);
    let behind = route("10.5.3.0/24", Via::Elsewhere, 5_000);
    world.strange(behind);
    world.plane.saw(&Notification::Route(SeenRoute { route: behind, ifindex: Some(7) }));
    assert!(world.plane.take_contested_changed() && !world.plane.take_contested_changed());
    let contested = Contested { part: subnet(3), route: behind, ifindex: Some(7) };
    assert_eq!(world.plane.contested(), [contested], "no packet asks for the peer");
    world.miss(pod(3, 9));
    assert!(world.plane.take_contested_changed());
    assert_eq!(world.plane.contested(), [], "now our route is there");
    let before = route("10.5.9.0/24", Via::Elsewhere, 0);
    world.plane.saw(&Notification::Route(before.into()));
    assert_eq!(world.plane.contested(), []);
    world.put(subnet(9), endpoint(9, 9), 5, KEY);
    assert!(world.plane.take_contested_changed());
    assert_eq!(world.plane.contested(), [Contested { part: subnet(9), route: before, ifindex: None }]);
    world.plane.remove(subnet(9), KEY);
    assert!(world.plane.take_contested_changed());
    assert_eq!(world.plane.contested(), []);
}

#[test]
fn a_device_that_goes_takes_its_routes_with_it() {
    let mut world = world(PeerMode::All);
    for ifindex in [7, 8] {
        let route = route(&format!("10.5.{}.0/24", ifindex - 5), Via::Elsewhere, 0);
        world.plane.saw(&Notification::Route(SeenRoute { route, ifindex: Some(ifindex) }));
    }
    assert_eq!(world.plane.contested().len(), 2);
    world.plane.saw(&Notification::DeviceDown(7));
    assert!(world.plane.take_contested_changed());
    assert_eq!(world.plane.contested().iter().map(|contested| contested.part).collect::<Vec<_>>(), [subnet(3)]);
}

#[test]
fn somebody_who_never_stops_is_answered_at_the_pace_of_retries() {
    let mut world = world(PeerMode::All);
    let wrong = route("10.5.2.0/24", through("10.5.9.0"), 0);
    let mut deleted_at_once = 0;
    for _ in 0..1_000 {
        world.strange(wrong);
        world.plane.saw(&Notification::Route(wrong.into()));
        while world.plane.is_due() {
            let chunk = world.plane.next_chunk(16);
            let failed = world.apply(chunk.ops());
            world.plane.settle(chunk, &failed, world.now);
        }
        deleted_at_once += u32::from(!world.has(wrong));
    }
    assert!((10..=100).contains(&deleted_at_once), "{deleted_at_once}");
    assert!(!world.plane.is_settled(), "it is not as it should be");
    world.settle();
    assert!(!world.has(wrong));
    assert_eq!(world.plane.take_mended().kinds[0].map(|(_, count)| count), Some(1_000));
}
