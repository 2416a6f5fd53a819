//! The two things that no safe crate offers: attaching a socket filter (`socket(7)`, SO_ATTACH_FILTER), and handing a
//! socket to tokio's reactor.
//!
//! Everything else goes through `netlink-sys` and `nix`.
#![allow(unsafe_code)] // a raw pointer for setsockopt(2), and a promise to tokio about a descriptor; see each SAFETY

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::netlink::Netlink;

/// Registers a socket with the reactor of the current tokio runtime, for reading and for errors.
pub(crate) fn register(socket: Netlink) -> io::Result<AsyncFd<Netlink>> {
    // SAFETY: `Netlink` owns its descriptor, gives the same one each time, and closes it only when dropped, which the
    // `AsyncFd` that owns it does after deregistering. Nothing replaces the socket inside.
    let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE | Interest::ERROR) };
    registered.map_err(io::Error::from)
}

/// Attaches a classic BPF program. The kernel copies and verifies it, and drops each message for which it returns 0
/// before the message counts against the receive buffer.
pub(crate) fn attach_filter(socket: &impl AsFd, program: &[libc::sock_filter]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // The kernel only reads the program; the field is `*mut` because C has one struct for both directions.
    let header = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the descriptor is open for the whole call because it is borrowed, `header` is a live `sock_fprog` whose
    // size is given, and it points to `length` instructions which the kernel copies before it returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const header).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
