//! How often the sockets to the kernel have failed, and when that is too often.

use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::dataplane::Error;

/// So many failures in a row, with the kernel never as it should be in between, end the daemon, so that its supervisor
/// starts it anew.
const MOST: u32 = 15;
/// The pause after each of them but the first.
const PAUSE: Duration = Duration::from_secs(1);

/// The failures in a row.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    count: u32,
    last: Option<Instant>,
    given_up: Option<String>,
}

impl Sockets {
    /// Counts a failure; when everything is to be opened anew. The log names the first of a row, and the last one.
    pub(super) fn failed(&mut self, source: &Error, device: &str, now: Instant) -> Instant {
        let at_once = self.last.is_none_or(|last| now.duration_since(last) >= PAUSE) && self.count == 0;
        self.last = Some(now);
        self.count += 1;
        if self.count == 1 {
            warn!(%device, error = %source, "a netlink socket failed: opening the sockets anew and comparing everything");
        } else {
            debug!(%device, error = %source, count = self.count, "a netlink socket failed again");
        }
        if self.count >= MOST {
            self.given_up = Some(format!("the netlink sockets failed {MOST} times in a row, the last time: {source}"));
        }
        if at_once { now } else { now + PAUSE }
    }

    /// The kernel is as it should be.
    pub(super) fn restored(&mut self, device: &str) {
        info!(%device, failures = self.count, "the netlink sockets work again");
        self.count = 0;
    }

    /// Whether they have failed and were not yet [`Sockets::restored`].
    pub(super) fn is_failing(&self) -> bool {
        self.count > 0
    }

    /// Why there is no use in going on, if there is none.
    pub(super) fn given_up(&self) -> Option<&str> {
        self.given_up.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: &str = "flannel.1";

    fn error() -> Error {
        Error::Vanished { name: DEVICE.to_owned() }
    }

    #[test]
    fn failures_in_a_row_are_too_many_and_those_with_success_between_are_not() {
        let (mut sockets, mut now) = (Sockets::default(), Instant::now());
        for _ in 0..3 * MOST {
            assert_eq!(sockets.failed(&error(), DEVICE, now), now);
            assert!(sockets.is_failing());
            sockets.restored(DEVICE);
            now += PAUSE;
        }
        assert!(!sockets.is_failing() && sockets.given_up().is_none());
        assert_eq!(sockets.failed(&error(), DEVICE, now), now);
        for _ in 2..MOST {
            assert_eq!(sockets.failed(&error(), DEVICE, now), now + PAUSE);
            assert_eq!(sockets.given_up(), None);
            now += PAUSE;
        }
        sockets.failed(&error(), DEVICE, now);
        let why = sockets.given_up().unwrap();
        assert_eq!(
            why,
            "the netlink sockets failed 15 times in a row, the last time: flannel.1 was made and is not there"
        );
    }

    #[test]
    fn success_for_a_moment_does_not_make_it_run_in_circles() {
        let (mut sockets, now) = (Sockets::default(), Instant::now());
        assert_eq!(sockets.failed(&error(), DEVICE, now), now);
        sockets.restored(DEVICE);
        assert_eq!(sockets.failed(&error(), DEVICE, now), now + PAUSE);
    }
}
