//! A pod that sends to tens of thousands of addresses that nobody has leased.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ipnetwork::Ipv4Network;
use netlink_ext::Dumper;
use twill_lab::{Lab, NODE_CONFIG, Node, Pod};

use super::kernel::{ifindex, unresolved};
use super::process::{self, millis};
use super::table::Table;

const PACKETS: usize = 50_000;
/// Fewer unresolved neighbours than this at any time.
const UNRESOLVED: usize = 256;

/// Sends to each address of the network in turn, then to as many in no order, while another pod pings.
pub(crate) fn bench(table: &mut Table) -> Result<()> {
    one(table, "in turn", |addresses| addresses)?;
    one(table, "in no order", |addresses| mixed(&addresses))
}

fn one(table: &mut Table, how: &str, order: impl FnOnce(Vec<Ipv4Addr>) -> Vec<Ipv4Addr>) -> Result<()> {
    let lab = Lab::with_nodes(2);
    lab.put_config(NODE_CONFIG);
    let daemons = lab.start_all(&[]);
    let node = lab.node(1);
    let pods = [node.pod(1), node.pod(2), lab.node(2).pod(1)];
    pods[1].ping(pods[2].addr())?;
    let leased: Vec<Ipv4Network> = lab.nodes().iter().map(|node| node.as_peer().subnet).collect();
    let ping = pods[1].ping_running(pods[2].addr(), 5);
    ping.wait_received(10);
    let before = process::cpu(daemons[0].pid())?;
    let (most, took) = flood(&node, &pods[0], &order(addresses(&leased)))?;
    let cpu = process::cpu(daemons[0].pid())? - before;
    ping.wait_received(10);
    let lost = ping.stop().lost;
    table.row(
        &format!("50000 unleased destinations {how}"),
        "< 256 unresolved, 0 lost",
        format!("{most}, {lost} lost"),
        &format!("sent in {}", millis(took)),
        most < UNRESOLVED && lost == 0,
    );
    table.note(&format!("CPU of the daemon {}", millis(cpu)));
    Ok(())
}

/// Unleased addresses of the lab's usual network, in order.
fn addresses(leased: &[Ipv4Network]) -> Vec<Ipv4Addr> {
    let all = (u32::from(Ipv4Addr::new(10, 5, 1, 0))..u32::from(Ipv4Addr::new(10, 5, 255, 0))).map(Ipv4Addr::from);
    all.filter(|address| !leased.iter().any(|subnet| subnet.contains(*address))).take(PACKETS).collect()
}

/// The same ones in an order that jumps about, the same in each run.
fn mixed(addresses: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
    // A step that shares no factor with 50,000 comes to each of them.
    (0..addresses.len()).map(|i| addresses[i * 7_919 % addresses.len()]).collect()
}

/// Sends a packet to each as fast as it goes; the most neighbours that waited at once, and how long it took.
fn flood(node: &Node, pod: &Pod, addresses: &[Ipv4Addr]) -> Result<(usize, Duration)> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| node.netns().enter(|| most_unresolved(&over)));
        let start = Instant::now();
        let sent = pod.netns().enter(|| send(addresses));
        let took = start.elapsed();
        over.store(true, Ordering::Relaxed);
        let most = watching.join().map_err(|_| anyhow::anyhow!("the watching thread panicked"))??;
        sent??;
        Ok((most?, took))
    })
}

fn send(addresses: &[Ipv4Addr]) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("open a UDP socket")?;
    for address in addresses {
        // What comes back is the kernel's business: a refusal is what is wanted.
        let _ = socket.send_to(b"x", (*address, 9));
    }
    Ok(())
}

fn most_unresolved(over: &AtomicBool) -> Result<usize> {
    let (mut dumper, device, mut most) = (Dumper::open()?, ifindex()?, 0);
    while !over.load(Ordering::Relaxed) {
        most = most.max(unresolved(&mut dumper, device)?);
        // Two cores are for the sender and the daemon.
        std::thread::sleep(Duration::from_micros(300));
    }
    Ok(most)
}
