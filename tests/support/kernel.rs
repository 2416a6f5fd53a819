//! What the kernel holds, read with iproute2: few typed fields, printed as iproute2 prints them.
//!
//! Reads only. What it *should* hold is `peer`'s.

use std::fmt;
use std::net::IpAddr;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::netns::Namespace;

/// A row of a VXLAN device's forwarding table that names a remote.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct FdbRow {
    /// The MAC behind the remote.
    pub mac: String,
    /// The remote.
    pub dst: IpAddr,
    /// `permanent`, `static`, or empty for a learned one.
    pub state: String,
}

/// A row of the neighbour table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Neighbour {
    /// The address.
    pub dst: IpAddr,
    /// Its MAC, `None` while unresolved.
    pub lladdr: Option<String>,
    /// As iproute2 names it: `PERMANENT`, `INCOMPLETE`, ...
    pub state: Vec<String>,
}

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Route {
    /// `unreachable` and the like; `None` for an ordinary one.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// `default`, a network, or a bare address.
    pub dst: String,
    /// The next hop.
    pub gateway: Option<IpAddr>,
    /// The device.
    pub dev: Option<String>,
    /// Who added it: a name or a number as text; empty for what iproute2 hides.
    #[serde(default)]
    pub protocol: String,
    /// `link` where there is no next hop.
    pub scope: Option<String>,
    /// The source address it proposes.
    pub prefsrc: Option<IpAddr>,
    /// Its metric, `None` for 0.
    pub metric: Option<u32>,
    /// `onlink`, `linkdown`, ...
    #[serde(default)]
    pub flags: Vec<String>,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Link {
    /// Changes when a device is made anew under the same name.
    pub ifindex: u32,
    /// Its MAC.
    #[serde(rename = "address")]
    pub mac: String,
    /// Its MTU.
    pub mtu: u32,
    /// `UP`, `LOWER_UP`, ...
    pub flags: Vec<String>,
}

impl fmt::Display for FdbRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dst {} {}", self.mac, self.dst, self.state)
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lladdr {} {}", self.dst, self.lladdr.as_deref().unwrap_or("-"), self.state.join(","))
    }
}

/// Without the metric.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(kind) = &self.kind {
            write!(f, "{kind} ")?;
        }
        write!(f, "{}", self.dst)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(dev) = &self.dev {
            write!(f, " dev {dev}")?;
        }
        for flag in &self.flags {
            write!(f, " {flag}")?;
        }
        if !self.protocol.is_empty() {
            write!(f, " proto {}", self.protocol)?;
        }
        if let Some(scope) = &self.scope {
            write!(f, " scope {scope}")?;
        }
        if let Some(src) = self.prefsrc {
            write!(f, " src {src}")?;
        }
        Ok(())
    }
}

/// The FDB rows of a VXLAN device that have a remote; its multicast rows (`33:33:…`) have none.
pub(crate) fn fdb(netns: &Namespace, dev: &str) -> Result<Vec<FdbRow>> {
    rows(&netns.run(&["bridge", "-j", "fdb", "show", "dev", dev])?, |row| row.get("dst").is_some())
}

/// The neighbours on a device: those with a state, which leaves out what the kernel keeps for itself (NOARP).
pub(crate) fn neighbours(netns: &Namespace, family: &str, dev: &str) -> Result<Vec<Neighbour>> {
    rows(&netns.run(&["ip", "-j", family, "neigh", "show", "dev", dev])?, |_| true)
}

/// The main table's routes.
pub(crate) fn routes(netns: &Namespace, family: &str) -> Result<Vec<Route>> {
    rows(&netns.run(&["ip", "-j", family, "route", "show"])?, |_| true)
}

/// The IPv4 addresses of a device, as `10.5.52.0/32`.
pub(crate) fn addresses(netns: &Namespace, dev: &str) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Device {
        addr_info: Vec<Address>,
    }
    #[derive(Deserialize)]
    struct Address {
        local: IpAddr,
        prefixlen: u8,
    }
    let found: Vec<Device> = rows(&netns.run(&["ip", "-j", "-4", "addr", "show", "dev", dev])?, |_| true)?;
    let addresses = found.into_iter().flat_map(|device| device.addr_info);
    Ok(addresses.map(|address| format!("{}/{}", address.local, address.prefixlen)).collect())
}

/// A device, an error if there is none of that name.
pub(crate) fn link(netns: &Namespace, dev: &str) -> Result<Link> {
    let found: Vec<Link> = rows(&netns.run(&["ip", "-j", "link", "show", "dev", dev])?, |_| true)?;
    found.into_iter().next().with_context(|| format!("no device {dev}"))
}

fn rows<T: DeserializeOwned>(text: &str, keep: impl Fn(&Value) -> bool) -> Result<Vec<T>> {
    let all = json(text)?;
    let rows = all.as_array().with_context(|| format!("a JSON array, not {text}"))?;
    rows.iter()
        // iproute2 6.1 prints an empty object for what a filter left out.
        .filter(|row| row.as_object().is_some_and(|o| !o.is_empty()) && keep(row))
        .map(|row| T::deserialize(row).with_context(|| format!("read {row}")))
        .collect()
}

/// iproute2's JSON, which is nothing at all where there is nothing to show.
pub(crate) fn json(text: &str) -> Result<Value> {
    if text.trim().is_empty() {
        return Ok(Value::Array(Vec::new()));
    }
    serde_json::from_str(text).with_context(|| format!("read as JSON: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_prints_as_iproute2_prints_it() {
        let text = r#"[{"dst":"10.5.52.0/24","gateway":"10.5.52.0","dev":"flannel.1","protocol":"116",
            "metric":100052,"flags":["onlink"]},{"type":"unreachable","dst":"10.5.9.0/24","protocol":"116",
            "metric":9,"flags":[]}]"#;
        let routes: Vec<Route> = rows(text, |_| true).unwrap();
        assert_eq!(routes[0].to_string(), "10.5.52.0/24 via 10.5.52.0 dev flannel.1 onlink proto 116");
        assert_eq!(routes[1].to_string(), "unreachable 10.5.9.0/24 proto 116");
    }

    #[test]
    fn nothing_printed_is_no_rows() {
        assert_eq!(rows::<Route>("", |_| true).unwrap(), []);
        assert_eq!(rows::<Route>("[{}]", |_| true).unwrap(), []);
    }
}
