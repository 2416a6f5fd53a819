//! One thing after the other, and what the kernel holds then.

use super::*;

#[test]
fn on_demand_programs_exactly_the_used_peers() {
    let mut world = World::new(PeerMode::OnDemand);
    for index in 2..10 {
        world.put(subnet(index), endpoint(index, index), 1, KEY);
    }
    world.settle();
    world.assert_exactly(&[]);
    let base = ("10.5.0.0/16".parse().unwrap(), 0);
    assert_eq!(world.kernel.routes[&base].0, Via::Link { source: pod(1, 0) });
    assert_eq!(world.miss(pod(3, 7)), Answer::Peer(subnet(3)));
    assert_eq!(world.miss(pod(3, 8)), Answer::Peer(subnet(3)));
    assert_eq!(world.miss(pod(5, 0)), Answer::Peer(subnet(5)));
    world.assert_exactly(&[subnet(3), subnet(5)]);
}

#[test]
fn the_waiting_packet_is_answered_before_the_rest_of_the_peer() {
    let mut world = World::new(PeerMode::OnDemand);
    world.put(subnet(2), endpoint(2, 2), 1, KEY);
    world.settle();
    world.plane.miss(Miss::Address(pod(2, 9)), world.now);
    let chunk = world.plane.urgent_chunk();
    let expected = [
        Op::PutFdb(endpoint(2, 2).fdb().unwrap()),
        Op::PutNeigh(twill_agent::overlay::kernel::Neigh { address: pod(2, 9), mac: endpoint(2, 2).mac.unwrap() }),
    ];
    assert_eq!(chunk.ops(), expected);
    let failed = world.apply(chunk.ops());
    world.plane.settle(chunk, &failed, world.now);
    assert!(world.plane.is_due(), "the gateway's neighbour and the route are still to come");
    world.settle();
    world.assert_exactly(&[subnet(2)]);
}

#[test]
fn an_l2_miss_brings_the_fdb_row_back() {
    let mut world = World::new(PeerMode::OnDemand);
    world.put(subnet(2), endpoint(2, 2), 1, KEY);
    world.miss(pod(2, 9));
    world.kernel.fdb.clear();
    world.ordered = false;
    assert_eq!(world.plane.miss(Miss::Mac(endpoint(2, 2).mac.unwrap()), world.now), Answer::Peer(subnet(2)));
    world.settle();
    world.assert_exactly(&[subnet(2)]);
    assert_eq!(world.plane.miss(Miss::Mac(endpoint(9, 9).mac.unwrap()), world.now), Answer::Unknown);
}

#[test]
fn an_unleased_block_is_refused_until_its_record_arrives_or_a_minute_is_over() {
    let mut world = World::new(PeerMode::OnDemand);
    assert_eq!(world.miss(pod(7, 1)), Answer::Refused(subnet(7)));
    assert!(!world.kernel.neighbours.contains_key(&pod(7, 1)), "the waiting entry is gone");
    let refused = |world: &World| world.kernel.routes.values().filter(|(via, _)| *via == Via::Unreachable).count();
    assert_eq!(refused(&world), 1);
    world.put(subnet(7), endpoint(7, 7), 1, KEY);
    world.settle();
    assert_eq!(refused(&world), 0);
    assert_eq!(world.miss(pod(7, 1)), Answer::Peer(subnet(7)));
    world.miss(pod(8, 1));
    assert_eq!(refused(&world), 1);
    world.now += REFUSAL_TIME;
    world.settle();
    assert_eq!(refused(&world), 0);
    assert_eq!(world.miss("10.6.0.1".parse().unwrap()), Answer::Unknown);
}

#[test]
fn refusals_are_bounded() {
    let mut world = World::new(PeerMode::OnDemand);
    let net = FamilyConfig {
        network: "10.0.0.0/8".parse().unwrap(),
        subnet_len: 24,
        subnet_min: "10.0.1.0".parse().unwrap(),
        subnet_max: "10.255.255.0".parse().unwrap(),
    };
    world.plane = Plane::new(Setup { net, ..world.plane.setup().clone() });
    for block in 0..3 * REFUSALS {
        let [high, low] = u16::try_from(block).unwrap().to_be_bytes();
        world.miss(IpAddr::from([10, high, low, 1]));
    }
    let refused = world.kernel.routes.values().filter(|(via, _)| *via == Via::Unreachable).count();
    assert_eq!(refused, REFUSALS);
}

#[test]
fn a_changed_record_replaces_the_rows_and_leaves_none_of_the_old() {
    for mode in [PeerMode::OnDemand, PeerMode::All] {
        let mut world = World::new(mode);
        world.put(subnet(2), endpoint(2, 2), 1, KEY);
        world.settle();
        world.miss(pod(2, 9));
        world.put(subnet(2), endpoint(22, 2), 2, KEY);
        world.put(subnet(2), endpoint(23, 4), 3, KEY);
        world.settle();
        world.assert_exactly(&[subnet(2)]);
        world.put(subnet(2), endpoint(23, 5), 4, KEY);
        world.settle();
        world.assert_exactly(&[subnet(2)]);
        world.plane.remove(subnet(2), KEY);
        world.settle();
        world.assert_exactly(&[]);
    }
}

#[test]
fn a_mac_that_moves_to_another_subnet_is_never_deleted_from_under_it() {
    for removed_first in [true, false] {
        let mut world = World::new(PeerMode::All);
        world.put(subnet(2), endpoint(2, 2), 1, KEY);
        world.settle();
        if removed_first {
            world.plane.remove(subnet(2), KEY);
        }
        world.put(subnet(3), endpoint(2, 2), 2, KEY);
        if !removed_first {
            assert_eq!(world.plane.peers().aside().count(), 1);
            world.plane.remove(subnet(2), KEY);
        }
        world.settle();
        world.assert_exactly(&[subnet(3)]);
    }
}

#[test]
fn of_two_nodes_with_one_mac_the_one_that_was_there_first_holds_it_and_then_the_other() {
    for first_comes_last in [true, false] {
        let mut world = World::new(PeerMode::All);
        let mut records = vec![(subnet(2), endpoint(2, 2), 5), (subnet(3), endpoint(2, 3), 9)];
        if first_comes_last {
            records.reverse();
        }
        records.into_iter().for_each(|(subnet, endpoint, revision)| world.put(subnet, endpoint, revision, KEY));
        world.settle();
        world.assert_exactly(&[subnet(2)]);
        world.plane.remove(subnet(2), KEY);
        world.settle();
        world.assert_exactly(&[subnet(3)]);
    }
}

#[test]
fn a_record_with_our_mac_is_never_programmed() {
    for ours_first in [true, false] {
        let mut world = World::new(PeerMode::All);
        let hold = |world: &mut World| drop(world.plane.hold(subnet(1), Source(9), claim(endpoint(1, 1), 1)));
        if ours_first {
            hold(&mut world);
        }
        world.put(subnet(2), endpoint(1, 2), 5, KEY);
        world.settle();
        hold(&mut world);
        world.settle();
        world.assert_exactly(&[]);
        assert_eq!(world.miss(pod(2, 7)), Answer::Refused(subnet(2)));
    }
}

#[test]
fn an_old_key_that_goes_leaves_the_subnet_to_the_new_one() {
    let mut world = World::new(PeerMode::All);
    world.put(subnet(2), endpoint(2, 2), 1, Source(1));
    world.put(subnet(2), endpoint(22, 2), 5, Source(2));
    world.put(subnet(2), endpoint(23, 2), 3, Source(1));
    world.settle();
    world.assert_exactly(&[subnet(2)]);
    assert_eq!(world.plane.peers().get(&subnet(2)).unwrap().endpoint, endpoint(22, 2));
    world.plane.remove(subnet(2), Source(1));
    world.settle();
    world.assert_exactly(&[subnet(2)]);
    assert_eq!(world.plane.peers().get(&subnet(2)).unwrap().endpoint, endpoint(22, 2));
}

#[test]
fn flannels_route_beside_ours_is_deleted_and_ours_stays() {
    let mut world = World::new(PeerMode::All);
    world.put(subnet(2), endpoint(2, 2), 1, KEY);
    let flannels = (subnet(2), 0);
    world.kernel.routes.insert(flannels, (Via::Gateway(pod(2, 0)), 3));
    world.resync(true);
    world.assert_exactly(&[subnet(2)]);
    assert!(!world.kernel.routes.contains_key(&flannels));
}

#[test]
fn a_route_that_somebody_replaced_is_put_again() {
    for mode in [PeerMode::OnDemand, PeerMode::All] {
        let mut world = World::new(mode);
        world.put(subnet(2), endpoint(2, 2), 1, KEY);
        world.settle();
        world.miss(pod(2, 9));
        let mut wanted = vec![Route::peer(subnet(2), 2)];
        if mode == PeerMode::OnDemand {
            world.miss(pod(7, 1));
            wanted.push(Route::base("10.5.0.0/16".parse().unwrap(), pod(1, 0)));
            wanted.push(Route::refusal(subnet(7)));
        }
        for route in wanted {
            let wrong = Route { via: Via::Elsewhere, protocol: 4, ..route };
            world.kernel.routes.insert((route.destination, route.metric), (wrong.via, wrong.protocol));
            world.plane.saw(&Notification::Route(wrong.into()));
            world.settle();
            let there = world.kernel.routes[&(route.destination, route.metric)];
            assert_eq!(there, (route.via, PROTOCOL), "{route:?}");
        }
    }
}

#[test]
fn what_is_lost_while_a_dump_runs_is_not_taken_for_there() {
    let mut world = World::new(PeerMode::All);
    world.put(subnet(2), endpoint(2, 2), 1, KEY);
    world.settle();
    let dump = world.kernel.dump();
    world.ordered = false;
    let row = Row::Fdb(endpoint(2, 2).fdb().unwrap());
    world.apply(&[Op::Delete(row)]);
    world.plane.saw(&Notification::Gone(row));
    world.plane.reconcile(&dump, false, world.now);
    world.settle();
    world.assert_exactly(&[subnet(2)]);
}

/// Settles a chunk as failed although the kernel has done it, as when the socket breaks before the answer comes.
fn unanswered(world: &mut World, chunk: Chunk) {
    world.apply(chunk.ops());
    let all: Vec<usize> = (0..chunk.ops().len()).collect();
    world.plane.settle(chunk, &all, world.now);
}

/// A packet asks for an address and is let go. What else the miss makes due is not done yet.
fn answered(world: &mut World, address: IpAddr) {
    world.plane.miss(Miss::Address(address), world.now);
    let chunk = world.plane.urgent_chunk();
    assert!(world.apply(chunk.ops()).is_empty());
    world.plane.settle(chunk, &[], world.now);
}

#[test]
fn a_peer_that_a_dump_finds_complete_has_arrived_like_one_that_was_put() {
    let mut world = World::new(PeerMode::OnDemand);
    world.put(subnet(2), endpoint(2, 2), 1, KEY);
    world.settle();
    answered(&mut world, pod(2, 9));
    let chunk = world.plane.next_chunk(16);
    unanswered(&mut world, chunk);
    assert!(
        world.kernel.neighbours.contains_key(&pod(2, 9)),
        "the packet's own neighbour serves until the peer is there"
    );
    assert!(!world.plane.has_programmed());
    let observed = world.kernel.dump();
    assert_eq!(world.plane.reconcile(&observed, false, world.now).right, 1);
    assert_eq!(world.plane.take_programmed().first, [(subnet(2), Cause::Packet)]);
    world.settle();
    world.assert_exactly(&[subnet(2)]);
}

#[test]
fn at_the_start_a_neighbour_that_let_a_packet_go_leaves_with_the_first_dump_and_nothing_is_announced() {
    let mut world = World::new(PeerMode::OnDemand);
    world.put(subnet(2), endpoint(2, 2), 1, KEY);
    world.miss(pod(2, 9));
    let mut world = world.restarting();
    // The route of the earlier daemon is there, and this address has a neighbour that waits all the same.
    world.plane.miss(Miss::Address(pod(2, 7)), world.now);
    world.settle();
    assert!(world.kernel.neighbours.contains_key(&pod(2, 7)));
    world.resync(true);
    world.assert_exactly(&[subnet(2)]);
    assert!(!world.plane.has_programmed(), "an earlier daemon has put it");
}

#[test]
fn a_peer_that_leaves_unused_takes_the_neighbours_of_its_addresses_along() {
    let mut world = World::new(PeerMode::OnDemand);
    world.put(subnet(2), endpoint(2, 2), 1, KEY);
    world.settle();
    answered(&mut world, pod(2, 9));
    world.kernel.fdb.get_mut(&endpoint(2, 2).mac.unwrap()).unwrap().1 = IDLE;
    assert_eq!(world.resync(false).idle, 1);
    world.assert_exactly(&[]);
}

#[test]
fn idle_peers_are_taken_out_and_come_back_with_the_next_packet() {
    let mut world = World::new(PeerMode::OnDemand);
    world.put(subnet(2), endpoint(2, 2), 1, KEY);
    world.put(subnet(3), endpoint(3, 3), 1, KEY);
    world.miss(pod(2, 9));
    world.miss(pod(3, 9));
    world.kernel.fdb.get_mut(&endpoint(2, 2).mac.unwrap()).unwrap().1 = IDLE;
    assert_eq!(world.resync(false).idle, 1);
    world.assert_exactly(&[subnet(3)]);
    world.miss(pod(2, 9));
    world.assert_exactly(&[subnet(2), subnet(3)]);
}

#[test]
fn a_restart_rewrites_nothing_and_sweeps_what_went_away_meanwhile() {
    for mode in [PeerMode::OnDemand, PeerMode::All] {
        let mut world = World::new(mode);
        for index in 2..6 {
            world.put(subnet(index), endpoint(index, index), 1, KEY);
            world.miss(pod(index, 3));
        }
        world.settle();
        world.put(subnet(9), endpoint(9, 9), 1, KEY);
        let before = world.kernel.applied;
        let world = world.restarted();
        let written = if mode == PeerMode::OnDemand { 0 } else { 3 };
        assert_eq!(world.kernel.applied - before, written, "the new peer, where all are wanted, and nothing else");
        let mut world = World { plane: Plane::new(world.plane.setup().clone()), ..world };
        world.put(subnet(3), endpoint(3, 3), 1, KEY);
        world.put(subnet(4), endpoint(44, 4), 2, KEY);
        world.resync(true);
        world.assert_exactly(&[subnet(3), subnet(4)]);
    }
}

#[test]
fn rows_of_others_survive_and_flannels_own_shape_is_taken_over() {
    let mut world = World::new(PeerMode::All);
    world.put(subnet(2), endpoint(2, 2), 1, KEY);
    let foreign_route = ("10.5.7.0/24".parse().unwrap(), 5);
    world.kernel.routes.insert(foreign_route, (Via::Gateway("10.5.9.9".parse().unwrap()), 3));
    world.kernel.neighbours.insert(pod(9, 9), (Some(endpoint(77, 0).mac.unwrap()), NeighState::Permanent, 0));
    let old = Route { destination: subnet(6), via: Via::Gateway(pod(6, 0)), metric: 0, protocol: 3 };
    world.kernel.routes.insert((old.destination, 0), (old.via, 3));
    world.kernel.neighbours.insert(pod(6, 0), (Some(endpoint(6, 6).mac.unwrap()), NeighState::Permanent, 0));
    world.kernel.fdb.insert(endpoint(6, 6).mac.unwrap(), (endpoint(6, 6).remote, Duration::ZERO));
    world.resync(true);
    world.assert_exactly(&[subnet(2)]);
    assert!(world.kernel.routes.contains_key(&foreign_route));
    assert!(world.kernel.neighbours.contains_key(&pod(9, 9)));
    assert!(!world.kernel.neighbours.contains_key(&pod(6, 0)), "flannel's neighbour of a peer that is gone");
}

#[test]
fn rows_that_somebody_takes_or_changes_come_back_at_the_notification() {
    let mut world = World::new(PeerMode::All);
    world.put(subnet(2), endpoint(2, 2), 1, KEY);
    world.settle();
    let rows = [Row::Fdb(endpoint(2, 2).fdb().unwrap()), Row::Neigh(pod(2, 0)), Row::Route(Route::peer(subnet(2), 2))];
    world.ordered = false;
    for row in rows {
        world.apply(&[Op::Delete(row)]);
        assert!(world.programmed().is_empty());
        world.plane.saw(&Notification::Gone(row));
        world.settle();
        world.assert_exactly(&[subnet(2)]);
    }
    let wrong = Fdb { mac: endpoint(2, 2).mac.unwrap(), remote: "10.99.9.9".parse().unwrap() };
    world.apply(&[Op::PutFdb(wrong)]);
    world.plane.saw(&Notification::Fdb(twill_agent::overlay::kernel::SeenFdb {
        row: wrong,
        idle: Duration::ZERO,
        ages: false,
    }));
    world.settle();
    world.assert_exactly(&[subnet(2)]);
}

#[test]
fn a_clean_stop_wants_everyone() {
    let mut world = World::new(PeerMode::OnDemand);
    let all: Vec<_> = (2..40).map(subnet).collect();
    for index in 2..40 {
        world.put(subnet(index), endpoint(index, index), 1, KEY);
    }
    world.miss(pod(5, 1));
    world.plane.want_everyone();
    world.settle();
    world.assert_exactly(&all);
}

#[test]
fn a_complete_read_drops_what_it_does_not_name() {
    let mut world = World::new(PeerMode::All);
    world.put(subnet(2), endpoint(2, 2), 1, KEY);
    world.put(subnet(3), endpoint(3, 3), 1, KEY);
    world.settle();
    world.plane.listing();
    world.put(subnet(3), endpoint(3, 3), 1, KEY);
    world.plane.listed();
    world.settle();
    world.assert_exactly(&[subnet(3)]);
}
