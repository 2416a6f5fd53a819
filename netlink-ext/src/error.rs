//! What can go wrong between this crate and the kernel, and the one place that tells "gone" and "already there" apart
//! from a real failure.

use std::fmt;
use std::io;

/// A request that could not be carried out. Each variant names the step.
///
/// [`Error::is_passing`] tells which ones are worth another try.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on the socket failed.
    #[error("{step}: {source}")]
    Socket {
        /// What was being done.
        step: &'static str,
        /// The error of the system call.
        source: io::Error,
    },
    /// The kernel understood the request and refused it.
    #[error("{step}: {refusal}")]
    Refused {
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        refusal: Refusal,
    },
    /// No answer within [`crate::batch::TIMEOUT`].
    #[error("{step}: no answer from the kernel")]
    Timeout {
        /// What was being done.
        step: &'static str,
    },
    /// Bytes from the kernel that are no netlink message.
    #[error("{step}: malformed message: {what}")]
    Malformed {
        /// What was being done.
        step: &'static str,
        /// What is wrong with the bytes.
        what: &'static str,
    },
    /// A dump was interrupted by changes each time it was tried.
    #[error("dump interrupted by changes {tries} times in a row")]
    DumpInterrupted {
        /// How often it was tried.
        tries: u32,
    },
}

impl Error {
    pub(crate) fn socket(step: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Socket { step, source }
    }

    /// Whether the same call may succeed if made again: a lack of memory, of queue space or of descriptors, an
    /// interruption, a timeout, a dump under heavy changes. A refusal for any other reason is none of these.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Socket { source, .. } => source.raw_os_error().is_some_and(is_passing),
            Self::Refused { refusal, .. } => is_passing(refusal.errno),
            Self::Timeout { .. } | Self::DumpInterrupted { .. } => true,
            Self::Malformed { .. } => false,
        }
    }

    /// Whether the socket can no longer be relied on: a system call on it failed, an answer did not come, or what came
    /// was no netlink message. A new socket is due then. After a refusal the socket is as good as before.
    pub fn is_of_socket(&self) -> bool {
        match self {
            Self::Socket { .. } | Self::Timeout { .. } | Self::Malformed { .. } => true,
            Self::Refused { .. } | Self::DumpInterrupted { .. } => false,
        }
    }
}

/// Whether an error number says that something is short or busy now, and not that the call is wrong.
pub fn is_passing(errno: i32) -> bool {
    const PASSING: [i32; 7] =
        [libc::ENOBUFS, libc::ENOMEM, libc::EAGAIN, libc::EINTR, libc::EBUSY, libc::EMFILE, libc::ENFILE];
    PASSING.contains(&errno)
}

/// The kernel's "no" to one request: an errno and, if the kernel gave one, its explanation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The positive error number.
    pub errno: i32,
    /// The ext-ack text (`NLMSGERR_ATTR_MSG`), in the kernel's words.
    pub message: Option<String>,
}

impl Refusal {
    /// What was to be deleted or changed is not there, or its device is not. For a delete that is success.
    ///
    /// `ENOENT`: FDB row, neighbour, neighbour-table parameters. `ESRCH`: route. `EADDRNOTAVAIL`: address.
    /// `ENODEV`, `ENXIO`: the device.
    pub fn is_gone(&self) -> bool {
        matches!(self.errno, libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::EADDRNOTAVAIL | libc::ENXIO)
    }

    /// What was to be added is there already. For an add that is success.
    pub fn is_exists(&self) -> bool {
        self.errno == libc::EEXIST
    }

    /// The process lacks `CAP_NET_ADMIN` in this network namespace.
    pub fn is_denied(&self) -> bool {
        matches!(self.errno, libc::EPERM | libc::EACCES)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", io::Error::from_raw_os_error(self.errno))?;
        match &self.message {
            Some(message) => write!(formatter, ": {message}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_speaks_the_kernels_words() {
        let bare = Refusal { errno: libc::EEXIST, message: None };
        assert_eq!(bare.to_string(), "File exists (os error 17)");
        let told = Refusal { errno: libc::EEXIST, message: Some("Route already exists".into()) };
        assert_eq!(told.to_string(), "File exists (os error 17): Route already exists");
    }

    #[test]
    fn what_is_worth_another_try_is_told_from_what_needs_a_new_socket() {
        let step = "read";
        let refused = |errno| Error::Refused { step, refusal: Refusal { errno, message: None } };
        let failed = |errno| Error::Socket { step, source: io::Error::from_raw_os_error(errno) };
        for errno in [libc::ENOMEM, libc::ENOBUFS, libc::EINTR, libc::EMFILE] {
            assert!(failed(errno).is_passing() && failed(errno).is_of_socket(), "errno {errno}");
            assert!(refused(errno).is_passing() && !refused(errno).is_of_socket(), "errno {errno}");
        }
        assert!(!failed(libc::EBADF).is_passing() && failed(libc::EBADF).is_of_socket());
        assert!(!refused(libc::EPERM).is_passing() && !refused(libc::EPERM).is_of_socket());
        assert!(Error::Timeout { step }.is_passing() && Error::Timeout { step }.is_of_socket());
        assert!(
            Error::DumpInterrupted { tries: 1 }.is_passing() && !Error::DumpInterrupted { tries: 1 }.is_of_socket()
        );
    }

    #[test]
    fn gone_exists_and_denied_do_not_overlap() {
        for errno in 1..134 {
            let refusal = Refusal { errno, message: None };
            let verdicts = [refusal.is_gone(), refusal.is_exists(), refusal.is_denied()];
            assert!(verdicts.iter().filter(|verdict| **verdict).count() <= 1, "errno {errno}");
        }
    }
}
