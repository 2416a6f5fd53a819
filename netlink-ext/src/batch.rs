//! Many requests in one system call, with one acknowledgement, and each error at the request that caused it.
//!
//! The kernel works through all messages of a datagram, whatever becomes of each. A message without `NLM_F_ACK` answers
//! only if it fails, so a chunk costs one answer when all is well. See `netlink_rcv_skb`, net/netlink/af_netlink.c.

use std::net::IpAddr;
use std::time::Duration;

use crate::netlink::{BUFFER, Netlink, refusal_of_error};
use crate::wire::{Body, Datagram, Messages};
use crate::{Error, Refusal, addr, conf, fdb, neigh, neightbl, route};

/// Messages in one datagram. More gain nothing (each costs the kernel a microsecond or so, the call about as much), and
/// the caller can look after something else between two datagrams.
pub const CHUNK: usize = 256;

/// How long to wait for an answer. It is in the queue when the send returns; this is for a kernel that is in trouble.
pub const TIMEOUT: Duration = crate::netlink::TIMEOUT;

/// Room for [`CHUNK`] refusals of up to 2 KiB: an answer with text is charged some 1,300 bytes.
const RECEIVE_BUFFER: usize = 512 * 1024;

/// How often one piece of a batch is tried anew after a failure of the socket, in ever smaller pieces.
const TRIES: u32 = 5;

/// One thing to be done. `Put` creates what isn't there and replaces what is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Writes a permanent FDB row of a VXLAN device.
    PutFdb(fdb::Row),
    /// Deletes an FDB row with exactly this remote; one with another stays, and the kernel calls that a success.
    DelFdb(fdb::Row),
    /// Writes a neighbour.
    PutNeigh(neigh::Entry),
    /// Deletes a neighbour, whatever its state.
    DelNeigh {
        /// The device.
        ifindex: u32,
        /// The address.
        address: IpAddr,
    },
    /// Writes a route.
    PutRoute(route::Route),
    /// Deletes a route.
    DelRoute(route::Route),
    /// Writes an address.
    PutAddress(addr::Address),
    /// Deletes an address.
    DelAddress(addr::Address),
    /// Sets how a neighbour table resolves on a device.
    SetNeighParams(neightbl::Params),
    /// Sets what a device takes in from its link.
    SetConf(conf::Setting),
}

impl Request {
    fn is_delete(&self) -> bool {
        matches!(self, Self::DelFdb(_) | Self::DelNeigh { .. } | Self::DelRoute(_) | Self::DelAddress(_))
    }

    /// Message type and flags besides `NLM_F_REQUEST`.
    fn head(&self) -> (u16, i32) {
        const PUT: i32 = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        match self {
            Self::PutFdb(_) | Self::PutNeigh(_) => (libc::RTM_NEWNEIGH, PUT),
            Self::DelFdb(_) | Self::DelNeigh { .. } => (libc::RTM_DELNEIGH, 0),
            Self::PutRoute(_) => (libc::RTM_NEWROUTE, PUT),
            Self::DelRoute(_) => (libc::RTM_DELROUTE, 0),
            Self::PutAddress(_) => (libc::RTM_NEWADDR, PUT),
            Self::DelAddress(_) => (libc::RTM_DELADDR, 0),
            Self::SetNeighParams(_) => (libc::RTM_SETNEIGHTBL, 0),
            Self::SetConf(_) => (libc::RTM_SETLINK, 0),
        }
    }

    fn encode(&self, body: &mut Body<'_>) {
        match self {
            Self::PutFdb(row) | Self::DelFdb(row) => row.encode(body),
            Self::PutNeigh(entry) => entry.encode(body),
            Self::DelNeigh { ifindex, address } => neigh::encode_key(*ifindex, *address, body),
            Self::PutRoute(route) => route.encode(body, false),
            Self::DelRoute(route) => route.encode(body, true),
            Self::PutAddress(address) | Self::DelAddress(address) => address.encode(body),
            Self::SetNeighParams(params) => params.encode(body),
            Self::SetConf(setting) => setting.encode(body),
        }
    }

    pub(crate) fn write(&self, datagram: &mut Datagram, sequence: u32) {
        let (kind, flags) = self.head();
        datagram.message(kind, (libc::NLM_F_REQUEST | flags) as u16, sequence, |body| self.encode(body));
    }
}

/// A request that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Where it stood in the batch.
    pub index: usize,
    /// The kernel's answer.
    pub refusal: Refusal,
}

/// A socket for batches, with its buffers.
#[derive(Debug)]
pub struct BatchSocket {
    socket: Netlink,
    datagram: Datagram,
    answers: Vec<u8>,
    sequence: u32,
}

impl BatchSocket {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open() -> Result<Self, Error> {
        let socket = Netlink::open()?;
        socket.set_receive_buffer(RECEIVE_BUFFER)?;
        Ok(Self { socket, datagram: Datagram::default(), answers: vec![0; BUFFER], sequence: 0 })
    }

    /// The port id that notifications caused by this socket carry, except those of VXLAN FDB rows, which carry 0.
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Has the requests carried out in their order and returns those that the kernel refused, in the order of `index`.
    /// A refused request keeps none of the others from being carried out.
    ///
    /// When the kernel's answers are lost or the datagram could not be sent, the piece is sent anew, smaller, through a new
    /// socket of the same port if need be: every request may be made twice. A delete that is then found done counts as done.
    ///
    /// # Errors
    /// Only if the socket itself fails; then it is unknown which requests of the last chunk were carried out.
    pub fn send(&mut self, requests: &[Request]) -> Result<Vec<Failure>, Error> {
        let mut failures = Vec::new();
        let (mut start, mut piece, mut troubles) = (0, CHUNK, 0);
        let mut sent_before = 0; // requests below this index have been sent at least once
        while start < requests.len() {
            let end = requests.len().min(start + piece);
            let known = failures.len();
            match self.exchange(&requests[start..end], start, &mut failures) {
                Ok(()) => {
                    drop_done(&mut failures, known, requests, sent_before);
                    start = end;
                    if start >= sent_before {
                        (piece, troubles) = (CHUNK, 0);
                    }
                }
                Err(error) if troubles < TRIES => {
                    failures.truncate(known);
                    if error.is_passing() {
                        self.socket.drain(&mut self.answers);
                    } else {
                        self.socket.reopen()?;
                        self.socket.set_receive_buffer(RECEIVE_BUFFER)?;
                    }
                    sent_before = sent_before.max(end);
                    // A timeout has waited for long: once more, and no oftener.
                    troubles = if matches!(error, Error::Timeout { .. }) { TRIES } else { troubles + 1 };
                    piece = (piece / 4).max(1);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(failures)
    }

    /// One datagram and its answers.
    fn exchange(&mut self, requests: &[Request], offset: usize, failures: &mut Vec<Failure>) -> Result<(), Error> {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(requests.len() as u32);
        self.datagram.clear();
        for (sequence, request) in (0..).zip(requests) {
            request.write(&mut self.datagram, first.wrapping_add(sequence));
        }
        self.datagram.acknowledge_last();
        self.socket.send(self.datagram.bytes()).map_err(Error::socket("send batch"))?;
        loop {
            let length = self.socket.receive_answer(&mut self.answers, "read answers to batch")?;
            for message in Messages::new(&self.answers[..length]) {
                let message = message?;
                // Answers to an earlier piece, given up after a timeout, have other numbers.
                let index = message.sequence.wrapping_sub(first) as usize;
                if message.kind != libc::NLMSG_ERROR as u16 || index >= requests.len() {
                    continue;
                }
                if let Some(refusal) = refusal_of_error(message.flags, message.body) {
                    failures.push(Failure { index: offset + index, refusal });
                }
                if index == requests.len() - 1 {
                    return Ok(());
                }
            }
        }
    }
}

/// Takes out the failures from `known` on that only say that the first of two tries has done the work.
fn drop_done(failures: &mut Vec<Failure>, known: usize, requests: &[Request], sent_before: usize) {
    let mut at = 0;
    failures.retain(|failure| {
        at += 1;
        let request = &requests[failure.index];
        at <= known || failure.index >= sent_before || !(request.is_delete() && failure.refusal.is_gone())
    });
}

#[cfg(test)]
mod tests {
    use ipnetwork::IpNetwork;
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    fn route(n: u32) -> route::Route {
        let destination = IpNetwork::new(std::net::Ipv4Addr::from(0x0a00_0000 + (n << 8)).into(), 24).unwrap();
        route::Route {
            destination,
            kind: route::Kind::Unreachable,
            ifindex: None,
            gateway: None,
            onlink: false,
            source: None,
            protocol: 116,
            metric: 1,
            table: route::TABLE_MAIN,
        }
    }

    /// A socket in a new namespace, with a buffer for two or three answers.
    fn cramped() -> BatchSocket {
        let open = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace needs root");
            let socket = BatchSocket::open().unwrap();
            socket.socket.set_receive_buffer(1).unwrap();
            socket
        };
        std::thread::spawn(open).join().unwrap()
    }

    #[test]
    fn lost_answers_are_asked_for_again_in_smaller_pieces() {
        let mut batch = cramped();
        // An unreachable route with a gateway is refused each time.
        let gateway = Some("192.0.2.1".parse().unwrap());
        let requests: Vec<_> = (0..1000).map(|n| Request::PutRoute(route::Route { gateway, ..route(n) })).collect();
        let failures = batch.send(&requests).unwrap();
        assert!(failures.iter().map(|failure| failure.index).eq(0..1000));
    }

    #[test]
    fn a_delete_that_the_lost_try_has_done_counts_as_done() {
        let mut batch = cramped();
        let puts: Vec<_> = (0..200).map(|n| Request::PutRoute(route(n))).collect();
        assert_eq!(batch.send(&puts).unwrap(), []);
        // Half of the deletes fail with "gone", enough to lose answers, and then all do.
        let deletes: Vec<_> = (0..400).map(|n| Request::DelRoute(route(n))).collect();
        let failures = batch.send(&deletes).unwrap();
        assert!(failures.iter().all(|failure| failure.index >= 200), "{failures:?}");
        assert_eq!(batch.send(&puts).unwrap(), []);
    }
}
