//! The interface under the tunnel cannot carry it for a while: no address that peers can be told, no link. The node keeps
//! its record, is not ready, names the reason, and goes on by itself.

use std::time::Duration;

use twill_lab::{Lab, NODE_CONFIG, Node, Twilld, wait_until};

const MODES: [&str; 2] = ["--peer-mode=all", "--peer-mode=on-demand"];
const IPV6_ONLY: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00:16::/48"}"#;
/// For what passes through etcd, also over a connection that has to be made anew.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until the last line about being ready has these words.
#[track_caller]
fn wait_state(daemon: &Twilld, words: &str) {
    wait_until(words, PATIENCE, || {
        let last = daemon.lines(&["ready"]).pop().unwrap_or_default();
        if last.contains(words) { Ok(()) } else { Err(last) }
    });
}

/// Waits until the only record has this text. No record ever has a link-local address.
#[track_caller]
fn wait_recorded(lab: &Lab, text: &str) {
    wait_until(&format!("a record with {text}"), PATIENCE, || {
        let records = lab.records();
        assert!(records.iter().all(|record| !record.value.contains("fe80:") && !record.value.contains("169.254.")));
        (records.len() == 1 && records[0].value.contains(text)).then_some(()).ok_or(format!("{records:?}"))
    });
}

/// The source address of the packets of a device.
fn local(node: &Node, device: &str, family: &str) -> Option<String> {
    let link = node.ip_json(&format!("-d link show {device}")).ok()?;
    Some(link[0]["linkinfo"]["info_data"][family].as_str()?.to_owned())
}

#[test]
fn a_node_that_loses_its_global_address_keeps_its_record_until_it_has_one_again() {
    let lab = Lab::with_nodes(1);
    lab.put_config(IPV6_ONLY);
    let node = lab.node(1);
    let ours = format!(r#""PublicIPv6":"{}""#, node.addr6());
    let mut daemon = node.twilld(&["--iface=eth0"]);
    daemon.wait_ready();
    wait_recorded(&lab, &ours);
    let before = lab.records();
    let lost = format!("not ready missing=\"underlay: eth0 has lost {}", node.addr6());

    node.exec("ip -6 addr flush dev eth0 scope global").unwrap();
    wait_state(&daemon, &lost);
    let said = daemon.lines(&["WARN", "the underlay is not usable now"]);
    assert!(said.len() == 1 && said[0].contains("is a link-local address: expected one that"), "{said:?}");
    assert_eq!(lab.records(), before, "the last record stays");
    node.exec(&format!("ip addr add {}/64 dev eth0 nodad", node.addr6())).unwrap();
    wait_state(&daemon, "INFO ready");
    assert_eq!(lab.records(), before);

    // As a down and up of the interface leaves it.
    node.netns().ip_batch(["link set eth0 down", "link set eth0 up"]).unwrap();
    wait_state(&daemon, &lost);
    assert_eq!(lab.records(), before);
    // The next start is no better off, and waits.
    daemon.kill();
    let mut daemon = node.twilld(&["--iface=eth0"]);
    daemon.wait_log(&["WARN", "cannot choose the tunnel's interface", "eth0", "is a link-local address"], PATIENCE);
    assert_eq!(lab.records(), before);
    // Another one will do.
    node.exec("ip addr add fd99::77/64 dev eth0 nodad").unwrap();
    daemon.wait_ready();
    wait_recorded(&lab, r#""PublicIPv6":"fd99::77""#);

    node.exec("ip -6 addr flush dev eth0 scope global").unwrap();
    wait_state(&daemon, "not ready missing=\"underlay: eth0 has lost fd99::77");
    node.exec("ip addr add fd99::78/64 dev eth0 nodad").unwrap();
    wait_recorded(&lab, r#""PublicIPv6":"fd99::78""#);
    wait_until("the device follows", PATIENCE, || {
        local(&node, "flannel-v6.1", "local6").is_some_and(|ip| ip == "fd99::78")
    });
    wait_state(&daemon, "INFO ready");
    assert!(daemon.lines(&["another program changed"]).is_empty(), "{}", daemon.log());
}

/// A daemon of node 1 that waits, since its eth0 has a link-local IPv4 address only.
#[track_caller]
fn waiting_for_an_address() -> (Lab, Twilld) {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    // The host reaches etcd from another interface's address.
    let prepared = [
        format!("addr del {}/16 dev eth0", node.addr()),
        "addr add 169.254.7.7/16 dev eth0".to_owned(),
        format!("addr add {}/32 dev lo", node.addr()),
        format!("route add 10.99.0.0/16 dev eth0 src {} metric 9", node.addr()),
    ];
    node.netns().ip_batch(prepared).expect("set the addresses of eth0");
    let mut daemon = node.twilld(&["--iface=eth0"]);
    daemon.wait_log(&["cannot choose the tunnel's interface", "169.254.7.7 is a link-local address"], PATIENCE);
    (lab, daemon)
}

#[test]
fn a_start_that_waits_for_an_address_follows_a_changed_config() {
    let (lab, mut daemon) = waiting_for_an_address();
    // eth0 has a global IPv6 address.
    lab.put_config(IPV6_ONLY);
    daemon.wait_ready();
    wait_recorded(&lab, &format!(r#""PublicIPv6":"{}""#, lab.node(1).addr6()));
}

#[test]
fn a_start_with_a_link_local_ipv4_address_only_waits() {
    let (lab, mut daemon) = waiting_for_an_address();
    let node = lab.node(1);
    node.exec(&format!("ip addr add {}/16 dev eth0", node.addr())).unwrap();
    daemon.wait_ready();
    wait_recorded(&lab, &format!(r#""PublicIP":"{}""#, node.addr()));
    node.exec(&format!("ip addr del {}/16 dev eth0", node.addr())).unwrap();
    wait_state(&daemon, &format!("not ready missing=\"underlay: eth0 has lost {}", node.addr()));
    wait_recorded(&lab, &format!(r#""PublicIP":"{}""#, node.addr()));
}

#[test]
fn a_family_that_lacks_an_address_does_not_hold_up_the_other() {
    let lab = Lab::with_nodes(1);
    lab.put_config(r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}"#);
    let node = lab.node(1);
    let mut daemon = node.twilld(&["--iface=eth0"]);
    daemon.wait_ready();
    node.exec("ip -6 addr flush dev eth0 scope global").unwrap();
    wait_state(&daemon, &format!("not ready missing=\"underlay: eth0 has lost {}", node.addr6()));
    let moved = [format!("addr del {}/16 dev eth0", node.addr()), "addr add 10.99.7.7/16 dev eth0".to_owned()];
    node.netns().ip_batch(moved).unwrap();
    wait_recorded(&lab, r#""PublicIP":"10.99.7.7""#);
    wait_recorded(&lab, &format!(r#""PublicIPv6":"{}""#, node.addr6()));
    wait_until("the device follows", PATIENCE, || {
        local(&node, "flannel.1", "local").is_some_and(|ip| ip == "10.99.7.7")
    });
    node.exec(&format!("ip addr add {}/64 dev eth0 nodad", node.addr6())).unwrap();
    wait_state(&daemon, "INFO ready");
}

#[test]
fn a_link_that_is_down_or_has_no_carrier_keeps_the_node_from_being_ready() {
    for mode in MODES {
        let (lab, daemons, pods) = Lab::running(2, NODE_CONFIG, &[mode, "--iface=eth0"]);
        let (node, peer) = (lab.node(2), lab.node(1).as_peer());
        pods[1].ping(pods[0].addr()).unwrap();
        let device = node.link("flannel.1").unwrap().ifindex;
        for (harm, state, cure) in [
            (true, "underlay: eth0 is down\"", "ip link set eth0 up"),
            (false, "underlay: eth0 is down: it has no carrier", "ip link set node2 up"),
        ] {
            let place = if harm { node.netns() } else { lab.fabric() };
            place.exec(&cure.replace("up", "down")).unwrap();
            wait_state(&daemons[1], state);
            place.exec(cure).unwrap();
            wait_until("ready", PATIENCE, || {
                let last = daemons[1].lines(&["ready"]).pop().unwrap();
                (!last.contains("not ready")).then_some(()).ok_or(last)
            });
            wait_until("an answer", PATIENCE, || pods[1].exec(&format!("ping -n -c1 -W0.5 {}", pods[0].addr())));
            node.holds_exactly(std::slice::from_ref(&peer)).unwrap();
            assert_eq!(node.link("flannel.1").unwrap().ifindex, device);
        }
    }
}
