//! Keeps the record that we hold: renews its lease, makes it again when it goes, and notices when it is another's.
//!
//! A task of its own, so that a hanging store never delays a packet. It hears of changes to its key through
//! [`KeeperHandle::seen`] and tells what happened in [`LeaseEvent`]s; logging them is the listener's.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::contest::Contest;
use super::handle::{Command, KeeperHandle, LeaseEvent};
use super::{Found, Held, revoke};
use crate::overlay::NetworkConfig;
use crate::overlay::alloc::Addresses;
use crate::overlay::record::Record;
use crate::overlay::records::InOurName;
use crate::overlay::repeats::Repeats;
use crate::store::backoff::Backoff;
use crate::store::{Change, Error, LeaseId, Store};

mod defence;
mod judge;
mod writes;

/// Events that may wait for a listener who is busy.
const UNREAD: usize = 64;

/// How long the loss of our subnet may stay unsaid while leases of ours are revoked.
const REVOKE_WITHIN: Duration = Duration::from_secs(1);

/// Has to be done as soon as the store lets us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Todo {
    /// Our record says something else than it should.
    Write(Cause),
    /// Our record is gone.
    Create,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Publish,
    Repair,
}

/// The keeper goes no further: the subnet is another's, or nobody listens.
struct Over;

/// Why a step of the keeper's did not end well.
enum Stop {
    Over,
    Failed(Error),
}

impl From<Over> for Stop {
    fn from(_: Over) -> Self {
        Self::Over
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// The task that keeps a record.
#[derive(Debug)]
pub struct Keeper<S> {
    store: S,
    config: NetworkConfig,
    held: Held,
    key: String,
    /// The addresses of ours that the store may have: the one last written, and those asked for since.
    addresses: Vec<Addresses>,
    ttl: Duration,
    margin: Duration,
    commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::Sender<LeaseEvent>,
    renew_at: Option<Instant>,
    todo: Option<Todo>,
    /// No request before this: backoff.
    not_before: Instant,
    backoff: Backoff,
    /// The failure that was told last, and when, while it lasts.
    trouble: Option<(String, Instant)>,
    /// A write was refused, perhaps because our lease is gone.
    in_doubt: bool,
    /// Our lease has ended, and no record of ours is there since.
    has_ended: bool,
    /// The record has to be looked at, whatever revision we know of it.
    unsure: bool,
    /// A lease of our own making that no record hangs on yet.
    unused: Option<LeaseId>,
    /// The last lease of our own making; one that we follow is not.
    granted: Option<LeaseId>,
    /// What others do to our record.
    contest: Contest,
    /// Who asked last whether we live, and the events about such questions.
    asked_by: String,
    questions: Repeats,
    /// The record in our name that our next write has to supersede.
    superseder: Option<InOurName>,
}

impl<S: Store> Keeper<S> {
    /// Starts keeping `held`, a subnet of the network of this config, whose lease has just been granted or renewed and lasts `ttl`. It is renewed when
    /// `renew_margin` is left of it, or half of it where that is less.
    ///
    /// Needs a tokio runtime. The task ends by [`KeeperHandle::stop`], after [`LeaseEvent::Lost`], and when the receiver
    /// is dropped.
    pub fn spawn(
        store: S,
        config: NetworkConfig,
        held: Held,
        ttl: Duration,
        renew_margin: Duration,
    ) -> (KeeperHandle, mpsc::Receiver<LeaseEvent>) {
        let (sender, commands) = mpsc::unbounded_channel();
        let (events, receiver) = mpsc::channel(UNREAD);
        let now = Instant::now();
        let mut keeper = Self {
            store,
            config,
            key: held.key.to_string(),
            addresses: vec![addresses(&held.record)],
            ttl,
            margin: renew_margin,
            commands,
            events,
            renew_at: None,
            todo: None,
            not_before: now,
            backoff: Backoff::default(),
            trouble: None,
            in_doubt: false,
            has_ended: false,
            unsure: false,
            unused: None,
            granted: held.lease,
            contest: Contest::new(now),
            asked_by: String::new(),
            questions: Repeats::in_a_minute(1),
            superseder: None,
            held,
        };
        keeper.renewed(ttl);
        let task = tokio::spawn(keeper.run()).abort_handle();
        (KeeperHandle { commands: sender, task }, receiver)
    }

    async fn run(mut self) {
        let closed = self.events.clone();
        tokio::select! {
            Over = self.keep() => {}
            () = closed.closed() => {}
        }
    }

    async fn keep(&mut self) -> Over {
        loop {
            let due = self.due();
            let step = tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command).await.map_err(Stop::from),
                    None => Err(Stop::Over),
                },
                () = until(due) => self.act().await,
            };
            match step {
                Ok(()) => {}
                Err(Stop::Over) => return Over,
                Err(Stop::Failed(error)) => {
                    self.not_before = Instant::now() + self.backoff.failed();
                    self.in_doubt |= !error.is_transient();
                    if self.in_trouble(error.to_string()).await.is_err() {
                        return Over;
                    }
                }
            }
        }
    }

    /// When the next request is due; `None`: nothing to do until a command comes.
    fn due(&self) -> Option<Instant> {
        let check = self.unsure.then_some(self.not_before);
        let write = self.todo.map(|_| self.contest.not_before());
        let wanted = [check, write, self.renew_at, self.contest.due(), self.questions.due().map(Instant::from_std)];
        wanted.into_iter().flatten().min().map(|at| at.max(self.not_before))
    }

    async fn obey(&mut self, command: Command) -> Result<(), Over> {
        match command {
            Command::Publish(record) => {
                let Record { extra, node, instance, .. } = self.held.record.clone();
                self.held.record = Record { extra, node, instance, ..*record };
                self.addresses.push(addresses(&self.held.record));
                if self.todo != Some(Todo::Create) {
                    self.todo = Some(Todo::Write(Cause::Publish));
                }
                Ok(())
            }
            Command::Seen(Change::Deleted { key, revision }) => {
                if key == self.key && revision > self.held.revision {
                    self.todo = Some(Todo::Create);
                    self.disturbed(Found::Nothing, true, revision).await?;
                }
                Ok(())
            }
            Command::Seen(Change::Put(raw)) if raw.key == self.key && raw.revision > self.held.revision => {
                self.judge(raw).await?;
                // What failed, or only its answer got lost, may be done by now.
                if self.todo.is_none() && !self.unsure { self.works().await } else { Ok(()) }
            }
            Command::Seen(Change::Put(_)) => Ok(()),
            Command::Defend(against) => self.defend(against).await,
            Command::Check => {
                self.unsure = true;
                Ok(())
            }
        }
    }

    async fn act(&mut self) -> Result<(), Stop> {
        let news = self.contest.news(Instant::now());
        self.tell_of_fight(news).await?;
        self.count_questions().await?;
        let is_due = self.renew_at.is_some_and(|at| at <= Instant::now());
        let mut left = None;
        if is_due || self.unsure || std::mem::take(&mut self.in_doubt) {
            left = self.renew().await?.filter(|_| is_due);
        }
        if self.unsure {
            self.check().await?;
            self.unsure = false;
        }
        match self.todo.filter(|_| self.contest.not_before() <= Instant::now()) {
            Some(Todo::Create) => self.create().await?,
            Some(Todo::Write(cause)) => self.write(cause).await?,
            None => {}
        }
        // Last: it means that all is well with the lease.
        if let Some(left) = left {
            self.tell(LeaseEvent::Renewed { left }).await?;
        }
        if self.todo.is_none() {
            self.works().await?;
        }
        Ok(())
    }

    /// Nothing is left to do.
    async fn works(&mut self) -> Result<(), Over> {
        self.backoff.worked();
        if self.trouble.take().is_some() {
            self.tell(LeaseEvent::Recovered).await?;
        }
        Ok(())
    }

    /// One keep-alive, which no watcher sees. What is left of the lease now, if there is one.
    async fn renew(&mut self) -> Result<Option<Duration>, Stop> {
        let Some(lease) = self.held.lease else { return Ok(None) };
        let left = self.store.keep_alive(lease).await?;
        match left {
            Some(left) => self.renewed(left),
            None => {
                // It ended while we couldn't reach the store, and the record with it.
                (self.held.lease, self.renew_at, self.has_ended) = (None, None, true);
                self.todo = Some(Todo::Create);
                self.contest.missing();
            }
        }
        Ok(left)
    }

    /// What stands under our key now? Making a record looks for itself.
    async fn check(&mut self) -> Result<(), Stop> {
        if self.todo == Some(Todo::Create) {
            return Ok(());
        }
        match self.store.record(&self.key).await? {
            Some(raw) => self.judge(raw).await?,
            None => {
                self.todo = Some(Todo::Create);
                self.contest.missing();
            }
        }
        Ok(())
    }

    fn renewed(&mut self, left: Duration) {
        let wait = if self.margin < left { left - self.margin } else { left / 2 };
        self.renew_at = self.held.lease.map(|_| Instant::now() + wait);
    }

    async fn lost(&mut self, holder: String, its_lease: i64) -> Over {
        // Whoever took the key over with a lease of its own left ours with nothing on it. First, since hearing of the loss
        // ends the process; etcd has answered us just now.
        let ours = [self.unused, self.granted.filter(|lease| Some(*lease) != self.unused)];
        let revoked = async {
            for lease in ours.into_iter().flatten().filter(|lease| lease.0 != its_lease) {
                revoke(&self.store, lease).await;
            }
        };
        let _ = tokio::time::timeout(REVOKE_WITHIN, revoked).await;
        // Over either way.
        let _ = self.tell(LeaseEvent::Lost { holder }).await;
        Over
    }

    async fn tell(&self, event: LeaseEvent) -> Result<(), Over> {
        self.events.send(event).await.map_err(|_| Over)
    }
}

fn addresses(record: &Record) -> Addresses {
    (record.public_ip, record.public_ipv6)
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
