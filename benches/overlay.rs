//! The pure part of what is done for a miss, a record and a comparison, without kernel and etcd: `make bench` runs it, or
//! `cargo bench -p twill-benches --bench overlay`.
//!
//! What a miss costs must not depend on how many peers there are.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use ipnetwork::IpNetwork;
use twill_agent::overlay::backend::Backend;
use twill_agent::overlay::kernel::{
    Miss, NeighState, Notification, Observed, PROTOCOL, Route, Row, SeenFdb, SeenNeigh,
};
use twill_agent::overlay::peers::{Claim, Endpoint, Source, Standing};
use twill_agent::overlay::plane::{PeerMode, Plane, Setup};
use twill_agent::overlay::{MacAddr, NetworkConfig};

const SIZES: [u32; 2] = [10_000, 100_000];
/// 131,072 subnets.
const CONFIG: &[u8] = br#"{"Network":"10.128.0.0/9","SubnetLen":26}"#;
const NETWORK: u32 = 10 << 24 | 128 << 16;

fn subnet(number: u32) -> IpNetwork {
    let first = Ipv4Addr::from_bits(NETWORK + (number << 6));
    IpNetwork::new(first.into(), 26).expect("26 bits")
}

fn endpoint(number: u32) -> Endpoint {
    let [_, b, c, d] = number.to_be_bytes();
    Endpoint { mac: Some(MacAddr([2, 0, 0, b, c, d])), remote: Ipv4Addr::new(10, b, c, d).into() }
}

/// What a record says that was created at the first revision.
fn claim(endpoint: Endpoint, revision: i64) -> Claim {
    Claim { endpoint, standing: Standing::new(1, revision, true, None) }
}

/// A pod of this subnet.
fn pod(number: u32) -> Miss {
    Miss::Address(IpAddr::V4(Ipv4Addr::from_bits(NETWORK + (number << 6) + 5)))
}

/// A plane whose own subnet is number 0, with peers from 1 to `peers`.
fn plane(mode: PeerMode, peers: u32) -> Plane {
    let config = NetworkConfig::parse(CONFIG).expect("a good config");
    let net = *config.families().next().expect("IPv4");
    let mut plane = Plane::new(Setup {
        net,
        subnet: subnet(0),
        ways: Backend::default().ways(),
        mode,
        idle: Duration::from_secs(600),
    });
    for number in 1..=peers {
        plane.put(subnet(number), Source(0), claim(endpoint(number), number.into()));
    }
    plane
}

/// What a dump shows where every peer is as it should be.
fn dump(plane: &Plane) -> Observed {
    let mut observed = Observed::default();
    for (subnet, peer) in plane.peers().iter() {
        let idle = Duration::ZERO;
        observed.fdb.extend(peer.endpoint.fdb().map(|row| SeenFdb { row, idle, ages: false }));
        let (address, mac) = (subnet.network(), peer.endpoint.mac);
        observed.neighbours.push(SeenNeigh { address, mac, state: NeighState::Permanent, protocol: PROTOCOL });
        observed.routes.push(Route::peer(*subnet, plane.setup().net.index(subnet)).into());
    }
    observed
}

/// From a miss to the operations that answer it, and their results.
fn misses(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("miss");
    for size in SIZES {
        let now = Instant::now();
        let shared = RefCell::new(plane(PeerMode::OnDemand, size));
        let mut number = 0;
        let mut route_lost = || {
            number = number % size + 1;
            let mut plane = shared.borrow_mut();
            let route = plane.setup().net.index(&subnet(number));
            plane.saw(&Notification::Gone(Row::Route(Route::peer(subnet(number), route))));
            number
        };
        let answer = |number| {
            let mut plane = shared.borrow_mut();
            plane.miss(pod(number), now);
            let answer = plane.urgent_chunk();
            plane.settle(answer, &[], now);
            while plane.is_due() {
                let rest = plane.next_chunk(256);
                plane.settle(rest, &[], now);
            }
        };
        group.bench_function(BenchmarkId::new("of a peer that is not in the kernel", size), |bencher| {
            bencher.iter_batched(&mut route_lost, answer, BatchSize::PerIteration);
        });
        let (mut plane, mut number) = (shared.into_inner(), 0);
        group.bench_function(BenchmarkId::new("of an unleased block", size), |bencher| {
            bencher.iter(|| {
                number = number % 30_000 + 1;
                plane.miss(pod(size + number), now);
                while plane.is_due() {
                    let chunk = plane.next_chunk(256);
                    plane.settle(chunk, &[], now);
                }
            });
        });
    }
}

/// A record that moves its subnet to another host and back.
fn records(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("record");
    for size in SIZES {
        let mut plane = plane(PeerMode::OnDemand, size);
        let mut revision = i64::from(size);
        group.bench_function(BenchmarkId::new("changed", size), |bencher| {
            bencher.iter(|| {
                revision += 1;
                let number = revision as u32 % size + 1;
                let remote = Ipv4Addr::from_bits(revision as u32).into();
                plane.put(subnet(number), Source(0), claim(Endpoint { remote, ..endpoint(number) }, revision))
            });
        });
    }
}

/// A dump in which everything is right.
fn comparison(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("comparison");
    group.sample_size(10);
    for size in SIZES {
        let observed = dump(&plane(PeerMode::All, size));
        group.bench_function(BenchmarkId::new("of a dump with the records", size), |bencher| {
            let fresh = || plane(PeerMode::All, size);
            bencher.iter_batched(
                fresh,
                |mut plane| plane.reconcile(&observed, true, Instant::now()),
                BatchSize::LargeInput,
            );
        });
    }
}

criterion_group!(benches, misses, records, comparison);
criterion_main!(benches);
