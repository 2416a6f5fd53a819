//! What the kernel of a node shows: how much there is, and what changes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ipnetwork::IpNetwork;
use netlink_ext::{Change, ChangeScope, ChangeSocket, Dumper, Family};

/// The protocol of everything that Twill writes.
const PROTOCOL: u8 = 116;
/// Room for the changes of 10,000 peers that nobody reads for a while.
const BUFFER: usize = 64 << 20;

/// Rows of peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    /// FDB rows.
    pub(crate) fdb: usize,
    /// Neighbours with a MAC.
    pub(crate) neighbours: usize,
    /// Routes through a gateway.
    pub(crate) routes: usize,
}

impl Rows {
    /// So many of each.
    pub(crate) fn each(count: usize) -> Self {
        Self { fdb: count, neighbours: count, routes: count }
    }

    /// All together.
    pub(crate) fn sum(self) -> usize {
        self.fdb + self.neighbours + self.routes
    }
}

/// The index of `flannel.1` in this thread's namespace.
pub(crate) fn ifindex() -> Result<u32> {
    Ok(Dumper::open()?.link_named("flannel.1")?.context("no flannel.1")?.index)
}

/// What is on `flannel.1` in this thread's namespace.
pub(crate) fn rows() -> Result<Rows> {
    let (mut dumper, ifindex) = (Dumper::open()?, ifindex()?);
    let neighbours = dumper.neighbours(ifindex, Family::V4)?;
    let routes = dumper.routes(Family::V4, Some(ifindex), Some(PROTOCOL), None)?;
    Ok(Rows {
        fdb: dumper.fdb(ifindex)?.len(),
        neighbours: neighbours.iter().filter(|seen| seen.mac.is_some()).count(),
        routes: routes.iter().filter(|route| route.gateway.is_some()).count(),
    })
}

/// How many addresses on the device wait for an answer right now.
pub(crate) fn unresolved(dumper: &mut Dumper, ifindex: u32) -> Result<usize> {
    let neighbours = dumper.neighbours(ifindex, Family::V4)?;
    Ok(neighbours.iter().filter(|seen| seen.is_incomplete()).count())
}

/// Hears and counts what changes; opened in a namespace, within a tokio runtime.
pub(crate) struct Watch {
    socket: ChangeSocket,
    /// Rows put so far.
    pub(crate) put: Rows,
    /// Rows deleted so far.
    pub(crate) gone: Rows,
    /// The last peer route that was put.
    pub(crate) last_route: Option<IpNetwork>,
}

impl Watch {
    /// Routes, and the FDB and neighbours of one device (0 for none).
    pub(crate) fn open(ifindex: u32) -> Result<Self> {
        let scope = ChangeScope { ifindex, ignore_ports: Vec::new(), receive_buffer: BUFFER };
        let (put, gone) = (Rows::default(), Rows::default());
        Ok(Self { socket: ChangeSocket::open(&scope)?, put, gone, last_route: None })
    }

    /// Counts on until `there`; the time when it was.
    pub(crate) async fn until(&mut self, limit: Duration, mut there: impl FnMut(&Self) -> bool) -> Result<Instant> {
        let deadline = Instant::now() + limit;
        loop {
            while let Some(change) = self.socket.try_next()? {
                self.count(&change)?;
                if there(self) {
                    return Ok(Instant::now());
                }
            }
            let wait = tokio::time::timeout_at(deadline.into(), self.socket.readable());
            if wait.await.is_err() {
                bail!("waited {limit:?} for changes in the kernel: put {:?}, deleted {:?}", self.put, self.gone);
            }
        }
    }

    /// Counts what has happened so far.
    pub(crate) fn drain(&mut self) -> Result<()> {
        while let Some(change) = self.socket.try_next()? {
            self.count(&change)?;
        }
        Ok(())
    }

    fn count(&mut self, change: &Change) -> Result<()> {
        let (rows, row): (_, fn(&mut Rows) -> &mut usize) = match change {
            Change::Route { route, gone } if route.protocol == PROTOCOL && route.gateway.is_some() => {
                if !gone {
                    self.last_route = Some(route.destination);
                }
                (gone, |rows| &mut rows.routes)
            }
            Change::Neigh { gone, entry } if entry.protocol == PROTOCOL => (gone, |rows| &mut rows.neighbours),
            Change::Fdb { gone, .. } => (gone, |rows| &mut rows.fdb),
            Change::Overrun => bail!("the bench lost changes of the kernel"),
            _ => return Ok(()),
        };
        *row(if *rows { &mut self.gone } else { &mut self.put }) += 1;
        Ok(())
    }
}

/// Fails unless there is exactly one row of each kind for each of `peers`.
pub(crate) fn check(peers: usize) -> Result<()> {
    let found = rows()?;
    ensure!(found == Rows::each(peers), "the kernel has {found:?}, not {peers} of each");
    Ok(())
}
