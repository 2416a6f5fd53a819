//! The kernel, as the rest of the agent sees it: one VXLAN device with its FDB, neighbours and routes.
//!
//! `kernel` is the real one, `fake` a model of it in memory that can be told to fail. This folder is the only one that
//! imports netlink crates; it knows nothing of etcd or of records.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::overlay::MacAddr;
use crate::overlay::iface::Interface;
use crate::overlay::kernel::{Miss, Notification, Observed, Op, OtherDevice};
use crate::overlay::rules::{DeadEnd, Rule, Way};

mod convert;
mod device;
mod dump;
#[cfg(any(test, feature = "test-doubles"))]
pub mod fake;
pub(crate) mod holder;
pub mod kernel;
mod link;
mod live;
mod queries;
mod shield;
mod underlay;

pub use netlink_ext::is_passing;

/// The device that one family should have. A backend without a device has one in name only: its routes to peers lead through
/// links of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name, as in `flannel.1`; without a device that of the backend.
    pub name: String,
    /// What is wanted of a VXLAN device, where there is to be one.
    pub vxlan: Option<Vxlan>,
    /// The underlay address that its packets come from.
    pub local: IpAddr,
    /// The interface index of the underlay.
    pub underlay: u32,
    /// The name of the underlay.
    pub underlay_name: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its address: the subnet's first one, as /32 or /128. Without a device it is nobody's.
    pub address: IpNetwork,
}

/// What is wanted of a VXLAN device alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The UDP port, 8472 unless the config says otherwise.
    pub port: u16,
    /// The device's MAC, as in our record.
    pub mac: MacAddr,
    /// Whether the kernel learns rows from packets.
    pub learning: bool,
    /// Whether it carries group policy marks (VXLAN-GBP).
    pub gbp: bool,
    /// Whether the kernel asks for the VTEP of an unknown MAC. Without it the device is flannel's to the flag, so that a
    /// flannel that follows keeps it.
    pub l2miss: bool,
}

impl Device {
    /// The MAC of the device, where there is one.
    pub fn mac(&self) -> Option<MacAddr> {
        self.vxlan.as_ref().map(|vxlan| vxlan.mac)
    }
}

/// What making a device came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// It was there as wanted.
    AsWanted,
    /// It was there and these attributes were set right.
    Changed(Vec<String>),
    /// It was not there, or could not be changed into what is wanted, for the reasons named.
    Created(Vec<String>),
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AsWanted => f.write_str("it was there as wanted"),
            Self::Changed(reasons) => write!(f, "changed: {}", reasons.join("; ")),
            Self::Created(reasons) if reasons.is_empty() => f.write_str("new"),
            Self::Created(reasons) => write!(f, "made anew: {}", reasons.join("; ")),
        }
    }
}

/// What the kernel tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelEvent {
    /// It asks for something.
    Miss(Miss),
    /// A row of our device, or one like ours, was changed by somebody or (FDB rows only) by ourselves.
    Row(Notification),
    /// Our device is gone or is no longer as it was made.
    Device,
    /// Links, addresses or default routes changed that the choice of the underlay rests on.
    Underlay,
    /// The policy rules changed.
    Rules,
    /// Events were lost: look at everything. Misses that were lost come right after.
    Overrun,
    /// Things that concern nobody here; there may be more.
    Nothing,
}

/// An operation that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its index in what was applied.
    pub index: usize,
    /// The kernel's words.
    pub reason: String,
}

/// The kernel side of one plane.
///
/// Operations are applied synchronously (the kernel works them off within the system call); dumps go in steps, so that
/// misses can be answered in between.
pub trait Dataplane {
    /// Makes the device what is wanted and listens to its events from then on. Keeps what hangs on it where it can.
    fn make(&mut self, device: &Device) -> impl Future<Output = Result<Made, Error>>;

    /// This host's interfaces, with their addresses and default routes.
    fn interfaces(&mut self) -> Result<Vec<Interface>, Error>;

    /// The same in steps, so that misses can be answered in between: `None` where there are more. The first call begins.
    fn look(&mut self) -> Result<Option<Vec<Interface>>, Error> {
        self.interfaces().map(Some)
    }

    /// The policy rules of the device's family, in the kernel's order.
    fn rules(&mut self) -> Result<Vec<Rule>, Error>;

    /// Which way this host sends what goes from the device's address to another one.
    fn way_to(&mut self, address: IpAddr) -> Result<Way, Error>;

    /// The routes of a table that send a packet nowhere, of the device's family.
    fn dead_ends(&mut self, table: u32) -> Result<Vec<DeadEnd>, Error>;

    /// Whether this host sends to an address without a gateway in between.
    fn is_direct(&mut self, host: IpAddr) -> Result<bool, Error>;

    /// All devices of this host by their indices.
    fn devices(&mut self) -> Result<BTreeMap<u32, OtherDevice>, Error>;

    /// Applies operations in order; those that the kernel refuses don't keep the others from being done.
    fn apply(&mut self, ops: &[Op]) -> Result<Vec<Refused>, Error>;

    /// Does the next step of a dump, the first call of one that it begins; returns what the step showed, and whether it was
    /// the last one.
    fn observe(&mut self) -> Result<(Observed, bool), Error>;

    /// The next thing the kernel has told, misses first; `None` where there is nothing now.
    fn next_event(&mut self) -> Result<Option<KernelEvent>, Error>;

    /// Waits until [`Dataplane::next_event`] may have something.
    fn readable(&self) -> impl Future<Output = ()>;
}

/// Why the kernel did not do what it was asked.
///
/// [`Error::is_passing`] tells what is worth another try, [`Error::is_of_socket`] what needs new sockets.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a request about a link.
    #[error("{step} {name}: {source}")]
    Link {
        /// What was being done, as in `create`.
        step: &'static str,
        /// The link's name.
        name: String,
        /// The kernel's answer.
        source: netlink_ext::Refusal,
    },
    /// Something else has the device's name: it is not ours to delete.
    #[error("{name} is a {kind} device, not vxlan: remove or rename it")]
    Foreign {
        /// The link's name.
        name: String,
        /// Its kind.
        kind: String,
    },
    /// Another VXLAN device has the VNI and port.
    #[error(
        "cannot create {name}: {holder} has VNI {vni} and port {port} already; remove it, or change Backend.VNI or Backend.Port in the network config"
    )]
    Taken {
        /// The link's name.
        name: String,
        /// The other one's.
        holder: String,
        /// The network identifier.
        vni: u32,
        /// The UDP port.
        port: u16,
    },
    /// Somebody else has the UDP port.
    #[error(
        "cannot set up {name}: UDP port {port} is held by {holder}; remove it, give it another port, or change Backend.Port in the network config"
    )]
    PortTaken {
        /// The link's name.
        name: String,
        /// The UDP port.
        port: u16,
        /// Who has it, as far as it is known.
        holder: String,
    },
    /// The link is not there although it was just made.
    #[error("{name} was made and is not there")]
    Vanished {
        /// The link's name.
        name: String,
    },
    /// A request through a socket of ours failed.
    #[error(transparent)]
    Netlink(#[from] netlink_ext::Error),
}

impl Error {
    /// Whether the same may succeed when it is tried again, with nothing changed by anybody: the kernel lacks memory,
    /// a socket failed, somebody deleted the link at that moment.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Netlink(error) => error.is_passing(),
            Self::Link { source, .. } => netlink_ext::is_passing(source.errno),
            Self::Vanished { .. } => true,
            Self::Foreign { .. } | Self::Taken { .. } | Self::PortTaken { .. } => false,
        }
    }

    /// Whether a socket failed, so that what it told is lost: the device is to be made again, and all compared.
    pub fn is_of_socket(&self) -> bool {
        matches!(self, Self::Netlink(error) if error.is_of_socket())
    }
}
