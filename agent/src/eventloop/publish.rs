//! Publishes what the loop knows, as [`Snapshot`](crate::snapshot::Snapshot).

use super::EventLoop;
use crate::dataplane::Dataplane;
use crate::snapshot::{Family, Missing};

impl<D: Dataplane> EventLoop<D> {
    /// Publishes what is known now, with what is missing for being ready. What is as before is not copied.
    pub(super) fn publish(&self, missing: Vec<Missing>) {
        self.publisher.publish(|snapshot| {
            snapshot.missing = missing;
            set(&mut snapshot.etcd, &self.health.etcd);
            snapshot.nftables_restores = self.health.rules.borrow().restores;
            if snapshot.lease.as_ref() != Some(&self.own.lease) {
                snapshot.lease = Some(self.own.lease.clone());
            }
            if snapshot.families.len() != self.families.len() {
                snapshot.families = self.families.iter().map(|family| Family::new(&family.device)).collect();
            }
            for (shown, family) in snapshot.families.iter_mut().zip(&self.families) {
                set(&mut shown.device, &family.device);
                shown.is_in_step = family.in_sync();
                shown.peers = family.plane.tally();
                shown.counts = family.plane.counts();
                shown.overruns = family.overruns();
                shown.restores = family.restores();
            }
        });
    }
}

fn set<T: Clone + PartialEq>(place: &mut T, value: &T) {
    if place != value {
        place.clone_from(value);
    }
}
