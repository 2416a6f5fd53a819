//! Making the VXLAN device what it should be, and saying who stands in the way.

use std::net::IpAddr;

use netlink_ext::link::{Difference, Link, VxlanSpec, up_message};
use netlink_ext::{Family, Request, addr::Address, neightbl::Params};
use tracing::{debug, info, warn};

use super::convert::is_link_local;
use super::kernel::Kernel;
use super::link::{self, LinkRequest};
use super::{Device, Error, Made, Vxlan, holder, shield};
use crate::overlay::backend::TunnelDevice;
use crate::overlay::{MacAddr, Shown};

/// Questions to user space per unresolved address, a second apart; nobody else is asked.
const APP_PROBES: u32 = 3;

impl Kernel {
    /// Makes the device what is wanted, and listens to it.
    pub(super) async fn make_now(&mut self, device: &Device) -> Result<Made, Error> {
        let Some(spec) = spec(device) else {
            self.listen(None, device)?;
            self.dump = None;
            return Ok(Made::AsWanted);
        };
        let (mut made, link) = self.link(&spec).await?;
        let tolerated: Vec<Difference> = spec.differences(&link).into_iter().filter(may_be_the_kernel_s).collect();
        if made != Made::AsWanted {
            for difference in &tolerated {
                warn!(device = %device.name, %difference, "the kernel does not make the device as wanted, going on with it");
            }
        }
        // Misses are heard from before the device can have any: its parameters come after, and it is up last.
        self.listen(Some((link.index, spec.clone(), tolerated)), device)?;
        self.shield(&link, device)?;
        let furnished = self.furnish(link.index, device)?;
        if !link.up {
            self.set_up(&spec, link.index).await?;
        }
        if furnished && made == Made::AsWanted {
            made = Made::Changed(vec![format!("address, not {}", device.address)]);
        }
        self.dump = None;
        debug!(device = %device.name, ifindex = link.index, how = %made, "the device is as wanted");
        Ok(made)
    }

    /// What keeps this device from being made now, if another device does. To be asked before a subnet is
    /// leased: a node that cannot serve one should not announce it.
    pub fn obstacle(&mut self, wanted: &TunnelDevice, local: IpAddr) -> Result<Option<Error>, Error> {
        self.refresh()?;
        let TunnelDevice { name, vni, port, gbp, learning } = wanted.clone();
        let (underlay, mac, mtu, l2miss) = (0, [0; 6], 0, true);
        let spec = VxlanSpec { name, vni, port, local, underlay, mac, mtu, learning, gbp, l2miss };
        let links = self.looker.links().map_err(Error::from);
        let links = self.noted(links)?;
        let there = links.iter().find(|link| link.name == spec.name);
        Ok(match there.map(|link| spec.differences(link)).unwrap_or_default().into_iter().next() {
            Some(Difference::NotVxlan { seen }) => Some(foreign(&spec, seen)),
            // What it has it can have, and what is to be changed on it is seen when it is.
            _ if there.is_some() => None,
            _ => taken(&links, &spec).or_else(|| Some(taken_port(&spec, holder::of_device(&links, &spec)?))),
        })
    }

    /// Deletes the device if it was this process that created it: for a start that fails. One that was there before
    /// stays, since it may carry traffic.
    pub async fn undo(&mut self, device: &Device) -> Result<(), Error> {
        let Some(ifindex) = self.created.take() else { return Ok(()) };
        link::send("delete", &device.name, LinkRequest::Delete(ifindex)).await
    }

    /// Brings the link to what is wanted; what it came to, and the link.
    async fn link(&mut self, spec: &VxlanSpec) -> Result<(Made, Link), Error> {
        let mut reasons = Vec::new();
        if let Some(renamed) = self.renamed(spec)? {
            // It holds our VNI and port, so nothing could be made beside it.
            reasons.push(format!("renamed to {}", renamed.name));
            link::send("delete", &spec.name, LinkRequest::Delete(renamed.index)).await?;
        } else if let Some(link) = self.looker.link_named(&spec.name)? {
            let differences = spec.differences(&link);
            if let Some(Difference::NotVxlan { seen }) = differences.first() {
                return Err(foreign(spec, seen.clone()));
            }
            let tolerated = self.tolerated();
            let mend: Vec<_> = differences.into_iter().filter(|d| !is_tolerable(d) && !tolerated.contains(d)).collect();
            if mend.is_empty() {
                return Ok((Made::AsWanted, link));
            }
            reasons = mend.iter().map(|difference| self.in_words(difference)).collect();
            if mend.iter().all(Difference::live_change) {
                match self.change(spec, link.index, &mend).await {
                    Ok(()) => return Ok((Made::Changed(reasons), self.look(spec)?)),
                    Err(error @ Error::PortTaken { .. }) => return Err(error),
                    Err(error) if error.is_of_socket() => return Err(error),
                    Err(error) => info!(device = %spec.name, %error, "cannot change the living device, making it anew"),
                }
            }
            link::send("delete", &spec.name, LinkRequest::Delete(link.index)).await?;
        }
        let link = self.create(spec).await?;
        self.created = Some(link.index);
        Ok((Made::Created(reasons), link))
    }

    async fn create(&mut self, spec: &VxlanSpec) -> Result<Link, Error> {
        if let Err(error) = link::send("create", &spec.name, LinkRequest::Create(spec.message())).await {
            // The kernel says no more than that something exists.
            return Err(taken(&self.looker.links()?, spec).unwrap_or(error));
        }
        // It may have been made twice, and then it is not certain whose link exists.
        let link = self.looker.link_named(&spec.name)?.filter(|link| is_ours(link, spec));
        link.ok_or_else(|| Error::Vanished { name: spec.name.clone() })
    }

    /// Our device under another name: the index that we made, still with our MAC and VNI.
    fn renamed(&mut self, spec: &VxlanSpec) -> Result<Option<Link>, Error> {
        let Some(ifindex) = self.ifindex() else { return Ok(None) };
        let is_renamed = |link: &Link| link.index == ifindex && link.name != spec.name && is_ours(link, spec);
        Ok(self.looker.links()?.into_iter().find(is_renamed))
    }

    async fn change(&mut self, spec: &VxlanSpec, ifindex: u32, differences: &[Difference]) -> Result<(), Error> {
        for message in spec.change_messages(ifindex, differences) {
            let changed = link::send("change", &spec.name, LinkRequest::Change(message)).await;
            self.named_port(spec, changed)?;
        }
        Ok(())
    }

    async fn set_up(&mut self, spec: &VxlanSpec, ifindex: u32) -> Result<(), Error> {
        let up = link::send("set up", &spec.name, LinkRequest::Change(up_message(ifindex))).await;
        self.named_port(spec, up)
    }

    /// The kernel opens the UDP socket when the device is set up, and says "address in use" and no more.
    fn named_port(&mut self, spec: &VxlanSpec, result: Result<(), Error>) -> Result<(), Error> {
        match result {
            Err(Error::Link { source, .. }) if source.errno == libc::EADDRINUSE => {
                let links = self.looker.links()?;
                Err(taken_port(spec, self.holders.of_port(&links, spec)))
            }
            other => other,
        }
    }

    /// A difference, with the name of the device that ours is a port of.
    fn in_words(&mut self, difference: &Difference) -> String {
        match difference {
            Difference::Master { seen } => port_of(*seen, self.looker.links()),
            _ => difference.to_string(),
        }
    }

    fn look(&mut self, spec: &VxlanSpec) -> Result<Link, Error> {
        self.looker.link_named(&spec.name)?.ok_or_else(|| Error::Vanished { name: spec.name.clone() })
    }

    /// Sees to it that no frame from the tunnel changes this host, and says once what can't be set.
    fn shield(&mut self, link: &Link, device: &Device) -> Result<(), Error> {
        let unset = shield::raise(&mut self.batch, link, Family::from(device.address.ip()))?;
        if !unset.is_empty() && self.unset != unset {
            info!(device = %device.name, parameters = %unset.join("; "),
                "cannot set parameters of the device, which keep the host from taking in what comes through the tunnel; the nftables rules do the same. \
                To have both, give the daemon a writable /proc/sys, or set them on the host with sysctl -w net/<parameter>");
        }
        self.unset = unset;
        Ok(())
    }

    /// The device's address and how its neighbours are resolved; other addresses of the family go, and link-local ones.
    fn furnish(&mut self, ifindex: u32, device: &Device) -> Result<bool, Error> {
        let family = Family::from(device.address.ip());
        let there: Vec<Address> = self.looker.addresses(Some(ifindex))?.into_iter().map(|seen| seen.address).collect();
        let of_family = there.iter().filter(|a| Family::from(a.address.ip()) == family && !is_link_local(a.address));
        let others = of_family.filter(|a| a.address != device.address);
        let mut requests: Vec<Request> = others.map(|other| Request::DelAddress(*other)).collect();
        if !there.iter().any(|a| a.address == device.address) {
            requests.push(Request::PutAddress(Address { ifindex, address: device.address }));
        }
        let changed = !requests.is_empty();
        requests.extend(there.iter().filter(|a| is_link_local(a.address)).map(|a| Request::DelAddress(*a)));
        let probes = Params { ifindex, family, app_probes: APP_PROBES, ucast_probes: 0, mcast_probes: 0 };
        requests.push(Request::SetNeighParams(probes));
        let failures = self.batch.send(&requests)?;
        let gone = |index: usize| matches!(requests[index], Request::DelAddress(_));
        match failures.into_iter().find(|failure| !(gone(failure.index) && failure.refusal.is_gone())) {
            None => Ok(changed),
            Some(failure) => Err(netlink_ext::Error::Refused {
                step: "set address and neighbour parameters",
                refusal: failure.refusal,
            }
            .into()),
        }
    }
}

/// That our device is a port of the device of this index, by its name where the kernel tells it.
fn port_of(master: u32, links: Result<Vec<Link>, netlink_ext::Error>) -> String {
    let links = match links {
        Ok(links) => links,
        Err(error) => return format!("a port of ifindex {master} (cannot read its name: {error})"),
    };
    links.iter().find(|link| link.index == master).map_or_else(
        || Difference::Master { seen: master }.to_string(),
        |link| format!("a port of {} ({})", Shown::new(&link.name), link.kind.as_deref().unwrap_or("physical")),
    )
}

/// Whether a link has our MAC and VNI, whatever its name.
fn is_ours(link: &Link, spec: &VxlanSpec) -> bool {
    link.mac == Some(spec.mac) && link.vxlan.as_ref().is_some_and(|vxlan| vxlan.vni == spec.vni)
}

fn foreign(spec: &VxlanSpec, kind: Option<String>) -> Error {
    Error::Foreign { name: spec.name.clone(), kind: kind.unwrap_or_else(|| "physical".to_owned()) }
}

/// The other device that has the VNI and port that ours is to have.
fn taken(links: &[Link], spec: &VxlanSpec) -> Option<Error> {
    let (vni, port) = (spec.vni, spec.port);
    // The two devices of a dual-stack node have one VNI and port, which the kernel allows. One in external mode has none.
    let holds = |link: &&Link| {
        let vxlan = link.vxlan.as_ref().filter(|vxlan| (vxlan.vni, vxlan.port) == (vni, port) && !vxlan.external);
        vxlan.is_some_and(|vxlan| vxlan.local.is_none_or(|local| local.is_ipv4() == spec.local.is_ipv4()))
    };
    let holder = links.iter().find(|link| link.name != spec.name && holds(link))?.name.clone();
    Some(Error::Taken { name: spec.name.clone(), holder, vni, port })
}

fn taken_port(spec: &VxlanSpec, holder: String) -> Error {
    Error::PortTaken { name: spec.name.clone(), port: spec.port, holder }
}

/// Whether it may be the kernel that does not make a device so: it lacks the feature, or caps the MTU. Anything else that
/// differs right after it was set is another program's doing, and is set right again.
fn may_be_the_kernel_s(difference: &Difference) -> bool {
    matches!(difference, Difference::L2Miss { .. } | Difference::Gbp { .. } | Difference::Mtu { .. })
}

/// Whether a device may stay as it is although it differs: one that flannel made has no `l2miss`, and the kernel cannot
/// switch that on. A lost FDB row is then seen by its notification and by the comparison, not by the packet.
fn is_tolerable(difference: &Difference) -> bool {
    matches!(difference, Difference::L2Miss { .. })
}

/// The link that is to be there, if one is.
fn spec(device: &Device) -> Option<VxlanSpec> {
    let Vxlan { vni, port, mac: MacAddr(mac), learning, gbp, l2miss } = device.vxlan.clone()?;
    let Device { name, local, underlay, mtu, .. } = device.clone();
    Some(VxlanSpec { name, vni, port, local, underlay, mac, mtu, learning, gbp, l2miss })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_that_ours_is_a_port_of_is_named_or_it_is_said_why_not() {
        let refused = Err(netlink_ext::Error::DumpInterrupted { tries: 10 });
        let error = netlink_ext::Error::DumpInterrupted { tries: 10 };
        assert_eq!(port_of(7, refused), format!("a port of ifindex 7 (cannot read its name: {error})"));
        assert_eq!(port_of(7, Ok(Vec::new())), "a port of ifindex 7, not of any device");
    }
}
