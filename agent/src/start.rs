//! From flags to a running event loop, in phases of which each is made from the one before: [`Host`], [`Place`],
//! [`Leased`](subnet::Leased), and the loop.
//!
//! Each phase waits where waiting can help (no config yet, etcd away, no free subnet), and says so once and then every half
//! minute; it ends the process where it can't.

use std::pin::pin;

use anyhow::Result;
use tokio::sync::watch;
use tracing::info;

use crate::cli::Flags;
use crate::dataplane::kernel::Kernel;
use crate::eventloop::{Ended, EventLoop, Feeds, Order, Signals};
use crate::snapshot::{Publisher, Snapshot, in_words};
use crate::{handoff, lock};

mod fit;
mod host;
mod identity;
mod interfaces;
mod place;
mod subnet;
mod wire;

use host::Host;
use place::Place;

/// Runs the daemon with these flags until it is told to stop or loses its subnet.
pub async fn run(flags: Flags) -> Result<Ended> {
    let subnet_file = flags.subnet_file.clone();
    let mut signals = Signals::new()?;
    let (publisher, snapshot) = Publisher::new();
    let mut preparing = pin!(prepare(flags, publisher, snapshot.clone()));
    let prepared = loop {
        tokio::select! {
            prepared = preparing.as_mut() => break prepared,
            (signal, order) = signals.recv() => {
                let waits = in_words(&snapshot.borrow().missing);
                match order {
                    Order::Stop => {
                        info!(%signal, %waits, "stopping during the start");
                        return Ok(Ended::Stopped);
                    }
                    Order::Compare | Order::Report => info!(%signal, %waits, "state: starting"),
                }
            }
        }
    };
    let (turn, feeds) = prepared.inspect_err(|why| match why.downcast_ref::<lock::Error>() {
        // The other one's word counts.
        Some(_) => handoff::explain(&subnet_file, None),
        None => handoff::explain(&subnet_file, Some(&format!("{why:#}"))),
    })?;
    let ended = turn.run(signals, feeds).await;
    if let Ended::LeaseLost { holder } = &ended {
        // A pod that is added now would have an address of the other node's.
        handoff::withdraw(&subnet_file, &format!("another node holds the subnet that this one had: {holder}"));
    }
    Ok(ended)
}

/// All that comes before the first turn of the event loop.
async fn prepare(
    flags: Flags,
    publisher: Publisher,
    snapshot: watch::Receiver<Snapshot>,
) -> Result<(EventLoop<Kernel>, Feeds)> {
    let mut host = Host::open(flags, publisher, snapshot).await?;
    let leased = loop {
        let Some(place) = Place::find(&mut host).await? else { continue };
        if let Some(leased) = place.lease(&mut host).await? {
            break leased;
        }
    };
    leased.into_loop(host).await
}
