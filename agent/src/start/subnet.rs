//! The third phase: a subnet of our own, and all records.

use std::collections::BTreeMap;

use anyhow::Result;
use tracing::{info, warn};

use super::host::Host;
use super::place::Place;
use crate::dataplane::{self, kernel::Kernel};
use crate::eventloop;
use crate::lease::{self, AcquireError, Census, Held, Known, Progress};
use crate::overlay::MacAddr;
use crate::overlay::alloc::SubnetRequest;
use crate::overlay::plane::Plane;
use crate::overlay::record::Family;
use crate::overlay::records::{Raw, Records};
use crate::reader::{Intake, REMIND};
use crate::site::{self, Site, TunnelEnd};

/// A node of the network: its subnet is leased, and the planes know every record.
pub(super) struct Leased {
    pub(super) site: Site,
    pub(super) ends: Vec<TunnelEnd>,
    pub(super) held: Held,
    /// In the order of the ends.
    pub(super) planes: Vec<Plane>,
    pub(super) records: Records,
}

impl Place {
    /// Leases a subnet; waits where none is free. `None`: the network config was changed meanwhile.
    ///
    /// # Errors
    /// When another node holds what is ours.
    pub(super) async fn lease(self, host: &mut Host) -> Result<Option<Leased>> {
        let mut intake = self.intake(host);
        host.publisher.waits_for("all records of etcd");
        let Some(held) = self.held(host, &mut intake).await? else {
            warn!("the network config was changed on the way to a subnet: beginning again with what it is now");
            return Ok(None);
        };
        let (Intake { mut planes, mut records, .. }, Self { site, ends }) = (intake, self);
        let own = ends.iter().map(|end| site::own(&held.key, &held.record, end)).collect::<Result<_, _>>()?;
        let (key, value, is_leased) = (held.key.to_string(), held.record.to_json(), held.lease.is_some());
        let Held { created, revision, .. } = held;
        let raw = Raw { key: &key, value: &value, created, revision, is_leased };
        records.hold(&mut planes.iter_mut().collect::<Vec<_>>(), own, raw);
        eventloop::ignored_at_start(&records);
        Ok(Some(Leased { site, ends, held, planes, records }))
    }

    async fn held(&self, host: &mut Host, intake: &mut Intake) -> Result<Option<Held>> {
        let Self { site, ends } = self;
        let Host { store, reader, publisher, passing, identity, kernel, .. } = host;
        // Who we are; the MACs come when the records are known.
        let ours = identity.put(site.record(ends, |_| None));
        let previous = identity.previous;
        let wanted = SubnetRequest { previous, ..SubnetRequest::of(&site.config, &ours) };
        intake.previous = previous.map(|key| key.to_string());
        reader.all(intake, &wanted).await?;
        while !reader.is_config_changed() {
            let progress = |progress: Progress<'_>| reader.waiting.progress(progress);
            let known = (Census::new(&intake.known, &intake.planes), intake.revision + 1);
            lease::tell_of_previous(&wanted, known.0, &progress);
            let macs = passing.wait("read the devices' MACs", async || macs(site, ends, &intake.known, kernel)).await?;
            let record = identity.put(site.record(ends, |family| macs.get(&family).copied()));
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
}

/// The MACs that our record shall name: that of the device that is there, else that of our last record, else random.
fn macs(
    site: &Site,
    ends: &[TunnelEnd],
    known: &Known,
    kernel: &mut Kernel,
) -> Result<BTreeMap<Family, MacAddr>, dataplane::Error> {
    let last = known.own().next();
    let mut macs = BTreeMap::new();
    for end in ends {
        let Some(device) = site.device_name(end.family) else { continue };
        let there = kernel.mac_of(&device)?;
        let recorded = last.and_then(|last| last.mac(end.family)).filter(|mac| mac.is_unicast());
        macs.insert(end.family, there.or(recorded).unwrap_or_else(|| MacAddr::local(rand::random())));
    }
    Ok(macs)
}
