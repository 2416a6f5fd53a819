//! From flags to a running event loop: interface, network config, records, lease, device, `subnet.env`, in this order.
//!
//! Each step waits where waiting can help (no config yet, etcd away, no free subnet), and says so once and then every half
//! minute; it ends the process where it can't.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use ipnetwork::IpNetwork;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::cli::Flags;
use crate::dataplane::kernel::Kernel;
use crate::dataplane::{Dataplane, Device, underlay};
use crate::eventloop::{Ended, EventLoop, Half};
use crate::handoff::{self, SubnetEnv};
use crate::lease::{self, AcquireError, Held, Keeper};
use crate::overlay::alloc::Wanted;
use crate::overlay::config::{FamilyConfig, NetworkConfig};
use crate::overlay::iface::{self, Chosen, Wish};
use crate::overlay::plane::{Plane, Setup};
use crate::overlay::record::{Family, Own, Record, VtepData};
use crate::overlay::records::Records;
use crate::overlay::{MacAddr, SubnetKey};
use crate::store::etcd::EtcdStore;
use crate::store::{Change, Event, RawRecord, Store};

/// How often a wait that goes on is spoken of.
const REMIND: Duration = Duration::from_secs(30);
/// What VXLAN adds to a packet, in bytes: outer Ethernet, IP, UDP and VXLAN headers.
const OVERHEAD_V4: u32 = 50;
/// The same over IPv6.
const OVERHEAD_V6: u32 = 70;

/// Runs the daemon with these flags until it is told to stop or loses its subnet.
pub async fn run(flags: Flags) -> Result<Ended> {
    let mut terminate = signal(SignalKind::terminate())?;
    let prepared = tokio::select! {
        prepared = prepare(flags) => prepared?,
        _ = terminate.recv() => return Ok(Ended::Stopped),
        interrupted = tokio::signal::ctrl_c() => return Ok(interrupted.map(|()| Ended::Stopped)?),
    };
    Ok(prepared.run().await?)
}

/// All that comes before the first turn of the event loop.
async fn prepare(flags: Flags) -> Result<EventLoop<Kernel>> {
    privileged()?;
    let mut kernel = Kernel::open()?;
    let wish = Wish { iface: flags.iface.clone(), public_ip: flags.public_ip };
    let interfaces = underlay::interfaces(kernel.dumper())?;
    // Which families are needed is known only from the config; an interface that isn't there is said at once.
    if let Err(error) = iface::choose(&interfaces, &wish, false) {
        iface::choose(&interfaces, &wish, true).map_err(|_| error)?;
    }
    let store = flags.etcd.store()?;
    let mut reader = Reader { events: store.follow(), records: BTreeMap::new(), config: None, listed: false };
    let (config, text) = reader.config(&flags.etcd.etcd_prefix).await?;
    let ends = ends(&config, &interfaces, &wish)?;
    let (key, held) = get_subnet(&flags, &config, &ends, &store, &mut reader, &mut kernel).await?;
    let own_key = key.to_string();
    let Reader { events, mut records, .. } = reader;
    records.remove(&own_key);

    let mut kernels = vec![kernel];
    while kernels.len() < ends.len() {
        kernels.push(Kernel::open()?);
    }
    let mut halves = Vec::new();
    for (end, mut kernel) in ends.iter().zip(kernels) {
        let device = device(&config, end, &held)?;
        let made = kernel.make(&device).await.with_context(|| format!("make the device {}", device.name))?;
        info!(device = %device.name, mac = %device.mac, mtu = device.mtu, address = %device.address, ?made, "device");
        let subnet = own_subnet(&held.key, end)?;
        let setup = Setup { net: end.net.clone(), subnet, mode: flags.peer_mode.into(), idle: flags.peer_idle_timeout };
        halves.push(Half::new(Plane::new(setup), kernel, device, Instant::now()));
    }
    write_env(&flags.subnet_file, &config, &held.key, &halves)?;

    let own = halves
        .iter()
        .zip(&ends)
        .map(|(half, end)| Own { subnet: half.plane.setup().subnet, public_ip: end.chosen.public });
    let records_of_peers = Records::new(config.backend.vni, own.collect());
    let margin = Duration::from_secs(60 * flags.subnet_lease_renew_margin);
    let (keeper, lease) = Keeper::spawn(store, held, lease::TTL, margin);
    let mut turn = EventLoop::new(halves, records_of_peers, events, lease, keeper, own_key);
    turn.program_all_on_exit = flags.program_all_on_exit;
    turn.config = text;
    turn.take_in(records.into_values());
    Ok(turn)
}

/// Fails early where nothing could be done to the network at all.
fn privileged() -> Result<()> {
    // CAP_NET_ADMIN, include/uapi/linux/capability.h.
    const NET_ADMIN: u32 = 12;
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    if effective.is_some_and(|set| set & (1 << NET_ADMIN) == 0) {
        bail!(
            "no CAP_NET_ADMIN: run twilld as root or give it that capability; without it no device, route or neighbour can be made"
        );
    }
    Ok(())
}

/// The first complete read, kept up to date until the event loop takes over.
struct Reader {
    events: mpsc::Receiver<Event>,
    records: BTreeMap<String, RawRecord>,
    config: Option<Vec<u8>>,
    listed: bool,
}

impl Reader {
    /// Waits for the next event and takes it in.
    async fn next(&mut self) -> Result<()> {
        let event = self.events.recv().await.ok_or_else(|| anyhow!("the reader of etcd has stopped"))?;
        match event {
            Event::Listing => {
                self.records.clear();
                self.listed = false;
            }
            Event::Page(page) => self.records.extend(page.into_iter().map(|record| (record.key.clone(), record))),
            Event::Listed { revision } => {
                self.listed = true;
                debug!(revision, records = self.records.len(), "read all records");
            }
            Event::Changes(changes) => {
                for change in changes {
                    match change {
                        Change::Put(record) => drop(self.records.insert(record.key.clone(), record)),
                        Change::Deleted { key, .. } => drop(self.records.remove(&key)),
                    }
                }
            }
            Event::Config(config) => self.config = config,
            Event::Down { reason } => warn!(%reason, "etcd does not answer, trying until it does"),
            Event::Up => info!("etcd answers"),
        }
        Ok(())
    }

    /// The network config, as soon as there is a good one and all records are read.
    async fn config(&mut self, prefix: &str) -> Result<(NetworkConfig, Vec<u8>)> {
        let mut waiting = Waiting::default();
        loop {
            let why = match (&self.config, self.listed) {
                (Some(text), true) => match NetworkConfig::parse(text) {
                    Ok(config) => return Ok((config, text.clone())),
                    Err(error) => format!("the network config {prefix}/config is not usable: {error}"),
                },
                (None, true) => format!(
                    "no network config yet: waiting for the key {prefix}/config, for instance {{\"Network\":\"10.5.0.0/16\"}}"
                ),
                (_, false) => "waiting for etcd".to_owned(),
            };
            waiting.say(&why, self.listed);
            if let Ok(result) = tokio::time::timeout(REMIND, self.next()).await {
                result?;
            }
        }
    }
}

/// Says why something waits: at once where that is news, and again every half minute.
#[derive(Default)]
struct Waiting {
    said: Option<(String, Instant)>,
}

impl Waiting {
    fn say(&mut self, why: &str, loudly: bool) {
        let news = self.said.as_ref().is_none_or(|(said, at)| said != why || at.elapsed() >= REMIND);
        if !news {
            return;
        }
        let first = self.said.is_none();
        self.said = Some((why.to_owned(), Instant::now()));
        if loudly || !first {
            warn!("{why}");
        }
    }
}

/// One family's end of the tunnel: its network and the interface it goes through.
struct End {
    net: FamilyConfig,
    family: Family,
    chosen: Chosen,
}

fn ends(config: &NetworkConfig, interfaces: &[iface::Interface], wish: &Wish) -> Result<Vec<End>> {
    let end = |net: &FamilyConfig| {
        let family = Family::of(&net.network);
        let chosen = iface::choose(interfaces, wish, family == Family::V6)?;
        let Chosen { interface, local, public, why } = &chosen;
        info!(interface = %interface.name, %local, %public, mtu = interface.mtu, %why, "interface");
        Ok(End { net: net.clone(), family, chosen })
    };
    config.families().map(end).collect()
}

fn public(ends: &[End], family: Family) -> Option<IpAddr> {
    ends.iter().find(|end| end.family == family).map(|end| end.chosen.public)
}

/// Leases a subnet; waits where none is free.
async fn get_subnet(
    flags: &Flags,
    config: &NetworkConfig,
    ends: &[End],
    store: &EtcdStore,
    reader: &mut Reader,
    kernel: &mut Kernel,
) -> Result<(SubnetKey, Held)> {
    let public_ip = public(ends, Family::V4).and_then(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None });
    let public_ipv6 = public(ends, Family::V6).and_then(|ip| if let IpAddr::V6(ip) = ip { Some(ip) } else { None });
    let previous = handoff::previous(&flags.subnet_file);
    let wanted = Wanted { config, public_ip, public_ipv6, previous, node: None };
    let mut waiting = Waiting::default();
    loop {
        let record = our_record(&wanted, config, ends, &reader.records, kernel)?;
        match lease::acquire(store, &wanted, &reader.records, &record, lease::TTL).await {
            Ok(held) => {
                let (subnet, lease) =
                    (held.key, held.lease.map_or("none: a reservation".into(), |l| format!("{:x}", l.0)));
                info!(%subnet, revision = held.revision, %lease, "lease");
                return Ok((held.key, held));
            }
            Err(error @ AcquireError::NoFreeSubnet { .. }) => {
                waiting.say(&format!("{error}; waiting for one to be freed"), true);
                if let Ok(result) = tokio::time::timeout(REMIND, reader.next()).await {
                    result?;
                }
            }
            Err(error @ AcquireError::Doubled { .. }) => return Err(error.into()),
        }
    }
}

/// What our record shall say. The MAC is that of the device that is there, else that of our last record, else random.
fn our_record(
    wanted: &Wanted<'_>,
    config: &NetworkConfig,
    ends: &[End],
    records: &BTreeMap<String, RawRecord>,
    kernel: &mut Kernel,
) -> Result<Record> {
    let mut last = records.values().filter_map(|raw| Record::parse(&raw.value).ok());
    let last = last.find(|record| wanted.is_own(record));
    let mut record = Record::vxlan(wanted.public_ip.unwrap_or(Ipv4Addr::UNSPECIFIED));
    record.public_ipv6 = wanted.public_ipv6;
    for end in ends {
        let name = device_name(config.backend.vni, end.family);
        let (side, old) = match end.family {
            Family::V4 => (&mut record.ipv4, last.as_ref().and_then(|last| last.ipv4)),
            Family::V6 => (&mut record.ipv6, last.as_ref().and_then(|last| last.ipv6)),
        };
        let old = old.map(|vtep| vtep.mac).filter(|mac| mac.is_unicast());
        let mac = kernel.mac_of(&name)?.or(old).unwrap_or_else(|| MacAddr::local(rand::random()));
        *side = Some(VtepData { vni: Some(config.backend.vni), mac });
    }
    Ok(record)
}

fn device_name(vni: u32, family: Family) -> String {
    match family {
        Family::V4 => format!("flannel.{vni}"),
        Family::V6 => format!("flannel-v6.{vni}"),
    }
}

fn own_subnet(key: &SubnetKey, end: &End) -> Result<IpNetwork> {
    key.side(end.family).ok_or_else(|| anyhow!("our record {key} has no {:?} side", end.family))
}

fn device(config: &NetworkConfig, end: &End, held: &Held) -> Result<Device> {
    let (vtep, overhead, bits) = match end.family {
        Family::V4 => (held.record.ipv4, OVERHEAD_V4, 32),
        Family::V6 => (held.record.ipv6, OVERHEAD_V6, 128),
    };
    let vtep = vtep.ok_or_else(|| anyhow!("our record has no {:?} side", end.family))?;
    let outer = config.backend.mtu.unwrap_or(end.chosen.interface.mtu);
    let subnet = own_subnet(&held.key, end)?;
    Ok(Device {
        name: device_name(config.backend.vni, end.family),
        vni: config.backend.vni,
        port: config.backend.port,
        local: end.chosen.local,
        underlay: end.chosen.interface.index,
        mac: vtep.mac,
        mtu: outer
            .checked_sub(overhead)
            .ok_or_else(|| anyhow!("MTU {outer} leaves nothing after {overhead} bytes of VXLAN"))?,
        learning: config.backend.learning,
        gbp: config.backend.gbp,
        address: IpNetwork::new(subnet.network(), bits)?,
    })
}

fn write_env<D>(path: &PathBuf, config: &NetworkConfig, key: &SubnetKey, halves: &[Half<D>]) -> Result<()> {
    let network = |family: &Option<FamilyConfig>| family.as_ref().map(|family| family.network);
    let ipv4 = match (network(&config.ipv4), key.ipv4) {
        (Some(IpNetwork::V4(network)), Some(subnet)) => Some((network, subnet)),
        _ => None,
    };
    let ipv6 = match (network(&config.ipv6), key.ipv6) {
        (Some(IpNetwork::V6(network)), Some(subnet)) => Some((network, subnet)),
        _ => None,
    };
    let mtu = halves.iter().map(|half| half.device.mtu).min().unwrap_or_default();
    let written = SubnetEnv { ipv4, ipv6, mtu, ip_masq: false }.write(path)?;
    info!(file = %path.display(), written, "subnet.env");
    Ok(())
}
