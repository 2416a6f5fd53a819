//! What stands under our key: our record, another node's that has our subnet now, or something that is to be written over.

use std::time::Duration;

use tokio::time::Instant;

use super::{Cause, Keeper, Over, Stop, Todo};
use crate::lease::claim::claimant;
use crate::lease::{FightEvent, Found, LeaseEvent};
use crate::overlay::alloc::{Hold, Holder, KeyOwner, Relation, hold};
use crate::overlay::record::Record;
use crate::overlay::{SubnetKey, shown};
use crate::store::{Error, RawRecord, Store};

/// How long the reason of a failure stands before another one is told, as the watch of all records has it.
const REASON_STANDS: Duration = Duration::from_secs(30);

impl<S: Store> Keeper<S> {
    /// Ours, another's, or nobody's?
    pub(super) async fn judge(&mut self, raw: RawRecord) -> Result<(), Over> {
        let parsed = Record::parse(&raw.value);
        let key = self.held.key;
        let owner = parsed.as_ref().map(|record| self.owner_of(&key, record, &raw));
        let found = match (owner, &parsed) {
            (Ok(KeyOwner::Another(relation)), Ok(other)) => {
                return Err(self.lost(self.holder(other, relation), raw.lease).await);
            }
            (Ok(KeyOwner::Ours { follow }), Ok(ours)) => return self.judge_ours(&raw, ours, follow).await,
            (Ok(owner), Ok(record)) => found(owner, record, &raw.value),
            _ => Found::unreadable(&raw.value),
        };
        (self.held.created, self.held.revision) = (raw.created, raw.revision);
        self.want_written();
        let harms = !parsed.is_ok_and(|record| self.leads_here(&record));
        self.disturbed(found, harms, raw.revision).await
    }

    /// Our own record, perhaps with other members than we wrote, or on another lease.
    async fn judge_ours(&mut self, raw: &RawRecord, ours: &Record, follow: bool) -> Result<(), Over> {
        (self.held.created, self.held.revision) = (raw.created, raw.revision);
        if follow && raw.lease != self.held.lease.map_or(0, |lease| lease.0) {
            self.rehang(raw.lease).await?;
        }
        if raw.value == self.held.record.to_json() {
            return match self.todo {
                Some(Todo::Write(_)) if self.is_superseded(raw.revision) => Ok(()),
                Some(Todo::Create) => self.recreated(raw.revision).await,
                Some(Todo::Write(cause)) => self.written(raw.revision, cause).await,
                None => Ok(()),
            };
        }
        self.want_written();
        match claimant(ours) {
            Some(by) => self.asked(by).await,
            None => self.disturbed(Found::changed(&raw.value), !self.leads_here(ours), raw.revision).await,
        }
    }

    /// Another key has our IPv4 subnet, and ours is gone.
    pub(super) async fn judge_overlap(&mut self, raw: &RawRecord) -> Result<(), Stop> {
        let parsed = Record::parse(&raw.value);
        let owner = raw.key.parse::<SubnetKey>().ok().zip(parsed.as_ref().ok());
        let owner = owner.map(|(key, record)| (self.owner_of(&key, record, raw), record));
        let another = match &owner {
            Some((KeyOwner::Another(relation), other)) => Some((*relation, other)),
            // Our key was free, and a clone has a lease.
            Some((KeyOwner::Copy(_), other)) if raw.lease != 0 => Some((Relation::Instance, other)),
            _ => None,
        };
        if let Some((relation, other)) = another {
            let holder = format!("{}, under the key {}", self.holder(other, relation), shown(&raw.key));
            return Err(self.lost(holder, raw.lease).await.into());
        }
        let found = match owner {
            // A reservation, or ours from another life: it is for the operator to say, and may be gone the next time.
            Some((KeyOwner::Void(_), record)) if self.is_reservation(&raw.key, record, raw.lease) => None,
            Some((KeyOwner::Void(bad), _)) => Some(Found::void(&bad, &raw.value)),
            Some((KeyOwner::Copy(how), record)) => Some(Found::copy(how, record, &raw.value)),
            Some(_) => None,
            None => Some(Found::unreadable(&raw.value)),
        };
        let Some(found) = found else {
            let reason = format!("{} stands in the way", shown(&raw.key));
            return Err(Stop::Failed(Error { step: format!("create {}", self.key), reason, transient: true }));
        };
        self.disturbed(found.under(&raw.key), true, raw.revision).await?;
        // Ours is made at the next try, whether this was still there or not.
        self.store.delete(&raw.key, raw.revision).await?;
        Ok(())
    }

    /// What is there is not as it should be: it is to be written.
    fn want_written(&mut self) {
        // Without a lease it would be a reservation; making it anew sees to one first.
        let makes_lease = self.todo == Some(Todo::Create) && self.held.lease.is_none();
        if !makes_lease && !matches!(self.todo, Some(Todo::Write(_))) {
            self.todo = Some(Todo::Write(Cause::Repair));
        }
    }

    /// Another wrote or deleted our record; `harms`: the other nodes may not find us until it is written back.
    pub(super) async fn disturbed(&mut self, found: Found, harms: bool, revision: i64) -> Result<(), Over> {
        let news = self.contest.disturbed(found, harms, revision, Instant::now());
        self.tell_of_fight(news).await
    }

    /// Tells what there is to tell of a fight.
    pub(super) async fn tell_of_fight(&mut self, news: Vec<FightEvent>) -> Result<(), Over> {
        for event in news {
            self.tell(LeaseEvent::Fight(event)).await?;
        }
        Ok(())
    }

    /// Whether the other nodes still find us by this record: no more than members that they do not read are another's.
    fn leads_here(&self, record: &Record) -> bool {
        let ours = &self.held.record;
        (&record.backend_type, record.public_ip, record.public_ipv6, &record.ipv4, &record.ipv6)
            == (&ours.backend_type, ours.public_ip, ours.public_ipv6, &ours.ipv4, &ours.ipv6)
    }

    /// Tells of a failure that begins, and of one whose reason has been another for a while.
    pub(super) async fn in_trouble(&mut self, reason: String) -> Result<(), Over> {
        let now = Instant::now();
        if self.trouble.as_ref().is_some_and(|(told, at)| *told == reason || now - *at < REASON_STANDS) {
            return Ok(());
        }
        self.trouble = Some((reason.clone(), now));
        self.tell(LeaseEvent::Trouble { reason }).await
    }

    /// Another asks whether we live.
    async fn asked(&mut self, by: String) -> Result<(), Over> {
        let now = Instant::now();
        self.contest.asked(now);
        self.asked_by = shown(&by);
        if self.questions.admit(now.into_std()) {
            self.tell(LeaseEvent::Claimed { by: self.asked_by.clone(), times: 1 }).await?;
        }
        Ok(())
    }

    /// Tells how many questions came since the last one that was told, where it is time to.
    pub(super) async fn count_questions(&mut self) -> Result<(), Over> {
        match self.questions.count(Instant::now().into_std()) {
            Some(times) => self.tell(LeaseEvent::Claimed { by: self.asked_by.clone(), times }).await,
            None => Ok(()),
        }
    }

    fn owner_of(&self, key: &SubnetKey, record: &Record, raw: &RawRecord) -> KeyOwner {
        let own_lease = self.held.lease.map_or(0, |lease| lease.0);
        let Self { config, addresses, held, has_ended, .. } = self;
        // Each key has a creation of its own.
        let created = if raw.key == self.key { held.created } else { 0 };
        let (record_of_ours, has_ended) = (&held.record, *has_ended);
        let holder = Holder { config, record: record_of_ours, addresses, created, lease: own_lease, has_ended };
        holder.owner_of(key, record, (raw.created, raw.lease))
    }

    fn is_reservation(&self, key: &str, record: &Record, lease: i64) -> bool {
        key.parse().is_ok_and(|key| hold(&self.config, &key, record, lease) == Hold::Reserved)
    }

    /// Who has our subnet now, for people.
    fn holder(&self, other: &Record, relation: Relation) -> String {
        let holder = shown(&other.holder());
        match &other.instance {
            Some(instance) if relation == Relation::Instance && other.public_ip == self.held.record.public_ip => {
                format!(
                    "{holder}, the instance {}, which has our node id and public IP and was there before this one",
                    shown(&instance.id)
                )
            }
            _ => holder,
        }
    }
}

/// What is to be written over, for the log.
fn found(owner: KeyOwner, record: &Record, value: &[u8]) -> Found {
    match owner {
        KeyOwner::SameAddress => Found::same_address(record),
        KeyOwner::Later => Found::clone_of(record),
        KeyOwner::OnOurLease => Found::on_our_lease(record),
        KeyOwner::WrittenOver => Found::written_over(record, value),
        KeyOwner::Copy(how) => Found::copy(how, record, value),
        KeyOwner::Void(bad) => Found::void(&bad, value),
        KeyOwner::Ours { .. } | KeyOwner::Another(_) => Found::changed(value),
    }
}
