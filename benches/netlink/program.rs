//! Writing: FDB rows, neighbours and routes, alone and together, and how routes behave in large numbers.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netlink_ext::{BatchSocket, Request};
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourState};
use netlink_packet_route::route::RouteProtocol;
use rtnetlink::{Handle, RouteMessageBuilder};

use crate::peers::{PREFIX, PROTOCOL, Peer, Work, requests};
use crate::raw::{Requests, datagrams};
use crate::stage::{REMOTE, batch, batch_file, fresh_device, in_namespace};
use crate::table::{Row, Target};

const COUNT: u32 = 10_000;
/// Routes in a slice, four datagrams of them, and slices in 100,000 of them.
const SLICE: u32 = 1_024;
const SLICES: usize = 98;
const WORKS: [(Work, &str); 4] = [
    (Work::Fdb, "10,000 FDB rows"),
    (Work::Neigh, "10,000 neighbours"),
    (Work::Route, "10,000 routes"),
    (Work::Peer, "10,000 peers (all three of each)"),
];
/// The argument that makes this program write 10,000 peers once, for strace to watch.
pub(crate) const ONCE: &str = "--once";

/// Each kind of work by each of four ways.
pub(crate) fn compare(rounds: usize) -> Result<Vec<Row>> {
    in_namespace(move || {
        let mut rows = Vec::new();
        for (work, name) in WORKS {
            let ways: [fn(Work) -> Result<Duration>; 4] = [ours, raw, iproute2, one_by_one];
            let mut best = [Duration::MAX; 4];
            for _ in 0..rounds {
                for (best, way) in best.iter_mut().zip(ways) {
                    *best = way(work)?.min(*best);
                }
            }
            let [ours, raw, iproute2, one_by_one] = best;
            let program = match work {
                Work::Fdb => "bridge -batch",
                Work::Neigh | Work::Route => "ip -batch",
                Work::Peer => "bridge -batch, ip -batch",
            };
            rows.push(Row::times(name, ours, "a raw batch with one ACK", raw, Target::Times(1.3)));
            rows.push(Row::times(name, ours, program, iproute2, Target::Shown));
            rows.push(Row::times(name, ours, "rtnetlink, one by one", one_by_one, Target::Times(1.0 / 3.0)));
        }
        Ok(rows)
    })
}

/// What one more route costs when there are some 1,000, 10,000 and 100,000: of one run of 100,000, in slices, each
/// slice's least over the rounds. The kernel's own growth is shown by a raw batch.
pub(crate) fn routes(rounds: usize) -> Result<Vec<Row>> {
    in_namespace(move || {
        let (mut ours, mut raw) = (vec![Duration::MAX; SLICES], vec![Duration::MAX; SLICES]);
        for _ in 0..rounds {
            least(&mut ours, &slices_of_ours()?);
            least(&mut raw, &slices_of_raw()?);
        }
        // Two slices around the size.
        let at = |slices: &[Duration], from: usize| slices[from..from + 2].iter().sum::<Duration>() / (2 * SLICE);
        let mean = |slices: &[Duration]| slices.iter().sum::<Duration>() / (SLICES as u32 * SLICE);
        let (few, some, many) = (at(&ours, 0), at(&ours, 9), at(&ours, SLICES - 2));
        let beside = "when there are 1,000";
        Ok(vec![
            Row::times("one more route, when there are 10,000", some, beside, few, Target::Times(1.5)),
            Row::times("one more route, when there are 100,000", many, beside, few, Target::Times(1.5)),
            Row::times("the same, of a raw batch", at(&raw, SLICES - 2), beside, at(&raw, 0), Target::Shown),
            Row::times("a route, mean of 100,000", mean(&ours), "of a raw batch", mean(&raw), Target::Times(1.3)),
        ])
    })
}

fn least(best: &mut [Duration], times: &[Duration]) {
    best.iter_mut().zip(times).for_each(|(best, time)| *best = (*best).min(*time));
}

fn slices_of_ours() -> Result<Vec<Duration>> {
    let requests = requests(Work::Route, SLICE * SLICES as u32, fresh_device()?, REMOTE);
    let mut batch = BatchSocket::open()?;
    let send = |slice: &[Request]| {
        let start = Instant::now();
        let failures = batch.send(slice)?;
        let took = start.elapsed();
        ensure!(failures.is_empty(), "the kernel refused {failures:?}");
        Ok(took)
    };
    requests.chunks(SLICE as usize).map(send).collect()
}

fn slices_of_raw() -> Result<Vec<Duration>> {
    let datagrams = datagrams(Work::Route, SLICE * SLICES as u32, fresh_device()?, REMOTE);
    let socket = Requests::open()?;
    let send = |slice: &[_]| {
        let start = Instant::now();
        slice.iter().try_for_each(|datagram| socket.exchange(datagram))?;
        Ok(start.elapsed())
    };
    datagrams.chunks(datagrams.len() / SLICES).map(send).collect()
}

/// Writes 10,000 peers once.
pub(crate) fn once() -> Result<()> {
    in_namespace(|| ours(Work::Peer).map(drop))
}

/// What `strace -c` counts for [`once`]; `None` without strace.
pub(crate) fn system_calls() -> Result<Option<String>> {
    let counts = tempfile::NamedTempFile::new()?;
    let own = std::env::current_exe()?;
    let mut command = Command::new("strace");
    // Ours are sendto and recvfrom; sendmsg and recvmsg are those of ip(8), which makes the device.
    command.args(["-f", "-c", "-e", "trace=network", "-o"]).arg(counts.path()).arg(own).arg(ONCE);
    match command.status() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        status => {
            ensure!(status?.success(), "strace failed");
            std::fs::read_to_string(counts.path()).map(Some).context("what strace has counted")
        }
    }
}

fn ours(work: Work) -> Result<Duration> {
    let requests: Vec<Request> = requests(work, COUNT, fresh_device()?, REMOTE);
    let mut batch = BatchSocket::open()?;
    let start = Instant::now();
    let failures = batch.send(&requests)?;
    let took = start.elapsed();
    ensure!(failures.is_empty(), "the kernel refused {failures:?}");
    Ok(took)
}

fn raw(work: Work) -> Result<Duration> {
    let datagrams = datagrams(work, COUNT, fresh_device()?, REMOTE);
    let socket = Requests::open()?;
    let start = Instant::now();
    datagrams.iter().try_for_each(|datagram| socket.exchange(datagram))?;
    Ok(start.elapsed())
}

fn iproute2(work: Work) -> Result<Duration> {
    fresh_device()?;
    let lines = |line: fn(Peer) -> String| batch_file(&(1..=COUNT).map(|n| line(Peer(n))).collect::<String>());
    let fdb = |peer: Peer| format!("fdb replace {} dev x0 dst {REMOTE} self permanent\n", peer.mac_text());
    let neigh = |peer: Peer| {
        format!("neigh replace {} lladdr {} dev x0 nud permanent protocol 116\n", peer.gateway(), peer.mac_text())
    };
    let route = |peer: Peer| {
        let (gateway, metric) = (peer.gateway(), peer.metric());
        format!("route replace {gateway}/{PREFIX} via {gateway} dev x0 onlink proto 116 metric {metric}\n")
    };
    let runs = match work {
        Work::Fdb => vec![("bridge", lines(fdb)?)],
        Work::Neigh => vec![("ip", lines(neigh)?)],
        Work::Route => vec![("ip", lines(route)?)],
        Work::Peer => vec![("bridge", lines(fdb)?), ("ip", lines(neigh)?), ("ip", lines(route)?)],
    };
    let start = Instant::now();
    runs.iter().try_for_each(|(program, file)| batch(program, file))?;
    Ok(start.elapsed())
}

fn one_by_one(work: Work) -> Result<Duration> {
    let ifindex = fresh_device()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let start = Instant::now();
        for n in 1..=COUNT {
            await_one(&handle, work, ifindex, Peer(n)).await?;
        }
        Ok(start.elapsed())
    })
}

async fn await_one(handle: &Handle, work: Work, ifindex: u32, peer: Peer) -> Result<()> {
    if matches!(work, Work::Fdb | Work::Peer) {
        let request = handle.neighbours().add_bridge(ifindex, &peer.mac()).destination(REMOTE.into());
        let state = NeighbourState::Other(0xc0); // NOARP | PERMANENT
        request.state(state).flags(NeighbourFlags::Own).replace().execute().await?;
    }
    if matches!(work, Work::Neigh | Work::Peer) {
        let request = handle.neighbours().add(ifindex, peer.gateway().into());
        request.link_layer_address(&peer.mac()).replace().execute().await?;
    }
    if matches!(work, Work::Route | Work::Peer) {
        let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(peer.gateway(), PREFIX)
            .gateway(peer.gateway())
            .output_interface(ifindex)
            .onlink()
            .priority(peer.metric())
            .protocol(RouteProtocol::Other(PROTOCOL))
            .build();
        handle.route().add(route).replace().execute().await?;
    }
    Ok(())
}
