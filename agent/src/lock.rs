//! One twilld for a device: a lock that is let go when the process ends, in whatever way.
//!
//! The lock is a listening unix socket with an abstract name (unix(7)), which lives in the network namespace as the device
//! does: it needs no folder that both daemons see, and nothing is left of it. Several twillds may serve several networks on a
//! node, so the name has the device in it.
//!
//! Any process of the namespace may take a name, so a holder counts only if it may change the device as well: see
//! [`Holder::may_be_twilld`].

use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt};
use tokio::io::AsyncReadExt;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::dataplane::holder::{Listener, listener};
use crate::overlay::Shown;
use crate::overlay::words::Span;
use crate::passing::Passes;
use crate::process;

/// Between two tries while another process has the lock.
const TRY_EVERY: Duration = Duration::from_millis(100);
/// How long the holder may take to say who it is.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// The least time between two answers to those who ask who holds the lock.
const ANSWER_EVERY: Duration = Duration::from_millis(20);
/// How often a connection to the holder may be refused before it counts as a process that never listens.
const DEAF: usize = 5;
/// The longest answer that is read.
const ANSWER: usize = 200;

/// Held until [`Lock::keep_until_exit`] has been called and the process has ended, else until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    device: String,
    /// `None` where the lock is not to be had, and the daemon runs without.
    socket: Option<UnixListener>,
    answers: Option<JoinHandle<()>>,
}

/// Who holds the lock, as far as is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Holder {
    /// As this process sees it; `None` for a process of a pid namespace that it doesn't.
    pub pid: Option<i32>,
    /// The user, as this process's user namespace has it.
    uid: Option<u32>,
    /// What it says about itself.
    about: String,
}

/// Why the lock is not ours.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Another twilld has it.
    #[error(
        "another twilld keeps {device} on this node and did not stop within {patience:?} (--takeover-timeout): {holder}; stop one of the two, or give this one a VXLAN network with another VNI"
    )]
    Held {
        /// The device.
        device: String,
        /// How long was waited.
        patience: Duration,
        /// Who has it.
        holder: Holder,
    },
    /// The kernel refuses.
    #[error("lock the device {device}: {source}")]
    Refused {
        /// The device.
        device: String,
        /// Its answer.
        source: io::Error,
    },
}

impl Lock {
    /// Sees to it that `held` is the lock of this device, and lets go of that of another one. Waits so long for another twilld
    /// that has it to stop; `waits` is told for whom.
    ///
    /// # Errors
    /// When the other one stays.
    pub(crate) async fn hold(
        held: &mut Option<Self>,
        device: &str,
        patience: Duration,
        waits: impl FnMut(&str),
    ) -> Result<(), Error> {
        if held.as_ref().is_none_or(|held| held.device != device) {
            *held = None;
            *held = Some(Self::acquire(device, patience, waits).await?);
        }
        Ok(())
    }

    async fn acquire(device: &str, patience: Duration, mut waits: impl FnMut(&str)) -> Result<Self, Error> {
        let refused = |source| Error::Refused { device: device.to_owned(), source };
        let address = SocketAddr::from_abstract_name(name(device)).map_err(refused)?;
        let began = Instant::now();
        let (mut told, mut deaf, mut short) = (None::<Holder>, 0, false);
        loop {
            match UnixListener::bind_addr(&address).and_then(|socket| Self::held(device, socket)) {
                Ok(lock) => {
                    if told.is_some() {
                        info!(%device, waited = %Span(began.elapsed()), "the other twilld has gone, taking over");
                    }
                    return Ok(lock);
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) if error.passes() => {
                    if !std::mem::replace(&mut short, true) {
                        warn!(%device, %error, "cannot lock the device now, trying until it works");
                        waits(&format!("the lock of the device {device}: {error}"));
                    }
                    sleep(TRY_EVERY).await;
                    continue;
                }
                Err(source) => return Err(refused(source)),
            }
            let is_over = began.elapsed() >= patience;
            if told.is_none() || is_over {
                let holder = match Holder::of(device).await {
                    // It has just gone, or it is about to listen.
                    None if deaf < DEAF => {
                        deaf += 1;
                        sleep(TRY_EVERY).await;
                        continue;
                    }
                    None => return Ok(Self::without(device, "a process that does not listen")),
                    Some(holder) if !holder.may_be_twilld() => return Ok(Self::without(device, &holder.to_string())),
                    Some(holder) => holder,
                };
                if is_over {
                    return Err(Error::Held { device: device.to_owned(), patience, holder });
                }
                warn!(%device, %holder, patience = %Span(patience), "another twilld keeps this device, waiting for it to stop");
                waits(&format!("another twilld that keeps {device} to stop: {holder}"));
                told = Some(holder);
            }
            sleep(TRY_EVERY).await;
        }
    }

    /// Leaves letting go to the kernel, which does so as the last thing of all when the process ends.
    pub(crate) fn keep_until_exit(mut self) {
        if let Some(socket) = self.socket.take() {
            let _ = socket.into_raw_fd();
        }
        // Its task ends with the runtime, which is before the process does.
        self.answers = None;
    }

    /// For a device whose lock is held by a process that cannot be a twilld.
    fn without(device: &str, holder: &str) -> Self {
        warn!(%device, %holder, "the name of this device's lock is taken by a process that cannot be a twilld; going on without the lock");
        Self { device: device.to_owned(), socket: None, answers: None }
    }

    fn held(device: &str, socket: UnixListener) -> io::Result<Self> {
        let listener = socket.try_clone()?;
        listener.set_nonblocking(true)?;
        let answers = tokio::spawn(answer(tokio::net::UnixListener::from_std(listener)?, about()));
        Ok(Self { device: device.to_owned(), socket: Some(socket), answers: Some(answers) })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(answers) = &self.answers {
            // It has the socket too.
            answers.abort();
        }
    }
}

/// Tells who asks who this is. Not often: anybody may ask.
async fn answer(listener: tokio::net::UnixListener, about: String) {
    loop {
        if let Ok((stream, _)) = listener.accept().await
            && let Ok(mut stream) = stream.into_std()
        {
            // A socket that is new has room for it. Who has gone does not need it.
            let _ = stream.write_all(about.as_bytes());
        }
        sleep(ANSWER_EVERY).await;
    }
}

/// The socket's abstract name.
fn name(device: &str) -> String {
    format!("twilld.{device}")
}

/// What a twilld says about itself: what it is called where it runs.
fn about() -> String {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    // Each line is `<number>:<controllers>:<path>`. Below a cgroup namespace's root the path says nothing.
    let group = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).find(|path| path.len() > 1);
    let group = group.map(|path| format!(", cgroup {path}")).unwrap_or_default();
    format!("twilld {}, pid {} where it runs{group}", crate::VERSION, std::process::id())
}

impl Holder {
    /// Asks the process that has the lock of this device; `None` where no process listens as a twilld does.
    async fn of(device: &str) -> Option<Self> {
        match Self::ask(&name(device)).await {
            Ok(holder) => Some(holder),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ECONNREFUSED | libc::EPROTOTYPE)) => None,
            // Its backlog is full, which it may see to itself, or whoever else asks it.
            Err(_) => Some(Self::unasked(device)),
        }
    }

    /// The holder as the kernel knows it.
    fn unasked(device: &str) -> Self {
        match listener(&name(device)) {
            Ok(Some(Listener { inode, uid })) => {
                Self { pid: process::with_socket(inode.into()), uid, about: String::new() }
            }
            Ok(None) => Self::default(),
            Err(error) => {
                warn!(%device, %error, "cannot find out who has the lock of this device");
                Self::default()
            }
        }
    }

    async fn ask(name: &str) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(socket.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
        // Of the time at which it began to listen. A pid that this pid namespace doesn't have is 0, net/core/sock.c
        // (`cred_to_ucred`).
        let peer = getsockopt(&socket, sockopt::PeerCredentials)?;
        let mut stream = tokio::net::UnixStream::from_std(UnixStream::from(socket))?;
        let mut said = Vec::new();
        // Whatever has come by then.
        let _ = timeout(ANSWER_WITHIN, (&mut stream).take(ANSWER as u64).read_to_end(&mut said)).await;
        let about = Shown::up_to(ANSWER, &said).to_string();
        Ok(Self { pid: Some(peer.pid()).filter(|pid| *pid != 0), uid: Some(peer.uid()), about })
    }

    /// Whether it may be a twilld: it has CAP_NET_ADMIN or, where that is hidden, is root or the user that this one is.
    /// Who cannot change the device must not be able to keep it from its daemon.
    fn may_be_twilld(&self) -> bool {
        let Some(uid) = self.uid else { return true };
        let hidden = || uid == 0 || uid == rustix::process::geteuid().as_raw();
        self.pid.and_then(process::has_net_admin).unwrap_or_else(hidden)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "pid {pid}")?,
            None if self.uid.is_none() => return write!(f, "a process that does not say who it is"),
            None => write!(f, "a process of another pid namespace")?,
        }
        if self.about.is_empty() { Ok(()) } else { write!(f, " ({})", self.about) }
    }
}
