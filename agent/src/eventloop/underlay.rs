//! Following the underlay: links, addresses and default routes change, and device, record and `subnet.env` go along.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::EventLoop;
use crate::dataplane::{Dataplane, Device};
use crate::overlay::MacAddr;
use crate::overlay::iface;
use crate::overlay::plane::Plane;
use crate::overlay::record::Record;
use crate::site::{self, End, Unfit};

/// How long another address has to stay the better choice before it becomes ours: a DHCP client takes an address away
/// and puts it back, and in between some other one is the first.
const STAYS: Duration = Duration::from_millis(500);
/// The same where ours is as good, one of several next hops of the default route: one that goes and comes shall not make
/// all peers change our address each time.
const STAYS_BESIDE_ITS_EQUAL: Duration = Duration::from_secs(5);

impl<D: Dataplane> EventLoop<D> {
    /// Looks at the interfaces if they may have changed; returns whether anything was done.
    pub(super) fn follow_underlay(&mut self, now: Instant) -> bool {
        let changed = self.halves.iter_mut().fold(false, |changed, half| half.take_underlay_changed() | changed);
        if !changed && self.move_at.is_none_or(|at| at > now) {
            return false;
        }
        let (ends, wait) = match self.ends(now) {
            Ok(ends) => ends,
            // It may come back; until then what is programmed is the best guess.
            Err(reason) => {
                warn!(%reason, "the underlay is not usable now, staying with what was chosen");
                self.move_at = None;
                return true;
            }
        };
        let elsewhere = self.halves.iter().zip(&ends).any(|(half, end)| moves(&half.device, end));
        let move_at = self.move_at.map_or(now + wait, |at| at.min(now + wait));
        self.move_at = Some(move_at).filter(|at| elsewhere && *at > now);
        if self.move_at.is_some() {
            return true;
        }
        if let Err(error) = self.move_to(&ends, now) {
            warn!(%error, "cannot follow the underlay's change");
        }
        true
    }

    /// The ends over the interfaces that there are now, with the addresses that we have where they are still there; and how
    /// long they have to stay so before they become ours.
    fn ends(&mut self, now: Instant) -> Result<(Vec<End>, Duration), String> {
        let first = self.halves.first_mut().ok_or("there is no family")?;
        let interfaces = first.interfaces(now).map_err(|error| error.to_string())?;
        // Our address is checked again for duplicates whenever its link comes up, and is ours until that fails.
        let is_ours = |ip| self.halves.iter().any(|half| half.device.local == ip);
        let interfaces = iface::settled(&interfaces, is_ours);
        let mut ends = self.site.ends(&interfaces).map_err(|error| error.to_string())?;
        let mut wait = STAYS_BESIDE_ITS_EQUAL;
        for (half, end) in self.halves.iter().zip(&mut ends) {
            end.chosen.keep(half.device.local);
            let is_as_good = self.site.wish.names_none()
                && end.chosen.interface.name != half.device.underlay_name
                && end.chosen.is_no_better_than(&half.device.underlay_name, half.device.local, &interfaces);
            if moves(&half.device, end) && !is_as_good {
                wait = STAYS;
            }
        }
        Ok((ends, wait))
    }

    fn move_to(&mut self, ends: &[End], now: Instant) -> Result<(), Unfit> {
        for (half, end) in self.halves.iter_mut().zip(ends) {
            let device = self.site.device(end, &self.own.key, half.device.mac)?;
            if device != half.device {
                info!(device = %device.name, underlay = %device.underlay_name, local = %device.local, mtu = device.mtu, why = %end.chosen.why, "the underlay changed");
                half.device = device;
                half.check(now);
            }
        }
        let mut macs = self.halves.iter().map(|half| half.device.mac);
        let addressed = self.site.record(ends, |_| macs.next().unwrap_or(MacAddr([0; 6])));
        let Record { node, instance, extra, .. } = self.own.record.clone();
        let record = Record { node, instance, extra, ..addressed };
        if record != self.own.record {
            info!(record = %String::from_utf8_lossy(&record.to_json()), "our record follows");
            let own = ends.iter().map(|end| site::own(&self.own.key, &record, end)).collect::<Result<_, _>>()?;
            let mut planes: Vec<&mut Plane> = self.halves.iter_mut().map(|half| &mut half.plane).collect();
            let deltas = self.records.move_to(&mut planes, own);
            self.told.deltas(&deltas, now);
            self.own.keeper.publish(record.clone());
            self.own.record = record;
            // Records are judged by who we are: one that had our new address, or our old one, has to be looked at again.
            if let Some(read_again) = &self.read_again {
                self.store = Some(read_again());
                // Whether etcd answers, the new reader finds out by itself.
                self.health.etcd = None;
            }
        }
        self.write_env();
        Ok(())
    }
}

/// Whether an end is not where the device is.
fn moves(device: &Device, end: &End) -> bool {
    (device.local, device.underlay_name.as_str()) != (end.chosen.local, end.chosen.interface.name.as_str())
}
