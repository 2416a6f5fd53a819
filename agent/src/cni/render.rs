//! The delegate's configuration, out of the network's own and `subnet.env`. Pure.
//!
//! As `doCmdAdd` of flannel's plugin does it, to the byte where the input has no numbers that Go would rewrite
//! (<https://github.com/flannel-io/cni-plugin/blob/v1.7.1-flannel1/flannel_linux.go>).

use ipnetwork::IpNetwork;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::conf::{NetConf, Object, find};
use super::error::{Error, code};
use super::subnet::SubnetEnv;
use crate::handoff::env::cidr;

/// The delegate without a word about it.
const DEFAULT_TYPE: &str = "bridge";

#[derive(Serialize)]
struct Range {
    subnet: IpNetwork,
}

#[derive(Serialize)]
struct Route {
    dst: IpNetwork,
}

/// What the delegate gets on standard input, and what is stored for the day it is taken down.
pub fn render(conf: &NetConf, env: &SubnetEnv) -> Result<Object, Error> {
    let mut delegate = conf.delegate.clone();
    for key in ["name", "ipam"] {
        if delegate.contains_key(key) {
            let msg = format!("'delegate' dictionary must not have '{key}' field, it'll be set by flannel");
            return Err(Error::new(code::INVALID_CONFIG, msg));
        }
    }
    if let Some(runtime) = &conf.runtime_config {
        delegate.insert("runtimeConfig".into(), runtime.clone());
    }
    set(&mut delegate, "name", &conf.name)?;
    if let Some(version) = &conf.cni_version {
        set(&mut delegate, "cniVersion", version)?;
    }
    default(&mut delegate, "type", &DEFAULT_TYPE)?;
    // The bridge masquerades where the daemon doesn't.
    default(&mut delegate, "ipMasq", &!env.ip_masq)?;
    default(&mut delegate, "mtu", &env.mtu)?;
    if plugin_type(&delegate)? == DEFAULT_TYPE {
        default(&mut delegate, "isGateway", &true)?;
    }
    set(&mut delegate, "ipam", &ipam(conf, env)?)?;
    Ok(delegate)
}

/// The name of the plugin that a configuration is for.
pub fn plugin_type(delegate: &Object) -> Result<String, Error> {
    let given = find(delegate, "type").and_then(|value| serde_json::from_str::<String>(value.get()).ok());
    let wrong = |msg: String| Err(Error::new(code::INVALID_CONFIG, msg));
    match given {
        None => wrong("'delegate' dictionary, if present, must have (string) 'type' field".into()),
        Some(name) if name.is_empty() || name.contains('/') || name.starts_with('.') => {
            wrong(format!("invalid plugin name: {name}"))
        }
        // It would call itself, with a configuration in which `delegate` is gone.
        Some(name) if name == "flannel" => wrong("'delegate' dictionary must not have the type flannel".into()),
        Some(name) => Ok(name),
    }
}

/// The name of the plugin that gives addresses, where a configuration has one that can be called.
pub fn ipam_type(config: &Object) -> Option<String> {
    let ipam: Object = serde_json::from_str(find(config, "ipam")?.get()).ok()?;
    plugin_type(&ipam).ok()
}

/// Where the delegate's addresses come from: the given map, with our subnets as its only ranges, and a route to
/// each network.
fn ipam(conf: &NetConf, env: &SubnetEnv) -> Result<Object, Error> {
    let mut ipam = conf.ipam.clone();
    default(&mut ipam, "type", &"host-local")?;
    // It would call its caller.
    if find(&ipam, "type").is_some_and(|name| name.get() == "\"flannel\"") {
        return Err(Error::new(code::INVALID_CONFIG, "'ipam' dictionary must not have the type flannel"));
    }
    let ranges: Vec<[Range; 1]> = env.subnets.iter().map(|subnet| [Range { subnet: *subnet }]).collect();
    set(&mut ipam, "ranges", &ranges)?;
    let mut routes = given_routes(&ipam)?;
    for network in &env.networks {
        routes.push(raw(&Route { dst: *network })?);
    }
    set(&mut ipam, "routes", &routes)?;
    Ok(ipam)
}

/// The routes of the given `ipam`, as they are written. Each must lead somewhere.
fn given_routes(ipam: &Object) -> Result<Vec<Box<RawValue>>, Error> {
    let wrong = |why: String| {
        Error::new(code::INVALID_CONFIG, format!("failed to read IPAM routes: failed to parse ipam.routes: {why}"))
    };
    let Some(routes) = ipam.get("routes") else { return Ok(Vec::new()) };
    let routes: Option<Vec<Box<RawValue>>> = serde_json::from_str(routes.get()).map_err(|e| wrong(e.to_string()))?;
    let routes = routes.unwrap_or_default();
    for route in &routes {
        let keys: Object = serde_json::from_str(route.get()).map_err(|e| wrong(e.to_string()))?;
        let dst = find(&keys, "dst").and_then(|dst| serde_json::from_str::<String>(dst.get()).ok());
        cidr(&dst.unwrap_or_default()).map_err(wrong)?;
    }
    Ok(routes)
}

/// Sets a key, whatever it was.
pub(crate) fn set<T: Serialize + ?Sized>(object: &mut Object, key: &str, value: &T) -> Result<(), Error> {
    object.insert(key.to_string(), raw(value)?);
    Ok(())
}

/// Sets a key that is not there.
fn default<T: Serialize + ?Sized>(object: &mut Object, key: &str, value: &T) -> Result<(), Error> {
    if object.contains_key(key) { Ok(()) } else { set(object, key, value) }
}

/// The text of an object.
pub(crate) fn to_bytes(object: &Object) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(object).map_err(|e| cannot_write(&e))
}

fn raw<T: Serialize + ?Sized>(value: &T) -> Result<Box<RawValue>, Error> {
    to_raw_value(value).map_err(|e| cannot_write(&e))
}

fn cannot_write(error: &serde_json::Error) -> Error {
    Error::new(code::INTERNAL, format!("error serializing delegate netconf: {error}"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cni::call::Verb;
    use crate::cni::subnet::parse;

    const IPV4: &str =
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    const IPV6: &str = "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00:0:0:22::1/64\n";

    fn rendered(conf: &str, env: &str) -> Result<String, Error> {
        let conf = NetConf::parse(conf.as_bytes(), Verb::Add).unwrap();
        let env = parse(env.as_bytes(), Path::new("subnet.env")).unwrap();
        Ok(String::from_utf8(to_bytes(&render(&conf, &env)?)?).unwrap())
    }

    /// The configuration of flannel's manifest, and what flannel's plugin prints that it renders from it.
    #[test]
    fn golden_ipv4() {
        let conf = r#"{"cniVersion":"0.3.1","name":"cbr0","type":"flannel",
            "delegate":{"hairpinMode":true,"isDefaultGateway":true}}"#;
        let wanted = r#"{"cniVersion":"0.3.1","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.5.52.0/24"}]],"routes":[{"dst":"10.5.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#;
        assert_eq!(rendered(conf, IPV4).unwrap(), wanted);
    }

    #[test]
    fn golden_dual_stack_without_masquerading() {
        let env = format!("{IPV4}{IPV6}").replace("IPMASQ=true", "IPMASQ=false");
        let wanted = r#"{"ipMasq":true,"ipam":{"ranges":[[{"subnet":"10.5.52.0/24"}],[{"subnet":"fc00:0:0:22::/64"}]],"routes":[{"dst":"10.5.0.0/16"},{"dst":"fc00::/48"}],"type":"host-local"},"isGateway":true,"mtu":1450,"name":"n","type":"bridge"}"#;
        assert_eq!(rendered(r#"{"name":"n"}"#, &env).unwrap(), wanted);
    }

    #[test]
    fn golden_ipv6_only() {
        let env = format!("{IPV6}FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n");
        let wanted = r#"{"ipMasq":false,"ipam":{"ranges":[[{"subnet":"fc00:0:0:22::/64"}]],"routes":[{"dst":"fc00::/48"}],"type":"host-local"},"isGateway":true,"mtu":1430,"name":"n","type":"bridge"}"#;
        assert_eq!(rendered(r#"{"name":"n"}"#, &env).unwrap(), wanted);
    }

    #[test]
    fn a_list_of_networks_is_a_list_of_routes() {
        let env = IPV4.replace("10.5.0.0/16", "10.5.0.0/16,192.168.0.0/16");
        let text = rendered(r#"{"name":"n"}"#, &env).unwrap();
        assert!(text.contains(r#""routes":[{"dst":"10.5.0.0/16"},{"dst":"192.168.0.0/16"}]"#), "{text}");
    }

    #[test]
    fn the_delegate_has_the_last_word() {
        let conf = r#"{"name":"n","cniVersion":"1.0.0",
            "delegate":{"type":"macvlan","mtu":1e3,"ipMasq":true,"big":123456789012345678901234567890,"z":{"b":1,"a":2.50}}}"#;
        let wanted = r#"{"big":123456789012345678901234567890,"cniVersion":"1.0.0","ipMasq":true,"ipam":{"ranges":[[{"subnet":"10.5.52.0/24"}]],"routes":[{"dst":"10.5.0.0/16"}],"type":"host-local"},"mtu":1e3,"name":"n","type":"macvlan","z":{"b":1,"a":2.50}}"#;
        assert_eq!(rendered(conf, IPV4).unwrap(), wanted);
        let text = rendered(r#"{"name":"n","delegate":{"isGateway":false}}"#, IPV4).unwrap();
        assert!(text.contains(r#""isGateway":false"#), "{text}");
    }

    #[test]
    fn the_given_ipam_keeps_what_is_its_own() {
        let conf = r#"{"name":"n","ipam":{"type":"my-ipam","unknown":1.0,"ranges":"ours win",
            "routes":[{"dst":"10.96.0.0/12"},{"dst":"192.168.244.0/24","gw":"10.5.52.20"}]}}"#;
        let wanted = r#""ipam":{"ranges":[[{"subnet":"10.5.52.0/24"}]],"routes":[{"dst":"10.96.0.0/12"},{"dst":"192.168.244.0/24","gw":"10.5.52.20"},{"dst":"10.5.0.0/16"}],"type":"my-ipam","unknown":1.0}"#;
        let text = rendered(conf, IPV4).unwrap();
        assert!(text.contains(wanted), "{text}");
    }

    #[test]
    fn runtime_config_is_the_runtimes() {
        let conf = r#"{"name":"n","runtimeConfig":{"mac":"02:00:00:00:00:01"},
            "delegate":{"runtimeConfig":{"mac":"old"}}}"#;
        let text = rendered(conf, IPV4).unwrap();
        assert!(text.contains(r#""runtimeConfig":{"mac":"02:00:00:00:00:01"}"#), "{text}");
    }

    #[test]
    fn forbidden_keys_are_refused_in_flannels_words() {
        for (delegate, msg) in [
            (r#"{"name":"x"}"#, "'delegate' dictionary must not have 'name' field, it'll be set by flannel"),
            (r#"{"ipam":{}}"#, "'delegate' dictionary must not have 'ipam' field, it'll be set by flannel"),
            (r#"{"type":7}"#, "'delegate' dictionary, if present, must have (string) 'type' field"),
            (r#"{"type":"flannel"}"#, "'delegate' dictionary must not have the type flannel"),
            (r#"{"type":"../sh"}"#, "invalid plugin name: ../sh"),
        ] {
            let error = rendered(&format!(r#"{{"name":"n","delegate":{delegate}}}"#), IPV4).unwrap_err();
            assert_eq!((error.code, error.msg.as_str()), (code::INVALID_CONFIG, msg));
        }
    }

    #[test]
    fn it_gives_no_addresses_itself() {
        let error = rendered(r#"{"name":"n","ipam":{"type":"flannel"}}"#, IPV4).unwrap_err();
        let msg = "'ipam' dictionary must not have the type flannel";
        assert_eq!((error.code, error.msg.as_str()), (code::INVALID_CONFIG, msg));
    }

    #[test]
    fn bad_routes_are_refused() {
        for routes in [r#""x""#, "[1]", "[{}]", r#"[{"dst":"10.0.0.0"}]"#] {
            let error = rendered(&format!(r#"{{"name":"n","ipam":{{"routes":{routes}}}}}"#), IPV4).unwrap_err();
            assert!(error.msg.starts_with("failed to read IPAM routes: failed to parse ipam.routes"), "{error:?}");
        }
    }
}
