//! Who this node is in the records.

use std::net::IpAddr;

use crate::cli::Flags;
use crate::lease::Previous;
use crate::overlay::SubnetKey;
use crate::overlay::iface::{Interface, Wish};
use crate::overlay::record::{Instance, Record};
use crate::{handoff, nodeid};

/// What tells this node's records from those of others.
pub(super) struct Identity {
    node: Option<String>,
    instance: Option<String>,
    /// The subnet that we had before, by the `subnet.env` of the start.
    pub(super) previous: Option<SubnetKey>,
}

impl Identity {
    pub(super) fn read(flags: &Flags) -> Self {
        let (node, instance) = (nodeid::id(flags.node_id.as_deref()), nodeid::instance());
        Self { node, instance, previous: handoff::previous(&flags.subnet_file) }
    }

    /// The previous subnet, for a node with these interfaces.
    pub(super) fn previous(&self, wish: &Wish, interfaces: &[Interface]) -> Option<Previous> {
        let own = interfaces.iter().flat_map(|interface| &interface.addresses).map(|address| address.ip());
        let told = [wish.public_ip.map(IpAddr::V4), wish.public_ipv6.map(IpAddr::V6)];
        let addresses = own.chain(told.into_iter().flatten()).collect();
        let (node, instance) = (self.node.clone(), self.instance.clone());
        Some(Previous { key: self.previous?, node, instance, addresses })
    }

    /// A record that says who we are.
    pub(super) fn put(&self, record: Record) -> Record {
        let instance = self.instance.clone().map(|id| Instance { id, since: 0 });
        Record { node: self.node.clone(), instance, ..record }
    }
}
