//! The floor: the same messages encoded by hand, plain system calls, no error handling beyond "it must work".

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use netlink_ext::Mac;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{MsgFlags, recv, send};
use socket2::{SockFilter, SockRef};

use crate::peers::{PREFIX, PROTOCOL, Peer, Work};

/// Messages in a datagram, as netlink-ext has it.
const CHUNK: u32 = 256;
const PUT: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
const ACK: u16 = libc::NLM_F_ACK as u16;
const FLAGS: usize = 6;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_PROTOCOL: u16 = 12;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;

/// Messages one behind the other.
#[derive(Default)]
pub(crate) struct Raw {
    bytes: Vec<u8>,
    last: usize,
}

impl Raw {
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
    }

    fn header(&mut self, length: u32, kind: u16) {
        self.last = self.bytes.len();
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&PUT.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]); // sequence and port
    }

    fn word(&mut self, kind: u16, value: [u8; 4]) {
        self.bytes.extend_from_slice(&8_u16.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&value);
    }

    fn mac(&mut self, mac: Mac) {
        self.bytes.extend_from_slice(&10_u16.to_ne_bytes());
        self.bytes.extend_from_slice(&NDA_LLADDR.to_ne_bytes());
        self.bytes.extend_from_slice(&mac);
        self.bytes.extend_from_slice(&[0; 2]);
    }

    /// `struct ndmsg`; `state` and `flags` are each one byte here.
    fn ndm(&mut self, family: u8, ifindex: u32, state: u8, flags: u8) {
        self.bytes.extend_from_slice(&[family, 0, 0, 0]);
        self.bytes.extend_from_slice(&ifindex.to_ne_bytes());
        self.bytes.extend_from_slice(&u16::from(state).to_ne_bytes());
        self.bytes.extend_from_slice(&[flags, 0]);
    }

    pub(crate) fn fdb(&mut self, peer: Peer, ifindex: u32, remote: Ipv4Addr) {
        self.header(48, libc::RTM_NEWNEIGH);
        self.ndm(libc::AF_BRIDGE as u8, ifindex, 0xc0, 2); // NOARP | PERMANENT, NTF_SELF
        self.mac(peer.mac());
        self.word(NDA_DST, remote.octets());
    }

    pub(crate) fn neigh(&mut self, peer: Peer, ifindex: u32, address: Ipv4Addr) {
        self.header(56, libc::RTM_NEWNEIGH);
        self.ndm(libc::AF_INET as u8, ifindex, 0x80, 0); // PERMANENT
        self.bytes.extend_from_slice(&5_u16.to_ne_bytes());
        self.bytes.extend_from_slice(&NDA_PROTOCOL.to_ne_bytes());
        self.bytes.extend_from_slice(&[PROTOCOL, 0, 0, 0]);
        self.word(NDA_DST, address.octets());
        self.mac(peer.mac());
    }

    pub(crate) fn route(&mut self, peer: Peer, ifindex: u32) {
        self.header(60, libc::RTM_NEWROUTE);
        let (table, scope, kind) = (libc::RT_TABLE_MAIN, libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST);
        self.bytes.extend_from_slice(&[libc::AF_INET as u8, PREFIX, 0, 0, table, PROTOCOL, scope, kind]);
        self.bytes.extend_from_slice(&4_u32.to_ne_bytes()); // RTNH_F_ONLINK
        self.word(RTA_DST, peer.gateway().octets());
        self.word(RTA_GATEWAY, peer.gateway().octets());
        self.word(RTA_PRIORITY, peer.metric().to_ne_bytes());
        self.word(RTA_OIF, ifindex.to_ne_bytes());
    }

    fn acknowledge_last(&mut self) {
        let at = self.last + FLAGS;
        self.bytes[at..at + 2].copy_from_slice(&(PUT | ACK).to_ne_bytes());
    }
}

/// The datagrams for the peers from 1 to `count`, one ACK in each.
pub(crate) fn datagrams(work: Work, count: u32, ifindex: u32, remote: Ipv4Addr) -> Vec<Raw> {
    let per_peer = if work == Work::Peer { 3 } else { 1 };
    let numbers: Vec<u32> = (1..=count).collect();
    let one = |numbers: &[u32]| {
        let mut raw = Raw::default();
        for peer in numbers.iter().map(|n| Peer(*n)) {
            if matches!(work, Work::Fdb | Work::Peer) {
                raw.fdb(peer, ifindex, remote);
            }
            if matches!(work, Work::Neigh | Work::Peer) {
                raw.neigh(peer, ifindex, peer.gateway());
            }
            if matches!(work, Work::Route | Work::Peer) {
                raw.route(peer, ifindex);
            }
        }
        raw.acknowledge_last();
        raw
    };
    numbers.chunks((CHUNK / per_peer) as usize).map(one).collect()
}

/// A netlink socket for requests.
pub(crate) struct Requests(Socket);

impl Requests {
    pub(crate) fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Sends a datagram and does not look at what it came to.
    pub(crate) fn tell(&self, raw: &Raw) -> Result<()> {
        send(self.0.as_raw_fd(), &raw.bytes, MsgFlags::empty()).context("send")?;
        Ok(())
    }

    /// Sends a datagram and reads its one acknowledgement.
    pub(crate) fn exchange(&self, raw: &Raw) -> Result<()> {
        self.tell(raw)?;
        let mut answer = [0; 4096];
        let length = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty()).context("read the acknowledgement")?;
        let errno = answer.get(16..20).filter(|_| length >= 20).context("a short answer")?;
        ensure!(errno == [0; 4], "the kernel refused a hand-made message: {errno:?}");
        Ok(())
    }
}

/// A socket that gets the misses of one device.
pub(crate) struct Misses(Socket);

impl Misses {
    const BUFFER: usize = 8 << 20;

    pub(crate) fn open(ifindex: u32) -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &Self::BUFFER)?;
        SockRef::from(&socket).attach_filter(&[
            SockFilter::new(0x28, 0, 0, 4), // load the type
            SockFilter::new(0x15, 0, 3, u32::from(libc::RTM_GETNEIGH.to_be())),
            SockFilter::new(0x20, 0, 0, 20), // load the ifindex
            SockFilter::new(0x15, 0, 1, ifindex.to_be()),
            SockFilter::new(0x06, 0, 0, u32::MAX),
            SockFilter::new(0x06, 0, 0, 0),
        ])?;
        socket.add_membership(libc::RTNLGRP_NEIGH)?;
        Ok(Self(socket))
    }

    /// Waits for a datagram; the address that it asks for, if it is an L3 miss.
    pub(crate) fn next(&self, buffer: &mut [u8]) -> Option<Ipv4Addr> {
        let length = recv(self.0.as_raw_fd(), buffer, MsgFlags::empty()).ok()?;
        let mut rest = buffer.get(28..length)?;
        while let Some(&[l0, l1, k0, k1]) = rest.first_chunk::<4>() {
            let length = usize::from(u16::from_ne_bytes([l0, l1]));
            let value = rest.get(4..length)?;
            if u16::from_ne_bytes([k0, k1]) == NDA_DST {
                return <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from);
            }
            rest = rest.get(length.next_multiple_of(4)..)?;
        }
        None
    }
}
