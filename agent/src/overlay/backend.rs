//! How packets travel between nodes: the backends, each a folder of its own behind one seam.
//!
//! A backend says here what its records say and what disqualifies a peer's, which ways it knows to a peer, which device it
//! needs, how many bytes it adds to a packet, and which settings of the network config are its own. Records, planes and
//! devices are not known here; whoever handles them asks [`Seam`] and names no backend.
//!
//! A new backend is a folder, a line in [`Backend`] and one in each function of [`Backend`] and [`Data`] that lists them.

use std::fmt;
use std::ops::Deref;

use serde_json::Value;

use super::MacAddr;
use super::family::Family;
use super::json::Object;
use super::settings::{ConfigError, bad, shown};

mod alloc;
mod host_gw;
mod vxlan;

pub use alloc::Alloc;
pub use host_gw::HostGw;
pub use vxlan::is_device_name;
pub use vxlan::{DEFAULT_PORT, DEFAULT_VNI, VtepData, Vxlan};

/// The `Backend` object of the network config, and so what all its nodes do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// A tunnel between all hosts.
    Vxlan(Vxlan),
    /// Routes through the peers' hosts.
    HostGw(HostGw),
    /// Subnets only.
    Alloc(Alloc),
}

/// What a backend tells the rest.
pub trait Seam {
    /// Its `Type` in the network config.
    fn name(&self) -> &'static str;

    /// The `BackendType` of its records.
    fn record_type(&self) -> &'static str {
        self.name()
    }

    /// What our record says for a family, with the MAC of that family's device where there is one.
    fn data(&self, _mac: Option<MacAddr>) -> Option<Data> {
        None
    }

    /// The MAC of a peer's device, where the backend has devices, from the peer's record.
    ///
    /// # Errors
    /// What no network of this backend could do with.
    fn endpoint(&self, _data: Option<&Data>, _family: Family) -> Result<Option<MacAddr>, Objection> {
        Ok(None)
    }

    /// Whether a peer's record agrees with this network's settings.
    ///
    /// # Errors
    /// What the peer has another value for.
    fn agrees(&self, _data: Option<&Data>) -> Result<(), Objection> {
        Ok(())
    }

    /// The ways to a peer.
    fn ways(&self) -> Ways;

    /// The device of a family, if there is one.
    fn device(&self, _family: Family) -> Option<TunnelDevice> {
        None
    }

    /// Whether peers can use no address but one of this host's own: none that somebody translates on the way.
    fn needs_own_address(&self) -> bool {
        false
    }

    /// What it adds to a packet of this family, in bytes.
    fn overhead(&self, _family: Family) -> u32 {
        0
    }

    /// What tells its networks apart on one host: the name of our nftables tables ends so.
    fn mark(&self) -> String {
        self.name().to_owned()
    }

    /// The external interface's MTU, in bytes, to count from instead of the real one.
    fn mtu(&self) -> Option<u32> {
        None
    }
}

/// The ways that a backend knows to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ways {
    /// Through our device.
    pub tunnel: bool,
    /// Through the peer's host, if that is on a link of ours. Where both are, this one goes first.
    pub host: bool,
}

/// A VXLAN device that a backend needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelDevice {
    /// Its name, as flannel gives it.
    pub name: String,
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The UDP destination port.
    pub port: u16,
    /// Group-based policy.
    pub gbp: bool,
    /// Source address learning.
    pub learning: bool,
}

/// What a record says for one family beside an address: its `BackendData` or `BackendV6Data`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// A VXLAN device.
    Vtep(VtepData),
    /// What nothing here reads, as JSON, to the byte.
    Raw(Box<str>),
}

/// Why a backend's data can't be read: this part of it, and what was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The part below `BackendData`, as in `.VtepMAC`.
    pub part: &'static str,
    /// Its value.
    pub value: Value,
    /// What it should have been.
    pub expected: &'static str,
}

/// Why a backend has no use for a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objection {
    /// A short stable label, for metrics.
    pub reason: &'static str,
    /// What is wrong, in words that stand behind a number of records.
    pub kind: &'static str,
    /// The same of this record.
    pub words: String,
}

/// The backends that have nothing to be set in the network config.
const WITHOUT_SETTINGS: [Backend; 2] = [Backend::HostGw(HostGw), Backend::Alloc(Alloc)];

impl Default for Backend {
    fn default() -> Self {
        Self::Vxlan(Vxlan::default())
    }
}

impl Deref for Backend {
    type Target = dyn Seam;

    fn deref(&self) -> &(dyn Seam + 'static) {
        match self {
            Self::Vxlan(vxlan) => vxlan,
            Self::HostGw(host_gw) => host_gw,
            Self::Alloc(alloc) => alloc,
        }
    }
}

impl Backend {
    /// Reads the `Backend` object; `ipv6`: the network has an IPv6 side.
    ///
    /// # Errors
    /// Names the key, its value and what was expected.
    pub(super) fn parse(value: &Value, ipv6: bool) -> Result<Self, ConfigError> {
        let expected = "an object, as in {\"Type\":\"vxlan\"}";
        let object =
            Object::nested(value).ok_or_else(|| bad("Backend", &shown(value), "is not an object", expected))?;
        let kind = object.get("Type").unwrap_or(&Value::Null);
        let is = |name: &str| kind.as_str().is_some_and(|kind| kind.eq_ignore_ascii_case(name));
        if is(vxlan::NAME) {
            return Vxlan::parse(&object, ipv6).map(Self::Vxlan);
        }
        // The others have no settings.
        WITHOUT_SETTINGS.into_iter().find(|backend| is(backend.name())).ok_or_else(|| {
            let [host_gw, alloc] = WITHOUT_SETTINGS.map(|backend| backend.name());
            let expected = format!("\"{}\", \"{host_gw}\" or \"{alloc}\"", vxlan::NAME);
            bad("Backend.Type", &shown(kind), "is a backend that Twill does not have", &expected)
        })
    }

    /// The backend whose records have this `BackendType`, with the settings where the config names none. Records without one
    /// may be reservations, and are of none.
    pub fn of_record_type(name: &str) -> Option<Self> {
        let mut all = [Self::default()].into_iter().chain(WITHOUT_SETTINGS);
        all.find(|backend| !name.is_empty() && backend.record_type() == name)
    }
}

impl Data {
    /// Reads the data of a record with this `BackendType`; `raw` is its text.
    ///
    /// # Errors
    /// What of it can't be read, if the backend is one that reads it.
    pub(super) fn read(record_type: &str, value: &Value, raw: impl FnOnce() -> Box<str>) -> Result<Self, Unreadable> {
        match record_type {
            vxlan::NAME => VtepData::read(value).map(Self::Vtep),
            _ => Ok(Self::Raw(raw())),
        }
    }

    /// The MAC that it names.
    pub fn mac(&self) -> Option<MacAddr> {
        match self {
            Self::Vtep(vtep) => Some(vtep.mac),
            Self::Raw(_) => None,
        }
    }
}

impl fmt::Display for Data {
    /// As JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vtep(vtep) => vtep.fmt(f),
            Self::Raw(text) => f.write_str(text),
        }
    }
}

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl std::error::Error for Objection {}
