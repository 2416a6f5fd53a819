//! Which interface carries the overlay's packets, and which of its addresses peers are told.
//!
//! Flannel's order: each `--iface` (an address or a name) until one matches, else the interface of the default route
//! with the lowest metric.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// An interface as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Its addresses, in the kernel's order.
    pub addresses: Vec<IpNetwork>,
    /// The metric of its default route for IPv4, where it has one.
    pub default_v4: Option<u32>,
    /// The same for IPv6.
    pub default_v6: Option<u32>,
}

/// What the operator asked for.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// `--iface`, in order: names or addresses.
    pub iface: Vec<String>,
    /// `--public-ip`.
    pub public_ip: Option<IpAddr>,
}

/// The interface that carries the overlay, for one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// The interface.
    pub interface: Interface,
    /// Its address: where our packets come from.
    pub local: IpAddr,
    /// The address that peers are told.
    pub public: IpAddr,
    /// Why this one, for the log.
    pub why: String,
}

/// Why none was chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChooseError {
    /// No `--iface` named one that is there.
    #[error("--iface {wanted}: no such interface or address; this host has {present}")]
    NoMatch {
        /// What was asked for.
        wanted: String,
        /// What there is.
        present: String,
    },
    /// Nothing was named and there is no default route.
    #[error(
        "no default route and no --iface: name the interface that reaches the other nodes; this host has {present}"
    )]
    NoDefault {
        /// What there is.
        present: String,
    },
    /// The interface has no address of the family.
    #[error("{name} has no {family} address")]
    NoAddress {
        /// The interface's name.
        name: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
}

impl Interface {
    /// The default route's metric for a family.
    fn default_metric(&self, v6: bool) -> Option<u32> {
        if v6 { self.default_v6 } else { self.default_v4 }
    }

    /// The address to use of a family: the first global one, else the first there is.
    fn address(&self, v6: bool) -> Option<IpAddr> {
        let mut of_family = self.addresses.iter().map(|net| net.ip()).filter(|ip| ip.is_ipv6() == v6);
        let global = of_family.clone().find(|ip| !is_link_local(*ip) && !ip.is_loopback());
        global.or_else(|| of_family.next())
    }
}

/// Chooses the interface for a family.
pub fn choose(interfaces: &[Interface], wish: &Wish, v6: bool) -> Result<Chosen, ChooseError> {
    let (interface, local, why) = match wish.iface.as_slice() {
        [] => by_default_route(interfaces, v6)?,
        wanted => by_name(interfaces, wanted, v6)?,
    };
    let public = wish.public_ip.filter(|ip| ip.is_ipv6() == v6).unwrap_or(local);
    Ok(Chosen { interface: interface.clone(), local, public, why })
}

type Found<'a> = (&'a Interface, IpAddr, String);

fn by_default_route(interfaces: &[Interface], v6: bool) -> Result<Found<'_>, ChooseError> {
    let with_default = interfaces.iter().filter(|i| i.default_metric(v6).is_some());
    let interface = with_default
        .min_by_key(|i| i.default_metric(v6))
        .ok_or_else(|| ChooseError::NoDefault { present: present(interfaces) })?;
    let local = interface.address(v6).ok_or_else(|| no_address(interface, v6))?;
    Ok((interface, local, "default route".to_owned()))
}

fn by_name<'a>(interfaces: &'a [Interface], wanted: &[String], v6: bool) -> Result<Found<'a>, ChooseError> {
    for name in wanted {
        let why = format!("--iface {name}");
        if let Ok(ip) = name.parse::<IpAddr>() {
            if let Some(interface) = interfaces.iter().find(|i| i.addresses.iter().any(|net| net.ip() == ip)) {
                let local = if ip.is_ipv6() == v6 { Some(ip) } else { interface.address(v6) };
                return Ok((interface, local.ok_or_else(|| no_address(interface, v6))?, why));
            }
        } else if let Some(interface) = interfaces.iter().find(|i| i.name == *name) {
            let local = interface.address(v6).ok_or_else(|| no_address(interface, v6))?;
            return Ok((interface, local, why));
        }
    }
    Err(ChooseError::NoMatch { wanted: wanted.join(", "), present: present(interfaces) })
}

fn no_address(interface: &Interface, v6: bool) -> ChooseError {
    ChooseError::NoAddress { name: interface.name.clone(), family: if v6 { "IPv6" } else { "IPv4" } }
}

fn present(interfaces: &[Interface]) -> String {
    let one = |i: &Interface| {
        let addresses: Vec<String> = i.addresses.iter().map(|net| net.ip().to_string()).collect();
        format!("{} ({})", i.name, if addresses.is_empty() { "no address".to_owned() } else { addresses.join(" ") })
    };
    interfaces.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, name: &str, addresses: &[&str], default_v4: Option<u32>) -> Interface {
        let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        Interface { index, name: name.into(), mtu: 1500, up: true, addresses, default_v4, default_v6: None }
    }

    fn host() -> Vec<Interface> {
        vec![
            interface(1, "lo", &["127.0.0.1/8"], None),
            interface(2, "eth0", &["169.254.7.7/16", "10.99.0.10/16"], Some(100)),
            interface(3, "eth1", &["192.168.1.5/24"], Some(50)),
        ]
    }

    fn wish(names: &[&str]) -> Wish {
        Wish { iface: names.iter().map(|n| n.to_string()).collect(), public_ip: None }
    }

    #[test]
    fn the_default_route_with_the_lowest_metric_wins() {
        let chosen = choose(&host(), &wish(&[]), false).unwrap();
        assert_eq!((chosen.interface.name.as_str(), chosen.local.to_string()), ("eth1", "192.168.1.5".into()));
    }

    #[test]
    fn the_first_named_interface_that_is_there_wins_and_link_local_addresses_are_passed_over() {
        let chosen = choose(&host(), &wish(&["wlan0", "eth0", "eth1"]), false).unwrap();
        assert_eq!((chosen.interface.index, chosen.local.to_string()), (2, "10.99.0.10".into()));
        let chosen = choose(&host(), &wish(&["192.168.1.5"]), false).unwrap();
        assert_eq!(chosen.interface.name, "eth1");
    }

    #[test]
    fn the_public_address_may_be_another() {
        let wish = Wish { iface: vec!["eth0".into()], public_ip: Some("203.0.113.9".parse().unwrap()) };
        let chosen = choose(&host(), &wish, false).unwrap();
        assert_eq!((chosen.local.to_string(), chosen.public.to_string()), ("10.99.0.10".into(), "203.0.113.9".into()));
    }

    #[test]
    fn an_interface_that_is_not_there_is_named_beside_those_that_are() {
        let error = choose(&host(), &wish(&["wlan0"]), false).unwrap_err().to_string();
        assert!(error.contains("--iface wlan0") && error.contains("eth1 (192.168.1.5)"), "{error}");
        let error = choose(&host(), &wish(&["eth0"]), true).unwrap_err().to_string();
        assert_eq!(error, "eth0 has no IPv6 address");
        assert!(matches!(choose(&host()[..1], &wish(&[]), false), Err(ChooseError::NoDefault { .. })));
    }
}
