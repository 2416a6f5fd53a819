//! Golden records, as real flannel versions wrote them, and what must not happen to any bytes.

use proptest::prelude::*;

use super::*;

fn mac(text: &str) -> MacAddr {
    text.parse().unwrap()
}

fn vtep(vni: u32, text: &str) -> Option<Data> {
    Some(VtepData { vni: Some(vni), mac: mac(text) }.into())
}

/// The text, what it means, and that it is written the same again.
#[track_caller]
fn golden(text: &str, record: &Record) {
    assert_eq!(&Record::parse(text.as_bytes()).unwrap(), record);
    assert_eq!(String::from_utf8(record.to_json()).unwrap(), text);
}

fn ipv4() -> Record {
    Record { ipv4: vtep(1, "c6:d2:32:6f:8f:44"), ..Record::vxlan(Ipv4Addr::new(192, 168, 64, 3)) }
}

#[test]
fn flannel_writes_ipv4() {
    let text = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;
    golden(text, &ipv4());
}

#[test]
fn flannel_writes_dual_stack() {
    let text = r#"{"PublicIP":"10.99.0.10","PublicIPv6":"fd99::10","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"26:f7:1a:34:f1:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"e6:be:d2:f7:45:b9"}}"#;
    let record = Record {
        public_ipv6: Some("fd99::10".parse().unwrap()),
        ipv4: vtep(1, "26:f7:1a:34:f1:44"),
        ipv6: vtep(1, "e6:be:d2:f7:45:b9"),
        ..Record::vxlan(Ipv4Addr::new(10, 99, 0, 10))
    };
    golden(text, &record);

    let key: SubnetKey = "10.5.52.0-24&fc00:0:0:22::-64".parse().unwrap();
    let v4 = record.peer(&key, Family::V4).unwrap();
    assert_eq!((v4.subnet, v4.remote), ("10.5.52.0/24".parse().unwrap(), "10.99.0.10".parse().unwrap()));
    let v6 = record.peer(&key, Family::V6).unwrap();
    assert_eq!((v6.subnet, v6.remote), ("fc00:0:0:22::/64".parse().unwrap(), "fd99::10".parse().unwrap()));
    assert_eq!((v6.mac, record.data(Family::V6)), (Some(mac("e6:be:d2:f7:45:b9")), record.ipv6.as_ref()));
}

#[test]
fn flannel_writes_ipv6_only() {
    let text = r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd99::10","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"12:52:00:e5:e7:8f"}}"#;
    let record = Record {
        public_ipv6: Some("fd99::10".parse().unwrap()),
        ipv6: vtep(1, "12:52:00:e5:e7:8f"),
        ..Record::vxlan(Ipv4Addr::UNSPECIFIED)
    };
    golden(text, &record);
    let key: SubnetKey = "0.0.0.0-0&fd00:16:0:13::-64".parse().unwrap();
    assert_eq!(record.peer(&key, Family::V4), None);
    assert!(record.peer(&key, Family::V6).is_some());
}

#[test]
fn twill_adds_its_node_after_flannels_members() {
    let text = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"NodeID":"0f3a"}"#;
    golden(text, &Record { node: Some("0f3a".to_owned()), ..ipv4() });
}

#[test]
fn an_instance_comes_last_and_junk_in_its_place_is_none() {
    let text = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"NodeID":"0f3a","Instance":{"ID":"1b4e28ba-4026531840","Since":1207}}"#;
    let instance = Some(Instance { id: "1b4e28ba-4026531840".to_owned(), since: 1207 });
    golden(text, &Record { node: Some("0f3a".to_owned()), instance, ..ipv4() });
    for junk in [
        "1",
        "\"x\"",
        "{}",
        "null",
        "[]",
        r#"{"ID":7,"Since":1}"#,
        r#"{"ID":"","Since":1}"#,
        r#"{"ID":"x"}"#,
        r#"{"ID":"x","Since":null}"#,
        r#"{"ID":"x","Since":-1}"#,
        r#"{"ID":"x","Since":1e23}"#,
        r#"{"ID":"x","Since":1.5}"#,
        r#"{"ID":"x","Since":"1"}"#,
        r#"{"ID":"x","Since":9223372036854775808}"#,
    ] {
        let text = format!(r#"{{"PublicIP":"192.168.64.3","Instance":{junk}}}"#);
        let record = Record::parse(text.as_bytes()).unwrap();
        assert_eq!((record.instance, record.has_bad_instance), (None, junk != "null"), "{junk}");
    }
}

#[test]
fn unknown_members_stay_where_they_were() {
    let text = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"Zone":{"a":[1,null]},"Comment":"rack \"3\""}"#;
    let extra =
        vec![("Zone".to_owned(), serde_json::json!({"a": [1, null]})), ("Comment".to_owned(), "rack \"3\"".into())];
    golden(text, &Record { extra, ..ipv4() });
}

#[test]
fn old_records_have_no_vni() {
    let old = r#"{"PublicIP":"192.168.64.3","BackendType":"vxlan","BackendData":{"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;
    let record = Record::parse(old.as_bytes()).unwrap();
    assert_eq!(record.ipv4, Some(VtepData { vni: None, mac: mac("c6:d2:32:6f:8f:44") }.into()));
    let again = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;
    assert_eq!(String::from_utf8(record.to_json()).unwrap(), again);
}

#[test]
fn keys_in_any_case() {
    let text = r#"{"publicip":"192.168.64.3","PUBLICIPV6":null,"backendType":"vxlan","backenddata":{"vni":1,"VTEPmac":"C6:D2:32:6F:8F:44"}}"#;
    assert_eq!(Record::parse(text.as_bytes()).unwrap(), ipv4());
}

#[test]
fn the_data_of_other_backends_is_kept_as_it_is() {
    for (data, data6) in [
        (r#"{"PublicKey":"x","B":[1.50,{"z":1,"a":2}],"A":null}"#, r#"{ "z" : "\u00e4", "a":1e9 }"#),
        (r#""text""#, "7"),
        ("[]", "false"),
    ] {
        let text = format!(
            r#"{{"PublicIP":"10.0.0.1","PublicIPv6":null,"BackendType":"wireguard","BackendData":{data},"BackendV6Data":{data6}}}"#
        );
        let raw = |text: &str| Some(Data::Raw(text.into()));
        golden(
            &text,
            &Record {
                backend_type: "wireguard".to_owned(),
                ipv4: raw(data),
                ipv6: raw(data6),
                ..Record::of([10, 0, 0, 1].into())
            },
        );
    }
    golden(
        r#"{"PublicIP":"10.0.0.1","PublicIPv6":null,"BackendType":"host-gw"}"#,
        &Record { backend_type: "host-gw".to_owned(), ..Record::of([10, 0, 0, 1].into()) },
    );
}

#[test]
fn go_writes_mapped_addresses_as_ipv4() {
    let record =
        Record { public_ipv6: Some("::ffff:1.2.3.4".parse().unwrap()), ..Record::vxlan(Ipv4Addr::UNSPECIFIED) };
    let text = r#"{"PublicIP":"0.0.0.0","PublicIPv6":"1.2.3.4","BackendType":"vxlan"}"#;
    golden(text, &record);
}

#[test]
fn errors_name_the_member() {
    let cases = [
        (r#"{"PublicIP":"x"}"#, r#"PublicIP: "x" is not an IPv4 address"#),
        (r#"{"PublicIP":7}"#, "PublicIP: 7 is not an IPv4 address"),
        (r#"{"BackendType":"vxlan","BackendData":{"VNI":1}}"#, "BackendData.VtepMAC: null is not a MAC address"),
        (r#"{"BackendType":"vxlan","BackendV6Data":{"VNI":-1}}"#, "BackendV6Data.VNI: -1 is not a VNI"),
        (r#"{"BackendType":"vxlan","BackendData":"x"}"#, r#"BackendData: "x" is not an object with a VtepMAC"#),
    ];
    for (text, expected) in cases {
        assert_eq!(Record::parse(text.as_bytes()).unwrap_err().to_string(), expected);
    }
}

#[test]
fn holders_have_names() {
    assert_eq!(ipv4().holder(), "192.168.64.3");
    assert_eq!(Record { node: Some("0f3a".to_owned()), ..ipv4() }.holder(), "192.168.64.3 (node 0f3a)");
    let v6 = Record { public_ipv6: Some("fd99::10".parse().unwrap()), ..Record::vxlan(Ipv4Addr::UNSPECIFIED) };
    assert_eq!(v6.holder(), "fd99::10");
}

fn vteps() -> impl Strategy<Value = Option<Data>> {
    proptest::option::of(
        (any::<Option<u32>>(), any::<[u8; 6]>()).prop_map(|(vni, mac)| VtepData { vni, mac: MacAddr(mac) }.into()),
    )
}

prop_compose! {
    fn records()(
        ip: u32, v6: Option<u128>, ipv4 in vteps(), ipv6 in vteps(), node in proptest::option::of(".+"),
        instance in proptest::option::of((".+", 0..i64::MAX)),
        extra in proptest::collection::vec(("[a-z]{1,8}x", any::<String>().prop_map(Value::from)), 0..3),
    ) -> Record {
        let instance = instance.map(|(id, since)| Instance { id, since });
        Record { public_ipv6: v6.map(Ipv6Addr::from), ipv4, ipv6, node, instance, extra, ..Record::vxlan(ip.into()) }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(record in records()) {
        prop_assert_eq!(Record::parse(&record.to_json()).unwrap(), record);
    }

    #[test]
    fn junk_never_panics(bytes: Vec<u8>, text: String, record in records(), cut: prop::sample::Index) {
        let _ = Record::parse(&bytes);
        let _ = Record::parse(text.as_bytes());
        let whole = record.to_json();
        let _ = Record::parse(&whole[..cut.index(whole.len())]);
    }
}
