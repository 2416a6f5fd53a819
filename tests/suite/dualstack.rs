//! IPv6, beside IPv4 and alone: records, devices, files, misses, pings; and the largest packet that passes.

use std::fs;

use ipnetwork::IpNetwork;
use twill_lab::{KeyValue, Lab, Node, PREFIX, Pod, wait_until};

use crate::PATIENCE;

const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}"#;
const ALONE: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:16::/48"}"#;
const ALL: &[&str] = &["--peer-mode=all"];

#[track_caller]
fn ping_all_to_all(pods: &[Pod]) {
    for from in pods {
        for to in pods.iter().flat_map(Pod::addrs) {
            from.ping(to).unwrap();
        }
    }
}

/// The subnet of a node's IPv6 side.
fn subnet6(node: &Node) -> IpNetwork {
    let leased: Vec<IpNetwork> = node.leased().iter().map(|text| text.parse().unwrap()).collect();
    leased.into_iter().find(IpNetwork::is_ipv6).unwrap()
}

/// Whether the kernel holds all of a peer's IPv6 side.
fn holds6(node: &Node, peer: &Node) -> Result<(), String> {
    let (subnet, mac) = (subnet6(peer), peer.link("flannel-v6.1").unwrap().mac);
    let gateway = subnet.network();
    let shown = |line: &str| node.exec(line).unwrap();
    for (line, words) in [
        ("bridge fdb show dev flannel-v6.1", format!("{mac} dst {} self permanent", peer.addr6())),
        ("ip -6 neigh show dev flannel-v6.1", format!("{gateway} lladdr {mac}")),
        ("ip -6 route show", format!("{subnet} via {gateway} dev flannel-v6.1 proto 116")),
    ] {
        let text = shown(line);
        if !text.contains(&words) {
            return Err(format!("no {words} in\n{text}"));
        }
    }
    Ok(())
}

#[track_caller]
fn all_hold_all(lab: &Lab) {
    for node in lab.nodes() {
        for peer in lab.nodes().iter().filter(|peer| peer.index() != node.index()) {
            let what = format!("node {} holds node {}'s IPv6 side", node.index(), peer.index());
            wait_until(&what, PATIENCE, || holds6(node, peer));
        }
    }
}

fn record(lab: &Lab) -> KeyValue {
    let [record] = lab.records().try_into().unwrap();
    record
}

/// A record's text is flannel's, but for fields of Twill's own behind it.
#[track_caller]
fn is_flannel_s(record: &KeyValue, expected: &str) {
    let rest = record.value.strip_prefix(expected.strip_suffix('}').unwrap());
    let rest = rest.unwrap_or_else(|| panic!("{} is not {expected}", record.value));
    assert!(rest == "}" || rest.starts_with(','), "{}", record.value);
}

#[test]
fn dual_stack_on_demand_all_to_all() {
    let (lab, _daemons, pods) = Lab::running(3, DUAL, &[]);
    assert!(lab.nodes().iter().all(|node| !node.exec("ip -6 route").unwrap().contains(" via fc00")), "not on demand");
    ping_all_to_all(&pods);
    all_hold_all(&lab);
}

#[test]
fn dual_stack_all_to_all_in_mode_all() {
    let (lab, _daemons, pods) = Lab::running(3, DUAL, ALL);
    all_hold_all(&lab);
    ping_all_to_all(&pods);
}

#[test]
fn ipv6_alone_on_demand_all_to_all() {
    let (lab, _daemons, pods) = Lab::running(3, ALONE, &[]);
    ping_all_to_all(&pods);
    all_hold_all(&lab);
    assert!(lab.nodes().iter().all(|node| node.link("flannel.1").is_err()), "an IPv4 device was made");
}

#[test]
fn ipv6_alone_all_to_all_in_mode_all() {
    let (lab, _daemons, pods) = Lab::running(3, ALONE, ALL);
    all_hold_all(&lab);
    ping_all_to_all(&pods);
    let mut keys: Vec<String> = lab.records().into_iter().map(|record| record.key).collect();
    keys.dedup();
    assert_eq!(keys.len(), 3, "nodes share a lease: {keys:?}");
}

#[test]
fn dual_stack_record_and_file_are_flannel_s_to_the_byte() {
    let (lab, _daemons, _pods) = Lab::running(1, DUAL, &[]);
    let node = lab.node(1);
    let (v4, v6) = (node.as_peer().subnet, subnet6(&node));
    let record = record(&lab);
    assert_eq!(record.key, format!("{PREFIX}/subnets/{}-24&{}-64", v4.network(), v6.network()));
    let (mac, mac6) = (node.link("flannel.1").unwrap().mac, node.link("flannel-v6.1").unwrap().mac);
    let expected = format!(
        r#"{{"PublicIP":"10.99.0.11","PublicIPv6":"fd99::11","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}},"BackendV6Data":{{"VNI":1,"VtepMAC":"{mac6}"}}}}"#
    );
    is_flannel_s(&record, &expected);
    let gateway6 = u128::from_be_bytes(match v6.network() {
        std::net::IpAddr::V6(ip) => ip.octets(),
        std::net::IpAddr::V4(_) => unreachable!(),
    }) + 1;
    let expected = format!(
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET={}/24\nFLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET={}/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n",
        v4.nth(1).unwrap(),
        std::net::Ipv6Addr::from(gateway6),
    );
    assert_eq!(fs::read_to_string(node.subnet_file()).unwrap(), expected);
    assert_eq!((node.link("flannel.1").unwrap().mtu, node.link("flannel-v6.1").unwrap().mtu), (1450, 1430));
    let address = node.exec("ip -6 addr show dev flannel-v6.1").unwrap();
    assert!(address.contains(&format!("inet6 {}/128", v6.network())), "{address}");
}

#[test]
fn ipv6_alone_record_and_file_are_flannel_s_to_the_byte() {
    let (lab, _daemons, _pods) = Lab::running(1, ALONE, &[]);
    let node = lab.node(1);
    let v6 = subnet6(&node);
    let record = record(&lab);
    assert_eq!(record.key, format!("{PREFIX}/subnets/0.0.0.0-0&{}-64", v6.network()));
    let mac = node.link("flannel-v6.1").unwrap().mac;
    let expected = format!(
        r#"{{"PublicIP":"0.0.0.0","PublicIPv6":"fd99::11","BackendType":"vxlan","BackendV6Data":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    );
    is_flannel_s(&record, &expected);
    let text = fs::read_to_string(node.subnet_file()).unwrap();
    let expected = format!(
        "FLANNEL_IPV6_NETWORK=fd00:16::/48\nFLANNEL_IPV6_SUBNET={}1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n",
        v6.network()
    );
    assert_eq!(text, expected);
}

/// Pings with packets of exactly `size` bytes that may not be cut up.
fn ping_of(pod: &Pod, to: std::net::IpAddr, size: u32) -> Result<String, String> {
    let headers = if to.is_ipv6() { 48 } else { 28 };
    let line = format!("ping -n -c1 -W5 -M do -s {} {to}", size - headers);
    pod.exec(&line).map_err(|e| format!("{e:#}"))
}

#[test]
fn the_largest_packet_passes_and_the_next_does_not() {
    const V4: &str = r#"{"Network":"10.5.0.0/16"}"#;
    for (config, mtu) in [(V4, 1450), (DUAL, 1430), (ALONE, 1430)] {
        let (lab, _daemons, pods) = Lab::running(2, config, &[]);
        for to in pods[1].addrs() {
            // The underlay takes packets of 1500 bytes and not one more: the bytes that VXLAN adds are all counted.
            ping_of(&pods[0], to, mtu).unwrap();
            let error = ping_of(&pods[0], to, mtu + 1).unwrap_err();
            assert!(error.contains("100% packet loss") && error.contains("too long"), "{to}: {error}");
        }
        drop(lab);
    }
}

#[test]
fn the_backend_s_keys_reach_the_device() {
    let lab = Lab::with_nodes(1);
    lab.put_config(
        r#"{"Network":"10.5.0.0/16","Backend":{"Type":"VXLAN","VNI":77,"Port":4790,"MTU":1400,"GBP":true,"Learning":true}}"#,
    );
    let node = lab.node(1);
    let mut daemon = node.twilld(&[]);
    daemon.wait_ready();
    let link = node.ip_json("-d link show dev flannel.77").unwrap();
    let data = &link[0]["linkinfo"]["info_data"];
    assert_eq!((&data["id"], &data["port"], &link[0]["mtu"]), (&77.into(), &4790.into(), &1350.into()));
    assert_eq!((&data["learning"], &data["gbp"]), (&true.into(), &true.into()), "{data}");
    assert!(fs::read_to_string(node.subnet_file()).unwrap().contains("FLANNEL_MTU=1350\n"));
    assert!(record(&lab).value.contains(r#""VNI":77"#));
}
