//! When a search turns away from the subnet that the node had before.
//!
//! `subnet.env` still names it then, and the CNI plugin would give out addresses that are another node's. So this is told
//! before anything is waited for.

use std::net::IpAddr;

use super::census::held;
use super::{Census, Progress, Search, Tell};
use crate::overlay::alloc::{Decision, SubnetRequest};
use crate::overlay::record::{Family, Record, SubnetKey, is_complete};
use crate::store::{RawRecord, Store};

/// The subnet that a node had before, while no usable network config says what the nodes follow.
#[derive(Debug, Clone)]
pub struct Previous {
    /// The subnet.
    pub key: SubnetKey,
    /// The node's id.
    pub node: Option<String>,
    /// The id of its instance.
    pub instance: Option<String>,
    /// All addresses that it has, and those that peers are told.
    pub addresses: Vec<IpAddr>,
}

impl Previous {
    /// Why the subnet can't be the node's own again, if this record shows that: it is complete, for this very subnet, and
    /// nothing in it says that it is the node's own.
    pub fn taken_by(&self, raw: &RawRecord) -> Option<String> {
        let key: SubnetKey = raw.key.parse().ok()?;
        let is_same = |family| key.side(family).is_some() && key.side(family) == self.key.side(family);
        let family = [Family::V4, Family::V6].into_iter().find(|family| is_same(*family))?;
        let record = Record::parse(&raw.value).ok()?;
        let peer = record.peer(&key, family).filter(|_| is_complete(&record, &key) && !self.may_be_ours(&record))?;
        Some(sentence(&self.key, &held(peer.remote, &peer.subnet)))
    }

    fn may_be_ours(&self, record: &Record) -> bool {
        let instance = record.instance.as_ref().map(|instance| &instance.id);
        let is = |ours: Option<&String>, theirs: Option<&String>| ours.is_some() && ours == theirs;
        let addresses = [Some(record.public_ip.into()), record.public_ipv6.map(IpAddr::V6)];
        is(self.node.as_ref(), record.node.as_ref())
            || is(self.instance.as_ref(), instance)
            || addresses.iter().flatten().any(|address| self.addresses.contains(address))
    }
}

/// Tells why a node's previous subnet can't be its own again, as far as what is held shows that.
pub fn tell_of_previous(wanted: &SubnetRequest<'_>, census: Census<'_>, tell: Tell<'_>) {
    if let Some(previous) = wanted.previous
        && let Some(why) = taken(wanted, census, &previous)
    {
        tell(Progress::PreviousGivenUp(&sentence(&previous, &why)));
    }
}

impl<S: Store> Search<'_, S> {
    /// Tells why the decision is not for the previous subnet, if it is not and that is news.
    pub(super) fn note_previous(&mut self, decision: &Decision) {
        let Some(previous) = self.wanted.previous else { return };
        let why = match decision {
            Decision::TakeOver { key, .. } | Decision::Create { key } | Decision::Restore { key, .. }
                if *key == previous =>
            {
                return;
            }
            Decision::Doubled { key, .. } if *key == previous => {
                "its record has our public IP and the ids of another machine, which is asked whether it is alive"
                    .to_owned()
            }
            _ => self.why_not(&previous, decision),
        };
        let why = sentence(&previous, &why);
        if self.given_up.as_ref() != Some(&why) {
            self.outage.tell(Progress::PreviousGivenUp(&why));
            self.given_up = Some(why);
        }
    }

    fn why_not(&self, previous: &SubnetKey, decision: &Decision) -> String {
        taken(self.wanted, self.census, previous).unwrap_or_else(|| match decision {
            Decision::TakeOver { key, .. } => format!("the node's record is {key}"),
            Decision::Doubled { key, .. } => {
                format!("the record {key} has our public IP and the ids of another machine")
            }
            Decision::NoFreeSubnet { network } => format!("{network} has no free subnet"),
            Decision::Create { .. } | Decision::Restore { .. } => "another node has taken it".to_owned(),
        })
    }
}

fn taken(wanted: &SubnetRequest<'_>, census: Census<'_>, previous: &SubnetKey) -> Option<String> {
    if !wanted.fits(previous) {
        return Some("it does not fit the network config".to_owned());
    }
    census.holder(previous)
}

fn sentence(previous: &SubnetKey, why: &str) -> String {
    format!("this node cannot keep its last subnet {}: {why}", subnets(previous))
}

/// The subnets of a key as people write them.
fn subnets(key: &SubnetKey) -> String {
    let sides = [Family::V4, Family::V6].into_iter().filter_map(|family| key.side(family));
    sides.map(|side| side.to_string()).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken_by(key: &str, value: &str) -> Option<String> {
        let previous = Previous {
            key: "10.5.1.0-24&fc00:0:0:1::-64".parse().unwrap(),
            node: Some("rack-1".to_owned()),
            instance: Some("0a-1".to_owned()),
            addresses: ["10.99.0.1", "fd99::1"].map(|address| address.parse().unwrap()).to_vec(),
        };
        let raw = RawRecord { key: key.to_owned(), value: value.into(), created: 1, revision: 1, lease: 0 };
        previous.taken_by(&raw)
    }

    #[test]
    fn without_a_config_only_a_complete_record_of_another_node_takes_a_subnet() {
        let data = r#""BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"02:00:00:00:00:02"}"#;
        let theirs =
            format!(r#"{{"PublicIP":"10.99.0.2",{data},"NodeID":"rack-2","Instance":{{"ID":"0b-1","Since":7}}}}"#);
        let named = "this node cannot keep its last subnet 10.5.1.0/24 and fc00:0:0:1::/64: \
                     the node with the public IP 10.99.0.2 holds 10.5.1.0/24";
        assert_eq!(taken_by("10.5.1.0-24", &theirs).as_deref(), Some(named));
        let flannels = format!(r#"{{"PublicIP":"10.99.0.2","PublicIPv6":null,{data}}}"#);
        assert_eq!(taken_by("10.5.1.0-24", &flannels).as_deref(), Some(named));
        // The IPv6 side counts too.
        let data6 = r#""BackendType":"vxlan","BackendV6Data":{"VNI":7,"VtepMAC":"02:00:00:00:00:02"}"#;
        let of_ipv6 = format!(r#"{{"PublicIP":"0.0.0.0","PublicIPv6":"fd99::2",{data6}}}"#);
        assert!(taken_by("0.0.0.0-0&fc00:0:0:1::-64", &of_ipv6).unwrap().ends_with("fd99::2 holds fc00:0:0:1::/64"));
        let incomplete = [("VtepMAC", "Mac"), ("vxlan", "udp"), ("02:", "01:"), ("10.99.0.2", "127.0.0.1")];
        let ours = [("rack-2", "rack-1"), ("0b-1", "0a-1"), ("10.99.0.2", "10.99.0.1")];
        for (from, to) in incomplete.into_iter().chain(ours) {
            assert_eq!(taken_by("10.5.1.0-24", &theirs.replace(from, to)), None, "{to}");
        }
        for key in ["10.5.2.0-24", "10.5.0.0-16", "10.5.1.0-25", "junk", "10.5.1.0-24&fc00:0:0:1::-64"] {
            assert_eq!(taken_by(key, &theirs), None, "{key}");
        }
        for value in ["junk", "{}", r#"{"PublicIP":"10.99.0.2"}"#, r#"{"NodeID":"rack-2"}"#] {
            assert_eq!(taken_by("10.5.1.0-24", value), None, "{value}");
        }
    }
}
