//! Subnets of both families in one record.

use super::*;

/// Ten nodes that start at once where IPv6 has just as many subnets and IPv4 has many more: etcd keeps them apart by
/// their IPv4 subnets only.
#[tokio::test(start_paused = true)]
async fn nodes_that_race_in_both_families_meet_in_neither() {
    let config = br#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48",
        "IPv6SubnetMin":"fc00:0:0:1::","IPv6SubnetMax":"fc00:0:0:a::"}"#;
    let config = NetworkConfig::parse(config).unwrap();
    for faults in [0, 6] {
        let store = FakeStore::new();
        for op in [Op::Keys, Op::Delete] {
            store.fail_next(op, faults);
        }
        store.lose_answers(Op::Create, faults);
        let race = (1..=10).map(|node| {
            let (store, config) = (store.clone(), config.clone());
            tokio::spawn(async move {
                loop {
                    // One that finds none free for the moment, since others have not let go yet, looks again.
                    let records = if node <= 5 { BTreeMap::new() } else { store.records() };
                    match acquire_from(&store, &config, node, &records).await {
                        Ok(held) => break held,
                        Err(_) => sleep(Duration::from_millis(10)).await,
                    }
                }
            })
        });
        let mut held = Vec::new();
        for task in race.collect::<Vec<_>>() {
            held.push(task.await.unwrap());
        }
        let distinct = |side: fn(&Held) -> Option<IpNetwork>| held.iter().filter_map(side).collect::<BTreeSet<_>>();
        assert_eq!(distinct(|held| held.key.ipv4.map(IpNetwork::V4)).len(), 10);
        assert_eq!(distinct(|held| held.key.ipv6.map(IpNetwork::V6)).len(), 10);
        assert_eq!((store.records().len(), store.leases().len()), (10, 10), "nothing is left of those that let go");
        for held in held {
            let stored = &store.records()[&held.key.to_string()];
            assert_eq!((stored.revision, stored.lease), (held.revision, held.lease.unwrap().0));
        }
    }
}
