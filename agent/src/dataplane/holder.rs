//! Who has a UDP port, when the kernel says no more than that it is in use; who listens on the name of a lock.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use netlink_ext::link::{Link, VxlanSpec};
pub(crate) use netlink_ext::unix::{Listener, listener};

use crate::overlay::Shown;
use crate::process;

/// The least time between two searches of /proc for the process that has a socket: the event loop waits for them.
const SEARCH_EVERY: Duration = Duration::from_secs(60);

/// Says who keeps a device from having its UDP port, as far as it can be known from here.
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// When a process was searched for last, by its socket's inode, and what was found.
    searched: Option<(Instant, u64, Option<String>)>,
}

impl Holders {
    pub(super) fn of_port(&mut self, links: &[Link], spec: &VxlanSpec) -> String {
        of_device(links, spec).or_else(|| self.of_socket(spec)).unwrap_or_else(|| {
            format!("somebody who can't be seen from here (on the host, `ss -lunp sport = {}` may tell)", spec.port)
        })
    }

    /// A UDP socket on the port, with its process where that can be found.
    fn of_socket(&mut self, spec: &VxlanSpec) -> Option<String> {
        let socket = socket_on(spec)?;
        let process = self.process_of(socket.inode, Instant::now(), process_of);
        let whose = process.unwrap_or_else(|| {
            format!(
                "of user {}, inode {}; its process can't be seen from here, or the kernel has it for a tunnel",
                socket.user, socket.inode
            )
        });
        Some(format!("a UDP socket on {} ({whose})", std::net::SocketAddr::new(socket.address, socket.port)))
    }

    /// What `search` finds for this socket, or found before. It is not asked more often than every [`SEARCH_EVERY`].
    fn process_of(&mut self, inode: u64, now: Instant, search: impl FnOnce(u64) -> Option<String>) -> Option<String> {
        let recent = self.searched.as_ref().filter(|(at, ..)| now < *at + SEARCH_EVERY);
        if let Some((_, searched, found)) = recent {
            return found.clone().filter(|_| *searched == inode);
        }
        let found = search(inode);
        self.searched = Some((now, inode, found.clone()));
        found
    }
}

/// A VXLAN device that is up with the same port and does not share its socket with ours: the kernel shares one among
/// devices of the same options only (`vxlan_find_sock`, drivers/net/vxlan/vxlan_core.c).
pub(super) fn of_device(links: &[Link], spec: &VxlanSpec) -> Option<String> {
    let others = || {
        let of_port = |link: &&Link| link.vxlan.as_ref().is_some_and(|vxlan| vxlan.port == spec.port);
        links.iter().filter(|link| link.up && link.name != spec.name).filter(of_port)
    };
    let is = |link: &&Link, what: fn(&netlink_ext::link::Vxlan) -> bool| link.vxlan.as_ref().is_some_and(what);
    if let Some(link) = others().find(|link| is(link, |vxlan| vxlan.external)) {
        return Some(format!("{}, a VXLAN device in external mode", link.name));
    }
    let of_other_gbp = |link: &&Link| link.vxlan.as_ref().is_some_and(|vxlan| vxlan.gbp != spec.gbp);
    others().find(of_other_gbp).map(|link| format!("{}, a VXLAN device with another `gbp`", link.name))
}

/// A UDP socket on the port, from /proc/net/udp and udp6.
fn socket_on(spec: &VxlanSpec) -> Option<Udp> {
    let sockets = ["udp", "udp6"]
        .into_iter()
        .filter_map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")).ok());
    let sockets: Vec<Udp> =
        sockets.flat_map(|table| table.lines().filter_map(Udp::parse).collect::<Vec<_>>()).collect();
    // The socket of an IPv6 device takes no IPv4, so what is in IPv4 is not in its way. One of IPv6 may take both.
    let is_v4 = spec.local.is_ipv4();
    let of_family = |socket: &&Udp| socket.port == spec.port && socket.address.is_ipv4() == is_v4;
    let of_both = |socket: &&Udp| socket.port == spec.port && is_v4 && socket.address == Ipv6Addr::UNSPECIFIED;
    sockets.iter().find(of_family).or_else(|| sockets.iter().find(of_both)).copied()
}

/// A line of /proc/net/udp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Udp {
    address: IpAddr,
    port: u16,
    user: u32,
    inode: u64,
}

impl Udp {
    /// `None` for the head and for what has another form.
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (address, port) = fields.get(1)?.split_once(':')?;
        // Words of the network's order, each printed as a number of this machine.
        let words = (0..address.len() / 8).map(|at| u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok());
        let bytes: Vec<u8> = words.collect::<Option<Vec<u32>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect();
        let address = match bytes.len() {
            4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
            16 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
            _ => return None,
        };
        let port = u16::from_str_radix(port, 16).ok()?;
        Some(Self { address, port, user: fields.get(7)?.parse().ok()?, inode: fields.get(9)?.parse().ok()? })
    }
}

/// The process that has a socket open, as `pid 7, name`.
fn process_of(inode: u64) -> Option<String> {
    let pid = process::with_socket(inode)?;
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("pid {pid}, {}", Shown::new(name.trim_ascii_end())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_both_families_are_read() {
        let v4 =
            " 1036: 0100007F:2118 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 5067 2 0 0";
        let socket = Udp { address: "127.0.0.1".parse().unwrap(), port: 8472, user: 101, inode: 5067 };
        assert_eq!(Udp::parse(v4), Some(socket));
        let v6 = "  70: 0000000000000000FFFF00000100007F:2118 00000000000000000000000000000000:0000 07 0:0 00:0 0 0 0 9 2 0 0";
        assert_eq!(Udp::parse(v6).map(|socket| socket.address), Some("::ffff:127.0.0.1".parse().unwrap()));
        for junk in ["", "sl local_address rem_address st", "1: 0100:2118 0 0 0 0 0 0 0 0", "1: ZZ00007F:2118 x"] {
            assert_eq!(Udp::parse(junk), None, "{junk:?}");
        }
    }

    #[test]
    fn a_process_is_searched_for_once_a_minute_at_the_most() {
        let (began, mut holders, mut searches) = (Instant::now(), Holders::default(), Vec::new());
        for second in 0..=60 {
            // Another socket each time, as of a program that is started again and again; then the same one.
            let inode = if second < 30 { second } else { 0 };
            let found = holders.process_of(inode, began + Duration::from_secs(second), |inode| {
                searches.push(second);
                Some(format!("pid {inode}"))
            });
            assert_eq!(found, (inode == 0).then(|| "pid 0".to_owned()), "second {second}");
        }
        assert_eq!(searches, [0, 60]);
    }
}
