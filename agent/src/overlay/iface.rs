//! Which interface carries the overlay's packets, and which of its addresses peers are told.
//!
//! Flannel's order: each `--iface` (an address or a name), each `--iface-regex`, `--iface-can-reach`; the first that
//! leads to an interface with an address of the family is taken. Where none of them is given: the interface that has
//! `--public-ip`, else that of the default route with the lowest metric. A loopback address serves only where `--iface` names
//! it or its interface. See
//! <https://github.com/flannel-io/flannel/blob/v0.28.9/pkg/ipmatch/match.go>.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use regex::Regex;

/// An interface as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its addresses, in the kernel's order.
    pub addresses: Vec<IpNetwork>,
    /// The metric of its default route for IPv4, where it has one.
    pub default_v4: Option<u32>,
    /// The same for IPv6.
    pub default_v6: Option<u32>,
    /// The address that the kernel sends from to `--iface-can-reach`, where it would send through this interface.
    pub reaches_from: Option<IpAddr>,
}

/// What the operator asked for.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// `--iface`, in order: names or addresses.
    pub iface: Vec<String>,
    /// `--iface-regex`, in order.
    pub regex: Vec<Regex>,
    /// `--iface-can-reach`. The kernel's answer is in [`Interface::reaches_from`].
    pub can_reach: Option<IpAddr>,
    /// `--public-ip`.
    pub public_ip: Option<Ipv4Addr>,
    /// `--public-ipv6`.
    pub public_ipv6: Option<Ipv6Addr>,
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
    /// Nothing that was asked for led to an interface.
    #[error("no interface for {family}: {}; this host has {present}", tried.join("; "))]
    NoMatch {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// Each flag, and why it led to none.
        tried: Vec<String>,
        /// What there is.
        present: String,
    },
    /// Nothing was named and there is no default route.
    #[error(
        "no {family} default route and no --iface: name the interface that reaches the other nodes; this host has {present}"
    )]
    NoDefault {
        /// `IPv4` or `IPv6`.
        family: &'static str,
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

    /// The address to use of a family: the first global one, else the first link-local one.
    fn address(&self, v6: bool) -> Option<IpAddr> {
        let mut outward =
            self.addresses.iter().map(|net| net.ip()).filter(|ip| ip.is_ipv6() == v6 && !ip.is_loopback());
        outward.clone().find(|ip| is_global(*ip)).or_else(|| outward.next())
    }

    /// Its first loopback address of a family.
    fn loopback(&self, v6: bool) -> Option<IpAddr> {
        self.addresses.iter().map(|net| net.ip()).find(|ip| ip.is_ipv6() == v6 && ip.is_loopback())
    }

    /// All that it has leads back to this host.
    fn is_loopback(&self) -> bool {
        self.name == "lo" && self.addresses.iter().all(|net| net.ip().is_loopback())
    }

    fn has(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|net| net.ip() == ip)
    }
}

impl Wish {
    /// The public address of a family, where one was given.
    fn public(&self, v6: bool) -> Option<IpAddr> {
        if v6 { self.public_ipv6.map(IpAddr::V6) } else { self.public_ip.map(IpAddr::V4) }
    }
}

/// Chooses the interface for a family.
pub fn choose(interfaces: &[Interface], wish: &Wish, v6: bool) -> Result<Chosen, ChooseError> {
    let nothing_named = wish.iface.is_empty() && wish.regex.is_empty() && wish.can_reach.is_none();
    let found = if nothing_named { by_default(interfaces, wish, v6)? } else { by_wish(interfaces, wish, v6)? };
    let public = wish.public(v6).unwrap_or(found.local);
    Ok(Chosen { interface: found.interface.clone(), local: found.local, public, why: found.why })
}

struct Found<'a> {
    interface: &'a Interface,
    local: IpAddr,
    why: String,
}

fn by_default<'a>(interfaces: &'a [Interface], wish: &Wish, v6: bool) -> Result<Found<'a>, ChooseError> {
    if let Some(public) = wish.public(v6)
        && let Some(interface) = interfaces.iter().find(|interface| interface.has(public))
    {
        let flag = if v6 { "--public-ipv6" } else { "--public-ip" };
        return Ok(Found { interface, local: public, why: format!("it has {flag} {public}") });
    }
    let with_default = interfaces.iter().filter_map(|i| Some((i, i.default_metric(v6)?)));
    let (interface, metric) = with_default
        .min_by_key(|(_, metric)| *metric)
        .ok_or_else(|| ChooseError::NoDefault { family: family(v6), present: present(interfaces) })?;
    let local = interface.address(v6).ok_or_else(|| no_address(interface, v6))?;
    Ok(Found { interface, local, why: format!("default route, metric {metric}") })
}

/// The first of what was asked for that leads to an interface with an address of the family.
fn by_wish<'a>(interfaces: &'a [Interface], wish: &Wish, v6: bool) -> Result<Found<'a>, ChooseError> {
    let named = wish.iface.iter().map(|name| (format!("--iface {name}"), by_name(interfaces, name, v6)));
    let patterns = wish.regex.iter().map(|regex| (format!("--iface-regex {regex}"), by_regex(interfaces, regex, v6)));
    let reach = wish.can_reach.iter().map(|to| (format!("--iface-can-reach {to}"), by_reach(interfaces, *to)));
    let mut tried = Vec::new();
    for (flag, hit) in named.chain(patterns).chain(reach) {
        let (interface, address) = match hit {
            Ok(hit) => hit,
            Err(why) => {
                tried.push(format!("{flag}: {why}"));
                continue;
            }
        };
        let matched = address.filter(|ip| ip.is_ipv6() == v6);
        match matched.or_else(|| interface.address(v6)) {
            Some(local) => return Ok(Found { interface, local, why: flag }),
            None => tried.push(format!("{flag}: {}", no_address(interface, v6))),
        }
    }
    Err(ChooseError::NoMatch { family: family(v6), tried, present: present(interfaces) })
}

/// What a flag led to: an interface, and the address by which it was found; or why to none.
type Hit<'a> = Result<(&'a Interface, Option<IpAddr>), String>;

const NONE: &str = "no such interface or address";

fn by_name<'a>(interfaces: &'a [Interface], name: &str, v6: bool) -> Hit<'a> {
    let found = match name.parse::<IpAddr>() {
        Ok(ip) => interfaces.iter().find(|interface| interface.has(ip)).map(|interface| (interface, Some(ip))),
        Err(_) => interfaces.iter().find(|interface| interface.name == *name).map(|interface| {
            let only = if interface.is_loopback() { interface.loopback(v6) } else { None };
            (interface, only)
        }),
    };
    found.ok_or_else(|| NONE.to_owned())
}

/// Addresses of the family first, then those of the other one (in a dual-stack network a pattern rarely fits both), then
/// names.
fn by_regex<'a>(interfaces: &'a [Interface], regex: &Regex, v6: bool) -> Hit<'a> {
    let by_address = |of_v6: bool| {
        let mut all = interfaces.iter().flat_map(|i| i.addresses.iter().map(move |net| (i, net.ip())));
        let fits = |ip: &IpAddr| ip.is_ipv6() == of_v6 && !ip.is_loopback() && regex.is_match(&ip.to_string());
        all.find(|(_, ip)| fits(ip)).map(|(i, ip)| (i, Some(ip)))
    };
    let by_name = || interfaces.iter().find(|i| !i.is_loopback() && regex.is_match(&i.name)).map(|i| (i, None));
    by_address(v6).or_else(|| by_address(!v6)).or_else(by_name).ok_or_else(|| NONE.to_owned())
}

fn by_reach(interfaces: &[Interface], target: IpAddr) -> Hit<'_> {
    let found = interfaces.iter().find_map(|interface| Some((interface, Some(interface.reaches_from?))));
    found.ok_or_else(|| match interfaces.iter().find(|interface| interface.has(target)) {
        Some(own) => format!("{target} is an address of this host, on {}: expected another host's", own.name),
        None => format!("the kernel has no route to {target}"),
    })
}

fn family(v6: bool) -> &'static str {
    if v6 { "IPv6" } else { "IPv4" }
}

fn no_address(interface: &Interface, v6: bool) -> ChooseError {
    ChooseError::NoAddress { name: interface.name.clone(), family: family(v6) }
}

fn present(interfaces: &[Interface]) -> String {
    let one = |i: &Interface| {
        let addresses: Vec<String> = i.addresses.iter().map(|net| net.ip().to_string()).collect();
        format!("{} ({})", i.name, if addresses.is_empty() { "no address".to_owned() } else { addresses.join(" ") })
    };
    interfaces.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Whether an address means this host beyond its own link.
pub fn is_global(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !link_local && !ip.is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, name: &str, addresses: &[&str], default_v4: Option<u32>) -> Interface {
        let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        Interface { index, name: name.into(), mtu: 1500, addresses, default_v4, ..Interface::default() }
    }

    fn host() -> Vec<Interface> {
        vec![
            interface(1, "lo", &["127.0.0.1/8", "::1/128"], None),
            interface(2, "eth0", &["169.254.7.7/16", "10.99.0.10/16", "fe80::7/64", "fd99::10/64"], Some(100)),
            interface(3, "eth1", &["192.168.1.5/24"], Some(50)),
        ]
    }

    fn wish(names: &[&str]) -> Wish {
        Wish { iface: names.iter().map(|n| n.to_string()).collect(), ..Wish::default() }
    }

    fn patterns(patterns: &[&str]) -> Wish {
        Wish { regex: patterns.iter().map(|p| Regex::new(p).unwrap()).collect(), ..Wish::default() }
    }

    #[track_caller]
    fn chosen(wish: &Wish, v6: bool) -> (String, String, String) {
        let chosen = choose(&host(), wish, v6).unwrap();
        (chosen.interface.name, chosen.local.to_string(), chosen.why)
    }

    fn is(name: &str, local: &str, why: &str) -> (String, String, String) {
        (name.to_owned(), local.to_owned(), why.to_owned())
    }

    #[test]
    fn the_default_route_with_the_lowest_metric_wins() {
        assert_eq!(chosen(&wish(&[]), false), is("eth1", "192.168.1.5", "default route, metric 50"));
    }

    #[test]
    fn the_first_named_interface_that_is_there_wins_and_link_local_addresses_are_passed_over() {
        assert_eq!(chosen(&wish(&["wlan0", "eth0", "eth1"]), false), is("eth0", "10.99.0.10", "--iface eth0"));
        assert_eq!(chosen(&wish(&["eth1", "eth0"]), true), is("eth0", "fd99::10", "--iface eth0"));
    }

    #[test]
    fn an_address_names_its_interface_for_both_families() {
        assert_eq!(chosen(&wish(&["169.254.7.7"]), false), is("eth0", "169.254.7.7", "--iface 169.254.7.7"));
        assert_eq!(chosen(&wish(&["10.99.0.10"]), true), is("eth0", "fd99::10", "--iface 10.99.0.10"));
    }

    #[test]
    fn patterns_come_after_names_and_look_at_addresses_first() {
        assert_eq!(chosen(&patterns(&["^wl", r"^192\.168\."]), false).0, "eth1");
        assert_eq!(chosen(&patterns(&["^eth"]), false), is("eth0", "10.99.0.10", "--iface-regex ^eth"));
        assert_eq!(chosen(&patterns(&["^fd99"]), true).1, "fd99::10");
        assert_eq!(chosen(&patterns(&["^fd99"]), false).1, "10.99.0.10", "by the other family's address");
        let both = Wish { iface: vec!["eth1".into()], ..patterns(&["eth0"]) };
        assert_eq!(chosen(&both, false).0, "eth1");
    }

    #[test]
    fn what_the_kernel_would_take_comes_last() {
        let mut host = host();
        host[1].reaches_from = Some("10.99.0.10".parse().unwrap());
        let asked = Wish { can_reach: Some("10.99.0.1".parse().unwrap()), ..wish(&["wlan0"]) };
        let chosen = choose(&host, &asked, false).unwrap();
        assert_eq!((chosen.interface.index, chosen.why.as_str()), (2, "--iface-can-reach 10.99.0.1"));
    }

    #[test]
    fn a_public_address_of_this_host_chooses_and_another_is_only_told() {
        let here = Wish { public_ip: Some("10.99.0.10".parse().unwrap()), ..Wish::default() };
        assert_eq!(chosen(&here, false), is("eth0", "10.99.0.10", "it has --public-ip 10.99.0.10"));
        let nat = Wish { public_ip: Some("203.0.113.7".parse().unwrap()), ..Wish::default() };
        let chosen = choose(&host(), &nat, false).unwrap();
        assert_eq!((chosen.local.to_string(), chosen.public.to_string()), ("192.168.1.5".into(), "203.0.113.7".into()));
    }

    #[test]
    fn loopback_serves_only_where_it_is_named() {
        assert_eq!(chosen(&wish(&["lo"]), false), is("lo", "127.0.0.1", "--iface lo"));
        assert_eq!(chosen(&wish(&["127.0.0.1"]), false).0, "lo");
        assert_eq!(chosen(&wish(&["lo"]), true).1, "::1");
        for pattern in [".*", "^lo$|^eth1$", r"^1(27|92)\."] {
            assert_ne!(chosen(&patterns(&[pattern]), false).0, "lo", "{pattern}");
        }
        assert!(choose(&host(), &patterns(&["^lo$"]), false).is_err());
        let mut host = host();
        host[0].default_v4 = Some(0);
        assert!(matches!(choose(&host, &wish(&[]), false), Err(ChooseError::NoAddress { .. })));
        // As routers have it.
        host[0].addresses.push("10.99.0.99/32".parse().unwrap());
        assert_eq!(choose(&host, &patterns(&[r"^10\.99\.0\.99$"]), false).unwrap().interface.name, "lo");
        assert_eq!(choose(&host, &wish(&["lo"]), false).unwrap().local.to_string(), "10.99.0.99");
    }

    #[test]
    fn an_address_that_is_not_reached_says_why() {
        let reach = |to: &str| Wish { can_reach: Some(to.parse().unwrap()), ..Wish::default() };
        let error = |to| choose(&host(), &reach(to), false).unwrap_err().to_string();
        assert!(error("203.0.113.7").contains("the kernel has no route to 203.0.113.7"), "{}", error("203.0.113.7"));
        assert!(
            error("10.99.0.10").contains("10.99.0.10 is an address of this host, on eth0"),
            "{}",
            error("10.99.0.10")
        );
    }

    #[test]
    fn errors_say_what_was_tried_and_what_there_is() {
        let error = choose(&host(), &wish(&["wlan0", "eth1"]), true).unwrap_err().to_string();
        assert!(error.contains("IPv6: --iface wlan0: no such interface"), "{error}");
        assert!(
            error.contains("--iface eth1: eth1 has no IPv6 address") && error.contains("eth1 (192.168.1.5)"),
            "{error}"
        );
        assert!(matches!(choose(&host()[..1], &wish(&[]), false), Err(ChooseError::NoDefault { .. })));
    }
}
