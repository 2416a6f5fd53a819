//! Addresses of devices: `ip addr replace <address> dev <device>`. Kernel: net/ipv4/devinet.c, net/ipv6/addrconf.c.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::Family;
use crate::wire::{Body, Message, address, u32_value};

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// The flags in full; the header has room for the first eight.
const IFA_FLAGS: u16 = 8;
/// In IPv4 `IFA_F_SECONDARY`: another address of the same prefix came before.
const IFA_F_TEMPORARY: u32 = 0x01;
/// Its valid lifetime has no end.
const IFA_F_PERMANENT: u32 = 0x80;
/// No duplicate address detection.
const IFA_F_NODAD: u8 = 0x02;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_DEPRECATED: u32 = 0x20;
const IFA_F_TENTATIVE: u32 = 0x40;

/// An address on a device.
///
/// An IPv6 one is put without duplicate address detection. That would take a second, in which the kernel refuses the
/// address as a route's source ("Invalid source address"), and asks by multicast, which an overlay doesn't carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// The device.
    pub ifindex: u32,
    /// The address with the length of its prefix; the bits behind the prefix count.
    pub address: IpNetwork,
}

impl Address {
    pub(crate) fn encode(&self, body: &mut Body<'_>) {
        let address = self.address.ip();
        body.header(&header(Some(address.into()), self.address.prefix(), self.ifindex));
        body.address(IFA_LOCAL, address);
        body.address(IFA_ADDRESS, address);
    }
}

/// An address as the kernel shows it, with its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seen {
    /// The address.
    pub address: Address,
    /// The other end of a point-to-point address. The prefix is that of this end then.
    pub peer: Option<IpAddr>,
    /// `RT_SCOPE_UNIVERSE` (0), `RT_SCOPE_LINK` (253), `RT_SCOPE_HOST` (254), ...
    pub scope: u8,
    /// The `IFA_F_...` flags; include/uapi/linux/if_addr.h.
    pub flags: u32,
}

impl Seen {
    pub(crate) fn parse(message: &Message<'_>) -> Option<Self> {
        let (header, attributes) = message.split::<8>()?;
        let ifindex = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
        let (mut local, mut given, mut flags) = (None, None, u32::from(header[2]));
        for (kind, value) in attributes {
            match kind {
                IFA_LOCAL => local = address(value),
                IFA_ADDRESS => given = address(value),
                IFA_FLAGS => flags = u32_value(value)?,
                _ => (),
            }
        }
        // On a point-to-point device IFA_ADDRESS is the other end; IPv6 mostly gives IFA_ADDRESS alone.
        let address = IpNetwork::new(local.or(given)?, header[1]).ok()?;
        let peer = given.filter(|given| *given != address.ip());
        Some(Self { address: Address { ifindex, address }, peer, scope: header[3], flags })
    }

    /// Made by privacy extensions: the kernel takes another one within days (`temp_prefered_lft`).
    pub fn is_temporary(&self) -> bool {
        self.address.address.is_ipv6() && self.has(IFA_F_TEMPORARY)
    }

    /// Another address of the same prefix came before. Only IPv4 has such.
    pub fn is_secondary(&self) -> bool {
        self.address.address.is_ipv4() && self.has(IFA_F_TEMPORARY)
    }

    /// The kernel removes it when its valid lifetime is over, unless somebody renews that: a DHCP client, a router.
    pub fn ends(&self) -> bool {
        !self.has(IFA_F_PERMANENT)
    }

    /// Its preferred lifetime is over: new connections shall use another one.
    pub fn is_deprecated(&self) -> bool {
        self.has(IFA_F_DEPRECATED)
    }

    /// Duplicate address detection is not through; `IFA_F_OPTIMISTIC` addresses are that too.
    pub fn is_tentative(&self) -> bool {
        self.has(IFA_F_TENTATIVE) && !self.is_duplicate()
    }

    /// Duplicate address detection found another host with it; the kernel doesn't use it.
    pub fn is_duplicate(&self) -> bool {
        self.has(IFA_F_DADFAILED)
    }

    /// Scope host: valid inside this host only.
    pub fn is_host_local(&self) -> bool {
        self.scope >= libc::RT_SCOPE_HOST
    }

    /// Scope link: valid on its link only.
    pub fn is_link_local(&self) -> bool {
        self.scope == libc::RT_SCOPE_LINK
    }

    fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

/// `struct ifaddrmsg`: family, prefix length, flags, scope, ifindex. Scope 0 is global; the kernel finds an IPv6
/// address's scope by itself.
pub(crate) fn header(family: Option<Family>, prefix: u8, ifindex: u32) -> [u8; 8] {
    let flags = if family == Some(Family::V6) { IFA_F_NODAD } else { 0 };
    let [i0, i1, i2, i3] = ifindex.to_ne_bytes();
    [family.map_or(0, Family::number), prefix, flags, 0, i0, i1, i2, i3]
}
