//! What anybody may write into etcd: nothing in it panics, and a record touches only itself.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its tests do")]

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use proptest::prelude::*;
use twill_agent::overlay::NetworkConfig;
use twill_agent::overlay::alloc::{KnownRecord, SubnetRequest, decide};
use twill_agent::overlay::peers::Endpoint;
use twill_agent::overlay::plane::{PeerMode, Plane, Setup};
use twill_agent::overlay::record::{Own, Record, SubnetKey};
use twill_agent::overlay::records::{Raw, Records};

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","SubnetLen":24,"SubnetMin":"10.5.1.0","Backend":{"Type":"vxlan","VNI":1,"Port":8472,"MTU":1500}}"#;
const VALUE: &str = r#"{"PublicIP":"10.99.0.77","PublicIPv6":"fd99::77","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:77"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:01:77"},"NodeID":"n"}"#;
const KEY: &str = "10.5.77.0-24&fc00:0:0:77::-64";

/// Bytes near a good text: some of them replaced, left out or put in.
fn near(text: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let edit = (any::<prop::sample::Index>(), any::<u8>(), 0..4u8);
    prop::collection::vec(edit, 0..6).prop_map(|edits| {
        let mut bytes = text.as_bytes().to_vec();
        for (index, byte, kind) in edits {
            let at = index.index(bytes.len() + 1);
            match kind {
                0 if at < bytes.len() => bytes[at] = byte,
                1 if at < bytes.len() => drop(bytes.remove(at)),
                2 => bytes.truncate(at),
                _ => bytes.insert(at, byte),
            }
        }
        bytes
    })
}

fn junk(text: &'static str) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![any::<Vec<u8>>(), near(text), "[{}\\[\\]\":,0-9a-zA-Z.]{0,60}".prop_map(String::into_bytes)]
}

/// A JSON value of any shape under the names that mean something.
fn shaped() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_filter("JSON has no such number", |n| n.is_finite()).prop_map(|n| n.to_string()),
        "[0-9.:a-f/]{0,20}".prop_map(|text| format!("{text:?}")),
        Just(r#""vxlan""#.to_owned()),
        Just(r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:78"}"#.to_owned()),
        Just(r#"{"VNI":-1,"VtepMAC":[]}"#.to_owned()),
        Just("[[[[]]]]".to_owned()),
    ];
    let name = prop::sample::select(vec![
        "PublicIP",
        "publicip",
        "PublicIPv6",
        "BackendType",
        "BackendData",
        "BackendV6Data",
        "NodeID",
        "Network",
        "SubnetLen",
        "SubnetMin",
        "SubnetMax",
        "IPv6Network",
        "IPv6SubnetLen",
        "EnableIPv6",
        "Backend",
        "",
    ]);
    prop::collection::vec((name, leaf), 0..8).prop_map(|members| {
        let members: Vec<_> = members.into_iter().map(|(name, value)| format!("{name:?}:{value}")).collect();
        format!("{{{}}}", members.join(",")).into_bytes()
    })
}

/// Two planes, and three peers in each.
struct World {
    planes: Vec<Plane>,
    records: Records,
}

impl World {
    fn new() -> Self {
        let config = NetworkConfig::parse(CONFIG.as_bytes()).unwrap();
        let own = [("10.5.1.0/24", "10.99.0.1"), ("fc00:0:0:1::/64", "fd99::1")];
        let own: Vec<_> = own
            .iter()
            .map(|(subnet, ip)| Own { subnet: subnet.parse().unwrap(), public_ip: ip.parse().unwrap(), mac: None })
            .collect();
        let plane = |(net, own): (_, &Own)| {
            let (mode, idle) = (PeerMode::All, std::time::Duration::from_secs(600));
            Plane::new(Setup { net, subnet: own.subnet, ways: config.backend.ways(), mode, idle })
        };
        let planes = config.families().copied().zip(&own).map(plane).collect();
        let mut world = Self { planes, records: Records::new(config.backend, own) };
        for n in 2..5 {
            let value = VALUE.replace("77", &format!("0{n}")).replace("::0", "::").replace(".0.0", ".0.");
            world.put(&format!("10.5.{n}.0-24&fc00:0:0:{n}::-64"), value.as_bytes());
        }
        assert!(world.planes.iter().all(|plane| plane.peers().len() == 3));
        world
    }

    fn put(&mut self, key: &str, value: &[u8]) {
        let mut planes: Vec<&mut Plane> = self.planes.iter_mut().collect();
        self.records.put(&mut planes, Raw { key, value, created: 7, revision: 7, is_leased: true });
    }

    fn remove(&mut self, key: &str) {
        let mut planes: Vec<&mut Plane> = self.planes.iter_mut().collect();
        self.records.remove(&mut planes, key);
    }

    fn peers(&self) -> BTreeMap<IpNetwork, Endpoint> {
        self.planes
            .iter()
            .flat_map(|plane| plane.peers().iter().map(|(subnet, peer)| (*subnet, peer.endpoint)))
            .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_text_panics_a_parser(value in junk(VALUE), config in junk(CONFIG), key in junk(KEY), shaped in shaped()) {
        for bytes in [&value, &config, &shaped] {
            if let Ok(mut record) = Record::parse(bytes) {
                // Among what nobody knows may be numbers of more digits than a double has.
                record.extra.clear();
                prop_assert_eq!(Record::parse(&record.to_json()), Ok(record), "what is written is read");
            }
            let _ = NetworkConfig::parse(bytes);
        }
        let key = String::from_utf8_lossy(&key);
        if let Ok(parsed) = key.parse::<SubnetKey>() {
            prop_assert_eq!(parsed.to_string(), key.as_ref());
            prop_assert_eq!(SubnetKey::occupied(&key), Some(parsed));
        }
    }

    #[test]
    fn a_record_touches_only_itself(
        key in prop_oneof![junk(KEY), Just(KEY.as_bytes().to_vec()), Just(b"10.5.77.0-24".to_vec())],
        values in prop::collection::vec(prop_oneof![junk(VALUE), shaped(), Just(VALUE.as_bytes().to_vec())], 1..4),
    ) {
        let key = String::from_utf8_lossy(&key).into_owned();
        let mut world = World::new();
        let before = world.peers();
        // One of the three themselves, which an edit may have hit.
        prop_assume!(key.parse::<SubnetKey>().is_err() || !key.starts_with("10.5.2.") && !key.starts_with("10.5.3.") && !key.starts_with("10.5.4."));
        for value in values {
            world.put(&key, &value);
            let mut after = world.peers();
            after.retain(|subnet, _| before.contains_key(subnet));
            prop_assert_eq!(&after, &before);
        }
        world.remove(&key);
        prop_assert_eq!(world.peers(), before);
        prop_assert_eq!(world.records.bad_by_kind().len() + world.records.bad().count(), 0);
    }

    #[test]
    fn junk_keys_keep_nobody_from_a_subnet(keys in prop::collection::vec(junk(KEY), 0..20)) {
        let config = NetworkConfig::parse(br#"{"Network":"10.5.0.0/16"}"#).unwrap();
        let seen: Vec<_> = keys
            .iter()
            .filter_map(|key| SubnetKey::occupied(&String::from_utf8_lossy(key)))
            .map(|key| KnownRecord { key, record: None, revision: 1, lease: 0, is_void: false })
            .collect();
        let wanted = SubnetRequest {
            config: &config,
            public_ip: Some([10, 99, 0, 1].into()),
            public_ipv6: None,
            previous: None,
            node: None,
            instance: None,
        };
        let plan = decide(&wanted, &seen, std::iter::empty(), &mut rand::rng());
        let covers_all = |seen: &KnownRecord| seen.key.ipv4.is_some_and(|net| net.prefix() < 17);
        if !seen.iter().any(covers_all) {
            prop_assert!(matches!(plan.decision, twill_agent::overlay::alloc::Decision::Create { .. }), "{:?}", plan);
        }
    }
}
