//! The netlink sockets: transactions, reads and notifications of nf_tables.
//!
//! The kernel works a transaction off within the system call that sends it, so its answers are there when that returns.

use std::io;
use std::time::Duration;

use netlink_ext::uninterrupted;
use netlink_packet_core::{NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, NfTablesMessage, RuleAttribute, RuleMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_sys::constants::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, Socket, SocketAddr, TokioSocket};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Error;
use super::fight::Writer;
use super::rules::Table;
use super::wire::{self, Step};

/// `NFNLGRP_NFTABLES`, include/uapi/linux/netfilter/nfnetlink.h.
const GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES`: whom a transaction is for.
const SUBSYSTEM: u16 = 10;
/// The message type of a rule as the kernel shows it: the subsystem and `NFT_MSG_NEWRULE`.
const NEWRULE: u16 = SUBSYSTEM << 8 | 6;
/// `NFT_MSG_NEWGEN`: behind each transaction the kernel says who made it. include/uapi/linux/netfilter/nf_tables.h
const NEWGEN: u16 = SUBSYSTEM << 8 | 15;
/// `NFTA_GEN_PROC_PID`, `NFTA_GEN_PROC_NAME`; and the table's name, first in a table's, a chain's and a rule's message.
const PROC_PID: u16 = 2;
const PROC_NAME: u16 = 3;
const TABLE_NAME: u16 = 1;
/// `struct nfgenmsg`.
const GENERIC: usize = 4;
/// The kernel fills datagrams of a dump up to 32 KiB.
const BUFFER: usize = 64 << 10;
const HEADER: usize = 16;
/// include/uapi/linux/netlink.h
const NLM_F_DUMP_INTR: u16 = 0x10;
const OPEN: &str = "open a socket to nf_tables";
/// For an answer of the kernel, in milliseconds: it is there at once unless something is very wrong.
const ANSWER_WITHIN_MS: u16 = 5_000;

/// A message as the kernel showed it.
pub(super) struct Shown {
    pub family: NetfilterProtoFamily,
    /// `None` where this library cannot read it: an expression of others.
    pub message: Option<NfTablesMessage>,
}

/// A socket for transactions and reads.
pub(super) struct Nft {
    socket: Socket,
    /// By which the kernel names us as the writer of a transaction.
    pub port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Nft {
    pub(super) fn open() -> Result<Self, Error> {
        let failed = |source| Error::Socket { step: OPEN, source };
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(failed)?;
        let port = socket.bind_auto().map_err(failed)?.port_number();
        Ok(Self { socket, port, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Carries out all of it or nothing; the first refusal is the error.
    ///
    /// The kernel answers to each message that it refuses, and last to the last one, which asks for an answer. What concerns
    /// the batch as a whole (no permission, no memory, a failed commit) it answers to the first.
    /// net/netfilter/nfnetlink.c, `nfnetlink_rcv_batch`.
    pub(super) fn transact(&mut self, step: &'static str, steps: &[Step]) -> Result<(), Error> {
        let mut datagram = Vec::new();
        let control =
            |message| NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM), message);
        let request = libc::NLM_F_REQUEST as u16;
        self.write(&mut datagram, control(ControlMessage::BatchBegin), request);
        let first = self.sequence;
        for (at, one) in steps.iter().enumerate() {
            let last = if at + 1 == steps.len() { libc::NLM_F_ACK as u16 } else { 0 };
            let message = NetfilterMessage::new(NetfilterHeader::new(one.family, 0, 0), one.message.clone());
            self.write(&mut datagram, message, request | one.flags | last);
        }
        let last = self.sequence;
        self.write(&mut datagram, control(ControlMessage::BatchEnd), request);
        self.send(step, &datagram)?;
        let mut outcome = Ok(());
        let mut answered = false;
        while !answered {
            let length = self.receive(step)?;
            for_each(&self.buffer[..length], |header, body| {
                // Wrapping, as the numbers are.
                let ours = header.sequence_number.wrapping_sub(first) <= last.wrapping_sub(first);
                if ours && header.message_type == libc::NLMSG_ERROR as u16 {
                    answered |= [first, last].contains(&header.sequence_number);
                    if outcome.is_ok() {
                        outcome = refusal(step, body);
                    }
                }
                Ok(())
            })?;
        }
        outcome
    }

    /// What the kernel has of a table: the bytes of all it shows of table, chains and rules, equal as long as nobody
    /// changes anything. Empty if it is not there.
    pub(super) fn show(&mut self, table: &Table) -> Result<Vec<u8>, Error> {
        let family = wire::family(table.family);
        let mut shown = Vec::new();
        let name = table.name.clone();
        let of_table = TableMessage { attributes: vec![TableAttribute::Name(name.clone())] };
        self.raw(family, NfTablesMessage::GetTable(of_table), false, &mut shown)?;
        for chain in &table.chains {
            let attributes = vec![ChainAttribute::Table(name.clone()), ChainAttribute::Name(chain.name.to_owned())];
            self.raw(family, NfTablesMessage::GetChain(ChainMessage { attributes }), false, &mut shown)?;
        }
        let rules = RuleMessage { attributes: vec![RuleAttribute::Table(name)] };
        self.raw(family, NfTablesMessage::GetRule(rules), true, &mut shown)?;
        Ok(shown)
    }

    /// Reads an answer, a dump or one object, message by message.
    pub(super) fn read(
        &mut self,
        family: NetfilterProtoFamily,
        get: NfTablesMessage,
        dump: bool,
        mut each: impl FnMut(Shown),
    ) -> Result<(), Error> {
        let mut bytes = Vec::new();
        self.raw(family, get, dump, &mut bytes)?;
        for_each(&bytes, |header, body| {
            let family = body.first().map_or(NetfilterProtoFamily::Unspec, |family| (*family).into());
            let message = parse(&header, body).and_then(|message| match message.inner {
                NetfilterMessageInner::NfTables(inner) => Some(inner),
                _ => None,
            });
            each(Shown { family, message });
            Ok(())
        })
    }

    /// Asks, and appends the messages of the answer as they come. What is not there gives nothing; a dump during which the
    /// rules changed may lack some, and is an error.
    fn raw(
        &mut self,
        family: NetfilterProtoFamily,
        get: NfTablesMessage,
        dump: bool,
        into: &mut Vec<u8>,
    ) -> Result<(), Error> {
        const STEP: &str = "read the rules";
        let how = if dump { libc::NLM_F_DUMP } else { libc::NLM_F_ACK };
        let mut datagram = Vec::new();
        let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), get);
        self.write(&mut datagram, message, (libc::NLM_F_REQUEST | how) as u16);
        self.send(STEP, &datagram)?;
        let sequence = self.sequence;
        let (mut done, mut interrupted) = (false, false);
        while !done {
            let length = self.receive(STEP)?;
            for_each(&self.buffer[..length], |header, body| {
                if header.sequence_number != sequence {
                    return Ok(());
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match i32::from(header.message_type) {
                    libc::NLMSG_DONE => done = true,
                    libc::NLMSG_ERROR => {
                        done = true;
                        match refusal(STEP, body) {
                            Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => {}
                            other => return other,
                        }
                    }
                    _ => append(into, &header, body),
                }
                Ok(())
            })?;
        }
        if interrupted {
            return Err(Error::Changing { step: STEP });
        }
        Ok(())
    }

    fn write(&mut self, datagram: &mut Vec<u8>, message: NetfilterMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        (header.flags, header.sequence_number) = (flags, self.sequence);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let start = datagram.len();
        datagram.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut datagram[start..]);
    }

    fn send(&self, step: &'static str, datagram: &[u8]) -> Result<(), Error> {
        let sent = uninterrupted(|| self.socket.send_to(datagram, &SocketAddr::new(0, 0), 0));
        sent.map(drop).map_err(|source| Error::Socket { step, source })
    }

    fn receive(&mut self, step: &'static str) -> Result<usize, Error> {
        let failed = |source| Error::Socket { step, source };
        loop {
            match uninterrupted(|| self.socket.recv_from(&mut &mut self.buffer[..], libc::MSG_DONTWAIT)) {
                Ok((length, _)) => return Ok(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut wait = [PollFd::new(fd(&self.socket), PollFlags::POLLIN)];
                    let timeout = PollTimeout::from(ANSWER_WITHIN_MS);
                    if uninterrupted(|| poll(&mut wait, timeout).map_err(io::Error::from)).map_err(failed)? == 0 {
                        return Err(failed(io::ErrorKind::TimedOut.into()));
                    }
                }
                Err(source) => return Err(failed(source)),
            }
        }
    }
}

fn fd(socket: &Socket) -> std::os::fd::BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(socket)
}

/// How many rules are in what [`Nft::show`] returned.
pub(super) fn count_rules(shown: &[u8]) -> usize {
    let mut count = 0;
    let _ = for_each(shown, |header, _| {
        count += usize::from(header.message_type == NEWRULE);
        Ok(())
    });
    count
}

fn parse(header: &NetlinkHeader, body: &[u8]) -> Option<NetfilterMessage> {
    use netlink_packet_core::NetlinkDeserializable;
    NetfilterMessage::deserialize(header, body).ok()
}

/// A message again, without what changes from answer to answer: its sequence number, and the ruleset's generation, which
/// counts everybody's transactions (`nfgenmsg.res_id`).
fn append(into: &mut Vec<u8>, header: &NetlinkHeader, body: &[u8]) {
    let length = (HEADER + body.len()) as u32;
    into.extend(length.to_ne_bytes());
    into.extend(header.message_type.to_ne_bytes());
    into.extend([0; 10]);
    let start = into.len();
    into.extend(body);
    if let Some(generation) = into.get_mut(start + 2..start + 4) {
        generation.fill(0);
    }
    into.resize(into.len().next_multiple_of(4), 0);
}

/// The value of an attribute of this kind. include/uapi/linux/netlink.h, `struct nlattr`
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some([l1, l2, k1, k2]) = attributes.first_chunk() {
        let (length, kind) = (usize::from(u16::from_ne_bytes([*l1, *l2])), u16::from_ne_bytes([*k1, *k2]));
        // Without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
        if kind & 0x3fff == wanted {
            return attributes.get(4..length);
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
    None
}

/// A string without the zero at its end.
fn text(value: &[u8]) -> &[u8] {
    value.strip_suffix(&[0]).unwrap_or(value)
}

fn for_each(datagram: &[u8], mut each: impl FnMut(NetlinkHeader, &[u8]) -> Result<(), Error>) -> Result<(), Error> {
    let mut rest = datagram;
    while let Ok(buffer) = NetlinkBuffer::new_checked(rest) {
        let length = buffer.length() as usize;
        let mut header = NetlinkHeader::default();
        (header.length, header.message_type) = (buffer.length(), buffer.message_type());
        (header.flags, header.sequence_number) = (buffer.flags(), buffer.sequence_number());
        header.port_number = buffer.port_number();
        each(header, &rest[HEADER.min(length)..length])?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}

/// The answer in an `NLMSG_ERROR` message; 0 is none.
fn refusal(step: &'static str, body: &[u8]) -> Result<(), Error> {
    let code = body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    if code == 0 { Ok(()) } else { Err(Error::Refused { step, source: io::Error::from_raw_os_error(-code) }) }
}

/// A socket that hears of every transaction in this network namespace, our own included.
pub(super) struct Notices {
    socket: TokioSocket,
    /// Our tables' name, and the port of those of our own transactions.
    name: String,
    own: u32,
    /// Who is changing a table of that name now.
    at_it: Option<u32>,
    /// Who last did.
    writer: Option<Writer>,
}

impl Notices {
    /// To hear who else changes tables of this name; `own` is the port of who may.
    pub(super) fn open(name: String, own: u32) -> Result<Self, Error> {
        let failed = |source| Error::Socket { step: OPEN, source };
        let mut socket = TokioSocket::new(NETLINK_NETFILTER).map_err(failed)?;
        socket.socket_mut().bind_auto().map_err(failed)?;
        socket.socket_mut().add_membership(GROUP).map_err(failed)?;
        Ok(Self { socket, name, own, at_it: None, writer: None })
    }

    /// Who else has changed our tables since this was asked last, if that is known.
    pub(super) fn take_writer(&mut self) -> Option<Writer> {
        self.writer.take()
    }

    /// Waits for a change. That some were lost (`ENOBUFS`) is an error and a change as well; any other error stays.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        let (datagram, _) = self.socket.recv_from_full().await?;
        // A message that cannot be read names nobody.
        let _ = for_each(&datagram, |header, body| {
            self.note(&header, body);
            Ok(())
        });
        Ok(())
    }

    fn note(&mut self, header: &NetlinkHeader, body: &[u8]) {
        let port = header.port_number;
        if port == self.own {
            return;
        }
        let attributes = body.get(GENERIC..).unwrap_or_default();
        if header.message_type != NEWGEN {
            let is_ours = attribute(attributes, TABLE_NAME).is_some_and(|name| text(name) == self.name.as_bytes());
            self.at_it = if is_ours { Some(port) } else { self.at_it };
        } else if self.at_it.take_if(|at_it| *at_it == port).is_some() {
            let pid = attribute(attributes, PROC_PID).and_then(|pid| pid.first_chunk().copied());
            let name = attribute(attributes, PROC_NAME).map(text).unwrap_or_default();
            self.writer = pid.map(|pid| Writer { name: name.to_vec(), pid: u32::from_be_bytes(pid) });
        }
    }

    /// Forgets what has arrived.
    pub(super) async fn drain(&mut self) {
        while let Ok(Ok(())) = tokio::time::timeout(Duration::ZERO, self.changed()).await {}
    }
}
