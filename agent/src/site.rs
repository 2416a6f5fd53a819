//! This node's place in the network: what the config, the flags and the interfaces make of device, record and `subnet.env`.
//!
//! Used at the start and again whenever the underlay changes, so that both come to the same.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use ipnetwork::IpNetwork;

use crate::dataplane::{Device, Vxlan};
use crate::handoff::SubnetEnv;
use crate::overlay::config::{FamilyConfig, NetworkConfig};
use crate::overlay::iface::{self, Barred, ChooseError, Chosen, Interface, Wish};
use crate::overlay::record::{Family, Own, Record};
use crate::overlay::{MacAddr, SubnetKey};

/// The smallest MTU that a device may have with an IPv4 address (`IPV4_MIN_MTU`, include/net/ip.h).
const LEAST_V4: u32 = 68;
/// The same with an IPv6 address (`IPV6_MIN_MTU`, include/uapi/linux/ipv6.h).
const LEAST_V6: u32 = 1280;

/// What is fixed for the life of the daemon.
#[derive(Debug, Clone)]
pub struct Site {
    /// The network config.
    pub config: NetworkConfig,
    /// The config as etcd has it.
    pub config_text: Vec<u8>,
    /// Which interface the operator wants.
    pub wish: Wish,
    /// Where `subnet.env` is.
    pub subnet_file: PathBuf,
    /// Whether we masquerade, as `subnet.env` tells the CNI plugin.
    pub ip_masq: bool,
    /// Whether the whole network is routed to our device, and not only what peers have of it.
    pub on_demand: bool,
}

/// One family's end of the tunnel: its network and the interface it goes through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelEnd {
    /// The network.
    pub net: FamilyConfig,
    /// Its family.
    pub family: Family,
    /// The interface and its addresses.
    pub chosen: Chosen,
}

/// Why there is no device or no record to be had from what is known.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// No interface fits.
    #[error(transparent)]
    Choose(#[from] ChooseError),
    /// One would, were its address not one that the network leases to nodes.
    #[error(
        "{source}; for {local} to carry the tunnel, change Network, SubnetMin or SubnetMax in the network config so that they leave it out; or name another interface with --iface"
    )]
    Leased {
        /// The address.
        local: IpAddr,
        /// What was tried, and why it led to none.
        source: ChooseError,
    },
    /// Peers would send what is for us into their own tunnels.
    #[error(
        "the public address {public} {barred}: give one that the nodes' hosts reach each other by, or change Network, SubnetMin or SubnetMax in the network config"
    )]
    Public {
        /// The address that peers would be told.
        public: IpAddr,
        /// What is wrong with it.
        barred: Barred,
    },
    /// Peers would route packets for our pods to an address that no interface here has.
    #[error(
        "the public address {public} is not the address of this host, {local}: with the backend {backend} peers route packets straight to this host, so leave out --public-ip and --public-ipv6"
    )]
    NotOwn {
        /// The address that peers would be told.
        public: IpAddr,
        /// Ours.
        local: IpAddr,
        /// The backend.
        backend: &'static str,
    },
    /// Our record lacks a family that the config has.
    #[error("our record {key} has no {family:?} side")]
    NoSide {
        /// The record's key.
        key: SubnetKey,
        /// What it lacks.
        family: Family,
    },
    /// The MTU leaves too little room.
    #[error("MTU {mtu} of {interface}: expected at least {}: {} needs {least} bytes{}", least + overhead, name(*family), adds(backend, *overhead))]
    Mtu {
        /// The interface.
        interface: String,
        /// Its MTU. One of the config was found large enough when that was read.
        mtu: u32,
        /// The backend, and what it adds to a packet.
        backend: &'static str,
        /// In bytes.
        overhead: u32,
        /// The least that the kernel gives the family an address for.
        least: u32,
        /// The family of the subnets.
        family: Family,
    },
    /// On demand, what this host sends to its own neighbours would go into the tunnel.
    #[error(
        "{local} of {interface} lies in the network {network}, which --peer-mode=on-demand routes into the tunnel as a whole: start with --peer-mode=all"
    )]
    Inside {
        /// Our address.
        local: IpAddr,
        /// The interface.
        interface: String,
        /// The network.
        network: IpNetwork,
    },
}

impl Unfit {
    /// Whether it may pass with nothing done about it: an address may come.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Choose(error) if error.may_pass())
    }

    /// The address of this node that the network config covers, where that is what is wrong.
    pub fn covered(&self) -> Option<IpAddr> {
        match self {
            Self::Leased { local, .. } | Self::Inside { local, .. } => Some(*local),
            Self::Public { public, .. } => Some(*public),
            Self::Choose(_) | Self::NotOwn { .. } | Self::NoSide { .. } | Self::Mtu { .. } => None,
        }
    }

    /// The same without what else there is on this host.
    pub fn brief(&self) -> String {
        match self {
            Self::Choose(error) => error.brief(),
            other => other.to_string(),
        }
    }
}

impl Site {
    /// The end of each family that the config has, over the interfaces that there are.
    pub fn ends(&self, interfaces: &[Interface]) -> Result<Vec<TunnelEnd>, Unfit> {
        self.each_end(interfaces).into_iter().collect()
    }

    /// The same, with the reason for each family that has none.
    pub fn each_end(&self, interfaces: &[Interface]) -> Vec<Result<TunnelEnd, Unfit>> {
        let barred: Vec<Interface> = interfaces.iter().map(|interface| self.barred(interface)).collect();
        self.config.families().map(|net| self.end(net, interfaces, &barred)).collect()
    }

    /// The addresses that the ends would have if duplicate address detection were through, and that it is not through
    /// with. They are worth a short wait.
    pub fn awaited(&self, interfaces: &[Interface]) -> Vec<IpAddr> {
        let settled = self.ends(&iface::settled(interfaces, |_| true)).unwrap_or_default();
        let locals = settled.iter().map(|end| end.chosen.local);
        locals.filter(|local| iface::is_tentative(interfaces, *local)).collect()
    }

    fn end(&self, net: &FamilyConfig, interfaces: &[Interface], barred: &[Interface]) -> Result<TunnelEnd, Unfit> {
        let family = Family::of(&net.network);
        let choose = |interfaces: &[Interface]| iface::choose(interfaces, &self.wish, family == Family::V6);
        let mut chosen = choose(barred).map_err(|source| match choose(interfaces) {
            Ok(Chosen { local, interface, .. }) if self.leased(local).is_some() && !self.is_own(&interface) => {
                Unfit::Leased { local, source }
            }
            _ => source.into(),
        })?;
        if self.on_demand && net.network.contains(chosen.local) {
            let routed = |ip| net.network.contains(ip).then_some(Barred::Routed { network: net.network });
            let beside: Vec<Interface> = barred.iter().map(|interface| bar(interface, routed)).collect();
            chosen = choose(&beside).map_err(|_| {
                let (local, interface) = (chosen.local, chosen.interface.name);
                Unfit::Inside { local, interface, network: net.network }
            })?;
        }
        let Chosen { public, local, .. } = chosen;
        if self.config.backend.needs_own_address() && public != local {
            return Err(Unfit::NotOwn { public, local, backend: self.config.backend.name() });
        }
        match self.leased(chosen.public) {
            Some(barred) => Err(Unfit::Public { public: chosen.public, barred }),
            None => Ok(TunnelEnd { net: *net, family, chosen }),
        }
    }

    /// An interface on which the overlay's own addresses are barred: neither our devices nor the pods' bridge carry the
    /// tunnel. What no node can lease of the network may be the hosts' own, as in flannel's manual.
    fn barred(&self, interface: &Interface) -> Interface {
        if !self.is_own(interface) {
            return bar(interface, |ip| self.leased(ip));
        }
        Interface { default_v4: None, default_v6: None, ..bar(interface, |_| Some(Barred::OwnDevice)) }
    }

    /// Whether it is a device of this network's own.
    fn is_own(&self, interface: &Interface) -> bool {
        [Family::V4, Family::V6].iter().any(|family| self.device_name(*family).as_ref() == Some(&interface.name))
    }

    /// Whether a node may lease the subnet of an address.
    fn leased(&self, ip: IpAddr) -> Option<Barred> {
        self.config.families().find(|family| family.leases(ip)).map(|family| Barred::Leased {
            network: family.network,
            first: family.subnet_min,
            last: family.last_leased(),
        })
    }

    /// Whether what this host sends to an address goes into the tunnel once the whole network is routed there: it lies in the
    /// network and on no link of ours. A more specific route of somebody's may still lead elsewhere.
    pub fn swallows(&self, address: IpAddr, interfaces: &[Interface]) -> bool {
        let mut addresses = interfaces.iter().flat_map(|interface| &interface.addresses);
        let on_link = addresses.any(|own| own.link().contains(address));
        self.on_demand && !on_link && self.config.families().any(|family| family.network.contains(address))
    }

    /// What our record says over these ends. `mac` gives that of each family's device, where it has one.
    pub fn record(&self, ends: &[TunnelEnd], mut mac: impl FnMut(Family) -> Option<MacAddr>) -> Record {
        let backend_type = self.config.backend.record_type().to_owned();
        let mut record = Record { backend_type, ..Record::of(Ipv4Addr::UNSPECIFIED) };
        for end in ends {
            match end.chosen.public {
                IpAddr::V4(ip) => record.public_ip = ip,
                IpAddr::V6(ip) => record.public_ipv6 = Some(ip),
            }
            let data = self.config.backend.data(mac(end.family));
            match end.family {
                Family::V4 => record.ipv4 = data,
                Family::V6 => record.ipv6 = data,
            }
        }
        record
    }

    /// The name of a family's device, where the backend has devices.
    pub fn device_name(&self, family: Family) -> Option<String> {
        self.config.backend.device(family).map(|device| device.name)
    }

    /// What this daemon keeps alone in its network namespace: the device of IPv4, which has the VNI of the other one, or all that
    /// its backend does.
    pub fn mark(&self) -> String {
        self.device_name(Family::V4).unwrap_or_else(|| self.config.backend.mark())
    }

    /// The device of an end, for the subnet of this key.
    pub fn device(&self, end: &TunnelEnd, key: &SubnetKey, mac: Option<MacAddr>) -> Result<Device, Unfit> {
        let backend = &self.config.backend;
        let subnet = own_subnet(key, end)?;
        let overhead = backend.overhead(end.family);
        let least = match end.family {
            Family::V4 => LEAST_V4,
            Family::V6 => LEAST_V6,
        };
        let interface = &end.chosen.interface;
        // More than the interface takes is capped by the kernel, and subnet.env would say what no packet may have.
        let outer = backend.mtu().map_or(interface.mtu, |mtu| mtu.min(interface.mtu));
        let too_small = || Unfit::Mtu {
            interface: interface.name.clone(),
            mtu: outer,
            backend: backend.name(),
            overhead,
            least,
            family: end.family,
        };
        let tunnel = backend.device(end.family);
        Ok(Device {
            name: tunnel.as_ref().map_or_else(|| stand_in(backend.name(), end.family), |tunnel| tunnel.name.clone()),
            vxlan: tunnel.map(|tunnel| Vxlan {
                vni: tunnel.vni,
                port: tunnel.port,
                mac: mac.unwrap_or(MacAddr([0; 6])),
                learning: tunnel.learning,
                gbp: tunnel.gbp,
                // With all peers programmed a lost row is put back at its notification.
                l2miss: self.on_demand,
            }),
            local: end.chosen.local,
            underlay: interface.index,
            underlay_name: interface.name.clone(),
            mtu: outer.checked_sub(overhead).filter(|mtu| *mtu >= least).ok_or_else(too_small)?,
            address: IpNetwork::from(subnet.network()),
        })
    }

    /// What `subnet.env` says with devices of this MTU.
    pub fn subnet_env(&self, key: &SubnetKey, mtu: u32) -> SubnetEnv {
        let network = |family: &Option<FamilyConfig>| family.as_ref().map(|family| family.network);
        let ipv4 = match (network(&self.config.ipv4), key.ipv4) {
            (Some(IpNetwork::V4(network)), Some(subnet)) => Some((network, subnet)),
            _ => None,
        };
        let ipv6 = match (network(&self.config.ipv6), key.ipv6) {
            (Some(IpNetwork::V6(network)), Some(subnet)) => Some((network, subnet)),
            _ => None,
        };
        SubnetEnv { ipv4, ipv6, mtu, ip_masq: self.ip_masq }
    }
}

impl TunnelEnd {
    /// Ourselves at this end while we have no subnet.
    pub fn without_subnet(&self) -> Own {
        Own { subnet: no_subnet(self.family), public_ip: self.chosen.public, mac: None }
    }
}

/// What stands for the name of a device where the backend has none.
fn stand_in(backend: &str, family: Family) -> String {
    match family {
        Family::V4 => backend.to_owned(),
        Family::V6 => format!("{backend}-v6"),
    }
}

fn adds(backend: &str, overhead: u32) -> String {
    if overhead == 0 { String::new() } else { format!(", and {} adds {overhead}", backend.to_uppercase()) }
}

fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// Stands for the subnet that we don't have yet: no peer's subnet overlaps it.
pub fn no_subnet(family: Family) -> IpNetwork {
    match family {
        Family::V4 => IpAddr::from([0; 4]).into(),
        Family::V6 => IpAddr::from([0; 16]).into(),
    }
}

/// Our own subnet of an end's family.
pub fn own_subnet(key: &SubnetKey, end: &TunnelEnd) -> Result<IpNetwork, Unfit> {
    key.side(end.family).ok_or(Unfit::NoSide { key: *key, family: end.family })
}

/// Ourselves at an end, with what our record says.
pub fn own(key: &SubnetKey, record: &Record, end: &TunnelEnd) -> Result<Own, Unfit> {
    Ok(Own { subnet: own_subnet(key, end)?, public_ip: end.chosen.public, mac: record.mac(end.family) })
}

/// An interface on which some addresses are barred, where they are not yet.
fn bar(interface: &Interface, why: impl Fn(IpAddr) -> Option<Barred>) -> Interface {
    let mut interface = interface.clone();
    for address in &mut interface.addresses {
        address.barred = address.barred.take().or_else(|| why(address.ip()));
    }
    interface
}

#[cfg(test)]
mod tests;
