//! Addresses of devices: `ip addr replace <address> dev <device>`. Kernel: net/ipv4/devinet.c, net/ipv6/addrconf.c.

use ipnetwork::IpNetwork;

use crate::Family;
use crate::wire::{Body, Message, address};

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// No duplicate address detection.
const IFA_F_NODAD: u8 = 0x02;

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

    pub(crate) fn parse(message: &Message<'_>) -> Option<Self> {
        let (header, attributes) = message.split::<8>()?;
        let ifindex = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
        let (mut local, mut peer) = (None, None);
        for (kind, value) in attributes {
            match kind {
                IFA_LOCAL => local = address(value),
                IFA_ADDRESS => peer = address(value),
                _ => (),
            }
        }
        // On a point-to-point device IFA_ADDRESS is the other end; IPv6 mostly gives IFA_ADDRESS alone.
        let address = IpNetwork::new(local.or(peer)?, header[1]).ok()?;
        Some(Self { ifindex, address })
    }
}

/// `struct ifaddrmsg`: family, prefix length, flags, scope, ifindex. Scope 0 is global; the kernel finds an IPv6
/// address's scope by itself.
pub(crate) fn header(family: Option<Family>, prefix: u8, ifindex: u32) -> [u8; 8] {
    let flags = if family == Some(Family::V6) { IFA_F_NODAD } else { 0 };
    let [i0, i1, i2, i3] = ifindex.to_ne_bytes();
    [family.map_or(0, Family::number), prefix, flags, 0, i0, i1, i2, i3]
}
