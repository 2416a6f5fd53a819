//! Where hosts may live, and what is said where they may not.

use super::*;

fn site(config: &str, on_demand: bool) -> Site {
    Site {
        config: NetworkConfig::parse(config.as_bytes()).unwrap(),
        config_text: config.as_bytes().to_vec(),
        wish: Wish::default(),
        subnet_file: PathBuf::new(),
        ip_masq: false,
        on_demand,
    }
}

fn host(mtu: u32, addresses: &[&str]) -> Interface {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    let (default_v4, default_v6) = (Some(0.into()), Some(0.into()));
    Interface { index: 2, name: "eth0".to_owned(), mtu, addresses, default_v4, default_v6, ..Interface::default() }
}

/// flannel's manual has such a network.
const WIDE: &str = r#"{"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0"}"#;

#[test]
fn hosts_may_live_in_the_part_of_the_network_that_nobody_leases() {
    let eth0 = host(1500, &["10.128.0.5/20"]);
    let ends = site(WIDE, false).ends(std::slice::from_ref(&eth0)).unwrap();
    assert_eq!(ends[0].chosen.local, "10.128.0.5".parse::<IpAddr>().unwrap());
    let error = site(WIDE, true).ends(&[eth0]).unwrap_err().to_string();
    for words in ["10.128.0.5", "eth0", "10.0.0.0/8", "--peer-mode=all"] {
        assert!(error.contains(words), "no {words}: {error}");
    }
}

#[test]
fn an_etcd_inside_the_network_is_swallowed_on_demand_only_and_not_on_our_own_link() {
    let hosts = [host(1500, &["192.168.1.5/24"]), host(1500, &["10.128.0.5/20"])];
    let swallows = |on_demand, address: &str| site(WIDE, on_demand).swallows(address.parse().unwrap(), &hosts);
    assert!(swallows(true, "10.128.16.9"));
    assert!(!swallows(false, "10.128.16.9") && !swallows(true, "10.128.0.9") && !swallows(true, "192.0.2.1"));
}

#[test]
fn what_nodes_lease_is_no_underlay() {
    let both = host(1500, &["10.10.16.1/20", "10.99.15.255/20", "192.168.1.5/24"]);
    let ends = site(WIDE, true).ends(&[both]).unwrap();
    assert_eq!(ends[0].chosen.local, "192.168.1.5".parse::<IpAddr>().unwrap());
}

#[test]
fn an_address_in_the_leased_range_is_named_with_the_range_and_what_to_change() {
    let config = r#"{"Network":"10.64.0.0/10"}"#;
    let named = |flag: &dyn Fn(&mut Wish)| {
        let mut site = site(config, false);
        flag(&mut site.wish);
        let other = host(1500, &["192.168.1.5/24"]);
        let other = Interface { name: "eth1".into(), default_v4: None, index: 3, ..other };
        let mut eth0 = host(1500, &["10.99.0.10/16"]);
        eth0.reaches_from = Some("10.99.0.10".parse().unwrap());
        site.ends(&[eth0, other]).unwrap_err().to_string()
    };
    let in_range = "10.99.0.10 lies in the network's leased range 10.64.1.0 to 10.127.255.255 \
                    (SubnetMin to SubnetMax of 10.64.0.0/10)";
    let cases: [&dyn Fn(&mut Wish); 7] = [
        &|_| {},
        &|wish| wish.iface = vec!["eth0".into()],
        &|wish| wish.iface = vec!["10.99.0.10".into()],
        &|wish| wish.regex = vec![regex_lite::Regex::new("^eth0$").unwrap()],
        &|wish| wish.regex = vec![regex_lite::Regex::new("^10[.]99").unwrap()],
        &|wish| wish.can_reach = Some("10.99.0.1".parse().unwrap()),
        &|wish| wish.public_ip = Some("10.99.0.10".parse().unwrap()),
    ];
    for (case, flag) in cases.into_iter().enumerate() {
        let error = named(flag);
        for words in [in_range, "SubnetMin or SubnetMax in the network config", "name another interface"] {
            assert!(error.contains(words), "{case}: no {words}: {error}");
        }
    }
    // An address that is nobody's here, as behind NAT.
    let error = named(&|wish| {
        wish.iface = vec!["eth1".into()];
        wish.public_ip = Some("10.70.0.9".parse().unwrap());
    });
    assert!(error.contains("the public address 10.70.0.9 lies in the network's leased range"), "{error}");
}

#[test]
fn our_own_device_and_the_pods_bridge_are_no_underlay_and_no_advice_is_given_for_them() {
    let device = Interface { name: "flannel.1".into(), index: 4, ..host(1450, &["10.5.7.0/32"]) };
    let bridge = Interface { name: "cni0".into(), index: 5, default_v4: None, ..host(1450, &["10.5.7.1/24"]) };
    let mut site = site(r#"{"Network":"10.5.0.0/16"}"#, true);
    let hosts = [device, bridge, host(1500, &["192.168.1.5/24"])];
    assert_eq!(site.ends(&hosts).unwrap()[0].chosen.interface.name, "eth0", "not a default route through it");
    site.wish.iface = vec!["flannel.1".into()];
    let error = site.ends(&hosts).unwrap_err().to_string();
    assert!(error.contains("10.5.7.0 is on the tunnel's own device") && !error.contains("SubnetMin"), "{error}");
    site.wish.iface = vec!["nosuch".into()];
    let error = site.ends(&hosts).unwrap_err().to_string();
    assert!(error.contains("cni0 (10.5.7.1 [in the leased range])"), "{error}");
    assert!(!error.contains("in the network config"), "{error}");
}

#[test]
fn tentative_addresses_of_the_families_that_are_enabled_are_awaited() {
    let dual = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}"#;
    let mut eth0 = host(1500, &["192.168.1.5/24", "fd99::5/64"]);
    eth0.addresses[1].tentative = true;
    let awaited = |config| site(config, true).awaited(std::slice::from_ref(&eth0));
    assert_eq!(awaited(dual), ["fd99::5".parse::<IpAddr>().unwrap()]);
    assert_eq!(awaited(r#"{"Network":"10.5.0.0/16"}"#), [] as [IpAddr; 0]);
}

#[test]
fn an_mtu_with_which_the_kernel_gives_no_address_is_refused() {
    let dual = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}"#;
    let key: SubnetKey = "10.5.1.0-24&fc00:0:0:1::-64".parse().unwrap();
    let devices = |mtu| {
        let site = site(dual, true);
        let ends = site.ends(&[host(mtu, &["192.168.1.5/24", "fd99::5/64"])]).unwrap();
        ends.iter()
            .map(|end| site.device(end, &key, Some(MacAddr([2; 6]))).map_err(|e| e.to_string()))
            .collect::<Vec<_>>()
    };
    assert!(devices(1350).iter().all(Result::is_ok));
    let small = devices(1349);
    assert!(small[0].is_ok());
    assert_eq!(
        small[1].as_ref().unwrap_err(),
        "MTU 1349 of eth0: expected at least 1350: IPv6 needs 1280 bytes, and VXLAN adds 70"
    );
    assert!(devices(118)[0].is_ok() && devices(117)[0].is_err());
}

const HOST_GW: &str =
    r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"host-gw","MTU":1400}}"#;

#[test]
fn a_backend_without_a_device_has_the_mtu_of_the_interface_and_a_record_that_is_an_address() {
    let site = site(HOST_GW, false);
    let key: SubnetKey = "10.5.1.0-24&fc00:0:0:1::-64".parse().unwrap();
    let devices = |mtu| {
        let ends = site.ends(&[host(mtu, &["192.168.1.5/24", "fd99::5/64"])]).unwrap();
        ends.iter().map(|end| site.device(end, &key, None).map_err(|e| e.to_string())).collect::<Vec<_>>()
    };
    let [v4, v6] = devices(1280).try_into().unwrap();
    let (v4, v6) = (v4.unwrap(), v6.unwrap());
    assert_eq!((v4.name.as_str(), v4.mtu, v4.vxlan), ("host-gw", 1280, None));
    assert_eq!((v6.name.as_str(), v6.mtu), ("host-gw-v6", 1280));
    let small = devices(1279)[1].clone().unwrap_err();
    assert_eq!(small, "MTU 1279 of eth0: expected at least 1280: IPv6 needs 1280 bytes");
    let ends = site.ends(&[host(1500, &["192.168.1.5/24", "fd99::5/64"])]).unwrap();
    let record = String::from_utf8(site.record(&ends, |_| None).to_json()).unwrap();
    assert_eq!(record, r#"{"PublicIP":"192.168.1.5","PublicIPv6":"fd99::5","BackendType":"host-gw"}"#);
    assert_eq!((site.mark(), site.device_name(Family::V4)), ("host-gw".to_owned(), None));
}

#[test]
fn a_public_address_that_no_interface_has_is_refused_where_peers_route_to_it() {
    let mut site = site(HOST_GW, false);
    let hosts = [host(1500, &["192.168.1.5/24", "fd99::5/64"])];
    site.wish.public_ip = Some("192.168.1.5".parse().unwrap());
    assert!(site.ends(&hosts).is_ok(), "it is the host's own");
    site.wish.public_ip = Some("192.0.2.9".parse().unwrap());
    let error = site.ends(&hosts).unwrap_err().to_string();
    let words = "the public address 192.0.2.9 is not the address of this host, 192.168.1.5: with the backend host-gw";
    assert!(error.starts_with(words), "{error}");
    site.config = NetworkConfig::parse(br#"{"Network":"10.5.0.0/16"}"#).unwrap();
    assert!(site.ends(&hosts).is_ok(), "a tunnel goes anywhere");
}
