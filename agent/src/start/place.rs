//! The second phase: the network config, and this host's place in that network.

use anyhow::{Context, Result};
use tracing::{info, warn};

use super::fit;
use super::host::Host;
use crate::lock::Lock;
use crate::overlay::backend;
use crate::overlay::iface::Interface;
use crate::overlay::plane::{PeerMode, Plane, Setup};
use crate::overlay::records::Records;
use crate::reader::Intake;
use crate::site::{self, Site, TunnelEnd};

/// A usable network config, with the ends of the tunnel on this host.
pub(super) struct Place {
    pub(super) site: Site,
    pub(super) ends: Vec<TunnelEnd>,
}

impl Place {
    /// Waits for a config that this host can be part of. Nothing is written to etcd or to the kernel.
    ///
    /// `None`: begin again, the config may be another one by now.
    ///
    /// # Errors
    /// What no other config and no other address would mend, and another twilld that keeps these devices.
    pub(super) async fn find(host: &mut Host) -> Result<Option<Self>> {
        let prefix = host.flags.etcd.etcd_prefix.clone();
        let endpoints = host.flags.etcd.etcd_endpoints.join(", ");
        host.publisher.waits_for(&format!("a usable network config: the key {prefix}/config of etcd at {endpoints}"));
        let (config, config_text) = host.reader.config(&prefix).await?;
        let site = Site {
            config_text,
            wish: host.wish.clone(),
            subnet_file: host.flags.subnet_file.clone(),
            ip_masq: host.flags.ip_masq,
            on_demand: config.backend.ways().tunnel && PeerMode::from(host.flags.peer_mode) == PeerMode::OnDemand,
            config,
        };
        // One lock for both families' devices, which have one VNI; without devices, one for the backend.
        let (device, timeout) = (site.mark(), host.flags.takeover_timeout);
        let publisher = host.publisher.clone();
        Lock::hold(&mut host.lock, &device, timeout, |what: &str| publisher.waits_for(what)).await?;
        // The waits may have been long.
        let Some((interfaces, ends)) = fit::ends(&site, host).await? else { return Ok(None) };
        let place = Self { site, ends };
        place.unhindered(host).await?;
        place.warn_of_swallowed(host, &interfaces);
        let what = if place.site.config.backend.ways().tunnel { "the tunnel goes" } else { "peers are reached" };
        for TunnelEnd { chosen, .. } in &place.ends {
            let interface = &chosen.interface;
            info!(interface = %interface.name, local = %chosen.local, public = %chosen.public, mtu = interface.mtu, why = %chosen.why, "{what} over this interface");
        }
        place.name_unused_device(host).await?;
        Ok(Some(place))
    }

    /// Fails where something stands in the way of a device of ours, before a subnet is leased for it.
    async fn unhindered(&self, host: &mut Host) -> Result<()> {
        for end in &self.ends {
            let Some(device) = self.site.config.backend.device(end.family) else { continue };
            let obstacle = async || host.kernel.obstacle(&device, end.chosen.local);
            if let Some(error) = host.passing.wait("look for what has the device's name or port", obstacle).await? {
                return Err(error).context(format!("make the device {}", device.name));
            }
        }
        Ok(())
    }

    /// Names the devices that a backend with a tunnel may have left. They stay: another daemon may use them.
    async fn name_unused_device(&self, host: &mut Host) -> Result<()> {
        if self.site.config.backend.ways().tunnel {
            return Ok(());
        }
        let devices = async || host.kernel.vxlan_devices();
        let mut devices = host.passing.wait("look for devices of another backend", devices).await?;
        devices.retain(|name| backend::is_device_name(name));
        if !devices.is_empty() {
            let backend = self.site.config.backend.name();
            let devices = devices.join(", ");
            warn!(%devices, "the backend {backend} uses no such device, and packets to addresses that nobody has may still go there: delete what an earlier VXLAN network of this host has left, with ip link del <device>");
        }
        Ok(())
    }

    /// Says which etcd the base route of the on-demand mode would cut off.
    fn warn_of_swallowed(&self, host: &Host, interfaces: &[Interface]) {
        for (endpoint, _) in host.literal_endpoints().filter(|(_, ip)| self.site.swallows(*ip, interfaces)) {
            warn!(%endpoint, "etcd lies in the network, which --peer-mode=on-demand routes into the tunnel: give it a route of its own or start with --peer-mode=all");
        }
    }

    /// Where the records of this network go.
    pub(super) fn intake(&self, host: &Host) -> Intake {
        let mode = if self.site.on_demand { PeerMode::OnDemand } else { PeerMode::All };
        let (idle, ways) = (host.flags.peer_idle_timeout, self.site.config.backend.ways());
        let plane = |end: &TunnelEnd| {
            let (net, subnet) = (end.net, site::no_subnet(end.family));
            let mut plane = Plane::new(Setup { net, subnet, ways, mode, idle });
            if host.flags.ip_blackhole_route {
                plane.drop_own();
            }
            plane
        };
        let own = self.ends.iter().map(TunnelEnd::without_subnet).collect();
        Intake::new(self.ends.iter().map(plane).collect(), Records::new(self.site.config.backend, own))
    }
}
