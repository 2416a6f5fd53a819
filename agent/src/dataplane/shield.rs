//! What a frame from the tunnel may change of this host: nothing.
//!
//! Whoever can send a UDP datagram to the VXLAN port can put any frame on our device. Without more, the kernel takes a
//! router advertisement from it (a default route and an address for this host), redirects, source routes, and a
//! neighbour for the sender of each ARP request. The values here end that, as far as the kernel has a value for it;
//! `masquerade` drops the same packets by rules, and what ARP and neighbour discovery teach besides.
//!
//! The IPv4 values are set by netlink. The IPv6 ones need a writable /proc/sys, which a container without privileges
//! does not have.

use std::fs;

use netlink_ext::conf::{Key, Setting};
use netlink_ext::link::Link;
use netlink_ext::{BatchSocket, Family, Request};

use super::Error;

/// For the devices of both families. flannel sets `accept_ra` alone (pkg/backend/vxlan/device.go of v0.28.9).
const ALWAYS: [(Key, u32); 10] = [
    (Key::AcceptRedirects4, 0),
    (Key::AcceptSourceRoute4, 0),
    // Answer no ARP request, and learn from none: peers never ask.
    (Key::ArpIgnore, 8),
    (Key::ArpAccept, 0),
    (Key::DropGratuitousArp, 1),
    (Key::RouteLocalnet, 0),
    // No link-local address: nothing here needs it, and it can be spoken to through the tunnel.
    (Key::AddrGenMode, 1),
    (Key::AcceptRa, 0),
    (Key::AcceptRedirects6, 0),
    (Key::DropUnsolicitedNa, 1),
];
/// For the IPv4 device, which has no use for IPv6 at all.
const OF_V4: [(Key, u32); 1] = [(Key::DisableIpv6, 1)];

/// Sets what is not set yet; returns what could not be, each as `<path>=<value>: <reason>`.
///
/// # Errors
/// When the socket fails.
pub(super) fn raise(batch: &mut BatchSocket, link: &Link, family: Family) -> Result<Vec<String>, Error> {
    let of_family = if family == Family::V4 { &OF_V4[..] } else { &[] };
    let due: Vec<(Key, u32)> =
        ALWAYS.iter().chain(of_family).copied().filter(|(key, value)| is_due(link, *key, *value)).collect();
    let (by_netlink, by_proc): (Vec<_>, Vec<_>) = due.into_iter().partition(|(key, _)| key.is_by_netlink());
    let setting =
        |(key, value): &(Key, u32)| Request::SetConf(Setting { ifindex: link.index, key: *key, value: *value });
    let failures = batch.send(&by_netlink.iter().map(setting).collect::<Vec<_>>())?;
    let refused = failures.iter().map(|failure| (by_netlink[failure.index], failure.refusal.to_string()));
    let unwritten = by_proc.into_iter().filter_map(|(key, value)| {
        let written = fs::write(format!("/proc/sys/net/{}", key.path(&link.name)), value.to_string());
        written.err().map(|error| ((key, value), error.to_string()))
    });
    let open = refused.chain(unwritten);
    Ok(open.map(|((key, value), reason)| format!("{}={value}: {reason}", key.path(&link.name))).collect())
}

/// What the kernel does not show, it does not have.
fn is_due(link: &Link, key: Key, value: u32) -> bool {
    link.conf.get(key).is_some_and(|there| there != value)
}
