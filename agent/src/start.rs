//! From flags to a running event loop: interface, network config, records, lease, device, `subnet.env`, in this order.
//!
//! Each step waits where waiting can help (no config yet, etcd away, no free subnet), and says so once and then every half
//! minute; it ends the process where it can't.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::cli::Flags;
use crate::dataplane::kernel::Kernel;
use crate::dataplane::{Dataplane, Device};
use crate::eventloop::{self, Ended, EventLoop, Feeds, Half, Order, Own, Parts, Signals};
use crate::handoff;
use crate::http;
use crate::lease::{self, Held, Keeper};
use crate::lock::{self, Lock};
use crate::masquerade::{self, Side, Wanted as WantedRules};
use crate::overlay::MacAddr;
use crate::overlay::iface;
use crate::overlay::plane::{PeerMode, Plane, Setup};
use crate::overlay::record::Family;
use crate::overlay::records::{Raw, Records};
use crate::passing::Passing;
use crate::process;
use crate::reader::{Intake, Reader};
use crate::site::{self, End, Site};
use crate::snapshot::{Publisher, Snapshot, in_words};
use crate::store::Store;

mod fit;
mod interfaces;
mod subnet;

use subnet::{Etcd, Identity, get_subnet};

/// Runs the daemon with these flags until it is told to stop or loses its subnet.
pub async fn run(flags: Flags) -> Result<Ended> {
    let subnet_file = flags.subnet_file.clone();
    let mut signals = Signals::new()?;
    let (publisher, snapshot) = Publisher::new();
    let mut preparing = pin!(prepare(flags, publisher, snapshot.clone()));
    let prepared = loop {
        tokio::select! {
            prepared = preparing.as_mut() => break prepared,
            (signal, order) = signals.recv() => {
                let waits = in_words(&snapshot.borrow().missing);
                match order {
                    Order::Stop => {
                        info!(%signal, %waits, "stopping during the start");
                        return Ok(Ended::Stopped);
                    }
                    Order::Compare | Order::Report => info!(%signal, %waits, "state: starting"),
                }
            }
        }
    };
    let (turn, feeds) = prepared.inspect_err(|why| match why.downcast_ref::<lock::Error>() {
        // The other one's word counts.
        Some(_) => handoff::explain(&subnet_file, None),
        None => handoff::explain(&subnet_file, Some(&format!("{why:#}"))),
    })?;
    let ended = turn.run(signals, feeds).await;
    if let Ended::LeaseLost { holder } = &ended {
        // A pod that is added now would have an address of the other node's.
        handoff::withdraw(&subnet_file, &format!("another node holds the subnet that this one had: {holder}"));
    }
    Ok(ended)
}

/// All that comes before the first turn of the event loop.
async fn prepare(
    flags: Flags,
    publisher: Publisher,
    snapshot: watch::Receiver<Snapshot>,
) -> Result<(EventLoop<Kernel>, Feeds)> {
    info!(version = crate::VERSION, peer_mode = %flags.peer_mode, "twilld starts");
    privileged()?;
    process::raise_priority();
    let descriptors = process::raise_descriptor_limit();
    if let Some(address) = flags.healthz() {
        tokio::spawn(http::serve(address, snapshot, descriptors));
    }
    let passing = Passing::new(&publisher, &flags.subnet_file);
    let mut kernel = passing.wait("open the netlink sockets", async || Kernel::open()).await?;
    let wish = flags.wish();
    kernel.reach = wish.can_reach;
    let interfaces = passing.wait("read the interfaces", async || kernel.interfaces()).await?;
    // Which families are needed is known only from the config; an interface that isn't there is said at once.
    let may_come = interfaces::may_come(&interfaces, &wish);
    if let (false, Err(error)) = (may_come, iface::choose(&interfaces, &wish, false)) {
        iface::choose(&interfaces, &wish, true).map_err(|_| error)?;
    }
    let store = flags.etcd.store()?;
    let (endpoints, prefix) = (flags.etcd.etcd_endpoints.join(", "), &flags.etcd.etcd_prefix);
    let identity = Identity::read(&flags);
    let previous = identity.previous(&wish, &interfaces);
    let mut reader = Reader::new(store.clone(), endpoints.clone(), flags.subnet_file.clone(), previous);
    let config_at = format!("a usable network config: the key {prefix}/config of etcd at {endpoints}");
    let on_demand = PeerMode::from(flags.peer_mode) == PeerMode::OnDemand;
    let mut lock: Option<Lock> = None;
    let (site, ends, intake, held) = loop {
        publisher.waits_for(&config_at);
        let (config, config_text) = reader.config(prefix).await?;
        let (wish, subnet_file, ip_masq) = (wish.clone(), flags.subnet_file.clone(), flags.ip_masq);
        let site = Site { config, config_text, wish, subnet_file, ip_masq, on_demand };
        // Nothing is written to etcd or to the kernel before. One lock for both families' devices: they have one VNI.
        let waits = |what: &str| publisher.waits_for(what);
        Lock::hold(&mut lock, &site.device_name(Family::V4), flags.takeover_timeout, waits).await?;
        let etcd = Etcd { store: &store, reader: &mut reader, publisher: &publisher };
        // The waits may have been long.
        let Some((interfaces, ends)) = fit::ends(&site, prefix, etcd, &mut kernel, &passing).await? else { continue };
        unhindered(&site, &ends, &mut kernel, &passing).await?;
        warn_of_swallowed(&flags.etcd.etcd_endpoints, &site, &interfaces);
        for End { chosen, .. } in &ends {
            let interface = &chosen.interface;
            info!(interface = %interface.name, local = %chosen.local, public = %chosen.public, mtu = interface.mtu, why = %chosen.why, "the tunnel goes over this interface");
        }
        let mut intake = intake(&flags, &site, &ends);
        publisher.waits_for("all records of etcd");
        let etcd = Etcd { store: &store, reader: &mut reader, publisher: &publisher };
        match get_subnet(&site, &ends, &identity, etcd, &mut intake, &mut kernel).await? {
            Some(held) => break (site, ends, intake, held),
            None => warn!("the network config was changed on the way to a subnet: beginning again with what it is now"),
        }
    };
    if let Some(lock) = lock {
        lock.keep_until_exit();
    }

    let Intake { mut planes, mut records, .. } = intake;
    hold(&mut records, &mut planes, &ends, &held)?;
    eventloop::ignored_at_start(&records);
    let halves = halves(&site, &ends, &held, planes, kernel, &passing).await?;
    let rules = rules(&flags, &site, &ends, &held, &passing).await?;

    let margin = Duration::from_secs(60 * flags.subnet_lease_renew_margin);
    let (key, record, lease_id) = (held.key, held.record.clone(), held.lease);
    let (keeper, lease) = Keeper::spawn(store.clone(), site.config.clone(), held, lease::TTL, margin);
    let own = Own::new(key, record, keeper, lease_id);
    let program_all_on_exit = flags.program_all_on_exit;
    let read_again = Box::new(move || store.follow());
    let parts = Parts { site, halves, records, own, program_all_on_exit, read_again, rules, publisher };
    Ok((EventLoop::new(parts), Feeds { store: reader.into_events(), lease }))
}

/// Says which etcd the base route of the on-demand mode would cut off.
fn warn_of_swallowed(endpoints: &[String], site: &Site, interfaces: &[iface::Interface]) {
    let swallowed = |endpoint: &&String| literal(endpoint).is_some_and(|ip| site.swallows(ip, interfaces));
    for endpoint in endpoints.iter().filter(swallowed) {
        warn!(%endpoint, "etcd lies in the network, which --peer-mode=on-demand routes into the tunnel: give it a route of its own or start with --peer-mode=all");
    }
}

/// The address of an endpoint that has no name.
fn literal(endpoint: &str) -> Option<IpAddr> {
    let host = endpoint.rsplit("://").next()?.trim_end_matches('/');
    host.parse::<SocketAddr>().map(|address| address.ip()).or_else(|_| host.parse()).ok()
}

/// Where the records of this network go.
fn intake(flags: &Flags, site: &Site, ends: &[End]) -> Intake {
    let (mode, idle) = (flags.peer_mode.into(), flags.peer_idle_timeout);
    let plane = |end: &End| {
        let mut plane = Plane::new(Setup { net: end.net, subnet: site::no_subnet(end.family), mode, idle });
        if site.config.backend.direct_routing {
            plane.route_directly();
        }
        if flags.ip_blackhole_route {
            plane.drop_own();
        }
        plane
    };
    let own = ends.iter().map(End::without_subnet).collect();
    Intake::new(ends.iter().map(plane).collect(), Records::new(site.config.backend.vni, own))
}

/// Tells the planes which record is ours.
fn hold(records: &mut Records, planes: &mut [Plane], ends: &[End], held: &Held) -> Result<()> {
    let own = ends.iter().map(|end| site::own(&held.key, &held.record, end)).collect::<Result<_, _>>()?;
    let (key, value, revision) = (held.key.to_string(), held.record.to_json(), held.revision);
    let raw = Raw { key: &key, value: &value, created: revision, revision, is_leased: held.lease.is_some() };
    records.hold(&mut planes.iter_mut().collect::<Vec<_>>(), own, raw);
    Ok(())
}

/// Starts what keeps the nftables rules, also where none are wanted: those of an earlier run go then. Returns what is
/// wrong with them.
async fn rules(
    flags: &Flags,
    site: &Site,
    ends: &[End],
    held: &Held,
    passing: &Passing<'_>,
) -> Result<watch::Receiver<Option<String>>> {
    let side = |end: &End| {
        let (network, device) = (end.net.network, site.device_name(end.family));
        Ok(Side { network, subnet: site::own_subnet(&held.key, end)?, device })
    };
    let wanted = WantedRules {
        vni: site.config.backend.vni,
        sides: ends.iter().map(side).collect::<Result<_>>()?,
        masquerade: flags.ip_masq,
        fully_random: !flags.ip_masq_fully_random_disable,
        forward: flags.iptables_forward_rules,
    };
    let resync = Duration::from_secs(flags.iptables_resync);
    let start = async || masquerade::keep(wanted.clone(), resync);
    passing
        .wait("start the thread that keeps the nftables rules", start)
        .await
        .context("start the thread that keeps the nftables rules")
}

/// Makes each end's device, and hangs the plane on it. A failure takes back the devices that were created on the way.
async fn halves(
    site: &Site,
    ends: &[End],
    held: &Held,
    planes: Vec<Plane>,
    kernel: Kernel,
    passing: &Passing<'_>,
) -> Result<Vec<Half<Kernel>>> {
    let mut first = Some(kernel);
    let mut halves: Vec<Half<Kernel>> = Vec::new();
    for (end, plane) in ends.iter().zip(planes) {
        let kernel = match first.take() {
            Some(kernel) => kernel,
            None => passing.wait("open the netlink sockets", async || Kernel::open()).await?,
        };
        match half(site, end, held, plane, kernel, passing).await {
            Ok(half) => halves.push(half),
            Err(error) => {
                for half in &mut halves {
                    take_back(&mut half.dataplane, &half.device).await;
                }
                return Err(error);
            }
        }
    }
    Ok(halves)
}

async fn half(
    site: &Site,
    end: &End,
    held: &Held,
    plane: Plane,
    mut kernel: Kernel,
    passing: &Passing<'_>,
) -> Result<Half<Kernel>> {
    let device = site.device(end, &held.key, held.record.mac(end.family).unwrap_or(MacAddr([0; 6])))?;
    let what = format!("make the device {}", device.name);
    let made = match passing.wait(&what, async || kernel.make(&device).await).await {
        Ok(made) => made,
        Err(error) => {
            take_back(&mut kernel, &device).await;
            return Err(error).context(what);
        }
    };
    info!(device = %device.name, mac = %device.mac, mtu = device.mtu, address = %device.address, how = %made, "the device is up");
    Ok(Half::new(plane, kernel, device, Instant::now()))
}

/// Deletes a device that this start has created.
async fn take_back(kernel: &mut Kernel, device: &Device) {
    if let Err(error) = kernel.undo(device).await {
        warn!(device = %device.name, %error, "cannot delete the device that was made for this start");
    }
}

/// Fails where something stands in the way of a device of ours, before a subnet is leased for it.
async fn unhindered(site: &Site, ends: &[End], kernel: &mut Kernel, passing: &Passing<'_>) -> Result<()> {
    for end in ends {
        let (name, backend, local) = (site.device_name(end.family), &site.config.backend, end.chosen.local);
        let obstacle = async || kernel.obstacle(&name, backend, local);
        if let Some(error) = passing.wait("look for what has the device's name or port", obstacle).await? {
            return Err(error).context(format!("make the device {name}"));
        }
    }
    Ok(())
}

/// Fails early where nothing could be done to the network at all.
fn privileged() -> Result<()> {
    if crate::process::has_net_admin("self") == Some(false) {
        bail!(
            "no CAP_NET_ADMIN: run twilld as root or give it that capability; without it no device, route or neighbour can be made"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_without_a_name_have_an_address() {
        for (endpoint, ip) in [
            ("http://10.0.0.5:2379", Some("10.0.0.5")),
            ("https://[fd99::1]:2379/", Some("fd99::1")),
            ("10.0.0.5", Some("10.0.0.5")),
            ("http://etcd.example:2379", None),
        ] {
            assert_eq!(literal(endpoint), ip.map(|ip| ip.parse().unwrap()), "{endpoint}");
        }
    }
}
