//! Following the underlay: links, addresses and default routes change, and device, record and `subnet.env` go along.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::EventLoop;
use crate::dataplane::{Dataplane, Device};
use crate::overlay::MacAddr;
use crate::overlay::iface::is_global;
use crate::overlay::record::Record;
use crate::site::{self, End, Unfit};

/// How long another address has to stay the better choice before it becomes ours: a DHCP client takes an address away
/// and puts it back, and in between some other one is the first.
const STAYS: Duration = Duration::from_millis(500);

impl<D: Dataplane> EventLoop<D> {
    /// Looks at the interfaces if they may have changed; returns whether anything was done.
    pub(super) fn follow_underlay(&mut self, now: Instant) -> bool {
        let changed = self.halves.iter_mut().fold(false, |changed, half| half.take_underlay_changed() | changed);
        if !changed && self.move_at.is_none_or(|at| at > now) {
            return false;
        }
        let ends = match self.ends(now) {
            Ok(ends) => ends,
            // It may come back; until then what is programmed is the best guess.
            Err(reason) => {
                warn!(%reason, "the underlay is not usable now, staying with what was chosen");
                self.move_at = None;
                return true;
            }
        };
        let elsewhere = self.halves.iter().zip(&ends).any(|(half, end)| moves(&half.device, end));
        if elsewhere && *self.move_at.get_or_insert(now + STAYS) > now {
            return true;
        }
        self.move_at = None;
        if let Err(error) = self.move_to(&ends, now) {
            warn!(%error, "cannot follow the underlay's change");
        }
        true
    }

    /// The ends over the interfaces that there are now, with the addresses that we have where they are still there.
    fn ends(&mut self, now: Instant) -> Result<Vec<End>, String> {
        let first = self.halves.first_mut().ok_or("there is no family")?;
        let interfaces = first.interfaces(now).map_err(|error| error.to_string())?;
        let mut ends = self.site.ends(&interfaces).map_err(|error| error.to_string())?;
        for (half, end) in self.halves.iter().zip(&mut ends) {
            keep_address(end, half.device.local);
        }
        Ok(ends)
    }

    fn move_to(&mut self, ends: &[End], now: Instant) -> Result<(), Unfit> {
        for (half, end) in self.halves.iter_mut().zip(ends) {
            let device = self.site.device(end, &self.own.key, half.device.mac)?;
            if device != half.device {
                info!(device = %device.name, underlay = %device.underlay_name, local = %device.local, mtu = device.mtu, "the underlay changed");
                half.device = device;
                half.check(now);
            }
        }
        let mut macs = self.halves.iter().map(|half| half.device.mac);
        let addressed = self.site.record(ends, |_| macs.next().unwrap_or(MacAddr([0; 6])));
        let record = Record { node: self.own.record.node.clone(), extra: self.own.record.extra.clone(), ..addressed };
        if record != self.own.record {
            info!(record = %String::from_utf8_lossy(&record.to_json()), "our record follows");
            let own = ends.iter().map(|end| site::own(&self.own.key, end)).collect::<Result<_, _>>()?;
            self.records.we_are(&self.own.text, own);
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

/// Stays with the address that we have, as long as the interface has it: another one may come before it for a while. One
/// that serves on its link only gives way to a better one, which came late.
fn keep_address(end: &mut End, ours: IpAddr) {
    let chosen = &mut end.chosen;
    let better = is_global(chosen.local) && !is_global(ours);
    if !better && chosen.local != ours && chosen.interface.addresses.iter().any(|net| net.ip() == ours) {
        if chosen.public == chosen.local {
            chosen.public = ours;
        }
        chosen.local = ours;
    }
}
