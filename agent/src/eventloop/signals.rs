//! The signals that the daemon answers to.
//!
//! | signal | it |
//! |---|---|
//! | SIGTERM, SIGINT, SIGQUIT | stops cleanly, once: another one during the stop changes nothing |
//! | SIGHUP | compares the kernel with the records at once and logs what differed; it reads no file and no flag again |
//! | SIGUSR1, SIGUSR2 | logs its state |
//!
//! What becomes of all others is in [`crate::process::daemon_signals`].

use std::io;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::field::display;
use tracing::{info, warn};

use super::{EventLoop, clock};
use crate::dataplane::Dataplane;
use crate::overlay::peers::Tally;
use crate::overlay::words::Span;
use crate::snapshot::in_words;

/// How long a clean stop may take to program everyone.
const STOP_WITHIN: Duration = Duration::from_millis(1500);

/// What an operator asks for by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// A clean stop.
    Stop,
    /// A complete comparison.
    Compare,
    /// The state in the log.
    Report,
}

const ANSWERED: [(Signal, Order); 6] = [
    (Signal::SIGTERM, Order::Stop),
    (Signal::SIGINT, Order::Stop),
    (Signal::SIGQUIT, Order::Stop),
    (Signal::SIGHUP, Order::Compare),
    (Signal::SIGUSR1, Order::Report),
    (Signal::SIGUSR2, Order::Report),
];

/// The signals that are answered. Made early, so that none is lost before the loop runs.
pub struct Signals(mpsc::Receiver<(Signal, Order)>);

impl<D: Dataplane> EventLoop<D> {
    /// Does what an operator asks for; after [`Order::Stop`] the loop ends.
    pub(super) fn answer_signal(&mut self, signal: Signal, order: Order) {
        match order {
            Order::Stop => {
                info!(%signal, "stopping");
                self.stop();
            }
            Order::Compare => {
                info!(%signal, "comparing the kernel with the records; flags, files and etcd are not read again");
                self.families.iter_mut().for_each(|family| family.compare_and_tell(clock::now()));
                self.write_env();
            }
            Order::Report => {
                let missing = &self.publisher.last().missing;
                info!(%signal, ready = missing.is_empty(), missing = %in_words(missing), subnet = %self.own.text, "state");
                for family in &self.families {
                    let (peers, programmed) = (family.plane.peers().len(), family.plane.tally().in_kernel);
                    info!(device = %family.device.name, peers, programmed, "state of a device");
                }
            }
        }
    }

    /// A clean stop: what is due is done, on demand with every known peer, as far as the time allows.
    fn stop(&mut self) {
        let started = clock::now();
        for family in &mut self.families {
            if self.program_all_on_exit {
                family.plane.want_everyone();
            }
            family.finish(started + STOP_WITHIN);
        }
        let tally: Tally = self.families.iter().map(|family| family.plane.tally()).sum();
        let (peers, programmed) = (tally.all(), tally.in_kernel);
        let took = display(Span(started.elapsed()));
        if self.program_all_on_exit && tally.wanted > 0 {
            warn!(peers, programmed, took, "stopping, not every peer could be put into the kernel");
        } else {
            info!(peers, programmed, took, "stopping; device, routes, record and subnet.env stay");
        }
    }
}

impl Signals {
    /// From now on they are heard, and delivered to this thread. Needs a tokio runtime.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub fn new() -> io::Result<Self> {
        // One task for each, so that the loop, which looks here after each miss, looks at one thing.
        let (orders, heard) = mpsc::channel(ANSWERED.len());
        for (which, order) in ANSWERED {
            let (mut signal, orders) = (signal(SignalKind::from_raw(which as i32))?, orders.clone());
            tokio::spawn(
                async move { while signal.recv().await.is_some() && orders.send((which, order)).await.is_ok() {} },
            );
        }
        SigSet::from_iter(ANSWERED.map(|(which, _)| which)).thread_unblock()?;
        Ok(Self(heard))
    }

    /// Waits for the next. Cancel-safe.
    pub async fn recv(&mut self) -> (Signal, Order) {
        match self.0.recv().await {
            Some(order) => order,
            // Its tasks live as long as the runtime.
            None => std::future::pending().await,
        }
    }
}
