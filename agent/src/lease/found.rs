//! What stood where our record should be, for the log.

use std::fmt;

use crate::overlay::alloc::Copied;
use crate::overlay::record::{BadRecord, Record};
use crate::overlay::{MacAddr, Shown, shown};

/// How many characters of a value are shown: all of a record that Twill writes.
const LONGEST: usize = 300;

/// What stood under our key, or did not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing: the record was deleted, or its lease has ended.
    Nothing,
    /// Our own record with other members.
    Changed {
        /// Its value.
        value: String,
    },
    /// A record that no node follows.
    Void {
        /// Why not.
        reason: String,
        /// Its value.
        value: String,
    },
    /// A record that no node follows, under another key with our subnet.
    InTheWay {
        /// The key.
        key: String,
        /// Why not.
        reason: String,
        /// Its value.
        value: String,
    },
    /// The record of another agent with our public IP.
    SameAddress {
        /// The address.
        address: String,
        /// The MACs of its devices.
        macs: Vec<MacAddr>,
    },
    /// The record of a machine with our node id and public IP, which took ours over while we could not answer.
    Clone {
        /// Its public IP and node id.
        holder: String,
        /// Its instance.
        instance: String,
    },
    /// A record under our key with our node id that no daemon of this node wrote.
    Copy {
        /// What tells it from ours.
        how: Copied,
        /// Its public IP and node id.
        holder: String,
        /// Its value.
        value: String,
    },
    /// A record in our name under another key that supersedes ours.
    InOurName {
        /// The key.
        key: String,
        /// What this node does about it.
        defence: Defence,
    },
}

/// What others did to our record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// They wrote something else under our key.
    Overwrote,
    /// They deleted it, or its lease has ended.
    Deleted,
    /// They wrote a record under another key that goes before ours, or that keeps ours from being written.
    UnderAnotherKey,
}

/// What a node does about a record in its name under another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defence {
    /// It writes its own record again, which is then the newer one.
    WritesAgain,
    /// It deletes the other record: its own is a reservation, which does not go before a record with a lease.
    Deletes,
    /// It should delete the other record, and does not know the key.
    KeyUnknown,
}

impl Found {
    /// A value that can't be read.
    pub(super) fn unreadable(value: &[u8]) -> Self {
        let reason = match Record::parse(value) {
            Ok(_) => "the record is not complete".to_owned(),
            Err(error) => error.to_string(),
        };
        Self::Void { reason: shown(&reason), value: value_of(value) }
    }

    pub(super) fn void(bad: &BadRecord, value: &[u8]) -> Self {
        Self::Void { reason: shown(&bad.to_string()), value: value_of(value) }
    }

    /// The same under this key, which is not ours.
    pub(super) fn under(self, key: &str) -> Self {
        match self {
            Self::Void { reason, value } => Self::InTheWay { key: shown(key), reason, value },
            Self::Copy { holder, value, .. } => {
                Self::InTheWay { key: shown(key), reason: format!("a copy of ours without a lease, {holder}"), value }
            }
            other => other,
        }
    }

    pub(super) fn on_our_lease(record: &Record) -> Self {
        let reason = format!("the record of {} hangs on our own lease", record.holder());
        Self::Void { reason: shown(&reason), value: value_of(&record.to_json()) }
    }

    pub(super) fn written_over(record: &Record, value: &[u8]) -> Self {
        let reason = format!(
            "the record of {} was written over ours, and a node makes its record only where there is none",
            record.holder()
        );
        Self::Void { reason: shown(&reason), value: value_of(value) }
    }

    pub(super) fn changed(value: &[u8]) -> Self {
        Self::Changed { value: value_of(value) }
    }

    pub(super) fn same_address(record: &Record) -> Self {
        let bare = Record { node: None, ..record.clone() };
        Self::SameAddress { address: bare.holder(), macs: record.macs().into_iter().flatten().collect() }
    }

    pub(super) fn clone_of(record: &Record) -> Self {
        let instance = record.instance.as_ref().map(|instance| shown(&instance.id)).unwrap_or_default();
        Self::Clone { holder: shown(&record.holder()), instance }
    }

    pub(super) fn copy(how: Copied, record: &Record, value: &[u8]) -> Self {
        Self::Copy { how, holder: shown(&record.holder()), value: value_of(value) }
    }

    /// What others did.
    pub(super) fn deed(&self) -> Deed {
        match self {
            Self::Nothing => Deed::Deleted,
            Self::InTheWay { .. } | Self::InOurName { .. } => Deed::UnderAnotherKey,
            _ => Deed::Overwrote,
        }
    }

    /// What the daemon did about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::InOurName { defence: Defence::WritesAgain, .. } => {
                "another record in our name is newer than ours; our record is written again, so that the other nodes follow it"
            }
            Self::InOurName { defence: Defence::Deletes, .. } => {
                "another record in our name has a lease and goes before our reservation; it is deleted, and our record is written again"
            }
            Self::InOurName { defence: Defence::KeyUnknown, .. } => {
                "another record in our name has a lease and goes before our reservation; its key is not known yet, so it still stands"
            }
            _ => "our record was gone or changed, written again",
        }
    }

    /// What an operator should do when it comes again and again: the log's words.
    pub fn advice(&self) -> String {
        match self {
            Self::SameAddress { address, .. } => {
                format!(
                    "another agent with our public IP {address} writes our record: give one of them another address"
                )
            }
            Self::Clone { holder, .. } => format!(
                "a clone of this machine with our public IP and node id, {holder}, writes our record: give it another address and another machine-id or --node-id"
            ),
            Self::Copy { holder, .. } => format!(
                "somebody overwrites our record with copies of it, {holder}: if a clone of this machine does, give it another machine-id or --node-id"
            ),
            Self::InOurName { key, .. } => format!(
                "somebody writes the record {key} in our name again and again: delete that key; if a clone of this machine writes it, give the clone another address and another machine-id or --node-id"
            ),
            Self::Nothing => "somebody deletes our record again and again".to_owned(),
            Self::Changed { .. } | Self::Void { .. } => "somebody overwrites our record again and again".to_owned(),
            Self::InTheWay { key, .. } => {
                format!("somebody deletes our record and writes the record {key} with our subnet again and again")
            }
        }
    }

    /// What it is called when it comes in the middle of a fight that was about something else so far.
    pub fn also(&self) -> &'static str {
        match self.deed() {
            Deed::Overwrote => "somebody overwrites our record with something else now",
            Deed::Deleted => "somebody deletes our record now as well",
            Deed::UnderAnotherKey => "somebody writes a record under another key now as well",
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing: it was deleted, or its lease has ended"),
            Self::Changed { value } => write!(f, "our record with other members: {value}"),
            Self::Void { reason, value } => write!(f, "a record that no node follows ({reason}): {value}"),
            Self::InTheWay { key, reason, value } => {
                write!(f, "a record that no node follows under the key {key} ({reason}): {value}")
            }
            Self::SameAddress { address, macs } => {
                let macs: Vec<String> = macs.iter().map(MacAddr::to_string).collect();
                write!(
                    f,
                    "a record with our public IP {address} and another MAC, {}; it has no node id, so flanneld wrote it, or a Twill on a machine without a machine-id",
                    macs.join(" and ")
                )
            }
            Self::Clone { holder, instance } => {
                write!(f, "the record of a clone of this machine, {holder}, instance {instance}, which came later")
            }
            Self::Copy { how: Copied::WithoutLease, holder, value } => {
                write!(
                    f,
                    "a record of {holder} with another instance and without a lease, which no living node writes: {value}"
                )
            }
            Self::Copy { how: Copied::WithAnotherAddress, holder, value } => {
                write!(f, "a record with our node id and another public IP, {holder}: {value}")
            }
            Self::InOurName { key, defence: Defence::Deletes } => {
                write!(f, "the record {key} with our public IP, node id or MAC")
            }
            Self::InOurName { key, .. } => {
                write!(f, "the record {key} with our public IP, node id or MAC; delete that key")
            }
        }
    }
}

fn value_of(bytes: &[u8]) -> String {
    Shown::up_to(LONGEST, bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_etcd_is_one_short_line() {
        let long = format!(r#"{{"BackendType":"{}"}}"#, "x\\n\\u001b[2J".repeat(100_000));
        for text in [long.as_str(), "\n\u{1b}[2J", "\u{202e}"] {
            let record = Record::parse(text.as_bytes()).unwrap_or(Record::vxlan([1, 2, 3, 4].into()));
            let bad = BadRecord::OtherBackend(record.backend_type, "vxlan");
            for found in [Found::void(&bad, text.as_bytes()), Found::unreadable(text.as_bytes()).under(text)] {
                let line = found.to_string();
                assert!(line.len() < 1_000 && !line.contains(char::is_control) && !line.contains('\u{202e}'), "{line}");
            }
        }
    }

    #[test]
    fn flannel_s_record_is_called_what_it_is() {
        let value = br#"{"PublicIP":"10.99.0.1","BackendType":"vxlan","BackendData":{"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;
        let found = Found::same_address(&Record::parse(value).unwrap());
        let text = found.to_string();
        for word in ["10.99.0.1", "c6:d2:32:6f:8f:44", "flanneld"] {
            assert!(text.contains(word), "{text}");
        }
        assert!(found.advice().starts_with("another agent with our public IP 10.99.0.1 writes our record"));
    }
}
