//! The last phase: devices, rules and the keeper of the record, and with them the event loop.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::watch;
use tracing::{info, warn};

use super::host::Host;
use super::subnet::Leased;
use crate::dataplane::kernel::Kernel;
use crate::dataplane::{Dataplane, Device};
use crate::eventloop::{EventLoop, FamilyPlane, Feeds, OwnRecord, Parts};
use crate::lease::{self, Held, Keeper};
use crate::masquerade::{self, RulesState, Side, WantedRules};
use crate::overlay::plane::Plane;
use crate::passing::Passing;
use crate::site::{self, Site, TunnelEnd};
use crate::store::Store;

impl Leased {
    /// Makes the devices, starts what keeps the rules and the record, and joins all of it.
    ///
    /// # Errors
    /// When a device cannot be made, or a thread cannot be started.
    pub(super) async fn into_loop(self, host: Host) -> Result<(EventLoop<Kernel>, Feeds)> {
        let Self { site, ends, held, planes, records } = self;
        let Host { flags, publisher, passing, kernel, store, reader, lock, .. } = host;
        if let Some(lock) = lock {
            lock.keep_until_exit();
        }
        let families = families(&site, &ends, &held, planes, kernel, &passing).await?;
        let rules = WantedRules {
            mark: site.config.backend.mark(),
            sides: ends.iter().map(|end| side(&site, &held, end)).collect::<Result<_>>()?,
            masquerade: flags.ip_masq,
            fully_random: !flags.ip_masq_fully_random_disable,
            forward: flags.iptables_forward_rules,
        };
        let rules = keep_rules(&rules, Duration::from_secs(flags.iptables_resync), &passing).await?;

        let margin = Duration::from_secs(60 * flags.subnet_lease_renew_margin);
        let (key, record, lease_id) = (held.key, held.record.clone(), held.lease);
        let (keeper, lease) = Keeper::spawn(store.clone(), site.config.clone(), held, lease::TTL, margin);
        let own = OwnRecord::new(key, record, keeper, lease_id);
        let program_all_on_exit = flags.program_all_on_exit;
        let read_again = Box::new(move || store.follow());
        let parts = Parts { site, families, records, own, program_all_on_exit, read_again, rules, publisher };
        Ok((EventLoop::new(parts), Feeds { store: reader.into_events(), lease }))
    }
}

fn side(site: &Site, held: &Held, end: &TunnelEnd) -> Result<Side> {
    let (network, device) = (end.net.network, site.device_name(end.family));
    Ok(Side { network, subnet: site::own_subnet(&held.key, end)?, device })
}

/// Starts what keeps the nftables rules, also where none are wanted: those of an earlier run go then. Returns how
/// they are.
async fn keep_rules(wanted: &WantedRules, resync: Duration, passing: &Passing) -> Result<watch::Receiver<RulesState>> {
    const STEP: &str = "start the thread that keeps the nftables rules";
    passing.wait(STEP, async || masquerade::keep(wanted.clone(), resync)).await.context(STEP)
}

/// Makes each end's device, and hangs the plane on it. A failure takes back the devices that were created on the way.
async fn families(
    site: &Site,
    ends: &[TunnelEnd],
    held: &Held,
    planes: Vec<Plane>,
    kernel: Kernel,
    passing: &Passing,
) -> Result<Vec<FamilyPlane<Kernel>>> {
    let mut first = Some(kernel);
    let mut families: Vec<FamilyPlane<Kernel>> = Vec::new();
    for (end, plane) in ends.iter().zip(planes) {
        let kernel = match first.take() {
            Some(kernel) => kernel,
            None => passing.wait("open the netlink sockets", async || Kernel::open()).await?,
        };
        match family(site, end, held, plane, kernel, passing).await {
            Ok(family) => families.push(family),
            Err(error) => {
                for family in &mut families {
                    take_back(&mut family.dataplane, &family.device).await;
                }
                return Err(error);
            }
        }
    }
    Ok(families)
}

async fn family(
    site: &Site,
    end: &TunnelEnd,
    held: &Held,
    plane: Plane,
    mut kernel: Kernel,
    passing: &Passing,
) -> Result<FamilyPlane<Kernel>> {
    let device = site.device(end, &held.key, held.record.mac(end.family))?;
    let what = match &device.vxlan {
        Some(_) => format!("make the device {}", device.name),
        None => format!("listen to the kernel for {}", device.name),
    };
    let made = match passing.wait(&what, async || kernel.make(&device).await).await {
        Ok(made) => made,
        Err(error) => {
            take_back(&mut kernel, &device).await;
            return Err(error).context(what);
        }
    };
    let mtu = device.mtu;
    match device.mac() {
        Some(mac) => {
            info!(device = %device.name, %mac, mtu, address = %device.address, how = %made, "the device is up");
        }
        None => info!(backend = %device.name, mtu, "this backend needs no device"),
    }
    Ok(FamilyPlane::new(plane, kernel, device, Instant::now()))
}

/// Deletes a device that this start has created.
async fn take_back(kernel: &mut Kernel, device: &Device) {
    if let Err(error) = kernel.undo(device).await {
        warn!(device = %device.name, %error, "cannot delete the device that was made for this start");
    }
}
