//! What listens to the kernel for one plane, and what a change that it tells means.

use ipnetwork::IpNetwork;
use netlink_ext::addr::Seen as SeenAddress;
use netlink_ext::change::{Change, ChangeSocket};
use netlink_ext::link::{Difference, Link, VxlanSpec};
use netlink_ext::{Family, MissSocket, route};

use super::convert::is_link_local;
use super::{Device, KernelEvent, convert, underlay};
use crate::overlay::kernel::{Notification, Row};

/// What listens to the kernel, and the device as it was made.
pub(super) struct Live {
    /// `None` with a backend that has no device.
    pub(super) link: Option<LiveLink>,
    /// What was asked for.
    pub(super) device: Device,
    pub(super) family: Family,
    pub(super) changes: ChangeSocket,
}

/// The device in the kernel.
pub(super) struct LiveLink {
    pub(super) ifindex: u32,
    pub(super) spec: VxlanSpec,
    pub(super) tolerated: Vec<Difference>,
    pub(super) misses: MissSocket,
}

impl LiveLink {
    /// Whether a change is one of the device.
    fn is_meant(&self, change: &Change) -> bool {
        match change {
            Change::Link(link) => link.index == self.ifindex,
            Change::LinkGone { ifindex, .. } => *ifindex == self.ifindex,
            Change::Address { address, .. } => address.address.ifindex == self.ifindex,
            _ => false,
        }
    }

    /// What a change of the device means for us, if anything; the device is to have this address.
    fn event(&self, change: &Change, own: IpNetwork) -> Option<KernelEvent> {
        let is_news = match change {
            Change::Link(link) => {
                let differs = self.spec.differences(link).iter().any(|d| !self.tolerated.contains(d));
                differs || link.name != self.spec.name
            }
            Change::Address { address: SeenAddress { address, .. }, gone } => {
                *gone == (address.address == own) && !is_link_local(address.address)
            }
            _ => true,
        };
        is_news.then_some(KernelEvent::Device)
    }
}

impl Live {
    /// The index of the device, where there is one.
    pub(super) fn ifindex(&self) -> Option<u32> {
        self.link.as_ref().map(|link| link.ifindex)
    }

    /// The event that the loop is told of a change; `None` if the change concerns nothing of ours.
    pub(super) fn event(&self, change: Change, watched: &underlay::Watched) -> Option<KernelEvent> {
        if let Some(link) = self.link.as_ref().filter(|link| link.is_meant(&change)) {
            return link.event(&change, self.device.address);
        }
        let concerns = watched.concerns(&change, self.device.underlay, self.device.local);
        match change {
            _ if concerns => Some(KernelEvent::Underlay),
            // By name as well: an underlay that was made again has another index.
            Change::Link(Link { ref name, .. }) | Change::LinkGone { ref name, .. }
                if *name == self.device.underlay_name =>
            {
                Some(KernelEvent::Underlay)
            }
            Change::Link(Link { index: ifindex, up: false, .. }) | Change::LinkGone { ifindex, .. } => {
                Some(KernelEvent::Row(Notification::DeviceDown(ifindex)))
            }
            Change::Link(_) => None,
            Change::Rule { family } => (family == self.family).then_some(KernelEvent::Rules),
            Change::Address { .. } | Change::Nexthop { .. } => None,
            Change::Route { route, gone } => self.route_event(&route, gone),
            Change::Neigh { entry, gone: true } => {
                Some(KernelEvent::Row(Notification::Gone(Row::Neigh(entry.address))))
            }
            Change::Neigh { entry, gone: false } => {
                Some(KernelEvent::Row(Notification::Neigh(convert::seen_neigh(&entry))))
            }
            Change::Fdb { row, gone } => {
                let seen = convert::seen_fdb(&row);
                Some(KernelEvent::Row(if gone {
                    Notification::Gone(Row::Fdb(seen.row))
                } else {
                    Notification::Fdb(seen)
                }))
            }
            Change::Overrun => Some(KernelEvent::Overrun),
        }
    }

    fn route_event(&self, route: &route::Route, gone: bool) -> Option<KernelEvent> {
        let seen = convert::seen_route(self.ifindex(), route)?;
        Some(KernelEvent::Row(if gone {
            Notification::Gone(Row::Route(seen.route))
        } else {
            Notification::Route(seen)
        }))
    }
}
