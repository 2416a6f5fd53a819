//! The settings of VXLAN in the network config.

use std::ops::RangeInclusive;

use crate::overlay::json::Object;
use crate::overlay::settings::{ConfigError, flag, in_backend, integer};

/// The destination port where the config names none: the Linux kernel's own default, which flannel leaves in place.
pub const DEFAULT_PORT: u16 = 8472;
/// The VNI where the config names none.
pub const DEFAULT_VNI: u32 = 1;

/// The highest VNI: `flannel.9999999` and `flannel-v6.9999` have as many characters as a device name may (`IFNAMSIZ`,
/// include/uapi/linux/if.h).
const HIGHEST_VNI_V4: u32 = 9_999_999;
const HIGHEST_VNI_V6: u32 = 9_999;
/// The least MTU of the external interface: what the kernel asks of a device with an address of the family (68, 1280), and
/// what VXLAN adds over it (50, 70).
const LEAST_MTU_V4: u32 = 118;
const LEAST_MTU_V6: u32 = 1_350;

/// What the network config says of VXLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vxlan {
    /// The VXLAN network identifier, from 1 on, as high as the device's name has room for.
    pub vni: u32,
    /// The UDP destination port.
    pub port: u16,
    /// The external interface's MTU, in bytes, to count from instead of the real one.
    pub mtu: Option<u32>,
    /// Group-based policy on the device.
    pub gbp: bool,
    /// Source address learning on the device.
    pub learning: bool,
    /// No tunnel to peers on the same link.
    pub direct_routing: bool,
}

impl Default for Vxlan {
    fn default() -> Self {
        Self { vni: DEFAULT_VNI, port: DEFAULT_PORT, mtu: None, gbp: false, learning: false, direct_routing: false }
    }
}

impl Vxlan {
    pub(in crate::overlay::backend) fn parse(object: &Object, ipv6: bool) -> Result<Self, ConfigError> {
        let number = |name: &str, range: RangeInclusive<u32>| {
            let unit = format!("a number from {} to {}", range.start(), range.end());
            integer(object, name, "is out of range", &unit, range).map_err(in_backend)
        };
        let flag = |name| flag(object, name, false).map_err(in_backend);
        let (highest_vni, least_mtu) =
            if ipv6 { (HIGHEST_VNI_V6, LEAST_MTU_V6) } else { (HIGHEST_VNI_V4, LEAST_MTU_V4) };
        Ok(Self {
            vni: number("VNI", 1..=highest_vni)?.unwrap_or(DEFAULT_VNI),
            port: number("Port", 1..=65_535)?.map_or(DEFAULT_PORT, |port| port as u16),
            mtu: number("MTU", least_mtu..=65_535)?,
            gbp: flag("GBP")?,
            learning: flag("Learning")?,
            direct_routing: flag("DirectRouting")?,
        })
    }
}
