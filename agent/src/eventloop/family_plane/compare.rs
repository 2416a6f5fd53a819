//! Making the device what it should be, and comparing what hangs on it with what is wanted.

use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::{CHUNK, FamilyPlane};
use crate::dataplane::{Dataplane, Made};
use crate::eventloop::clock;
use crate::overlay::plane::PeerMode;
use crate::overlay::plane::comparison::Findings;

/// How often everything is compared without any cause.
const CHECK_EVERY: Duration = Duration::from_secs(60);
/// The same on demand where peers go idle sooner: twice in that time, but not more often than this.
const CHECK_LEAST: Duration = Duration::from_secs(1);
/// The pause before a check that could not be made is tried again.
const CHECK_AGAIN: Duration = Duration::from_secs(1);

impl<D: Dataplane> FamilyPlane<D> {
    /// DirectRouting: finds out for some peers whether their hosts are on a link of ours.
    pub(super) fn decide(&mut self) {
        for _ in 0..CHUNK {
            let Some((subnet, host)) = self.plane.undecided() else { return };
            match self.dataplane.is_direct(host) {
                Ok(direct) => self.plane.decide(subnet, host, direct),
                Err(source) if source.is_of_socket() => return self.socket_failed(&source, clock::now()),
                // A tunnel works in either case.
                Err(source) => debug!(%subnet, %host, error = %source, "cannot look up the route to a peer's host"),
            }
        }
    }

    /// Makes the device what it should be, then begins a comparison of all that hangs on it: that may have gone although
    /// the device looks as it should, for instance if it was down in between.
    pub(super) async fn make(&mut self, now: Instant) {
        match self.dataplane.make(&self.device).await {
            Ok(made) => {
                // Looked at with everything else. Whoever recreated the device may have sent no event.
                self.underlay_changed = true;
                self.say_made(&made, now);
                self.made = true;
                self.observing = true;
                self.plane.begin_comparison();
                // A link that goes down takes routes with it without a word.
                self.plane.redecide(None);
                self.check_at = now + self.interval();
            }
            Err(source) if source.is_of_socket() => self.socket_failed(&source, now),
            Err(source) => {
                self.complain(format_args!("{source}"), 1);
                self.made = false;
                self.check_at = now + CHECK_AGAIN;
            }
        }
    }

    /// Says what making the device came to. What the daemon itself asked for is no other program's doing.
    fn say_made(&mut self, made: &Made, now: Instant) {
        let following = std::mem::take(&mut self.following);
        let device = &self.device.name;
        if *made == Made::AsWanted {
            return;
        }
        if following {
            debug!(%device, how = %made, "the device follows the underlay");
            return;
        }
        self.mended_at = Some(now);
        self.restores.restored(now);
        if self.mends.admit(now) {
            warn!(%device, how = %made, "another program changed or deleted the device; the daemon restored it");
        }
    }

    fn interval(&self) -> Duration {
        let setup = self.plane.setup();
        match setup.mode {
            PeerMode::OnDemand => (setup.idle / 2).clamp(CHECK_LEAST, CHECK_EVERY),
            PeerMode::All => CHECK_EVERY,
        }
    }

    /// Reads the next part of a dump and compares it; after the last one what differs is due.
    pub(super) fn observe(&mut self, now: Instant) {
        match self.dataplane.observe() {
            Ok((part, is_last)) => {
                self.plane.compare(&part);
                if is_last {
                    self.observing = false;
                    let found = self.plane.end_comparison(!self.adopted, now);
                    (self.adopted, self.diversions.is_due) = (true, true);
                    let device = &self.device.name;
                    let Findings { right, due, strays, idle } = found;
                    if std::mem::take(&mut self.tell_comparison) {
                        info!(%device, right, due, strays, idle, "compared the kernel with the records");
                    } else {
                        debug!(%device, right, due, strays, idle, "compared the kernel with the records");
                    }
                }
            }
            Err(source) if source.is_of_socket() => self.socket_failed(&source, now),
            Err(source) => {
                self.observing = false;
                self.check_at = now + CHECK_AGAIN;
                warn!(device = %self.device.name, error = %source, "cannot read the kernel's tables, trying again");
            }
        }
    }
}
