//! Following the underlay: links, addresses and default routes change, and device, record and `subnet.env` go along.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::EventLoop;
use crate::dataplane::{Dataplane, Device};
use crate::overlay::iface::{self, Interface};
use crate::overlay::plane::Plane;
use crate::overlay::record::Record;
use crate::overlay::repeats::Repeats;
use crate::site::{self, TunnelEnd, Unfit};

/// How long another address has to stay the better choice before it becomes ours: a DHCP client takes an address away
/// and puts it back, and in between some other one is the first.
const STAYS: Duration = Duration::from_millis(500);
/// The same where ours is as good, one of several next hops of the default route: one that goes and comes shall not make
/// all peers change our address each time.
const STAYS_BESIDE_ITS_EQUAL: Duration = Duration::from_secs(5);
/// After a look that failed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// So many lines in a minute; of more, their number.
const LINES: u32 = 10;

/// What is known of the underlay beside the devices.
pub(super) struct Underlay {
    /// The interfaces may be others than the last look showed.
    changed: bool,
    /// A look at the interfaces is under way.
    looking: bool,
    /// When a better place for the tunnel's end is taken, if it still is one then.
    pub(super) move_at: Option<Instant>,
    /// The ends as devices and record have them, one a family; none before the first look.
    ends: Vec<TunnelEnd>,
    /// Why an end stays where no interface fits, as it was found last.
    unfit: Option<String>,
    lines: Repeats,
}

impl Default for Underlay {
    fn default() -> Self {
        let (changed, looking, move_at, ends, unfit) = (false, false, None, Vec::new(), None);
        Self { changed, looking, move_at, ends, unfit, lines: Repeats::in_a_minute(LINES) }
    }
}

impl Underlay {
    /// Says how many lines were not said.
    pub(super) fn tell_repeats(&mut self, now: Instant) {
        if let Some(times) = self.lines.count(now) {
            warn!(times, "the underlay keeps changing");
        }
    }

    /// No interface fits, or each family has one again. The log has a line where that is news.
    fn note_unfit(&mut self, unfit: Option<&Unfit>, now: Instant) {
        let is_news = self.unfit.is_some() != unfit.is_some() && self.lines.admit(now);
        match unfit {
            Some(reason) if is_news => {
                warn!(%reason, "the underlay is not usable now, staying with what was chosen");
            }
            None if is_news => info!("the underlay is usable again"),
            _ => {}
        }
        self.unfit = unfit.map(Unfit::brief);
    }
}

/// The ends over the interfaces that there are now.
struct Found {
    ends: Vec<TunnelEnd>,
    /// How long they have to stay so before they become ours.
    wait: Duration,
}

impl<D: Dataplane> EventLoop<D> {
    /// Looks at the interfaces if they may have changed; returns whether anything was done.
    pub(super) fn follow_underlay(&mut self, now: Instant) -> bool {
        let changed = self.families.iter_mut().fold(false, |changed, family| family.take_underlay_changed() | changed);
        let underlay = &mut self.underlay;
        underlay.changed |= changed;
        let is_due = underlay.looking || underlay.changed || underlay.move_at.is_some_and(|at| at <= now);
        let Some(first) = self.families.first_mut().filter(|_| is_due) else { return false };
        if !underlay.looking {
            // What changes from now on is for the next look.
            (underlay.changed, underlay.looking) = (false, true);
        }
        let looked = first.look(now);
        underlay.looking = matches!(looked, Ok(None));
        match looked {
            Ok(None) => {}
            Ok(Some(interfaces)) => self.judge(&interfaces, now),
            Err(error) => {
                // What changed is still to be read.
                underlay.move_at = Some(now + LOOK_AGAIN);
                if underlay.lines.admit(now) {
                    warn!(%error, "cannot read the interfaces");
                }
            }
        }
        true
    }

    /// Moves to where the interfaces lead, or stays and says why.
    fn judge(&mut self, interfaces: &[Interface], now: Instant) {
        // Our address is checked again for duplicates whenever its link comes up, and is ours until that fails.
        let interfaces = iface::settled(interfaces, |ip| self.families.iter().any(|family| family.device.local == ip));
        let (found, unfit) = self.ends(&interfaces);
        // It may come back; until then what is programmed is the best guess.
        self.underlay.note_unfit(unfit.as_ref(), now);
        self.underlay.move_at = match &found {
            Some(Found { ends, wait })
                if self.families.iter().zip(ends).any(|(family, end)| moves(&family.device, end)) =>
            {
                let move_at = self.underlay.move_at.map_or(now + *wait, |at| at.min(now + *wait));
                Some(move_at).filter(|at| *at > now)
            }
            _ => None,
        };
        if self.underlay.move_at.is_none()
            && let Some(Found { ends, .. }) = found
            && let Err(error) = self.move_to(&ends, now)
            && self.underlay.lines.admit(now)
        {
            warn!(%error, "cannot follow the underlay's change");
        }
        // Also of an end that is about to move: until then its packets go over that interface.
        self.health.underlay = self.hindrance(&interfaces);
    }

    /// The ends over these interfaces, with the addresses that we have where they are still there. A family for which no
    /// interface fits keeps its end, and the reason is told; without an end to keep there are none.
    fn ends(&self, interfaces: &[Interface]) -> (Option<Found>, Option<Unfit>) {
        let (mut ends, mut unfit, mut wait) = (Vec::new(), None, STAYS_BESIDE_ITS_EQUAL);
        for (place, end) in self.site.each_end(interfaces).into_iter().enumerate() {
            match end {
                Ok(end) => ends.push(end),
                Err(error) => {
                    unfit.get_or_insert(error);
                    ends.extend(self.underlay.ends.get(place).cloned());
                }
            }
        }
        if ends.len() != self.families.len() {
            return (None, unfit);
        }
        for (family, end) in self.families.iter().zip(&mut ends) {
            end.chosen.keep(family.device.local);
            let is_as_good = self.site.wish.names_none()
                && end.chosen.interface.name != family.device.underlay_name
                && end.chosen.is_no_better_than(&family.device.underlay_name, family.device.local, interfaces);
            if moves(&family.device, end) && !is_as_good {
                wait = STAYS;
            }
        }
        (Some(Found { ends, wait }), unfit)
    }

    /// Why the packets of a device can't leave this host, if they can't.
    fn hindrance(&self, interfaces: &[Interface]) -> Option<String> {
        let because = self.underlay.unfit.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        self.families.iter().find_map(|family| {
            let Device { underlay_name: name, local, .. } = &family.device;
            match interfaces.iter().find(|interface| interface.name == *name) {
                None => Some(format!("{name} is gone{because}")),
                Some(Interface { down: Some(down), .. }) => Some(format!("{name} {down}")),
                Some(interface) if interface.sends_from(*local) => None,
                Some(_) => Some(format!("{name} has lost {local}, expected it or another address to come{because}")),
            }
        })
    }

    fn move_to(&mut self, ends: &[TunnelEnd], now: Instant) -> Result<(), Unfit> {
        for (family, end) in self.families.iter_mut().zip(ends) {
            let device = self.site.device(end, &self.own.key, family.device.mac())?;
            if device != family.device {
                if self.underlay.lines.admit(now) {
                    info!(device = %device.name, underlay = %device.underlay_name, local = %device.local, mtu = device.mtu, why = %end.chosen.why, "the underlay changed");
                }
                family.follow(device, now);
            }
        }
        self.underlay.ends = ends.to_vec();
        let mut macs = self.families.iter().map(|family| family.device.mac());
        let addressed = self.site.record(ends, |_| macs.next().flatten());
        let Record { node, instance, extra, .. } = self.own.record.clone();
        let record = Record { node, instance, extra, ..addressed };
        if record != self.own.record {
            if self.underlay.lines.admit(now) {
                info!(record = %String::from_utf8_lossy(&record.to_json()), "our record follows");
            }
            let own = ends.iter().map(|end| site::own(&self.own.key, &record, end)).collect::<Result<_, _>>()?;
            let mut planes: Vec<&mut Plane> = self.families.iter_mut().map(|family| &mut family.plane).collect();
            let deltas = self.records.move_to(&mut planes, own);
            self.told.deltas(&deltas, now);
            self.own.keeper.publish(record.clone());
            self.own.record = record;
            // Records are judged by who we are: one that had our new address, or our old one, has to be looked at again.
            self.store = Some((self.read_again)());
            // Whether etcd answers, the new reader finds out by itself. Until then a read is under way.
            (self.health.etcd.down, self.health.etcd.is_listing) = (None, true);
        }
        self.write_env();
        Ok(())
    }
}

/// Whether an end is not where the device is.
fn moves(device: &Device, end: &TunnelEnd) -> bool {
    (device.local, device.underlay_name.as_str()) != (end.chosen.local, end.chosen.interface.name.as_str())
}
