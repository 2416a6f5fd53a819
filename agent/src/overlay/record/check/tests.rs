use super::*;
use crate::overlay::config::NetworkConfig;

fn checked(key: &str, value: &str) -> Result<PeerRecord, &'static str> {
    let config = NetworkConfig::parse(br#"{"Network":"10.5.0.0/16"}"#).unwrap();
    let own = Own {
        subnet: "10.5.9.0/24".parse().unwrap(),
        public_ip: "10.99.0.9".parse().unwrap(),
        mac: "02:00:00:00:00:09".parse().ok(),
    };
    let checked = || {
        let key = key.parse::<SubnetKey>()?;
        let record = Record::parse(value.as_bytes())?;
        check(&record, &key, &config.ipv4.unwrap(), &config.backend, &own)
    };
    checked().map_err(|bad: BadRecord| bad.reason())
}

fn value(ip: &str, backend: &str, data: &str) -> String {
    format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"{backend}","BackendData":{data}}}"#)
}

const DATA: &str = r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#;

#[test]
fn a_good_record_gives_a_peer() {
    let peer = checked("10.5.52.0-24", &value("10.99.0.3", "vxlan", DATA)).unwrap();
    assert_eq!((peer.subnet, peer.remote), ("10.5.52.0/24".parse().unwrap(), "10.99.0.3".parse().unwrap()));
    assert!(checked("10.5.52.0-24", &value("10.99.0.3", "vxlan", r#"{"VtepMAC":"c6:d2:32:6f:8f:44"}"#)).is_ok());
    // Outside SubnetMin..SubnetMax, yet a subnet of the network: only allocation minds.
    assert!(checked("10.5.0.0-24", &value("10.99.0.3", "vxlan", DATA)).is_ok());
    // In the network, yet not in what it leases to nodes; and where some clouds have their hosts.
    for host in ["10.5.0.9", "240.0.0.7", "169.254.7.7"] {
        assert!(checked("10.5.52.0-24", &value(host, "vxlan", DATA)).is_ok(), "{host}");
    }
}

#[test]
fn an_ipv6_remote_is_a_host_outside_the_tunnel() {
    let config = NetworkConfig::parse(br#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48"}"#).unwrap();
    let fitting = |ip: &str| {
        let value = format!(
            r#"{{"PublicIPv6":"{ip}","BackendType":"vxlan","BackendV6Data":{{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}}}"#
        );
        let record = Record::parse(value.as_bytes()).unwrap();
        let key = "0.0.0.0-0&fc00:0:0:7::-64".parse().unwrap();
        fits(&record, &key, &config.ipv6.unwrap(), &config.backend).map_err(|bad| bad.reason())
    };
    for (ip, reason) in [
        ("::", "remote_not_unicast"),
        ("::1", "remote_not_unicast"),
        ("ff02::1", "remote_not_unicast"),
        ("::ffff:10.99.0.3", "remote_not_unicast"),
        ("10.99.0.3", "remote_not_unicast"),
        ("fc00:0:0:7::1", "remote_in_tunnel"),
        ("fc00:0:0:99::1", "remote_in_tunnel"),
    ] {
        assert_eq!(fitting(ip), Err(reason), "{ip}");
    }
    for ip in ["fd99::3", "fe80::3"] {
        assert!(fitting(ip).is_ok(), "{ip}");
    }
}

#[test]
fn where_records_name_no_backend_one_with_an_address_is_a_node_s() {
    let config = NetworkConfig::parse(br#"{"Network":"10.5.0.0/16","Backend":{"Type":"alloc"}}"#).unwrap();
    let key: SubnetKey = "10.5.52.0-24".parse().unwrap();
    let fitting = |value: &str| {
        let record = Record::parse(value.as_bytes()).unwrap();
        assert!(!is_complete(&record, &key) || !record.backend_type.is_empty(), "it may be a reservation");
        fits(&record, &key, &config.ipv4.unwrap(), &config.backend).map_err(|bad| bad.reason())
    };
    let peer = fitting(r#"{"PublicIP":"10.99.0.3","PublicIPv6":null}"#).unwrap();
    assert_eq!((peer.remote, peer.mac), ("10.99.0.3".parse().unwrap(), None));
    assert!(fitting(r#"{"PublicIP":"10.99.0.3","Instance":{"ID":"x","Since":1}}"#).is_ok());
    assert_eq!(fitting(r#"{"PublicIP":"0.0.0.0","NodeID":"worker-2"}"#), Err("reserved"));
    assert_eq!(fitting(&value("10.99.0.3", "vxlan", DATA)), Err("other_backend"));
    assert_eq!(fitting(&value("10.99.0.3", "host-gw", "null")), Err("other_backend"));
    let is_unused = |value: &str| Record::parse(value.as_bytes()).unwrap().is_unused();
    assert!(is_unused(r#"{"PublicIP":"10.99.0.3"}"#));
    assert!(!is_unused(r#"{"PublicIP":"10.99.0.3","Instance":{"ID":"x","Since":1}}"#), "a daemon wrote it");
}

#[test]
fn a_record_of_host_gw_is_an_address() {
    let text = br#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"host-gw"}}"#;
    let config = NetworkConfig::parse(text).unwrap();
    let key: SubnetKey = "10.5.52.0-24&fc00:0:0:7::-64".parse().unwrap();
    let record = |v6: &str| {
        let value = format!(r#"{{"PublicIP":"10.99.0.3","PublicIPv6":{v6},"BackendType":"host-gw"}}"#);
        Record::parse(value.as_bytes()).unwrap()
    };
    let fitting = |v6: &str| {
        let fits = |net| fits(&record(v6), &key, net, &config.backend).map(|peer| (peer.remote.to_string(), peer.mac));
        config.families().map(|net| fits(net).map_err(|bad| bad.to_string())).collect::<Vec<_>>()
    };
    let v4 = Ok(("10.99.0.3".to_owned(), None));
    assert_eq!(fitting("\"fd99::3\""), [v4.clone(), Ok(("fd99::3".to_owned(), None))]);
    assert_eq!(fitting("null"), [v4, Err("the record has no PublicIPv6".to_owned())]);
    assert!(is_complete(&record("\"fd99::3\""), &key) && !is_complete(&record("null"), &key));
}

#[test]
fn each_objection_has_its_reason() {
    let good = value("10.99.0.3", "vxlan", DATA);
    let cases = [
        ("10.5.52.0-24", "{".to_owned(), "value"),
        ("junk", good.clone(), "key_form"),
        ("0.0.0.0-0&fc00::-64", good.clone(), "incomplete"),
        ("10.5.52.0-24", value("10.99.0.3", "vxlan", "null"), "incomplete"),
        ("10.5.52.0-24", r#"{"PublicIP":"10.99.0.3","PublicIPv6":null}"#.to_owned(), "reserved"),
        ("10.5.52.0-24", value("10.99.0.3", "host-gw", "{}"), "other_backend"),
        ("10.5.52.0-25", good.clone(), "wrong_length"),
        ("10.6.52.0-24", good.clone(), "outside_network"),
        ("10.5.9.0-24", good.clone(), "overlaps_ours"),
        ("10.5.9.128-25", good.clone(), "overlaps_ours"),
        ("10.5.8.0-23", good, "overlaps_ours"),
        ("10.5.52.0-24", value("10.99.0.9", "vxlan", DATA), "remote_is_ours"),
        ("10.5.52.0-24", value("10.99.0.3", "vxlan", r#"{"VtepMAC":"02:00:00:00:00:09"}"#), "mac_is_ours"),
        ("10.5.52.0-24", value("127.0.0.1", "vxlan", DATA), "remote_not_unicast"),
        ("10.5.52.0-24", value("239.0.0.1", "vxlan", DATA), "remote_not_unicast"),
        ("10.5.52.0-24", value("0.0.0.0", "vxlan", DATA), "remote_not_unicast"),
        ("10.5.52.0-24", value("255.255.255.255", "vxlan", DATA), "remote_not_unicast"),
        ("10.5.52.0-24", value("0.1.2.3", "vxlan", DATA), "remote_not_unicast"),
        // A pod's, our own device's, and the peer's own, in the range and beside it.
        ("10.5.52.0-24", value("10.5.77.3", "vxlan", DATA), "remote_in_tunnel"),
        ("10.5.52.0-24", value("10.5.9.0", "vxlan", DATA), "remote_in_tunnel"),
        ("10.5.52.0-24", value("10.5.52.1", "vxlan", DATA), "remote_in_tunnel"),
        ("10.5.0.0-24", value("10.5.0.1", "vxlan", DATA), "remote_in_tunnel"),
        ("10.5.52.0-24", "{}".to_owned(), "incomplete"),
        ("10.5.52.0-24", value("10.99.0.3", "vxlan", r#"{"VtepMAC":"01:d2:32:6f:8f:44"}"#), "mac_not_unicast"),
        ("10.5.52.0-24", value("10.99.0.3", "vxlan", r#"{"VtepMAC":"00:00:00:00:00:00"}"#), "mac_not_unicast"),
        ("10.5.52.0-24", value("10.99.0.3", "vxlan", r#"{"VNI":2,"VtepMAC":"c6:d2:32:6f:8f:44"}"#), "wrong_vni"),
    ];
    for (key, value, reason) in cases {
        assert_eq!(checked(key, &value), Err(reason), "{key} {value}");
    }
}
