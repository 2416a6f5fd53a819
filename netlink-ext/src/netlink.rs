//! A route-netlink socket: opened, bound, told to explain its refusals, and read without blocking.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use crate::Error;
use crate::wire::Attributes;

/// The kernel fills a dump's datagram up to what the last receive offered, but no more than 32 KiB
/// (`netlink_recvmsg`, net/netlink/af_netlink.c, Linux 6.18). Twice that leaves room for one row that alone is larger.
pub(crate) const BUFFER: usize = 64 * 1024;

/// How long a receive may wait for an answer that should lie in the queue already.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);

/// How often in a row a system call may be interrupted by a signal (`EINTR`) before that counts as a failure: one that
/// never ends must not hold up the caller for ever.
const INTERRUPTIONS: u32 = 64;

/// `NLM_F_CAPPED`: the acknowledgement holds only the header of the request.
const NLM_F_CAPPED: u16 = 0x100;
/// `NLM_F_ACK_TLVS`: ext-ack attributes follow.
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// The bytes of the header of the request (`struct nlmsghdr`), which an acknowledgement repeats.
const ECHOED: usize = 16;

/// The socket. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    port: u32,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread. Strict checking, without which the kernel ignores
    /// filters in the wrong place, came with Linux 4.20 and is required.
    pub(crate) fn open() -> Result<Self, Error> {
        let mut socket = unbound()?;
        let address = socket.bind_auto().map_err(Error::socket("bind netlink socket"))?;
        Ok(Self { socket, port: address.port_number() })
    }

    /// Closes the socket and opens another one, with the same port unless somebody has taken it meanwhile.
    pub(crate) fn reopen(&mut self) -> Result<(), Error> {
        self.socket = unbound()?;
        if self.socket.bind(&SocketAddr::new(self.port, 0)).is_err() {
            *self = Self::open()?;
        }
        Ok(())
    }

    /// The port id, which the kernel repeats in notifications that this socket's requests cause.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Sets the receive buffer to `bytes`, which the kernel doubles for its bookkeeping. Beyond
    /// `net.core.rmem_max` that needs `CAP_NET_ADMIN` in the first user namespace; without it the kernel cuts it there.
    pub(crate) fn set_receive_buffer(&self, bytes: usize) -> Result<(), Error> {
        setsockopt(&self.socket, sockopt::RcvBufForce, &bytes)
            .or_else(|_| setsockopt(&self.socket, sockopt::RcvBuf, &bytes))
            .map_err(|errno| Error::Socket { step: "set receive buffer", source: errno.into() })
    }

    pub(crate) fn join(&self, group: u32) -> Result<(), Error> {
        self.socket.add_membership(group).map_err(Error::socket("join multicast group"))
    }

    /// Sends to the kernel, which handles all the messages before this returns.
    pub(crate) fn send(&self, datagram: &[u8]) -> io::Result<()> {
        uninterrupted(|| self.socket.send_to(datagram, &SocketAddr::new(0, 0), 0)).map(drop)
    }

    /// The next datagram from the kernel as its length in `buffer`; `WouldBlock` if there is none.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
            match uninterrupted(|| self.socket.recv_from(&mut &mut *buffer, flags)) {
                // Another process with CAP_NET_ADMIN could send to our port; only port 0 is the kernel.
                Ok((_, sender)) if sender.port_number() != 0 => (),
                Ok((length, _)) if length > buffer.len() => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "message longer than the buffer"));
                }
                Ok((length, _)) => return Ok(length),
                Err(error) => return Err(error),
            }
        }
    }

    /// Like [`Netlink::receive`], but waits up to [`TIMEOUT`].
    pub(crate) fn receive_answer(&self, buffer: &mut [u8], step: &'static str) -> Result<usize, Error> {
        let mut deadline = None;
        loop {
            match self.receive(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                result => return result.map_err(Error::socket(step)),
            }
            // The clock is read only in the rare case that the answer is not there yet.
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + TIMEOUT);
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Timeout { step });
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => (),
                Err(errno) => return Err(Error::Socket { step, source: errno.into() }),
            }
        }
    }

    /// Empties the queue, which also ends the state in which the kernel drops what is sent to an overrun socket.
    pub(crate) fn drain(&self, buffer: &mut [u8]) {
        // The first error is the overrun itself, which is reported once. A socket with more of them is not to be emptied.
        let mut errors = 0;
        while errors < 2 {
            match self.receive(buffer) {
                Ok(_) => (),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => errors += 1,
            }
        }
    }
}

fn unbound() -> Result<Socket, Error> {
    let socket = Socket::new(NETLINK_ROUTE).map_err(Error::socket("open netlink socket"))?;
    socket.set_ext_ack(true).map_err(Error::socket("set NETLINK_EXT_ACK"))?;
    socket.set_cap_ack(true).map_err(Error::socket("set NETLINK_CAP_ACK"))?;
    socket.set_netlink_get_strict_chk(true).map_err(Error::socket("set NETLINK_GET_STRICT_CHK"))?;
    Ok(socket)
}

/// Makes a system call again while a signal interrupts it, but not for ever.
///
/// # Errors
/// Those of the call; `Interrupted` where a signal came each time.
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..INTERRUPTIONS {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            result => return result,
        }
    }
    call()
}

impl AsRawFd for Netlink {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The answer in an `NLMSG_ERROR` message: `None` is the kernel's "done".
pub(crate) fn refusal_of_error(flags: u16, body: &[u8]) -> Option<crate::Refusal> {
    // struct nlmsgerr: the error, then the header of the request, then its body unless that was capped.
    let echoed = match crate::wire::u32_at(body, 4) {
        Some(length) if flags & NLM_F_CAPPED == 0 => (length as usize).next_multiple_of(4),
        _ => ECHOED,
    };
    refusal(flags, body, 4 + echoed)
}

/// The answer at the end of a dump, in an `NLMSG_DONE` message.
pub(crate) fn refusal_of_done(flags: u16, body: &[u8]) -> Option<crate::Refusal> {
    refusal(flags, body, 4)
}

fn refusal(flags: u16, body: &[u8], attributes_at: usize) -> Option<crate::Refusal> {
    let error = crate::wire::u32_at(body, 0)? as i32;
    if error >= 0 {
        return None;
    }
    let attributes = body.get(attributes_at..).filter(|_| flags & NLM_F_ACK_TLVS != 0).unwrap_or_default();
    Some(crate::Refusal { errno: -error, message: explanation(attributes) })
}

impl crate::Refusal {
    /// The refusal in an `NLMSG_ERROR` message that somebody else has read: its code, below zero, and the bytes after the
    /// code. The socket needs `NETLINK_EXT_ACK`, and `NETLINK_CAP_ACK`, by which the kernel echoes no more of the request
    /// than its header.
    pub fn from_answer(code: i32, rest: &[u8]) -> Self {
        let attributes = rest.get(ECHOED..).unwrap_or_default();
        Self { errno: code.wrapping_neg(), message: explanation(attributes) }
    }
}

/// The text among the attributes of an answer, in the kernel's words.
fn explanation(attributes: &[u8]) -> Option<String> {
    Attributes::new(attributes)
        .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
        .map(|(_, text)| crate::wire::string(text))
        .filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ext_ack_is_found_behind_a_capped_and_an_echoed_request() {
        let mut capped = (-17_i32).to_ne_bytes().to_vec();
        capped.extend_from_slice(&[24, 0, 0, 0, 24, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        let mut echoed = capped.clone();
        echoed.extend_from_slice(&[0; 8]);
        for (bytes, flags) in [(&mut capped, NLM_F_CAPPED | NLM_F_ACK_TLVS), (&mut echoed, NLM_F_ACK_TLVS)] {
            bytes.extend_from_slice(&[8, 0, 1, 0, b'w', b'h', b'y', 0]);
            let refusal = refusal_of_error(flags, bytes).unwrap();
            assert_eq!((refusal.errno, refusal.message.as_deref()), (17, Some("why")));
        }
        assert_eq!(Some(crate::Refusal::from_answer(-17, &capped[4..])), refusal_of_error(0x300, &capped));
        assert_eq!(refusal_of_error(NLM_F_CAPPED, &[0; 20]), None);
        assert_eq!(refusal_of_done(0, &[0; 4]), None);
    }
}
