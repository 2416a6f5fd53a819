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
            if snapshot.lease.as_ref() != Some(&self.own.lease) {
                snapshot.lease = Some(self.own.lease.clone());
            }
            if snapshot.families.len() != self.halves.len() {
                snapshot.families = self.halves.iter().map(|half| Family::new(&half.device)).collect();
            }
            for (family, half) in snapshot.families.iter_mut().zip(&self.halves) {
                set(&mut family.device, &half.device);
                family.is_in_step = half.in_sync();
                family.peers = half.plane.tally();
                family.counts = half.plane.counts();
                family.overruns = half.overruns();
            }
        });
    }
}

fn set<T: Clone + PartialEq>(place: &mut T, value: &T) {
    if place != value {
        place.clone_from(value);
    }
}
