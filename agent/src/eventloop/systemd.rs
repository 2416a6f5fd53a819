//! What systemd is told: `sd_notify` that never waits.
//!
//! The protocol is a datagram to the socket that NOTIFY_SOCKET names (sd_notify(3)). A manager that does not read its socket
//! must not stop the loop, so a message that finds no room is lost and said again with the next one.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use sd_notify::NotifyState;
use tracing::warn;

/// Variable with the path of systemd's socket; an abstract one begins with `@`.
const SOCKET: &str = "NOTIFY_SOCKET";

/// Who is told.
pub(super) struct Systemd {
    socket: Option<OsString>,
    failing: bool,
}

impl Default for Systemd {
    fn default() -> Self {
        Self { socket: std::env::var_os(SOCKET).filter(|path| !path.is_empty()), failing: false }
    }
}

impl Systemd {
    /// Tells systemd, if it wants to be told. Whether there is nothing left to tell it of this.
    pub(super) fn tell(&mut self, news: &[NotifyState<'_>]) -> bool {
        let Some(socket) = &self.socket else { return true };
        let text: String = news.iter().map(|state| format!("{state}\n")).collect();
        let told = send(socket, text.as_bytes());
        if let Err(error) = &told
            && !self.failing
        {
            warn!(%error, "cannot tell systemd, trying again");
        }
        self.failing = told.is_err();
        told.is_ok()
    }
}

fn send(socket: &OsString, message: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let from = UnixDatagram::unbound()?;
    from.set_nonblocking(true)?;
    from.send_to_addr(message, &address).map(drop)
}
