//! VXLAN: a tunnel to every peer, from one device for each family.
//!
//! Names, defaults, limits and record are flannel's
//! (<https://github.com/flannel-io/flannel/blob/v0.28.9/pkg/backend/vxlan/vxlan.go>). With `DirectRouting` a peer whose host is on
//! a link of ours needs no tunnel.

use super::{Data, Objection, Seam, TunnelDevice, Ways};
use crate::overlay::MacAddr;
use crate::overlay::family::Family;

mod data;
mod settings;

pub use data::VtepData;
pub use settings::{DEFAULT_PORT, DEFAULT_VNI, Vxlan};

/// Its name in the network config and in records.
pub(super) const NAME: &str = "vxlan";

/// How the names of the devices of both families begin; the VNI follows.
const PREFIXES: [&str; 2] = ["flannel.", "flannel-v6."];

/// What VXLAN adds to a packet over IPv4, in bytes: outer Ethernet, IP, UDP and VXLAN headers.
const OVERHEAD_V4: u32 = 50;
/// The same over IPv6.
const OVERHEAD_V6: u32 = 70;

impl Seam for Vxlan {
    fn name(&self) -> &'static str {
        NAME
    }

    fn data(&self, mac: Option<MacAddr>) -> Option<Data> {
        mac.map(|mac| Data::Vtep(VtepData { vni: Some(self.vni), mac }))
    }

    fn endpoint(&self, data: Option<&Data>, family: Family) -> Result<Option<MacAddr>, Objection> {
        let Some(Data::Vtep(vtep)) = data else { return Err(incomplete(family)) };
        if vtep.mac.is_unicast() {
            return Ok(Some(vtep.mac));
        }
        Err(Objection {
            reason: "mac_not_unicast",
            kind: "whose MAC is not a unicast address",
            words: format!("the VTEP's MAC {} is not a unicast address", vtep.mac),
        })
    }

    fn agrees(&self, data: Option<&Data>) -> Result<(), Objection> {
        match data {
            Some(Data::Vtep(VtepData { vni: Some(vni), .. })) if *vni != self.vni => Err(Objection {
                reason: "wrong_vni",
                kind: "with another VNI",
                words: format!("the VNI is {vni}, not {}", self.vni),
            }),
            _ => Ok(()),
        }
    }

    fn ways(&self) -> Ways {
        Ways { tunnel: true, host: self.direct_routing }
    }

    fn device(&self, family: Family) -> Option<TunnelDevice> {
        let Self { vni, port, gbp, learning, .. } = *self;
        let name = match family {
            Family::V4 => format!("{}{vni}", PREFIXES[0]),
            Family::V6 => format!("{}{vni}", PREFIXES[1]),
        };
        Some(TunnelDevice { name, vni, port, gbp, learning })
    }

    fn overhead(&self, family: Family) -> u32 {
        match family {
            Family::V4 => OVERHEAD_V4,
            Family::V6 => OVERHEAD_V6,
        }
    }

    fn mark(&self) -> String {
        self.vni.to_string()
    }

    fn mtu(&self) -> Option<u32> {
        self.mtu
    }
}

/// Whether a device may be one that some VXLAN network has on this host.
pub fn is_device_name(name: &str) -> bool {
    let vni = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
    vni.is_some_and(|vni| vni.parse::<u32>().is_ok())
}

fn incomplete(family: Family) -> Objection {
    let missing = match family {
        Family::V4 => "BackendData",
        Family::V6 => "BackendV6Data",
    };
    Objection { reason: "incomplete", kind: "with a part missing", words: format!("the record has no {missing}") }
}
