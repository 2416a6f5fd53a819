//! This node's place in the network: what the config, the flags and the interfaces make of device, record and `subnet.env`.
//!
//! Used at the start and again whenever the underlay changes, so that both come to the same.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use ipnetwork::IpNetwork;

use crate::dataplane::Device;
use crate::handoff::SubnetEnv;
use crate::overlay::config::{FamilyConfig, NetworkConfig};
use crate::overlay::iface::{self, ChooseError, Chosen, Interface, Wish};
use crate::overlay::record::{Family, Own, Record, VtepData};
use crate::overlay::{MacAddr, SubnetKey};

/// What VXLAN adds to a packet over IPv4, in bytes: outer Ethernet, IP, UDP and VXLAN headers.
const OVERHEAD_V4: u32 = 50;
/// The same over IPv6.
const OVERHEAD_V6: u32 = 70;

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
}

/// One family's end of the tunnel: its network and the interface it goes through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
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
    /// Our record lacks a family that the config has.
    #[error("our record {key} has no {family:?} side")]
    NoSide {
        /// The record's key.
        key: SubnetKey,
        /// What it lacks.
        family: Family,
    },
    /// The MTU leaves no room.
    #[error("MTU {mtu} of {interface} leaves nothing after {overhead} bytes of VXLAN")]
    Mtu {
        /// The interface.
        interface: String,
        /// Its MTU, or the config's.
        mtu: u32,
        /// What VXLAN adds.
        overhead: u32,
    },
}

impl Site {
    /// The end of each family that the config has, over the interfaces that there are.
    pub fn ends(&self, interfaces: &[Interface]) -> Result<Vec<End>, ChooseError> {
        let interfaces: Vec<Interface> = interfaces.iter().filter_map(|interface| self.outside(interface)).collect();
        let end = |net: &FamilyConfig| {
            let family = Family::of(&net.network);
            let chosen = iface::choose(&interfaces, &self.wish, family == Family::V6)?;
            Ok(End { net: *net, family, chosen })
        };
        self.config.families().map(end).collect()
    }

    /// An interface without its addresses of the overlay's own: neither our devices nor the pods' bridge carry the tunnel.
    fn outside(&self, interface: &Interface) -> Option<Interface> {
        let ours = [Family::V4, Family::V6].iter().any(|family| interface.name == self.device_name(*family));
        let inside = |net: &IpNetwork| self.config.families().any(|family| family.network.contains(net.ip()));
        let addresses = interface.addresses.iter().filter(|net| !inside(net)).copied().collect();
        (!ours).then(|| Interface { addresses, ..interface.clone() })
    }

    /// What our record says over these ends. `mac` gives each family's.
    pub fn record(&self, ends: &[End], mut mac: impl FnMut(Family) -> MacAddr) -> Record {
        let mut record = Record::vxlan(Ipv4Addr::UNSPECIFIED);
        for end in ends {
            match end.chosen.public {
                IpAddr::V4(ip) => record.public_ip = ip,
                IpAddr::V6(ip) => record.public_ipv6 = Some(ip),
            }
            let vtep = Some(VtepData { vni: Some(self.config.backend.vni), mac: mac(end.family) });
            match end.family {
                Family::V4 => record.ipv4 = vtep,
                Family::V6 => record.ipv6 = vtep,
            }
        }
        record
    }

    /// The name of a family's device, as flannel gives it.
    pub fn device_name(&self, family: Family) -> String {
        let vni = self.config.backend.vni;
        match family {
            Family::V4 => format!("flannel.{vni}"),
            Family::V6 => format!("flannel-v6.{vni}"),
        }
    }

    /// The device of an end, for the subnet of this key.
    pub fn device(&self, end: &End, key: &SubnetKey, mac: MacAddr) -> Result<Device, Unfit> {
        let backend = &self.config.backend;
        let subnet = own_subnet(key, end)?;
        let overhead = match end.family {
            Family::V4 => OVERHEAD_V4,
            Family::V6 => OVERHEAD_V6,
        };
        let interface = &end.chosen.interface;
        // More than the interface takes is capped by the kernel, and subnet.env would say what no packet may have.
        let outer = backend.mtu.map_or(interface.mtu, |mtu| mtu.min(interface.mtu));
        let too_small = || Unfit::Mtu { interface: interface.name.clone(), mtu: outer, overhead };
        Ok(Device {
            name: self.device_name(end.family),
            vni: backend.vni,
            port: backend.port,
            local: end.chosen.local,
            underlay: interface.index,
            underlay_name: interface.name.clone(),
            mac,
            mtu: outer.checked_sub(overhead).ok_or_else(too_small)?,
            learning: backend.learning,
            gbp: backend.gbp,
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

impl End {
    /// Ourselves at this end while we have no subnet.
    pub fn without_subnet(&self) -> Own {
        Own { subnet: no_subnet(self.family), public_ip: self.chosen.public }
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
pub fn own_subnet(key: &SubnetKey, end: &End) -> Result<IpNetwork, Unfit> {
    key.side(end.family).ok_or(Unfit::NoSide { key: *key, family: end.family })
}

/// Ourselves at an end.
pub fn own(key: &SubnetKey, end: &End) -> Result<Own, Unfit> {
    Ok(Own { subnet: own_subnet(key, end)?, public_ip: end.chosen.public })
}
