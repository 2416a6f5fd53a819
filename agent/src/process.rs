//! What a program sets up of its own process: signal mask, limits, priority, runtime.
//!
//! The signals that the daemon hears are in [`crate::eventloop`].

use std::cell::Cell;
use std::fmt::Display;
use std::fs;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, warn};

/// How many names are looked up at once. A look-up takes as long as the name server does.
const LOOK_UPS: usize = 4;
/// How long a thread for that stays when it has nothing to do.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

thread_local! {
    static EXPECTS_PANIC: Cell<bool> = const { Cell::new(false) };
}

/// What a command does with signals: it has none blocked, whatever its parent had, but SIGXFSZ. With that one blocked, a file
/// at its limit (`ulimit -f`) is a write that fails, and nothing that ends the program.
///
/// Call it before there are threads. Programs that this one starts have none blocked.
pub fn command_signals() {
    // It fails for no mask that can be written down.
    let _ = SigSet::from_iter([Signal::SIGXFSZ]).thread_set_mask();
}

/// What the daemon does with signals: those that it answers to are delivered once [`crate::eventloop::Signals`] is there.
/// All others that would end it stay blocked, and do nothing: SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGPWR, SIGSTKFLT, SIGXCPU,
/// SIGXFSZ and the real-time ones.
///
/// Not blocked are those that say that the program is at fault, SIGABRT among them by which systemd's watchdog ends a daemon
/// that hangs; those that a terminal stops a program with; and those that do nothing anyway. (SIGPIPE is ignored by Rust.)
pub fn daemon_signals() {
    let mut mask = SigSet::all();
    for delivered in [
        Signal::SIGABRT,
        Signal::SIGBUS,
        Signal::SIGFPE,
        Signal::SIGILL,
        Signal::SIGSEGV,
        Signal::SIGSYS,
        Signal::SIGTRAP,
        Signal::SIGTSTP,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
        Signal::SIGCONT,
        Signal::SIGCHLD,
        Signal::SIGURG,
        Signal::SIGWINCH,
    ] {
        mask.remove(delivered);
    }
    let _ = mask.thread_set_mask();
}

/// Has names looked up in /etc/hosts and by DNS, whatever /etc/nsswitch.conf says, in a statically linked program. glibc has code
/// for these two in itself. For each other word there, such as `resolve` or `myhostname`, it loads a library of the host, which
/// brings the host's own glibc into this process: if that is another version, the process may crash.
///
/// Call it before there are threads. A dynamically linked program has the host's glibc, and follows /etc/nsswitch.conf.
pub fn look_up_names_by_files_and_dns() {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    #[expect(unsafe_code, reason = "std has no call for it")]
    {
        unsafe extern "C" {
            /// In glibc since 2.0, declared in nss.h; the `libc` crate lacks it. It copies what it needs of both texts.
            fn __nss_configure_lookup(database: *const libc::c_char, services: *const libc::c_char) -> libc::c_int;
        }
        // SAFETY: both texts end with a zero and live for ever, and no other thread looks up a name yet.
        let result = unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
        // It fails for want of memory only. Names are then looked up as /etc/nsswitch.conf says.
        let _ = result;
    }
}

/// Whether a process has CAP_NET_ADMIN among its effective capabilities, as far as /proc shows them. `process` is its pid, or
/// `self`.
pub(crate) fn has_net_admin(process: impl Display) -> Option<bool> {
    /// include/uapi/linux/capability.h
    const CAP_NET_ADMIN: u32 = 12;
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let set = u64::from_str_radix(effective.trim(), 16).ok()?;
    Some(set & (1 << CAP_NET_ADMIN) != 0)
}

/// The process that has this socket open; `None` if there is none that we may look at. Reads the link of each descriptor of
/// each process, which takes a second where there are a million.
pub(crate) fn with_socket(inode: u64) -> Option<i32> {
    let wanted = format!("socket:[{inode}]");
    let has_it = |process: &fs::DirEntry| {
        let Ok(open) = fs::read_dir(process.path().join("fd")) else { return false };
        open.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == wanted.as_str()))
    };
    let pid = |process: &fs::DirEntry| process.file_name().to_str()?.parse().ok();
    fs::read_dir("/proc").ok()?.flatten().filter(|process| pid(process).is_some()).find(has_it).as_ref().and_then(pid)
}

/// Runs the program's work on a runtime of this thread.
///
/// # Errors
/// Those of the work, and when there is no runtime to be had.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().max_blocking_threads(LOOK_UPS).thread_keep_alive(FOR_EVER);
    let runtime = runtime.build().context("start the runtime")?;
    let done = runtime.block_on(work);
    // Not waiting for a look-up of a name that a server of names does not answer.
    runtime.shutdown_background();
    done
}

/// Starts a thread for name look-ups, if the runtime has none; [`block_on`] lets it stay. tokio panics when it cannot start its
/// first thread; here that panic becomes an error.
///
/// # Errors
/// When there is no thread to be had.
pub(crate) fn start_look_ups() -> io::Result<()> {
    static STARTED: AtomicBool = AtomicBool::new(false);
    if STARTED.load(Ordering::Relaxed) {
        return Ok(());
    }
    EXPECTS_PANIC.set(true);
    let started = std::panic::catch_unwind(|| drop(tokio::task::spawn_blocking(|| ())));
    EXPECTS_PANIC.set(false);
    // Nothing else makes it panic.
    started.map_err(|_| io::Error::from_raw_os_error(libc::EAGAIN))?;
    STARTED.store(true, Ordering::Relaxed);
    Ok(())
}

/// Whether a panic of this thread's is an answer and no fault in the program: see [`start_look_ups`].
pub(crate) fn expects_panic() -> bool {
    EXPECTS_PANIC.get()
}

/// Raises the number of descriptors that this process may have to the most that it is allowed. Returns that number.
pub fn raise_descriptor_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) else {
        debug!(before = current, now = maximum, "limit of descriptors (RLIMIT_NOFILE)");
        return maximum.unwrap_or(u64::MAX);
    };
    warn!(%error, limit = current, "cannot raise the limit of descriptors (RLIMIT_NOFILE)");
    current.unwrap_or(u64::MAX)
}

/// Asks to be run before what merely computes: packets wait for each answer, which takes some microseconds, and a pod that goes
/// through addresses fills the neighbour table while we wait for a core.
pub fn raise_priority() {
    const NICE: i32 = -10;
    match rustix::process::nice(NICE) {
        Ok(nice) => debug!(nice, "priority"),
        Err(error) => debug!(%error, "no higher priority: without CAP_SYS_NICE the kernel gives none"),
    }
}
