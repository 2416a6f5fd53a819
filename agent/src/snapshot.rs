//! What the daemon knows of itself, in one typed value: the log's lines about being ready, systemd's status, `/healthz`,
//! `/readyz` and `/metrics` read it.
//!
//! The event loop publishes it between two pieces of work, never between a miss and its answer. Numbers are copied then;
//! nothing is looked through, however many peers there are.

use std::fmt;
use std::time::Instant;

use tokio::sync::watch;

use crate::dataplane::Device;
use crate::overlay::Shown;
use crate::overlay::counts::Counts;
use crate::overlay::peers::Tally;

/// The longest that one missing thing is described, in characters: systemd takes a line, and `/readyz` has one for each.
const LONGEST: usize = 600;

/// What the daemon knows of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// What is missing before this node is ready; with nothing missing it is ready.
    pub missing: Vec<Missing>,
    /// This node's record; `None` during the start.
    pub lease: Option<Lease>,
    /// etcd, as the reader of the records finds it.
    pub etcd: Etcd,
    /// Times that the nftables tables were restored after another program had changed them.
    pub nftables_restores: u64,
    /// The address families, one or two.
    pub families: Vec<Family>,
}

impl Snapshot {
    /// How many peers of all families have come how far.
    pub fn peers(&self) -> Tally {
        self.families.iter().map(|family| family.peers).sum()
    }
}

/// This node's record in etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The record's key: `10.5.52.0-24`.
    pub subnet: String,
    /// When the record's lease ends unless it is renewed; `None`: a reservation, which never ends.
    pub ends: Option<Instant>,
}

/// etcd, as the reader of the records finds it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Etcd {
    /// Why etcd does not answer, if it doesn't.
    pub down: Option<String>,
    /// A complete read is under way.
    pub is_listing: bool,
    /// How often etcd ceased to answer.
    pub outages: u64,
    /// Complete reads of the records that were begun since the start: the watch had lost its place.
    pub listings: u64,
}

/// One address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// The VXLAN device as it should be.
    pub device: Device,
    /// The kernel has what is wanted, as far as is known.
    pub is_in_step: bool,
    /// How many peers have come how far.
    pub peers: Tally,
    /// What has been counted.
    pub counts: Counts,
    /// Times that events of the kernel were lost, because they came faster than they were read.
    pub overruns: u64,
    /// Times that the device was restored after another program had changed or deleted it.
    pub restores: u64,
}

impl Family {
    /// A family with this device, of which nothing is known yet.
    pub fn new(device: &Device) -> Self {
        let (peers, counts) = (Tally::default(), Counts::default());
        Self { device: device.clone(), is_in_step: false, peers, counts, overruns: 0, restores: 0 }
    }
}

/// A part of the daemon's work. A node is ready when nothing is missing in any part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A subnet: the daemon is starting.
    Lease,
    /// This node's record in etcd.
    Record,
    /// etcd.
    Etcd,
    /// The interface that carries the tunnel.
    Underlay,
    /// The device, its routes, neighbours and FDB rows.
    Kernel,
    /// Routes and policy rules of other programs that go before ours.
    Contested,
    /// `subnet.env`.
    SubnetEnv,
    /// The nftables rules.
    Nftables,
}

impl Part {
    /// The part's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::Record => "record",
            Self::Etcd => "etcd",
            Self::Underlay => "underlay",
            Self::Kernel => "kernel",
            Self::Contested => "contested",
            Self::SubnetEnv => "subnet.env",
            Self::Nftables => "nftables",
        }
    }
}

/// A reason why this node is not ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Of which part.
    pub part: Part,
    /// What is missing or why, for people.
    pub reason: String,
}

impl Missing {
    /// This is missing, because of this.
    pub fn new(part: Part, reason: impl fmt::Display) -> Self {
        Self { part, reason: Shown::up_to(LONGEST, &reason.to_string()).to_string() }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part {
            // Its reason begins with the peer.
            Part::Contested => f.write_str(&self.reason),
            part => write!(f, "{}: {}", part.name(), self.reason),
        }
    }
}

/// The missing things on one line.
pub fn in_words(missing: &[Missing]) -> String {
    missing.iter().map(Missing::to_string).collect::<Vec<_>>().join("; ")
}

/// Where the snapshot is published.
#[derive(Debug, Clone)]
pub struct Publisher(watch::Sender<Snapshot>);

impl Publisher {
    /// A daemon that is starting, and where to read about it.
    pub fn new() -> (Self, watch::Receiver<Snapshot>) {
        let missing = vec![Missing::new(Part::Lease, "none yet")];
        let (sender, receiver) = watch::channel(Snapshot { missing, ..Snapshot::default() });
        (Self(sender), receiver)
    }

    /// The start waits for this.
    pub fn waits_for(&self, what: &str) {
        self.starting(format_args!("none yet, waiting for {what}"));
    }

    /// The start can't do this, and tries again.
    pub fn cannot(&self, what: &str) {
        self.starting(format_args!("none yet; this node cannot {what}"));
    }

    fn starting(&self, reason: fmt::Arguments<'_>) {
        self.0.send_modify(|snapshot| snapshot.missing = vec![Missing::new(Part::Lease, reason)]);
    }

    /// The last snapshot. Nothing can be published while it is held.
    pub fn last(&self) -> watch::Ref<'_, Snapshot> {
        self.0.borrow()
    }

    /// Publishes what `update` makes of the last snapshot.
    pub fn publish(&self, update: impl FnOnce(&mut Snapshot)) {
        self.0.send_modify(update);
    }
}
