//! DirectRouting in a plane: which routes it asks for, when it asks again, what a comparison makes of them.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::time::{Duration, Instant};

use twill_agent::overlay::backend::Ways;
use twill_agent::overlay::kernel::{Fdb, Miss, Neigh, Notification, Observed, Op, Route, Row, SeenFdb, Via};
use twill_agent::overlay::peers::{Claim, Endpoint, Source, Standing};
use twill_agent::overlay::plane::{PeerMode, Plane, Setup};
use twill_agent::overlay::programmed::Cause;
use twill_agent::overlay::{MacAddr, NetworkConfig};

const PEER: &str = "10.5.7.0/24";
const HOST: &str = "10.99.0.7";

fn plane() -> Plane {
    with_ways(Ways { tunnel: true, host: true }, PeerMode::OnDemand)
}

fn with_ways(ways: Ways, mode: PeerMode) -> Plane {
    let config = NetworkConfig::parse(br#"{"Network":"10.5.0.0/16"}"#).unwrap();
    let setup = Setup {
        net: config.ipv4.unwrap(),
        subnet: "10.5.1.0/24".parse().unwrap(),
        ways,
        mode,
        idle: Duration::from_secs(600),
    };
    let mut plane = Plane::new(setup);
    work(&mut plane);
    plane
}

fn joined(plane: &mut Plane, direct: bool) -> Vec<Op> {
    let endpoint = Endpoint { mac: Some(mac()), remote: HOST.parse().unwrap() };
    let standing = Standing::new(1, 1, true, None);
    plane.put(PEER.parse().unwrap(), Source(0), Claim { endpoint, standing });
    decide(plane, direct)
}

/// Answers what is asked, and does what is due then.
fn decide(plane: &mut Plane, direct: bool) -> Vec<Op> {
    while let Some((subnet, host)) = plane.undecided() {
        plane.decide(subnet, host, direct);
    }
    work(plane)
}

fn work(plane: &mut Plane) -> Vec<Op> {
    let mut done = Vec::new();
    while plane.is_due() {
        let chunk = plane.next_chunk(100);
        done.extend_from_slice(chunk.ops());
        plane.settle(chunk, &[], Instant::now());
    }
    done
}

fn mac() -> MacAddr {
    "02:00:00:00:00:07".parse().unwrap()
}

fn fdb() -> Fdb {
    Fdb { mac: mac(), remote: HOST.parse().unwrap() }
}

fn direct_route() -> Route {
    Route::direct(PEER.parse().unwrap(), 7, HOST.parse().unwrap())
}

#[test]
fn a_direct_peer_is_one_route_from_the_start() {
    let mut plane = plane();
    assert_eq!(joined(&mut plane, true), [Op::PutRoute(direct_route())]);
    assert!(plane.is_settled());
}

#[test]
fn another_is_left_to_its_first_packet() {
    assert_eq!(joined(&mut plane(), false), []);
}

#[test]
fn a_stranger_s_route_asks_again_about_the_hosts_behind_it_only() {
    let mut plane = plane();
    joined(&mut plane, true);
    let strange = |to: &str| {
        let via = Via::Direct("10.99.0.1".parse().unwrap());
        Route { destination: to.parse().unwrap(), via, metric: 0, protocol: 3 }
    };
    plane.saw(&Notification::Route(strange("192.0.2.0/24").into()));
    assert!(!plane.has_undecided());
    plane.saw(&Notification::Route(strange("10.99.0.7/32").into()));
    assert_eq!(decide(&mut plane, false), [Op::Delete(Row::Route(direct_route()))]);
    plane.saw(&Notification::Gone(Row::Route(strange("10.99.0.7/32"))));
    assert_eq!(decide(&mut plane, true), [Op::PutRoute(direct_route())]);
}

#[test]
fn a_link_that_is_back_has_its_direct_routes_put_again() {
    let mut plane = plane();
    joined(&mut plane, true);
    // IPv4 says nothing of the routes that go with a link. Its own route says that the link is back.
    let via = Via::Link { source: "10.99.0.1".parse().unwrap() };
    let route = Route { destination: "10.99.0.0/16".parse().unwrap(), via, metric: 0, protocol: 2 };
    plane.saw(&Notification::Route(route.into()));
    assert_eq!(decide(&mut plane, true), [Op::PutRoute(direct_route())]);
    assert!(plane.is_settled());
}

#[test]
fn a_peer_that_lost_its_direct_route_is_announced_again_when_a_packet_asks_for_it() {
    let mut plane = plane();
    joined(&mut plane, true);
    assert_eq!(plane.take_programmed().first, [(PEER.parse().unwrap(), Cause::Direct)]);
    plane.redecide(None);
    decide(&mut plane, false);
    assert!(!plane.has_programmed(), "no packet asks for it");
    plane.miss(Miss::Address("10.5.7.9".parse().unwrap()), Instant::now());
    work(&mut plane);
    assert_eq!(plane.take_programmed().first, [(PEER.parse().unwrap(), Cause::Packet)]);
}

#[test]
fn a_comparison_finds_nothing_to_do_where_all_is_right() {
    let mut plane = plane();
    joined(&mut plane, true);
    let base = Route::base("10.5.0.0/16".parse().unwrap(), "10.5.1.0".parse().unwrap());
    let observed = Observed { routes: vec![base.into(), direct_route().into()], ..Observed::default() };
    let found = plane.reconcile(&observed, false, Instant::now());
    assert_eq!((found.right, found.due, found.strays), (1, 0, 0));
    assert_eq!(work(&mut plane), []);
    let flannel_s = Route { metric: 0, protocol: 3, ..direct_route() };
    let observed =
        Observed { routes: vec![base.into(), direct_route().into(), flannel_s.into()], ..Observed::default() };
    plane.reconcile(&observed, false, Instant::now());
    assert_eq!(work(&mut plane), [Op::Delete(Row::Route(flannel_s))]);
}

#[test]
fn a_packet_that_a_direct_route_did_not_take_goes_through_the_tunnel_and_leaves_the_route_alone() {
    for address in ["10.5.7.9", "10.5.7.0"].map(|address| address.parse().unwrap()) {
        let mut plane = plane();
        joined(&mut plane, true);
        plane.take_programmed();
        plane.miss(Miss::Address(address), Instant::now());
        assert!(!plane.is_settled(), "the route is gone");
        let waiting = [Op::PutFdb(fdb()), Op::PutNeigh(Neigh { address, mac: mac() })];
        let after = [Op::PutRoute(direct_route()), Op::Delete(Row::Neigh(address)), Op::Delete(Row::Fdb(fdb()))];
        assert_eq!(work(&mut plane), [&waiting[..], &after].concat());
        assert!(plane.is_settled() && !plane.has_programmed());
        // The kernel tells of our own FDB row, late.
        plane.saw(&Notification::Fdb(SeenFdb { row: fdb(), idle: Duration::ZERO, ages: false }));
        assert_eq!(work(&mut plane), [Op::Delete(Row::Fdb(fdb()))]);
        assert!(!plane.has_mended(), "nobody else has written it");
    }
}

#[test]
fn a_lost_packet_to_a_direct_peer_s_mac_brings_its_route_back_and_no_tunnel() {
    let mut plane = plane();
    joined(&mut plane, true);
    plane.miss(Miss::Mac(mac()), Instant::now());
    assert_eq!(work(&mut plane), [Op::PutRoute(direct_route())]);
    // A packet asked for it: it stays wanted when it needs the tunnel.
    plane.redecide(None);
    assert!(decide(&mut plane, false).contains(&Op::PutFdb(fdb())));
}

#[test]
fn a_peer_that_becomes_direct_while_a_packet_waits_keeps_no_neighbour_of_the_packet_s() {
    let mut plane = plane();
    joined(&mut plane, false);
    let address = "10.5.7.9".parse().unwrap();
    plane.miss(Miss::Address(address), Instant::now());
    let chunk = plane.urgent_chunk();
    plane.settle(chunk, &[], Instant::now());
    plane.redecide(None);
    let (subnet, host) = plane.undecided().unwrap();
    plane.decide(subnet, host, true);
    let chunk = plane.next_chunk(100);
    let failed: Vec<usize> = (0..chunk.ops().len()).filter(|n| matches!(chunk.ops()[*n], Op::PutRoute(_))).collect();
    let deleted: Vec<Op> = chunk.ops().iter().filter(|op| matches!(op, Op::Delete(_))).copied().collect();
    plane.settle(chunk, &failed, Instant::now());
    assert_eq!(
        deleted[1..],
        [
            Op::Delete(Row::Neigh("10.5.7.0".parse().unwrap())),
            Op::Delete(Row::Neigh(address)),
            Op::Delete(Row::Fdb(fdb())),
        ]
    );
}

#[test]
fn without_a_tunnel_a_peer_has_a_route_through_its_host_or_none_and_that_is_told_once() {
    let mut plane = with_ways(Ways { tunnel: false, host: true }, PeerMode::All);
    assert!(plane.is_settled(), "no base route");
    assert_eq!(joined(&mut plane, false), []);
    let told = |plane: &mut Plane| plane.take_unreached().map(|unreached| unreached.first);
    assert_eq!(told(&mut plane), Some(vec![(PEER.parse().unwrap(), HOST.parse().unwrap())]));
    plane.redecide(None);
    assert_eq!(decide(&mut plane, false), []);
    assert_eq!(told(&mut plane), None, "it is no news");
    plane.want_everyone();
    assert_eq!(work(&mut plane), [], "nothing can be put");
    plane.redecide(None);
    assert_eq!(decide(&mut plane, true), [Op::PutRoute(direct_route())]);
    plane.redecide(None);
    assert_eq!(decide(&mut plane, false), [Op::Delete(Row::Route(direct_route()))]);
    assert!(told(&mut plane).is_some());
}

#[test]
fn another_program_s_route_is_its_own_matter_where_there_is_no_way_of_ours() {
    let mut plane = with_ways(Ways { tunnel: false, host: true }, PeerMode::All);
    joined(&mut plane, false);
    let via = Via::Direct("10.99.0.1".parse().unwrap());
    let theirs = Route { destination: PEER.parse().unwrap(), via, metric: 0, protocol: 3 };
    plane.saw(&Notification::Route(theirs.into()));
    assert!(plane.contested().is_empty());
    plane.redecide(None);
    decide(&mut plane, true);
    assert_eq!(plane.contested().len(), 1, "it goes before ours");
}

#[test]
fn without_any_way_nothing_is_asked_and_nothing_is_put() {
    let mut plane = with_ways(Ways { tunnel: false, host: false }, PeerMode::All);
    assert_eq!(joined(&mut plane, true), []);
    plane.want_everyone();
    plane.redecide(None);
    assert!(!plane.has_undecided() && plane.is_settled() && plane.take_unreached().is_none());
    assert_eq!(plane.peers().len(), 1);
}
