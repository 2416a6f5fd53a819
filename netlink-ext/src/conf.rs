//! What a device takes in from its link besides packets for others: redirects, router advertisements, what ARP tells.
//!
//! `sysctl net.ipv4.conf.<device>.<name>` and `net.ipv6.conf.<device>.<name>`. The kernel shows all of them in a link's
//! message (`IFLA_AF_SPEC`). It takes the IPv4 ones and IPv6's `addr_gen_mode` from there too (`inet_set_link_af`,
//! net/ipv4/devinet.c; `inet6_set_link_af`, net/ipv6/addrconf.c), which needs no writable /proc/sys. All others of IPv6
//! can be written through /proc/sys only.

use crate::ifi::{self, IFLA_AF_SPEC};
use crate::wire::{Attributes, Body, u32_at};

const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_CONF: u16 = 2;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;

/// A parameter of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // Documentation/networking/ip-sysctl.rst explains each
pub enum Key {
    AcceptRedirects4,
    AcceptSourceRoute4,
    ArpIgnore,
    ArpAccept,
    RouteLocalnet,
    DropGratuitousArp,
    AcceptRa,
    AcceptRedirects6,
    DropUnsolicitedNa,
    DisableIpv6,
    /// How the kernel makes a link-local address: 0 from the MAC, 1 not at all.
    AddrGenMode,
}

impl Key {
    /// Every parameter.
    pub const ALL: [Self; 11] = [
        Self::AcceptRedirects4,
        Self::AcceptSourceRoute4,
        Self::ArpIgnore,
        Self::ArpAccept,
        Self::RouteLocalnet,
        Self::DropGratuitousArp,
        Self::AcceptRa,
        Self::AcceptRedirects6,
        Self::DropUnsolicitedNa,
        Self::DisableIpv6,
        Self::AddrGenMode,
    ];

    /// Its path below `/proc/sys/net` for a device.
    pub fn path(self, device: &str) -> String {
        let (family, name, _) = self.place();
        format!("{family}/conf/{device}/{name}")
    }

    /// Whether [`crate::Request::SetConf`] can set it.
    pub fn is_by_netlink(self) -> bool {
        self.place().0 == "ipv4" || self == Self::AddrGenMode
    }

    /// Family and name in /proc/sys, and the position in the array that a link's message has: `IPV4_DEVCONF_*` less one
    /// (include/uapi/linux/ip.h), `DEVCONF_*` (include/uapi/linux/ipv6.h).
    fn place(self) -> (&'static str, &'static str, u16) {
        match self {
            Self::AcceptRedirects4 => ("ipv4", "accept_redirects", 3),
            Self::AcceptSourceRoute4 => ("ipv4", "accept_source_route", 8),
            Self::ArpIgnore => ("ipv4", "arp_ignore", 18),
            Self::ArpAccept => ("ipv4", "arp_accept", 20),
            Self::RouteLocalnet => ("ipv4", "route_localnet", 25),
            Self::DropGratuitousArp => ("ipv4", "drop_gratuitous_arp", 30),
            Self::AcceptRa => ("ipv6", "accept_ra", 3),
            Self::AcceptRedirects6 => ("ipv6", "accept_redirects", 4),
            Self::DisableIpv6 => ("ipv6", "disable_ipv6", 26),
            Self::DropUnsolicitedNa => ("ipv6", "drop_unsolicited_na", 41),
            Self::AddrGenMode => ("ipv6", "addr_gen_mode", 47),
        }
    }
}

/// The parameters of a device as the kernel shows them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Conf([Option<u32>; Key::ALL.len()]);

impl Conf {
    /// The value of a parameter; `None` where the kernel shows none (it has no IPv6, or is too old for the parameter).
    pub fn get(&self, key: Key) -> Option<u32> {
        self.0[key as usize]
    }

    pub(crate) fn read(families: Attributes<'_>) -> Self {
        let mut conf = Self::default();
        for (family, value) in families {
            let (name, wanted) = match i32::from(family) {
                libc::AF_INET => ("ipv4", IFLA_INET_CONF),
                libc::AF_INET6 => ("ipv6", IFLA_INET6_CONF),
                _ => continue,
            };
            let Some((_, array)) = Attributes::new(value).find(|(kind, _)| *kind == wanted) else { continue };
            for key in Key::ALL {
                let (of, _, at) = key.place();
                if of == name {
                    conf.0[key as usize] = u32_at(array, usize::from(at) * 4);
                }
            }
        }
        conf
    }
}

/// A parameter to set by netlink; see [`Key::is_by_netlink`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// The device.
    pub ifindex: u32,
    /// Which parameter.
    pub key: Key,
    /// Its value.
    pub value: u32,
}

impl Setting {
    pub(crate) fn encode(&self, body: &mut Body<'_>) {
        body.header(&ifi::header(self.ifindex));
        let (family, _, at) = self.key.place();
        body.nested(IFLA_AF_SPEC, |families| match family {
            "ipv4" => families.nested(libc::AF_INET as u16, |inet| {
                inet.nested(IFLA_INET_CONF, |values| values.u32(at + 1, self.value));
            }),
            _ => families.nested(libc::AF_INET6 as u16, |inet6| {
                inet6.attribute(IFLA_INET6_ADDR_GEN_MODE, &[self.value as u8]);
            }),
        });
    }
}
