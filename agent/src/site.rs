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
    /// The MTU leaves too little room.
    #[error("MTU {mtu} of {interface}: expected at least {}: {} needs {least} bytes, and VXLAN adds {overhead}", least + overhead, name(*family))]
    Mtu {
        /// The interface.
        interface: String,
        /// Its MTU, or the config's.
        mtu: u32,
        /// What VXLAN adds.
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

impl Site {
    /// The end of each family that the config has, over the interfaces that there are.
    pub fn ends(&self, interfaces: &[Interface]) -> Result<Vec<End>, Unfit> {
        let interfaces: Vec<Interface> = interfaces.iter().filter_map(|interface| self.outside(interface)).collect();
        let end = |net: &FamilyConfig| {
            let family = Family::of(&net.network);
            let mut chosen = iface::choose(&interfaces, &self.wish, family == Family::V6)?;
            if self.on_demand && net.network.contains(chosen.local) {
                let beside = |interface: &Interface| without(interface, |ip| net.network.contains(ip));
                let beside: Vec<Interface> = interfaces.iter().map(beside).collect();
                chosen = iface::choose(&beside, &self.wish, family == Family::V6).map_err(|_| {
                    let (local, interface) = (chosen.local, chosen.interface.name);
                    Unfit::Inside { local, interface, network: net.network }
                })?;
            }
            Ok(End { net: *net, family, chosen })
        };
        self.config.families().map(end).collect()
    }

    /// An interface without its addresses of the overlay's own: neither our devices nor the pods' bridge carry the tunnel.
    /// What no node can lease of the network may be the hosts' own, as in flannel's manual.
    fn outside(&self, interface: &Interface) -> Option<Interface> {
        let ours = [Family::V4, Family::V6].iter().any(|family| interface.name == self.device_name(*family));
        let leased = |family: &FamilyConfig, ip| family.subnet_of(ip).is_some_and(|subnet| family.fits(&subnet));
        let inside = |ip| self.config.families().any(|family| leased(family, ip));
        (!ours).then(|| without(interface, inside))
    }

    /// Whether what this host sends to an address goes into the tunnel once the whole network is routed there: it lies in the
    /// network and on no link of ours. A more specific route of somebody's may still lead elsewhere.
    pub fn swallows(&self, address: IpAddr, interfaces: &[Interface]) -> bool {
        let on_link = interfaces.iter().flat_map(|interface| &interface.addresses).any(|net| net.contains(address));
        self.on_demand && !on_link && self.config.families().any(|family| family.network.contains(address))
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
        let (overhead, least) = match end.family {
            Family::V4 => (OVERHEAD_V4, LEAST_V4),
            Family::V6 => (OVERHEAD_V6, LEAST_V6),
        };
        let interface = &end.chosen.interface;
        // More than the interface takes is capped by the kernel, and subnet.env would say what no packet may have.
        let outer = backend.mtu.map_or(interface.mtu, |mtu| mtu.min(interface.mtu));
        let too_small =
            || Unfit::Mtu { interface: interface.name.clone(), mtu: outer, overhead, least, family: end.family };
        Ok(Device {
            name: self.device_name(end.family),
            vni: backend.vni,
            port: backend.port,
            local: end.chosen.local,
            underlay: interface.index,
            underlay_name: interface.name.clone(),
            mac,
            mtu: outer.checked_sub(overhead).filter(|mtu| *mtu >= least).ok_or_else(too_small)?,
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
pub fn own_subnet(key: &SubnetKey, end: &End) -> Result<IpNetwork, Unfit> {
    key.side(end.family).ok_or(Unfit::NoSide { key: *key, family: end.family })
}

/// Ourselves at an end.
pub fn own(key: &SubnetKey, end: &End) -> Result<Own, Unfit> {
    Ok(Own { subnet: own_subnet(key, end)?, public_ip: end.chosen.public })
}

/// An interface without some of its addresses.
fn without(interface: &Interface, unwanted: impl Fn(IpAddr) -> bool) -> Interface {
    let addresses = interface.addresses.iter().filter(|net| !unwanted(net.ip())).copied().collect();
    Interface { addresses, ..interface.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(config: &str, on_demand: bool) -> Site {
        Site {
            config: NetworkConfig::parse(config.as_bytes()).unwrap(),
            config_text: config.as_bytes().to_vec(),
            wish: Wish::default(),
            subnet_file: PathBuf::new(),
            ip_masq: false,
            on_demand,
        }
    }

    fn host(mtu: u32, addresses: &[&str]) -> Interface {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let (default_v4, default_v6) = (Some(0), Some(0));
        Interface { index: 2, name: "eth0".to_owned(), mtu, addresses, default_v4, default_v6, ..Interface::default() }
    }

    /// flannel's manual has such a network.
    const WIDE: &str = r#"{"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0"}"#;

    #[test]
    fn hosts_may_live_in_the_part_of_the_network_that_nobody_leases() {
        let eth0 = host(1500, &["10.128.0.5/20"]);
        let ends = site(WIDE, false).ends(std::slice::from_ref(&eth0)).unwrap();
        assert_eq!(ends[0].chosen.local, "10.128.0.5".parse::<IpAddr>().unwrap());
        let error = site(WIDE, true).ends(&[eth0]).unwrap_err().to_string();
        for words in ["10.128.0.5", "eth0", "10.0.0.0/8", "--peer-mode=all"] {
            assert!(error.contains(words), "no {words}: {error}");
        }
    }

    #[test]
    fn an_etcd_inside_the_network_is_swallowed_on_demand_only_and_not_on_our_own_link() {
        let hosts = [host(1500, &["192.168.1.5/24"]), host(1500, &["10.128.0.5/20"])];
        let swallows = |on_demand, address: &str| site(WIDE, on_demand).swallows(address.parse().unwrap(), &hosts);
        assert!(swallows(true, "10.128.16.9"));
        assert!(!swallows(false, "10.128.16.9") && !swallows(true, "10.128.0.9") && !swallows(true, "192.0.2.1"));
    }

    #[test]
    fn what_nodes_lease_is_no_underlay() {
        let both = host(1500, &["10.10.16.1/20", "10.99.15.255/20", "192.168.1.5/24"]);
        let ends = site(WIDE, true).ends(&[both]).unwrap();
        assert_eq!(ends[0].chosen.local, "192.168.1.5".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn an_mtu_with_which_the_kernel_gives_no_address_is_refused() {
        let dual = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}"#;
        let key: SubnetKey = "10.5.1.0-24&fc00:0:0:1::-64".parse().unwrap();
        let devices = |mtu| {
            let site = site(dual, true);
            let ends = site.ends(&[host(mtu, &["192.168.1.5/24", "fd99::5/64"])]).unwrap();
            ends.iter()
                .map(|end| site.device(end, &key, MacAddr([2; 6])).map_err(|e| e.to_string()))
                .collect::<Vec<_>>()
        };
        assert!(devices(1350).iter().all(Result::is_ok));
        let small = devices(1349);
        assert!(small[0].is_ok());
        assert_eq!(
            small[1].as_ref().unwrap_err(),
            "MTU 1349 of eth0: expected at least 1350: IPv6 needs 1280 bytes, and VXLAN adds 70"
        );
        assert!(devices(118)[0].is_ok() && devices(117)[0].is_err());
    }
}
