//! Who listens on an abstract unix socket, asked without a connection to it: `sock_diag(7)`, `unix_diag`.
//!
//! Whoever listens can keep its backlog full, so that a connection finds no room; the kernel answers all the same.

use std::io;

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

use crate::Error;
use crate::netlink::{BUFFER, uninterrupted};
use crate::wire::{Attributes, Datagram, Messages};

/// `SOCK_DIAG_BY_FAMILY`, include/uapi/linux/sock_diag.h.
const BY_FAMILY: u16 = 20;
/// Bit of `TCP_LISTEN`, the state of a listening unix socket as well.
const LISTENING: u32 = 1 << 10;
/// `UDIAG_SHOW_NAME` and `UDIAG_SHOW_UID`, include/uapi/linux/unix_diag.h.
const SHOW: u32 = 0x01 | 0x40;
/// `UNIX_DIAG_NAME` and `UNIX_DIAG_UID`; the second one came with Linux 5.3.
const NAME: u16 = 0;
const UID: u16 = 7;
/// Length of `struct unix_diag_msg`, and where the inode stands in it.
const HEADER: usize = 16;
const INODE: usize = 4;

/// A listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// By which /proc/*/fd names it.
    pub inode: u32,
    /// Who made it, as this process's user namespace has it.
    pub uid: Option<u32>,
}

/// The socket that listens on this abstract name in the network namespace of the calling thread.
///
/// # Errors
/// Those of the socket, and the kernel's refusal, for instance where it has no `unix_diag`.
pub fn listener(name: &str) -> Result<Option<Listener>, Error> {
    const STEP: &str = "ask who listens on a unix socket";
    let mut socket = Socket::new(NETLINK_SOCK_DIAG).map_err(Error::socket(STEP))?;
    socket.bind_auto().map_err(Error::socket(STEP))?;
    let mut request = Datagram::default();
    request.message(BY_FAMILY, (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16, 1, |body| {
        body.header(&[libc::AF_UNIX as u8, 0, 0, 0]);
        // states, inode, what to show, cookie
        for word in [LISTENING, 0, SHOW, 0, 0] {
            body.header(&word.to_ne_bytes());
        }
    });
    uninterrupted(|| socket.send_to(request.bytes(), &SocketAddr::new(0, 0), 0)).map_err(Error::socket(STEP))?;
    let mut buffer = vec![0; BUFFER];
    loop {
        // The kernel answers within the system calls, so there is nothing to wait for.
        let flags = libc::MSG_DONTWAIT;
        let (length, sender) =
            uninterrupted(|| socket.recv_from(&mut &mut buffer[..], flags)).map_err(Error::socket(STEP))?;
        if sender.port_number() != 0 {
            continue;
        }
        for message in Messages::new(&buffer[..length]) {
            let message = message?;
            match i32::from(message.kind) {
                libc::NLMSG_DONE => return Ok(None),
                libc::NLMSG_ERROR => return Err(Error::Socket { step: STEP, source: refusal(message.body) }),
                _ => {}
            }
            if let Some(listener) = parse(message.body, name) {
                return Ok(Some(listener));
            }
        }
    }
}

fn refusal(body: &[u8]) -> io::Error {
    let errno = body.first_chunk().map_or(libc::EPROTO, |errno| i32::from_ne_bytes(*errno).saturating_neg());
    io::Error::from_raw_os_error(errno)
}

/// The listener of a message, if it has this name. An abstract name begins with a zero, which no path can.
fn parse(body: &[u8], name: &str) -> Option<Listener> {
    let inode = u32::from_ne_bytes(*body.get(INODE..)?.first_chunk()?);
    let (mut is_it, mut uid) = (false, None);
    for (kind, value) in Attributes::new(body.get(HEADER..)?) {
        match kind {
            NAME => is_it = value.strip_prefix(&[0]) == Some(name.as_bytes()),
            UID => uid = value.first_chunk().map(|uid| u32::from_ne_bytes(*uid)),
            _ => {}
        }
    }
    is_it.then_some(Listener { inode, uid })
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};

    use super::*;

    /// Linux 6.18, of a socket that user 0 made.
    #[test]
    fn a_message_of_the_kernel_is_read() {
        let name = *b"\x0d\0\0\0\0twilld.x\0\0\0";
        let uid = [8, 0, 7, 0, 0, 0, 0, 0];
        let head = [1, 1, 10, 0, 0x5a, 0x5c, 0x35, 0, 0x82, 0x6a, 0, 0, 0, 0, 0, 0];
        let message = [&head[..], &name[..], &uid[..]].concat();
        let there = Listener { inode: 0x0035_5c5a, uid: Some(0) };
        assert_eq!(parse(&message, "twilld.x"), Some(there));
        assert_eq!(parse(&message, "twilld"), None);
        for length in 0..message.len() {
            let _ = parse(&message[..length], "twilld.x");
        }
        assert_eq!(parse(&message[..32], "twilld.x"), Some(Listener { uid: None, ..there }));
    }

    #[test]
    fn who_listens_is_found_also_behind_a_full_backlog_and_among_many() {
        let abstract_name = |name: &str| UnixAddr::from_abstract_name(name).unwrap();
        let own = format!("twill-unix-diag-{}", std::process::id());
        let others: Vec<UnixListener> =
            (0..600).map(|n| UnixListener::bind_addr(&abstract_name(&format!("{own}.{n}"))).unwrap()).collect();
        assert_eq!(listener(&own).unwrap(), None);
        let there = UnixListener::bind_addr(&abstract_name(&own)).unwrap();
        nix::sys::socket::listen(&there, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let _full = UnixStream::connect_addr(&abstract_name(&own)).unwrap();
        let found = listener(&own).unwrap().unwrap();
        let inode = nix::sys::stat::fstat(&there).unwrap().st_ino;
        assert_eq!((u64::from(found.inode), found.uid), (inode, Some(nix::unistd::geteuid().as_raw())));
        drop(others);
    }
}
