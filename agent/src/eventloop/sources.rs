//! What the loop waits for beside the kernel.

use nix::sys::signal::Signal;
use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::health::Health;
use super::signals::{Order, Signals};
use crate::lease::LeaseEvent;
use crate::masquerade::RulesState;
use crate::store::StoreEvent;

/// What the tasks beside the loop tell it.
pub struct Feeds {
    /// The store's reader.
    pub store: mpsc::Receiver<StoreEvent>,
    /// The keeper of our record.
    pub lease: mpsc::Receiver<LeaseEvent>,
}

/// What has happened.
pub(super) enum News {
    Signal(Signal, Order),
    Store(StoreEvent),
    Lease(LeaseEvent),
    /// The nftables rules are in another state.
    Rules,
    /// It is time to look at files and to tell systemd that we live.
    Look,
    /// The store is to be read from the start.
    ReadAgain,
    /// A part of the daemon has ended or works no more.
    Ended(String),
}

/// Where news come from.
pub(super) struct Sources {
    signals: Signals,
    pub feeds: Feeds,
    rules: watch::Receiver<RulesState>,
    look: Interval,
}

impl Sources {
    pub(super) fn new(signals: Signals, feeds: Feeds, rules: watch::Receiver<RulesState>) -> Self {
        let mut look = interval(Health::every());
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { signals, feeds, rules, look }
    }

    /// Waits for the next of them. Cancel-safe.
    pub(super) async fn next(&mut self) -> News {
        let rules = async {
            let changed = self.rules.changed().await;
            changed.map_or_else(|_| ended("what keeps the nftables rules"), |()| News::Rules)
        };
        tokio::select! {
            biased;
            (signal, order) = self.signals.recv() => News::Signal(signal, order),
            event = self.feeds.store.recv() => event.map_or_else(|| ended("the reader of etcd"), News::Store),
            event = self.feeds.lease.recv() => event.map_or_else(|| ended("the keeper of our record"), News::Lease),
            news = rules => news,
            _ = self.look.tick() => News::Look,
        }
    }
}

/// A part has ended, which none does by itself.
fn ended(part: &str) -> News {
    News::Ended(format!("{part} has ended unexpectedly: this is a bug of twilld"))
}
