//! ADD's result on its way back to the delegate's CHECK. Pure.
//!
//! A route without a gateway means "by the gateway of the address", and that is how the reference plugins add it; but
//! when they check, they look for a route that has none, and find every route of flannel's form missing
//! (`ValidateExpectedRoute`, <https://github.com/containernetworking/plugins/blob/v1.1.1/pkg/ip/utils_linux.go>).
//! So CHECK names the gateway, as in truth it is.

use std::net::IpAddr;

use serde_json::value::RawValue;

use super::conf::Object;
use super::render::set;
use crate::handoff::env::cidr;

/// The result with a gateway in each route, where there is one of its family. What can't be read stays as it is.
pub(crate) fn with_gateways(result: &RawValue) -> Box<RawValue> {
    filled(result).unwrap_or_else(|| result.to_owned())
}

fn filled(result: &RawValue) -> Option<Box<RawValue>> {
    let mut result: Object = serde_json::from_str(result.get()).ok()?;
    let ips: Vec<Object> = serde_json::from_str(result.get("ips")?.get()).ok()?;
    let gateways: Vec<IpAddr> = ips.iter().filter_map(|ip| text(ip, "gateway")?.parse().ok()).collect();
    let mut routes: Vec<Object> = serde_json::from_str(result.get("routes")?.get()).ok()?;
    for route in routes.iter_mut().filter(|route| text(route, "gw").is_none()) {
        let Some(Ok(dst)) = text(route, "dst").map(|dst| cidr(&dst)) else { continue };
        if let Some(gateway) = gateways.iter().find(|gateway| gateway.is_ipv4() == dst.is_ipv4()) {
            set(route, "gw", gateway).ok()?;
        }
    }
    set(&mut result, "routes", &routes).ok()?;
    serde_json::value::to_raw_value(&result).ok()
}

/// A text that is given and not empty.
fn text(object: &Object, key: &str) -> Option<String> {
    serde_json::from_str::<String>(object.get(key)?.get()).ok().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled_text(json: &str) -> String {
        with_gateways(&RawValue::from_string(json.to_string()).unwrap()).get().to_string()
    }

    #[test]
    fn each_family_gets_its_own_and_given_ones_stay() {
        let json = r#"{"cniVersion":"1.0.0","ips":[{"address":"10.5.52.2/24","gateway":"10.5.52.1"},{"address":"fc00::2/64","gateway":"fc00::1"}],"routes":[{"dst":"10.5.0.0/16"},{"dst":"fc00::/48"},{"dst":"0.0.0.0/0","gw":"10.5.52.9"}],"x":1.0}"#;
        let wanted = json
            .replace(r#"{"dst":"10.5.0.0/16"}"#, r#"{"dst":"10.5.0.0/16","gw":"10.5.52.1"}"#)
            .replace(r#"{"dst":"fc00::/48"}"#, r#"{"dst":"fc00::/48","gw":"fc00::1"}"#);
        assert_eq!(filled_text(json), wanted);
    }

    #[test]
    fn what_has_no_gateway_or_no_sense_stays() {
        for json in [
            r#"{"ips":[{"address":"10.5.52.2/24"}],"routes":[{"dst":"10.5.0.0/16"}]}"#,
            r#"{"ips":[{"gateway":"10.5.52.1"}],"routes":[{"dst":"fc00::/48"}]}"#,
            r#"{ "routes": 7 }"#,
            "null",
        ] {
            assert_eq!(filled_text(json), json);
        }
    }
}
