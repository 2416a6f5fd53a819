//! A node's record: the key that names its subnet, the value that says how to reach it, and what disqualifies one.
//!
//! Both are flannel's, to the byte
//! (<https://github.com/flannel-io/flannel/blob/v0.28.9/pkg/subnet/subnet.go>). Where records are kept is not known
//! here.
//!
//! Twill adds two members after flannel's: `"NodeID"`, the machine's own id, which tells two nodes with one public IP
//! apart, and `"Instance"`, which tells cloned machines apart. Flannel ignores members that it doesn't know.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::backend::{Backend, Data, Unreadable};
use super::json::Object;
use super::mac::MacAddr;
use super::shown::{Shown, shown};

mod check;
mod key;

pub use super::backend::VtepData;
pub use super::family::Family;
pub use check::{BadRecord, Own, PeerRecord, check, fits, is_complete, is_host, overlap};
pub use key::{KeyError, SubnetKey};

/// The members of a record that have a meaning, in flannel's order and ours after them.
const MEMBERS: [&str; 7] =
    ["PublicIP", "PublicIPv6", "BackendType", "BackendData", "BackendV6Data", "NodeID", "Instance"];

/// How to reach a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where the node receives tunnelled IPv4; `0.0.0.0` in an IPv6-only network.
    pub public_ip: Ipv4Addr,
    /// Where the node receives tunnelled IPv6.
    pub public_ipv6: Option<Ipv6Addr>,
    /// flannel's name of the backend.
    pub backend_type: String,
    /// What the backend says of the IPv4 side.
    pub ipv4: Option<Data>,
    /// What the backend says of the IPv6 side.
    pub ipv6: Option<Data>,
    /// The id of the machine, which flannel doesn't write.
    pub node: Option<String>,
    /// Which instance of the machine wrote the record. Neither flannel nor an older Twill writes it.
    pub instance: Option<Instance>,
    /// It names an instance in a form that cannot be read: no daemon wrote that.
    pub has_bad_instance: bool,
    /// Members that nobody knows, kept in their order when a record is written again.
    pub extra: Vec<(String, Value)>,
}

/// One run of a machine, from boot to boot, in one network namespace: what cloned machines don't share. Written as
/// `"Instance":{"ID":"1b4e28ba-4026531840","Since":1207}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its id, the same for each run of the daemon.
    pub id: String,
    /// etcd's revision when this instance began to hold the record: of two instances, the one with the lower number was
    /// there first.
    pub since: i64,
}

/// Why a record's value can't be read. What is kept of the value is fit to be shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The text is not an object.
    #[error("not a JSON object: {0}")]
    NotJson(String),
    /// A member's value won't do.
    #[error("{member}: {value} is not {expected}")]
    Member {
        /// The member, as in `BackendData.VtepMAC`.
        member: String,
        /// Its value, cut to a readable length.
        value: String,
        /// What it should have been.
        expected: &'static str,
    },
}

impl Record {
    /// A record that says where its node is and no more; the rest is for the caller to fill in.
    pub fn of(public_ip: Ipv4Addr) -> Self {
        Self {
            public_ip,
            public_ipv6: None,
            backend_type: String::new(),
            ipv4: None,
            ipv6: None,
            node: None,
            instance: None,
            has_bad_instance: false,
            extra: Vec::new(),
        }
    }

    /// The same of the backend VXLAN.
    pub fn vxlan(public_ip: Ipv4Addr) -> Self {
        Self { backend_type: Backend::default().record_type().to_owned(), ..Self::of(public_ip) }
    }

    /// Reads a value as flannel does: names in any case, `null` and absent alike.
    ///
    /// # Errors
    /// Names the member that can't be read.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let object = Object::parse(bytes).map_err(|error| RecordError::NotJson(shown(&error)))?;
        let backend_type = text(&object, "BackendType", "a string")?.unwrap_or_default().to_owned();
        let [ipv4, ipv6] = [MEMBERS[3], MEMBERS[4]].map(|name| data(&object, bytes, &backend_type, name));
        let (ipv4, ipv6) = (ipv4?, ipv6?);
        let public_ip = address(&object, "PublicIP", "an IPv4 address", |text| text.parse().ok())?;
        let public_ipv6 = address(&object, "PublicIPv6", "an IPv6 address", from_go)?;
        // Another program's member of that name is no reason to lose the peer.
        let node = object.get("NodeID").and_then(Value::as_str).filter(|id| !id.is_empty()).map(str::to_owned);
        let there = object.get("Instance");
        let instance = there.and_then(instance);
        Ok(Self {
            public_ip: public_ip.unwrap_or(Ipv4Addr::UNSPECIFIED),
            public_ipv6,
            backend_type,
            ipv4,
            ipv6,
            node,
            has_bad_instance: there.is_some() && instance.is_none(),
            instance,
            extra: object.into_others(&MEMBERS),
        })
    }

    /// Writes the value in flannel's field order, byte for byte as flannel writes it where `node` and `extra` are empty.
    pub fn to_json(&self) -> Vec<u8> {
        let mut out = format!(r#"{{"PublicIP":"{}","PublicIPv6":"#, self.public_ip);
        match self.public_ipv6 {
            Some(address) => out += &format!(r#""{}""#, to_go(address)),
            None => out += "null",
        }
        if !self.backend_type.is_empty() {
            push(&mut out, MEMBERS[2], &Value::from(self.backend_type.as_str()));
        }
        for (name, data) in [(MEMBERS[3], &self.ipv4), (MEMBERS[4], &self.ipv6)] {
            if let Some(data) = data {
                out += &format!(r#","{name}":{data}"#);
            }
        }
        if let Some(node) = &self.node {
            push(&mut out, MEMBERS[5], &Value::from(node.as_str()));
        }
        if let Some(Instance { id, since }) = &self.instance {
            push(&mut out, MEMBERS[6], &serde_json::json!({"ID": id, "Since": since}));
        }
        for (name, value) in &self.extra {
            push(&mut out, name, value);
        }
        out.push('}');
        out.into_bytes()
    }

    /// One family's side of this record, under its key. `None` where the key or the record has no such side.
    pub fn peer(&self, key: &SubnetKey, family: Family) -> Option<PeerRecord> {
        let remote = match family {
            Family::V4 => IpAddr::V4(self.public_ip),
            Family::V6 => IpAddr::V6(self.public_ipv6?),
        };
        Some(PeerRecord { subnet: key.side(family)?, remote, mac: self.mac(family) })
    }

    /// What it says of the backend for a family.
    pub fn data(&self, family: Family) -> Option<&Data> {
        match family {
            Family::V4 => self.ipv4.as_ref(),
            Family::V6 => self.ipv6.as_ref(),
        }
    }

    /// The MAC that it names for a family.
    pub fn mac(&self, family: Family) -> Option<MacAddr> {
        self.data(family).and_then(Data::mac)
    }

    /// Whether it says where its node is. A reservation for a node id doesn't until that node fills it in.
    pub fn has_address(&self) -> bool {
        !self.public_ip.is_unspecified() || self.public_ipv6.is_some()
    }

    /// Whether it is a reservation for nobody.
    pub fn names_nobody(&self) -> bool {
        self.is_unused() && !self.has_address() && self.node.is_none()
    }

    /// Whether nobody has filled it in: a reservation made ahead of its node, which names no backend and no
    /// instance. Flannel passes over such a record.
    pub fn is_unused(&self) -> bool {
        let names_no_backend = self.backend_type.is_empty() && self.ipv4.is_none() && self.ipv6.is_none();
        names_no_backend && self.instance.is_none()
    }

    /// The MACs of its devices.
    pub fn macs(&self) -> [Option<MacAddr>; 2] {
        [Family::V4, Family::V6].map(|family| self.mac(family))
    }

    /// Who wrote this record, for people and fit to be shown: the public IP and, where known, the node id.
    pub fn holder(&self) -> String {
        let address = match self.public_ipv6 {
            Some(address) if self.public_ip.is_unspecified() => IpAddr::V6(address),
            _ => IpAddr::V4(self.public_ip),
        };
        match self.node.as_ref().map(Shown::new) {
            Some(node) if !self.has_address() => format!("node {node}"),
            None if !self.has_address() => "nobody".to_owned(),
            Some(node) => format!("{address} (node {node})"),
            None => address.to_string(),
        }
    }
}

/// Another program's member of that name is no reason to lose the peer either. One without an id, or without a revision of
/// etcd's, says nothing of who was there first, so that it counts as none.
fn instance(value: &Value) -> Option<Instance> {
    let object = Object::nested(value)?;
    let id = object.get("ID")?.as_str().filter(|id| !id.is_empty())?.to_owned();
    let since = object.get("Since")?.as_i64().filter(|since| *since >= 0)?;
    Some(Instance { id, since })
}

fn push(out: &mut String, name: &str, value: &Value) {
    let member = Value::Object(Map::from_iter([(name.to_owned(), value.clone())])).to_string();
    out.push(',');
    out.push_str(&member[1..member.len() - 1]);
}

/// The data of a backend, from the member of this name.
fn data(object: &Object, bytes: &[u8], backend_type: &str, name: &str) -> Result<Option<Data>, RecordError> {
    let Some(value) = object.get(name) else { return Ok(None) };
    // The text is looked for where nothing reads the value: a second look at the whole record.
    let raw = || {
        let raw = Object::<&RawValue>::parse(bytes).ok();
        raw.as_ref().and_then(|raw| raw.text(name)).map_or_else(|| value.to_string().into(), Box::from)
    };
    Data::read(backend_type, value, raw).map(Some).map_err(|Unreadable { part, value, expected }| RecordError::Member {
        member: format!("{name}{part}"),
        value: shown(&value.to_string()),
        expected,
    })
}

fn text<'a>(object: &'a Object, member: &str, expected: &'static str) -> Result<Option<&'a str>, RecordError> {
    let wrong =
        |value: &Value| RecordError::Member { member: member.to_owned(), value: shown(&value.to_string()), expected };
    object.get(member).map(|value| value.as_str().ok_or_else(|| wrong(value))).transpose()
}

fn address<A>(
    object: &Object,
    member: &str,
    expected: &'static str,
    parse: impl Fn(&str) -> Option<A>,
) -> Result<Option<A>, RecordError> {
    let wrong = |text: &str| RecordError::Member {
        member: member.to_owned(),
        value: shown(&Value::from(text).to_string()),
        expected,
    };
    text(object, member, expected)?.map(|text| parse(text).ok_or_else(|| wrong(text))).transpose()
}

/// An IPv6 address as Go's `net.IP.String` writes it: RFC 5952 as in Rust, but an IPv4-mapped one as plain IPv4.
fn to_go(address: Ipv6Addr) -> String {
    address.to_ipv4_mapped().map_or_else(|| address.to_string(), |v4| v4.to_string())
}

/// What Go's `net.ParseIP` takes for 16 bytes: IPv6, or IPv4 as its mapped form.
fn from_go(text: &str) -> Option<Ipv6Addr> {
    match text.parse().ok()? {
        IpAddr::V4(v4) => Some(v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => Some(v6),
    }
}

#[cfg(test)]
mod tests;
