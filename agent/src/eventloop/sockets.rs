//! How often the sockets to the kernel have failed, and when that is too often.

use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::dataplane::Error;

/// So many failures in a row end the daemon, so that its supervisor starts it anew.
const MOST: u32 = 10;
/// A failure that comes so long after the last one begins a new row.
const ROW: Duration = Duration::from_secs(30);

/// The failures in a row.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    count: u32,
    last: Option<Instant>,
    given_up: Option<String>,
}

impl Sockets {
    /// Counts a failure; whether it is the first of a row. The log names that one, and the last one.
    pub(super) fn failed(&mut self, source: &Error, device: &str, now: Instant) -> bool {
        if self.last.is_none_or(|last| now.duration_since(last) >= ROW) {
            self.count = 0;
        }
        self.last = Some(now);
        self.count += 1;
        if self.count == 1 {
            warn!(%device, error = %source, "a netlink socket failed: opening the sockets anew and comparing everything");
        } else {
            debug!(%device, error = %source, count = self.count, "a netlink socket failed again");
        }
        if self.count >= MOST {
            let within = ROW.as_secs();
            self.given_up = Some(format!(
                "the netlink sockets failed {MOST} times, none {within} s after the one before; the last time: {source}"
            ));
        }
        self.count == 1
    }

    /// Why there is no use in going on, if there is none.
    pub(super) fn given_up(&self) -> Option<&str> {
        self.given_up.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error() -> Error {
        Error::Vanished { name: "flannel.1".to_owned() }
    }

    #[test]
    fn failures_in_a_row_are_too_many_and_those_far_apart_are_not() {
        let (mut sockets, mut now) = (Sockets::default(), Instant::now());
        for _ in 0..3 * MOST {
            assert!(sockets.failed(&error(), "flannel.1", now));
            now += ROW;
        }
        assert_eq!(sockets.given_up(), None);
        assert!(sockets.failed(&error(), "flannel.1", now));
        for _ in 2..MOST {
            assert!(!sockets.failed(&error(), "flannel.1", now) && sockets.given_up().is_none());
            now += ROW / 2;
        }
        sockets.failed(&error(), "flannel.1", now);
        assert!(
            sockets
                .given_up()
                .is_some_and(|why| why.contains("10 times") && why.ends_with("flannel.1 was made and is not there"))
        );
    }
}
