//! One plane with its side of the kernel: hears, answers, works off what is due, compares.

use std::time::{Duration, Instant};

use tracing::{debug, trace, warn};

use super::clock;
use super::sockets::Sockets;
use crate::dataplane::{Dataplane, Device, Error, KernelEvent};
use crate::overlay::iface::Interface;
use crate::overlay::plane::miss::Answer;
use crate::overlay::plane::{Chunk, Plane};
use crate::overlay::repeats::Repeats;
use crate::overlay::restores::{self, Restores};
use crate::overlay::words::Command;

mod compare;
pub(super) mod contested;
mod rules;

use contested::Named;
use rules::Diversions;

/// The least time between two times that the device is mended.
const MEND_LEAST: Duration = Duration::from_millis(100);
/// The same once another program changes it again and again.
const MEND_SLOWLY: Duration = Duration::from_secs(1);
/// The most operations in one chunk while more misses are expected.
const CHUNK_IN_A_FLOOD: usize = 32;
/// The most operations in one chunk: about half a millisecond of the kernel's time.
const CHUNK: usize = 256;
/// The most kernel events that are looked at before operations are sent.
const EVENTS: usize = 64;

/// How long after a turn that could not hear all the pieces of work stay small: misses come in waves.
const FLOOD: Duration = Duration::from_millis(2);
/// How long everything else waits while there is more to hear. What has been heard by then is answered all the same.
const FLOOD_MOST: Duration = Duration::from_millis(20);

/// What hearing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// The kernel had nothing to tell.
    Nothing,
    /// It had, and that was all.
    All,
    /// There may be more.
    More,
}

/// One family's plane with its side of the kernel.
pub struct FamilyPlane<D> {
    /// What is wanted.
    pub plane: Plane,
    /// Where it is put.
    pub dataplane: D,
    /// The device that all hangs on.
    pub device: Device,
    /// When device and rows are to be looked at.
    check_at: Instant,
    /// The device is there as far as is known.
    made: bool,
    /// A dump is under way.
    observing: bool,
    /// The next turn goes on with the dump rather than with what is due.
    observe_next: bool,
    /// Events were lost: another comparison is due after the one under way.
    again: bool,
    /// When the device was last mended.
    mended_at: Option<Instant>,
    mends: Repeats,
    /// How often the device was mended, and whether another program keeps changing it.
    restores: Restores,
    /// A comparison has been made. Before the first one nothing but answers is written.
    adopted: bool,
    /// The last operations failed, and that was said.
    failing: bool,
    /// How often the sockets to the kernel failed.
    sockets: Sockets,
    underlay_changed: bool,
    /// The device is another one than the kernel has, because the underlay changed.
    following: bool,
    /// The policy rules of other programs that take peers' packets.
    diversions: Diversions,
    /// What the next comparison finds is logged for the operator.
    tell_comparison: bool,
    /// Which routes of other programs go before ours, for people.
    pub(super) contested: Named,
    /// The last time that the kernel was heard, it had nothing to tell.
    quiet: bool,
    /// Until then more misses are expected.
    flood_until: Instant,
    /// When there last was nothing more to hear, or work was done all the same.
    worked_at: Instant,
    /// How often events of the kernel were lost.
    overruns: u64,
}

impl<D: Dataplane> FamilyPlane<D> {
    /// A plane whose device has been made; its first comparison is due at once.
    pub fn new(plane: Plane, dataplane: D, device: Device, now: Instant) -> Self {
        Self {
            plane,
            dataplane,
            device,
            check_at: now,
            made: true,
            observing: false,
            observe_next: true,
            again: false,
            mended_at: None,
            mends: Repeats::in_a_minute(restores::FEW),
            restores: Restores::default(),
            adopted: false,
            failing: false,
            sockets: Sockets::default(),
            // It may have changed while nobody listened.
            underlay_changed: true,
            following: false,
            diversions: Diversions::default(),
            tell_comparison: false,
            contested: Named::default(),
            quiet: false,
            flood_until: now,
            worked_at: now,
            overruns: 0,
        }
    }

    /// Looks at everything as soon as possible. Where somebody changes the device again and again, not as fast as he does.
    pub(super) fn check(&mut self, now: Instant) {
        let pause = if self.mends.due().is_some() { MEND_SLOWLY } else { MEND_LEAST };
        self.check_at = self.mended_at.map_or(now, |at| now.max(at + pause));
        self.observing = false;
    }

    /// Looks at everything as soon as possible, and logs what was found.
    pub(super) fn compare_and_tell(&mut self, now: Instant) {
        self.tell_comparison = true;
        self.check(now);
    }

    /// The device is to be this one from now on.
    pub(super) fn follow(&mut self, device: Device, now: Instant) {
        (self.device, self.following) = (device, true);
        self.check(now);
    }

    /// Whether the interfaces may be others now. Asked once, it is so no more.
    pub(super) fn take_underlay_changed(&mut self) -> bool {
        std::mem::take(&mut self.underlay_changed)
    }

    /// Takes in what the kernel has told.
    ///
    /// The first miss after a pause is answered before anything else is looked at: mostly it is alone. Those behind it
    /// are taken together.
    pub(super) fn hear(&mut self, now: Instant) -> Heard {
        let after_pause = std::mem::take(&mut self.quiet);
        for heard in 0..EVENTS {
            match self.dataplane.next_event() {
                Ok(Some(KernelEvent::Miss(miss))) => {
                    let answer = self.plane.miss(miss, now);
                    trace!(%miss, %answer, "the kernel asks");
                    if after_pause && heard == 0 {
                        return Heard::All;
                    }
                    // A sender that goes through addresses fills the neighbour table until this is said.
                    if matches!(answer, Answer::Refused(_)) {
                        self.answer(now);
                    }
                }
                Ok(Some(KernelEvent::Row(seen))) => self.plane.saw(&seen),
                Ok(Some(KernelEvent::Nothing)) => {}
                Ok(Some(KernelEvent::Device)) => self.check(now),
                Ok(Some(KernelEvent::Rules)) => self.diversions.is_due = true,
                Ok(Some(KernelEvent::Underlay)) => {
                    self.underlay_changed = true;
                    self.plane.redecide(None);
                    // A link that went down has taken routes with it without a word, perhaps one that was named or a peer's.
                    self.again |= self.contested.is_any() || self.plane.routes_directly();
                }
                Ok(Some(KernelEvent::Overrun)) => {
                    debug!(device = %self.device.name, "kernel events were lost, comparing everything");
                    self.underlay_changed = true;
                    self.again = true;
                    self.overruns += 1;
                }
                Ok(None) => {
                    self.quiet = heard == 0;
                    return if self.quiet { Heard::Nothing } else { Heard::All };
                }
                Err(source) if source.is_of_socket() => {
                    self.socket_failed(&source, now);
                    return Heard::Nothing;
                }
                Err(source) => {
                    warn!(device = %self.device.name, error = %source, "cannot read kernel events, comparing everything");
                    self.check(now);
                    return Heard::Nothing;
                }
            }
        }
        self.flood_until = now + FLOOD;
        Heard::More
    }

    /// Sends what waiting packets wait for.
    pub(super) fn answer(&mut self, now: Instant) {
        if self.plane.is_urgent() {
            let chunk = self.plane.urgent_chunk();
            self.apply(chunk, now);
        }
    }

    /// Whether to read pending kernel events before doing other work.
    pub(super) fn is_flooded(&self, heard: Heard, now: Instant) -> bool {
        heard == Heard::More && now < self.worked_at + FLOOD_MOST
    }

    /// Does one unit of what is due, a smaller one in a flood of misses; returns whether there was any.
    pub(super) async fn work(&mut self, now: Instant) -> bool {
        self.worked_at = now;
        if self.sockets.is_failing() && !self.observing && self.in_sync() {
            self.sockets.restored(&self.device.name);
        }
        self.plane.wake(now);
        self.restores.wake(now);
        if std::mem::take(&mut self.again) {
            if self.observing {
                self.again = true;
            } else {
                self.check(now);
            }
        }
        let due = self.made && self.adopted && self.plane.is_due();
        if self.check_at <= now {
            self.make(now).await;
        } else if self.observing && (self.observe_next || !due) {
            self.observe_next = false;
            self.observe(now);
        } else if self.plane.has_undecided() {
            self.decide();
        } else if due {
            self.observe_next = true;
            let chunk = self.plane.next_chunk(if now < self.flood_until { CHUNK_IN_A_FLOOD } else { CHUNK });
            self.apply(chunk, now);
        } else {
            return false;
        }
        true
    }

    /// Says how often things went on that had no line of their own.
    pub(super) fn tell_repeats(&mut self, now: Instant) {
        if let Some(times) = self.mends.count(now) {
            warn!(device = %self.device.name, times, "another program keeps changing the device; the daemon restores it at most once a second");
        }
    }

    /// Does all that is due at once, until `deadline`.
    pub(super) fn finish(&mut self, deadline: Instant) {
        while self.made && (self.plane.is_due() || self.plane.has_undecided()) && clock::now() < deadline {
            // A route that an earlier daemon has put is a stray until its peer is decided.
            if self.plane.has_undecided() {
                self.decide();
                continue;
            }
            let chunk = self.plane.next_chunk(CHUNK);
            self.apply(chunk, clock::now());
        }
    }

    fn apply(&mut self, chunk: Chunk, now: Instant) {
        if chunk.is_empty() {
            return;
        }
        match self.dataplane.apply(chunk.ops()) {
            Ok(refused) => {
                match refused.first() {
                    Some(first) => {
                        let device = self.device.name.clone();
                        let command = Command { op: &chunk.ops()[first.index], device: &device };
                        self.complain(format_args!("{command}: {}", first.reason), refused.len());
                    }
                    None => self.failing = false,
                }
                let failed: Vec<usize> = refused.iter().map(|refused| refused.index).collect();
                self.plane.settle(chunk, &failed, now);
            }
            Err(source) => {
                let all: Vec<usize> = (0..chunk.ops().len()).collect();
                if source.is_of_socket() {
                    self.socket_failed(&source, now);
                } else {
                    self.complain(format_args!("{source}"), all.len());
                }
                self.plane.settle(chunk, &all, now);
            }
        }
    }

    /// This host's interfaces, as the kernel side of this plane sees them: `None` as long as there is more to read.
    pub(super) fn look(&mut self, now: Instant) -> Result<Option<Vec<Interface>>, Error> {
        let interfaces = self.dataplane.look();
        if let Some(source) = interfaces.as_ref().err().filter(|source| source.is_of_socket()) {
            self.socket_failed(source, now);
        }
        interfaces
    }

    /// A socket to the kernel has failed, and what it told since is lost. The device is made again, which opens the sockets
    /// anew, and everything is compared: at once after the first failure, with pauses after further ones.
    fn socket_failed(&mut self, source: &Error, now: Instant) {
        self.made = false;
        self.observing = false;
        self.check_at = self.sockets.failed(source, &self.device.name, now);
    }

    /// Why this daemon should end and be started again, if its sockets keep failing.
    pub(super) fn given_up(&self) -> Option<&str> {
        self.sockets.given_up()
    }

    /// Logs the first failure of a row of them; the others are only counted.
    fn complain(&mut self, first: std::fmt::Arguments<'_>, count: usize) {
        if std::mem::replace(&mut self.failing, true) {
            debug!(device = %self.device.name, count, %first, "operations failed again");
        } else {
            warn!(device = %self.device.name, count, %first, "operations failed, trying again");
        }
    }

    /// Whether the kernel has what is wanted, as far as is known.
    pub(super) fn in_sync(&self) -> bool {
        self.made && self.adopted && self.plane.is_settled()
    }

    /// Why the kernel does not have what is wanted, or does not have it for long.
    pub(super) fn lack(&self) -> Option<String> {
        let device = &self.device.name;
        if self.restores.is_fight() {
            return Some(format!("another program keeps changing the device {device}"));
        }
        (!self.in_sync()).then(|| format!("{device} is not as the records want it"))
    }

    /// How often the device was restored after another program had changed or deleted it.
    pub(super) fn restores(&self) -> u64 {
        self.restores.total()
    }

    /// How often events of the kernel were lost.
    pub(super) fn overruns(&self) -> u64 {
        self.overruns
    }

    /// When [`FamilyPlane::work`] has something to do without being told anything.
    pub(super) fn next_wake(&self) -> Instant {
        let others = [self.plane.next_wake(), self.diversions.next_look(), self.restores.due()];
        others.into_iter().flatten().fold(self.check_at, Instant::min)
    }
}
