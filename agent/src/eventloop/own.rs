//! Our own record, as the loop has it: what its keeper tells, and its defence against another one in our name.

use ipnetwork::IpNetwork;
use tracing::{debug, error, info, warn};

use super::{Ended, EventLoop, clock};
use crate::dataplane::Dataplane;
use crate::lease::{self, FightEvent, KeeperHandle, LeaseEvent, Writes};
use crate::overlay::plane::Plane;
use crate::overlay::record::Record;
use crate::overlay::words::Span;
use crate::overlay::{Shown, SubnetKey};
use crate::snapshot::Lease;
use crate::store::LeaseId;

/// Our own record, and who keeps it.
pub struct OwnRecord {
    pub(super) key: SubnetKey,
    /// The key as etcd has it.
    pub(super) text: String,
    pub(super) record: Record,
    pub(super) keeper: KeeperHandle,
    /// The etcd lease that it hangs on, and when that ends.
    lease_id: Option<LeaseId>,
    pub(super) lease: Lease,
    /// The complete read under way has shown it.
    pub(super) listed: bool,
    /// The record in our name that ours was last written again for: its subnet, its revision, and whether its key was known.
    defended: Option<(IpNetwork, i64, bool)>,
}

impl OwnRecord {
    /// Our record under its key, with its keeper. It hangs on this lease, which has just been granted or renewed.
    pub fn new(key: SubnetKey, record: Record, keeper: KeeperHandle, lease_id: Option<LeaseId>) -> Self {
        let text = key.to_string();
        let lease = Lease { subnet: text.clone(), ends: lease_id.map(|_| clock::now() + lease::TTL) };
        Self { key, text, record, keeper, lease_id, lease, listed: false, defended: None }
    }

    /// The record hangs on this lease now. How long a new one lasts is told when it is renewed; until then it is new.
    fn hang_on(&mut self, lease_id: Option<LeaseId>) {
        if std::mem::replace(&mut self.lease_id, lease_id) != lease_id {
            self.lease.ends = lease_id.map(|_| clock::now() + lease::TTL);
        }
    }
}

impl<D: Dataplane> EventLoop<D> {
    /// Has our record written again if another one in our name supersedes it. Once for each write of the other one, and once more
    /// when its key becomes known.
    pub(super) fn defend(&mut self) {
        let planes: Vec<&Plane> = self.families.iter().map(|family| &family.plane).collect();
        let Some(against) = self.records.in_our_name(&planes) else { return };
        let written = Some((against.subnet, against.revision, against.key.is_some()));
        if std::mem::replace(&mut self.own.defended, written) != written {
            self.own.keeper.defend(against);
        }
    }

    /// Whom the other nodes follow instead of us, in words. In a fight that readiness names already, a record in our name, which
    /// comes and goes with each write, is left out.
    pub(super) fn displaced(&self) -> Vec<String> {
        let planes = || self.families.iter().map(|family| &family.plane);
        if self.health.disputed.is_some() && self.records.in_our_name(&planes().collect::<Vec<_>>()).is_some() {
            return Vec::new();
        }
        self.records.displaced(planes()).collect()
    }

    pub(super) fn lease_event(&mut self, event: LeaseEvent) -> Option<Ended> {
        match event {
            LeaseEvent::Lost { holder } => {
                error!(subnet = %self.own.text, %holder, "another node holds our subnet");
                return Some(Ended::LeaseLost { holder });
            }
            LeaseEvent::Trouble { reason } => {
                warn!(%reason, subnet = %self.own.text, "etcd refuses or fails while this node keeps its record; retrying");
                self.health.lease = Some(reason);
                return None;
            }
            LeaseEvent::Renewed { left } => {
                self.own.lease.ends = Some(clock::now() + left);
                info!(left = %Span(left), subnet = %self.own.text, "lease renewed");
            }
            LeaseEvent::Recreated { revision, lease, found: Some(found) } => {
                self.own.hang_on(lease);
                let remedy = found.remedy();
                warn!(revision, subnet = %self.own.text, %found, "{remedy}");
            }
            LeaseEvent::Recreated { revision, lease, found: None } => {
                self.own.hang_on(lease);
                debug!(revision, "our record is written again");
            }
            LeaseEvent::Fight(event) => {
                self.fight_event(event);
                return None;
            }
            LeaseEvent::Claimed { by, times } => {
                warn!(node = %Shown::new(&by), times, subnet = %self.own.text, "another machine started with our public IP; this node is alive and keeps its subnet: give one of the two another address");
                return None;
            }
            LeaseEvent::Rehung { lease } => {
                self.own.hang_on(lease);
                match lease.map(|lease| format!("{:x}", lease.0)) {
                    None => {
                        info!(subnet = %self.own.text, "our subnet is reserved for this node now: its record never ends")
                    }
                    Some(lease) => {
                        info!(subnet = %self.own.text, lease, "our record hangs on another lease now, which this node renews")
                    }
                }
                return None;
            }
            LeaseEvent::Published { revision } => {
                info!(subnet = %self.own.text, revision, "our changed record is written");
            }
            LeaseEvent::Recovered => info!(subnet = %self.own.text, "etcd lets this node keep its record again"),
        }
        self.health.lease = None;
        None
    }

    /// Logs what the keeper tells of a fight over our record, and notes for readiness whether it harms.
    fn fight_event(&mut self, event: FightEvent) {
        let subnet = &self.own.text;
        match event {
            FightEvent::Disputed { found, writes, within } => {
                let advice = found.advice();
                let Writes { overwritten, deleted, under_another_key, not_shown } = writes;
                warn!(overwritten, deleted, under_another_key, not_shown, within = %Span(within), %subnet, %found, "{advice}");
                if let Some(disputed) = &mut self.health.disputed {
                    *disputed = advice;
                }
            }
            FightEvent::AlsoFound { found } => warn!(%subnet, %found, "{}", found.also()),
            FightEvent::Harmful { found } => self.health.disputed = Some(found.advice()),
            FightEvent::Harmless => self.health.disputed = None,
            FightEvent::Over => info!(%subnet, "nobody has touched our record for a minute"),
        }
    }
}
