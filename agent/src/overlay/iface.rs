//! Which interface carries the overlay's packets, and which of its addresses peers are told.
//!
//! Flannel's order: each `--iface` (an address or a name), each `--iface-regex`, `--iface-can-reach`; the first that
//! leads to an interface with an address of the family is taken. Where none of them is given: the interface that has
//! `--public-ip`, else that of the default route with the lowest metric; of several next hops, the first whose link is
//! up. A loopback address serves only where `--iface` names it or its interface. See
//! <https://github.com/flannel-io/flannel/blob/v0.28.9/pkg/ipmatch/match.go>.
//!
//! **Of an interface's addresses** the one is taken that lasts, since peers are told it and the record goes by it. In
//! this order, and within it in the kernel's: scope global before scope link; preferred before deprecated; in IPv4, with
//! its link's prefix before a /32 of its own, which mostly is a virtual address that moves from node to node; permanent before
//! one with a lifetime (DHCP, router advertisements), but in IPv4 not if the permanent one is a secondary one of the same
//! prefix. An address with a lifetime serves as well, since most hosts have no other: the log says that it ends. Never by
//! itself: a temporary address (privacy extensions), a link-local one (fe80::/10, 169.254.0.0/16), one of scope host, one
//! that another host has (duplicate address detection failed). A tentative one is
//! waited for ([`awaited`]), and so is any other where there is a link-local one only ([`ChooseError::may_pass`]). An
//! address that a flag names is taken as it is, unless it is a link-local one of IPv6 or nothing can be sent from it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use regex_lite::Regex;

mod address;
mod error;

pub use address::{Address, Barred, Scope};
pub use error::ChooseError;
use error::list;

/// An interface as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Why nothing can be sent through it now, if so: words that follow the name.
    pub down: Option<&'static str>,
    /// Its addresses, in the kernel's order.
    pub addresses: Vec<Address>,
    /// Its place among the next hops of the IPv4 default routes, where it has a living one.
    pub default_v4: Option<DefaultHop>,
    /// The same for IPv6.
    pub default_v6: Option<DefaultHop>,
    /// The address that the kernel sends from to `--iface-can-reach`, where it would send through this interface.
    pub reaches_from: Option<IpAddr>,
}

/// A next hop of a default route. The lowest is taken: what stands first here weighs most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DefaultHop {
    /// The metric of its route.
    pub metric: u32,
    /// Its link has no carrier.
    pub linkdown: bool,
    /// Its place among the next hops of that metric, from 1.
    pub place: usize,
    /// How many next hops that metric has, dead ones too.
    pub of: usize,
}

impl From<u32> for DefaultHop {
    /// The one next hop of a route with this metric.
    fn from(metric: u32) -> Self {
        Self { metric, linkdown: false, place: 1, of: 1 }
    }
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

impl Interface {
    /// Its place among the next hops of the default routes of a family.
    fn default_hop(&self, v6: bool) -> Option<DefaultHop> {
        if v6 { self.default_v6 } else { self.default_v4 }
    }

    /// The best address of a family.
    fn address(&self, v6: bool) -> Option<&Address> {
        let ranked = self.addresses.iter().filter(|address| address.is_of(v6)).filter_map(|a| Some((a.rank()?, a)));
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, address)| address)
    }

    fn find(&self, ip: IpAddr) -> Option<&Address> {
        self.addresses.iter().find(|address| address.ip() == ip)
    }

    /// Whether the host can send from an address of it.
    pub fn sends_from(&self, ip: IpAddr) -> bool {
        self.find(ip).is_some_and(|address| address.obstacle().is_none())
    }

    /// The addresses of a family that are not what one would take, each with the reason.
    fn blemished(&self, v6: bool) -> Vec<String> {
        let of_family = self.addresses.iter().filter(|address| address.is_of(v6));
        of_family.filter(|address| address.blemish().is_some()).map(Address::to_string).collect()
    }

    /// Why `taken` and not another address, where that is to be told.
    fn why_address(&self, taken: &Address) -> String {
        let place = |one: &Address| self.addresses.iter().position(|address| address == one);
        let virtual_ones = self.addresses.iter().filter(|one| {
            let alone = |address: &Address| address.rank().is_some_and(|rank| rank.alone);
            one.blemish().is_none() && alone(one) && !alone(taken) && place(one) < place(taken)
        });
        let beside = |one: &&Address| {
            let is_other = one.is_of(taken.net.is_ipv6()) && *one != taken && one.blemish().is_some();
            is_other && (!one.is_link_local() || taken.is_link_local())
        };
        let mut others: Vec<String> = self.addresses.iter().filter(beside).map(Address::to_string).collect();
        others.extend(virtual_ones.map(|one| format!("{} is a /32, as a virtual address has it", one.ip())));
        let ends = taken.ends.then(|| "ends unless its lifetime is renewed (DHCP, router advertisements)".to_owned());
        let own: String =
            taken.blemish().into_iter().chain(ends).map(|words| format!("; {} {words}", taken.ip())).collect();
        if others.is_empty() { own } else { format!("{own}; passed over: {}", list(&others)) }
    }
}

impl Wish {
    /// Whether no flag leads to an interface, and so the default route does.
    pub fn names_none(&self) -> bool {
        self.iface.is_empty() && self.regex.is_empty() && self.can_reach.is_none()
    }

    /// The public address of a family, where one was given.
    fn public(&self, v6: bool) -> Option<IpAddr> {
        if v6 { self.public_ipv6.map(IpAddr::V6) } else { self.public_ip.map(IpAddr::V4) }
    }
}

/// Chooses the interface for a family.
///
/// # Errors
/// What was tried, why it led to none, and what there is.
pub fn choose(interfaces: &[Interface], wish: &Wish, v6: bool) -> Result<Chosen, ChooseError> {
    let found = if wish.names_none() { by_default(interfaces, wish, v6)? } else { by_wish(interfaces, wish, v6)? };
    let Found { interface, address, why } = found;
    let (local, why) = (address.ip(), why + &interface.why_address(address));
    let public = wish.public(v6).unwrap_or(local);
    Ok(Chosen { interface: interface.clone(), local, public, why })
}

/// The interfaces as they are once duplicate address detection has found no other host with these addresses.
pub fn settled(interfaces: &[Interface], which: impl Fn(IpAddr) -> bool) -> Vec<Interface> {
    let mut settled = interfaces.to_vec();
    for address in settled.iter_mut().flat_map(|interface| &mut interface.addresses) {
        address.tentative &= !which(address.ip());
    }
    settled
}

/// The tentative address that the choice would fall on if it were none. It is worth a wait.
pub fn awaited(interfaces: &[Interface], wish: &Wish, v6: bool) -> Option<IpAddr> {
    let chosen = choose(&settled(interfaces, |_| true), wish, v6).ok()?;
    is_tentative(interfaces, chosen.local).then_some(chosen.local)
}

/// Whether duplicate address detection for an address of this host is not through.
pub fn is_tentative(interfaces: &[Interface], ip: IpAddr) -> bool {
    interfaces.iter().flat_map(|interface| &interface.addresses).any(|address| address.ip() == ip && address.tentative)
}

impl Chosen {
    /// Stays with the address that we have, as long as the interface has it: another one may come before it for a while.
    /// One that serves on its link only, or is deprecated, gives way to one that is not.
    pub fn keep(&mut self, ours: IpAddr) {
        let rank = |ip| self.interface.find(ip)?.rank().map(|rank| (rank.link_local, rank.deprecated));
        let Some(kept) = rank(ours) else { return };
        if rank(self.local).is_none_or(|chosen| kept <= chosen) {
            if self.public == self.local {
                self.public = ours;
            }
            self.local = ours;
        }
    }

    /// Whether the default route leads as well over another interface, with an address of that one that is as good.
    pub fn is_no_better_than(&self, name: &str, address: IpAddr, interfaces: &[Interface]) -> bool {
        let v6 = self.local.is_ipv6();
        let quality = |interface: &Interface, ip| {
            let hop = interface.default_hop(v6)?;
            let rank = interface.find(ip)?.rank()?;
            Some((hop.metric, hop.linkdown, rank.link_local, rank.deprecated))
        };
        let other = interfaces.iter().find(|interface| interface.name == name);
        let other = other.and_then(|interface| quality(interface, address));
        other.is_some_and(|other| quality(&self.interface, self.local).is_none_or(|ours| other <= ours))
    }
}

struct Found<'a> {
    interface: &'a Interface,
    address: &'a Address,
    why: String,
}

fn by_default<'a>(interfaces: &'a [Interface], wish: &Wish, v6: bool) -> Result<Found<'a>, ChooseError> {
    if let Some(public) = wish.public(v6)
        && let Some((interface, address)) = interfaces.iter().find_map(|i| Some((i, i.find(public)?)))
    {
        let flag = if v6 { "--public-ipv6" } else { "--public-ip" };
        if let Some(obstacle) = address.obstacle() {
            return Err(ChooseError::Unusable { flag, address: public, obstacle });
        }
        return Ok(Found { interface, address, why: format!("it has {flag} {public}") });
    }
    let mut hops: Vec<_> = interfaces.iter().filter_map(|i| Some((i.default_hop(v6)?, i))).collect();
    hops.sort_by_key(|(hop, _)| *hop);
    let Some((first, best)) = hops.first() else {
        return Err(ChooseError::NoDefault { family: family(v6), present: present(interfaces) });
    };
    // Of equal next hops, one whose interface has no address is none for us.
    let equal = hops.iter().take_while(|(hop, _)| hop.metric == first.metric);
    let found = equal.filter_map(|(hop, i)| Some((hop, i, i.address(v6)?))).next();
    let (hop, interface, address) = found.ok_or_else(|| no_address(best, v6))?;
    let why = match hop.of {
        1 => format!("default route, metric {}", hop.metric),
        of => format!("default route, metric {}, next hop {} of {of}", hop.metric, hop.place),
    };
    Ok(Found { interface, address, why })
}

/// The first of what was asked for that leads to an interface with an address of the family.
fn by_wish<'a>(interfaces: &'a [Interface], wish: &Wish, v6: bool) -> Result<Found<'a>, ChooseError> {
    let named = wish.iface.iter().map(|name| (format!("--iface {name}"), by_name(interfaces, name)));
    let patterns = wish.regex.iter().map(|regex| (format!("--iface-regex {regex}"), by_regex(interfaces, regex, v6)));
    let reach = wish.can_reach.iter().map(|to| (format!("--iface-can-reach {to}"), by_reach(interfaces, *to)));
    let (mut tried, mut link_local) = (Vec::new(), false);
    for (flag, hit) in named.chain(patterns).chain(reach) {
        let found = hit.and_then(|(interface, matched)| {
            let matched = matched.filter(|address| address.is_of(v6));
            if let Some((address, obstacle)) = matched.and_then(|address| Some((address, address.obstacle()?))) {
                return Err(format!("{} {obstacle}", address.ip()));
            }
            let address = matched.or_else(|| interface.address(v6));
            address.map(|address| (interface, address)).ok_or_else(|| {
                let error = no_address(interface, v6);
                link_local |= error.may_pass();
                error.to_string()
            })
        });
        match found {
            Ok((interface, address)) => return Ok(Found { interface, address, why: flag }),
            Err(why) => tried.push(format!("{flag}: {why}")),
        }
    }
    Err(ChooseError::NoMatch { family: family(v6), tried, present: present(interfaces), link_local })
}

/// What a flag led to: an interface, and the address by which it was found; or why to none.
type Hit<'a> = Result<(&'a Interface, Option<&'a Address>), String>;

const NONE: &str = "no such interface or address";

fn by_name<'a>(interfaces: &'a [Interface], name: &str) -> Hit<'a> {
    let found = match name.parse::<IpAddr>() {
        Ok(ip) => interfaces.iter().find_map(|interface| Some((interface, Some(interface.find(ip)?)))),
        Err(_) => interfaces.iter().find(|interface| interface.name == *name).map(|interface| (interface, None)),
    };
    found.ok_or_else(|| NONE.to_owned())
}

/// Addresses of the family first, then those of the other one (in a dual-stack network a pattern rarely fits both), then
/// names.
fn by_regex<'a>(interfaces: &'a [Interface], regex: &Regex, v6: bool) -> Hit<'a> {
    let all = || interfaces.iter().flat_map(|i| i.addresses.iter().map(move |address| (i, address)));
    let fitting = |of_v6: bool| all().filter(move |(_, a)| a.is_of(of_v6) && regex.is_match(&a.ip().to_string()));
    let best = |of_v6: bool| {
        let ranked = fitting(of_v6).filter_map(|(i, address)| Some((address.rank()?, (i, Some(address)))));
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, hit)| hit)
    };
    let named = || interfaces.iter().filter(|i| regex.is_match(&i.name)).map(|i| (i, None));
    let by_name = || named().find(|(i, _)| i.address(v6).is_some()).or_else(|| named().next());
    best(v6).or_else(|| best(!v6)).or_else(by_name).ok_or_else(|| {
        let unfit: Vec<String> = fitting(v6).map(|(i, address)| format!("{}: {address}", i.name)).collect();
        if unfit.is_empty() { NONE.to_owned() } else { list(&unfit) }
    })
}

fn by_reach(interfaces: &[Interface], target: IpAddr) -> Hit<'_> {
    let found = interfaces.iter().find_map(|interface| Some((interface, interface.reaches_from?)));
    // Where the kernel would send from an address that doesn't last, another one of that interface is taken.
    let hit = found.map(|(i, ip)| (i, i.find(ip).filter(|address| address.rank().is_some())));
    hit.ok_or_else(|| match interfaces.iter().find(|interface| interface.find(target).is_some()) {
        Some(own) => format!("{target} is an address of this host, on {}: expected another host's", own.name),
        None => format!("the kernel has no route to {target}"),
    })
}

fn family(v6: bool) -> &'static str {
    if v6 { "IPv6" } else { "IPv4" }
}

fn no_address(interface: &Interface, v6: bool) -> ChooseError {
    let (name, left_out) = (interface.name.clone(), interface.blemished(v6));
    let link_local = interface.addresses.iter().any(|address| address.is_of(v6) && address.is_of_its_link());
    ChooseError::NoAddress { name, family: family(v6), left_out, link_local }
}

/// The interfaces with their addresses. Those without any are counted: a node has one for each of its pods.
fn present(interfaces: &[Interface]) -> String {
    let (with, without): (Vec<_>, Vec<_>) = interfaces.iter().partition(|interface| !interface.addresses.is_empty());
    let one = |address: &Address| match address.mark() {
        Some(mark) => format!("{} [{mark}]", address.ip()),
        None => address.ip().to_string(),
    };
    let addresses = |i: &Interface| list(&i.addresses.iter().map(one).collect::<Vec<_>>());
    let with: Vec<String> = with.into_iter().map(|i| format!("{} ({})", i.name, addresses(i))).collect();
    let without: Vec<String> = without.into_iter().map(|i| i.name.clone()).collect();
    match (with.is_empty(), without.is_empty()) {
        (_, true) => list(&with),
        (true, false) => format!("no interface with an address, only {}", list(&without)),
        (false, false) => format!("{}, and without an address {}", list(&with), list(&without)),
    }
}

#[cfg(test)]
mod tests;
