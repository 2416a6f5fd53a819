//! Who answers the misses: the floor (a blocking loop), netlink-ext by itself, and twilld, each on a node of its own.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use etcd_client::{Client, PutOptions, Txn, TxnOp};
use netlink_ext::{BatchSocket, Dumper, Miss, MissSocket, Request, pending_misses};
use twill_lab::{Lab, Namespace, Node, PREFIX as ETCD, Twilld};

use crate::peers::{NETWORK, NETWORK_PREFIX, PREFIX, Peer};
use crate::raw::{Misses, Raw, Requests};

const DEVICE: &str = "flannel.1";
/// The fabric's own address in the lab: all peers live there.
pub(crate) const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// Events that are looked at before any is answered, as twilld has it.
const EVENTS: usize = 64;
const MISS_BUFFER: usize = 8 << 20;
/// etcd takes 128 operations in a transaction.
const PUTS: usize = 128;

/// Makes the device with its base route by hand, as the agent does on demand; its index.
fn device(node: &Node) -> Result<u32> {
    node.netns().ip_batch([
        format!("link add {DEVICE} type vxlan id 1 dev eth0 local {} dstport 8472 nolearning l2miss", node.addr()),
        format!("addr add {NETWORK}/32 dev {DEVICE}"),
        format!("ntable change name arp_cache dev {DEVICE} app_probes 3 ucast_probes 0 mcast_probes 0"),
        format!("link set {DEVICE} up"),
        format!("route add {NETWORK}/{NETWORK_PREFIX} dev {DEVICE} proto 116 scope link src {NETWORK}"),
    ])?;
    index(node.netns())
}

/// The index of the node's device.
pub(crate) fn index(node: &Namespace) -> Result<u32> {
    Ok(node.enter(|| nix::net::if_::if_nametoindex(DEVICE))??)
}

/// The floor, on a thread that lives as long as the process.
pub(crate) fn floor(node: &Node) -> Result<()> {
    let ifindex = device(node)?;
    let (misses, requests) =
        node.netns().enter(|| Ok::<_, anyhow::Error>((Misses::open(ifindex)?, Requests::open()?)))??;
    std::thread::spawn(move || {
        let mut raw = Raw::default();
        let mut buffer = [0; 4096];
        loop {
            if let Some(address) = misses.next(&mut buffer) {
                let peer = Peer::of(address);
                raw.clear();
                raw.fdb(peer, ifindex, REMOTE);
                raw.neigh(peer, ifindex, address);
                requests.tell(&raw).expect("the kernel takes a small datagram");
            }
        }
    });
    Ok(())
}

/// netlink-ext in a runtime like the agent's, on a thread that lives as long as the process.
pub(crate) fn ours(node: &Node) -> Result<()> {
    let ifindex = device(node)?;
    let netns = std::path::Path::new("/run/netns").join(node.netns().name());
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let run = || -> Result<()> {
            nix::sched::setns(std::fs::File::open(netns)?, nix::sched::CloneFlags::CLONE_NEWNET)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let sockets = (MissSocket::open(ifindex, MISS_BUFFER)?, BatchSocket::open()?, Dumper::open()?);
                ready.send(())?;
                answer(ifindex, sockets).await
            })
        };
        if let Err(error) = run() {
            eprintln!("netlink-ext's loop ended: {error:#}");
        }
    });
    is_ready.recv().context("netlink-ext's loop did not begin")
}

async fn answer(ifindex: u32, sockets: (MissSocket, BatchSocket, Dumper)) -> Result<()> {
    let (mut misses, mut batch, mut dumper) = sockets;
    let mut requests: Vec<Request> = Vec::new();
    loop {
        for _ in 0..EVENTS {
            match misses.try_next()? {
                Some(Miss::L3 { address, .. }) => put(&mut requests, ifindex, address),
                Some(Miss::L2 { .. }) => {}
                Some(Miss::Overrun) => {
                    let pending = pending_misses(&mut dumper, ifindex)?;
                    pending.into_iter().for_each(|address| put(&mut requests, ifindex, address));
                }
                None => break,
            }
        }
        if requests.is_empty() {
            misses.readable().await?;
        } else {
            batch.send(&requests)?;
            requests.clear();
        }
    }
}

fn put(requests: &mut Vec<Request>, ifindex: u32, address: std::net::IpAddr) {
    if let std::net::IpAddr::V4(address) = address {
        let peer = Peer::of(address);
        requests.push(peer.fdb(ifindex, REMOTE));
        requests.push(peer.neigh(ifindex, address));
    }
}

/// The real daemon, with this many records in its etcd.
pub(crate) fn twilld(lab: &Lab, node: &Node, records: u32) -> Result<Twilld> {
    let config =
        format!(r#"{{"Network":"{NETWORK}/{NETWORK_PREFIX}","SubnetLen":{PREFIX},"Backend":{{"Type":"vxlan"}}}}"#);
    lab.put_config(&config);
    let url = lab.etcd().url().to_owned();
    lab.fabric().enter(|| put_records(&url, records))??;
    let mut twilld = node.twilld(&[]);
    twilld.wait_ready();
    Ok(twilld)
}

fn put_records(url: &str, records: u32) -> Result<()> {
    let one = |n: &u32| {
        let peer = Peer(*n);
        let key = format!("{ETCD}/subnets/{}-{PREFIX}", peer.gateway());
        let mac = peer.mac_text();
        let value = format!(
            r#"{{"PublicIP":"{REMOTE}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        );
        TxnOp::put(key, value, None::<PutOptions>)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client = Client::connect([url], None).await?;
        let numbers: Vec<u32> = (1..=records).collect();
        for numbers in numbers.chunks(PUTS) {
            client.txn(Txn::new().and_then(numbers.iter().map(one).collect::<Vec<_>>())).await?;
        }
        Ok(())
    })
}

/// How many addresses of a node's device still wait for an answer after `limit`.
pub(crate) fn unanswered(node: &Node, limit: Duration) -> Result<usize> {
    let ifindex = index(node.netns())?;
    let mut dumper = node.netns().enter(Dumper::open)??;
    let end = std::time::Instant::now() + limit;
    loop {
        let pending = pending_misses(&mut dumper, ifindex)?.len();
        if pending == 0 || std::time::Instant::now() > end {
            return Ok(pending);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
