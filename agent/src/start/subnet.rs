//! The step of a start that gets a subnet: who we are, what was ours before, and what is waited for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Result;
use tracing::info;

use crate::cli::Flags;
use crate::dataplane::{self, kernel::Kernel};
use crate::lease::{self, AcquireError, Census, Held, Known, Previous, Progress};
use crate::overlay::alloc::Wanted;
use crate::overlay::iface::{Interface, Wish};
use crate::overlay::record::{Family, Instance, Record};
use crate::overlay::{MacAddr, SubnetKey};
use crate::passing::Passing;
use crate::reader::{Intake, REMIND, Reader};
use crate::site::{End, Site};
use crate::snapshot::Publisher;
use crate::store::etcd::EtcdStore;
use crate::{handoff, nodeid};

/// Where a lease comes from, and who is told what that waits for.
pub(super) struct Etcd<'a> {
    pub(super) store: &'a EtcdStore,
    pub(super) reader: &'a mut Reader<EtcdStore>,
    pub(super) publisher: &'a Publisher,
}

/// What tells this node's records from those of others.
pub(super) struct Identity {
    node: Option<String>,
    instance: Option<String>,
    /// The subnet that we had before, by the `subnet.env` of the start.
    previous: Option<SubnetKey>,
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
    fn put(&self, record: Record) -> Record {
        let instance = self.instance.clone().map(|id| Instance { id, since: 0 });
        Record { node: self.node.clone(), instance, ..record }
    }
}

/// Leases a subnet; waits where none is free. `None`: the network config was changed meanwhile.
pub(super) async fn get_subnet(
    site: &Site,
    ends: &[End],
    identity: &Identity,
    etcd: Etcd<'_>,
    intake: &mut Intake,
    kernel: &mut Kernel,
) -> Result<Option<Held>> {
    let Etcd { store, reader, publisher } = etcd;
    // Who we are; the MACs come when the records are known.
    let ours = identity.put(site.record(ends, |_| MacAddr([0; 6])));
    let previous = identity.previous;
    let wanted = Wanted { previous, ..Wanted::of(&site.config, &ours) };
    intake.previous = previous.map(|key| key.to_string());
    reader.all(intake, &wanted).await?;
    while !reader.is_config_changed() {
        let progress = |progress: Progress<'_>| reader.waiting.progress(progress);
        let known = (Census::new(&intake.known, &intake.planes), intake.revision + 1);
        lease::tell_of_previous(&wanted, known.0, &progress);
        let passing = Passing::new(publisher, &site.subnet_file);
        let macs = passing.wait("read the devices' MACs", async || macs(site, ends, &intake.known, kernel)).await?;
        let record = identity.put(site.record(ends, |family| macs[&family]));
        match lease::acquire_telling(store, &wanted, known, &record, lease::TTL, &progress).await {
            Ok(held) => {
                reader.pending(intake, &wanted).await?;
                if reader.is_config_changed() {
                    break;
                }
                let lease = held.lease.map_or("none, a reservation".to_owned(), |lease| format!("{:x}", lease.0));
                info!(subnet = %held.key, revision = held.revision, %lease, "this node holds its subnet");
                return Ok(Some(held));
            }
            Err(error @ AcquireError::NoFreeSubnet { .. }) => {
                reader.waiting.say(&format!("{error}; waiting for one to be freed"), true);
                publisher.waits_for(&format!("a free subnet: {error}"));
                if let Ok(result) = tokio::time::timeout(REMIND, reader.next(intake, &wanted)).await {
                    result?;
                    reader.all(intake, &wanted).await?;
                }
            }
            Err(error @ (AcquireError::Doubled { .. } | AcquireError::Cloned { .. })) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// The MACs that our record shall name: that of the device that is there, else that of our last record, else random.
fn macs(
    site: &Site,
    ends: &[End],
    known: &Known,
    kernel: &mut Kernel,
) -> Result<BTreeMap<Family, MacAddr>, dataplane::Error> {
    let last = known.own().next();
    let mut macs = BTreeMap::new();
    for end in ends {
        let there = kernel.mac_of(&site.device_name(end.family))?;
        let recorded = last.and_then(|last| last.mac(end.family)).filter(|mac| mac.is_unicast());
        macs.insert(end.family, there.or(recorded).unwrap_or_else(|| MacAddr::local(rand::random())));
    }
    Ok(macs)
}
