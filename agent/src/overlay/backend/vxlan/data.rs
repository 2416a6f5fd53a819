//! What a record says of a node's VXLAN device.

use std::fmt;

use serde_json::Value;

use crate::overlay::MacAddr;
use crate::overlay::backend::Unreadable;
use crate::overlay::json::Object;

/// What a record says of a node's VXLAN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VtepData {
    /// The VNI; flannel 0.5 to 0.11 didn't write it.
    pub vni: Option<u32>,
    /// The device's MAC.
    pub mac: MacAddr,
}

impl VtepData {
    pub(in crate::overlay::backend) fn read(value: &Value) -> Result<Self, Unreadable> {
        let wrong = |part, value: &Value, expected| Unreadable { part, value: value.clone(), expected };
        let object = Object::nested(value).ok_or_else(|| wrong("", value, "an object with a VtepMAC"))?;
        let mac = object.get("VtepMAC").unwrap_or(&Value::Null);
        let as_mac = |value: &Value| value.as_str()?.parse().ok();
        let vni = |value: &Value| {
            let vni = value.as_u64().and_then(|vni| u32::try_from(vni).ok());
            vni.ok_or_else(|| wrong(".VNI", value, "a VNI"))
        };
        Ok(Self {
            vni: object.get("VNI").map(vni).transpose()?,
            mac: as_mac(mac).ok_or_else(|| wrong(".VtepMAC", mac, "a MAC address"))?,
        })
    }
}

impl fmt::Display for VtepData {
    /// As flannel writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        if let Some(vni) = self.vni {
            write!(f, r#""VNI":{vni},"#)?;
        }
        write!(f, r#""VtepMAC":"{}"}}"#, self.mac)
    }
}

impl From<VtepData> for super::Data {
    fn from(vtep: VtepData) -> Self {
        Self::Vtep(vtep)
    }
}
