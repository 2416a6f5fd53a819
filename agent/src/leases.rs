//! `twill leases`: the records in etcd as a table. Also the one complete read that other commands begin with.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Result, bail};
use ipnetwork::IpNetwork;

use crate::cli::EtcdFlags;
use crate::out;
use crate::overlay::record::{BadRecord, Family, Own, Record, SubnetKey, check};
use crate::overlay::{MacAddr, NetworkConfig};
use crate::site;
use crate::store::etcd::EtcdStore;
use crate::store::{Event, RawRecord, Store};

/// How long etcd may take to show all records.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What a complete read showed.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// The network config, if there is one.
    pub config: Option<Vec<u8>>,
    /// All records, by key.
    pub records: Vec<RawRecord>,
}

/// Prints a line for each record, and on standard error how many every node keeps out, by reason.
pub async fn print(etcd: &EtcdFlags) -> Result<()> {
    let (_, listing) = open(etcd).await?;
    let kept_out = listing.kept_out();
    let mut table = row("SUBNET", "PUBLIC IP", "VTEP MAC", "LEASE", "NODE") + "\n";
    for line in listing.records.iter().flat_map(|raw| lines(raw, kept_out.get(&raw.key))) {
        table += &line;
        table.push('\n');
    }
    out::print(&table)?;
    if !kept_out.is_empty() {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        kept_out.values().for_each(|bad| *counts.entry(bad.reason()).or_default() += 1);
        let counts: Vec<String> = counts.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        out::note(format_args!("twill: records that every node keeps out: {}", counts.join(", ")));
    }
    Ok(())
}

impl Listing {
    /// The records that no node takes for a peer, by key, and why. Without a usable network config only those that can't
    /// be read. A reservation that waits for its node is in order.
    pub fn kept_out(&self) -> BTreeMap<String, BadRecord> {
        let config = self.config.as_ref().and_then(|text| NetworkConfig::parse(text).ok());
        // Of two records with one MAC the newer counts.
        let mut records: Vec<&RawRecord> = self.records.iter().collect();
        records.sort_by_key(|raw| std::cmp::Reverse(raw.revision));
        let mut macs = BTreeMap::new();
        let bad = records.into_iter().filter_map(|raw| match judge(raw, config.as_ref(), &mut macs) {
            Ok(()) | Err(BadRecord::Reserved(_)) => None,
            Err(bad) => Some((raw.key.clone(), bad)),
        });
        bad.collect()
    }
}

/// As every node but the record's own judges it; `macs` are those of the records before, each with its subnet.
fn judge(
    raw: &RawRecord,
    config: Option<&NetworkConfig>,
    macs: &mut BTreeMap<(Family, MacAddr), IpNetwork>,
) -> Result<(), BadRecord> {
    let (key, record) = (raw.key.parse::<SubnetKey>()?, Record::parse(&raw.value)?);
    let Some(config) = config else { return Ok(()) };
    for net in config.families() {
        let family = Family::of(&net.network);
        let nobody: IpAddr = match family {
            Family::V4 => Ipv4Addr::BROADCAST.into(),
            Family::V6 => Ipv6Addr::from(u128::MAX).into(),
        };
        let nobody = Own { subnet: site::no_subnet(family), public_ip: nobody };
        let peer = check(&record, &key, net, config.backend.vni, &nobody)?;
        let other = *macs.entry((family, peer.mac)).or_insert(peer.subnet);
        if other != peer.subnet {
            return Err(BadRecord::MacOfAnother { mac: peer.mac, other });
        }
    }
    Ok(())
}

/// The store that the flags name, and all that is in it.
pub async fn open(etcd: &EtcdFlags) -> Result<(EtcdStore, Listing)> {
    let store = etcd.store()?;
    match tokio::time::timeout(ANSWER_WITHIN, read(&store)).await {
        Ok(listing) => Ok((store, listing?)),
        Err(_) => bail!("no answer from etcd ({}) within {ANSWER_WITHIN:?}", etcd.etcd_endpoints.join(", ")),
    }
}

/// Reads everything once.
pub async fn read(store: &impl Store) -> Result<Listing> {
    let mut events = store.follow();
    let mut listing = Listing::default();
    while let Some(event) = events.recv().await {
        match event {
            Event::Listing => listing = Listing::default(),
            Event::Config(config) => listing.config = config,
            Event::Page(page) => listing.records.extend(page),
            Event::Listed { .. } => return Ok(listing),
            // Waiting mends no refusal.
            Event::Down { reason } if is_refused(store).await => bail!("etcd refuses: {reason}"),
            Event::Down { reason } => out::note(format_args!("twill: etcd does not answer: {reason}")),
            Event::Up | Event::Changes(_) => {}
        }
    }
    bail!("the reader of etcd has stopped")
}

/// Whether etcd is there and refuses what a complete read needs.
async fn is_refused(store: &impl Store) -> bool {
    let refused = |error: Option<crate::store::Error>| error.is_some_and(|error| !error.is_transient());
    refused(store.config().await.err()) || refused(store.record("").await.err())
}

fn row(subnet: &str, ip: &str, mac: &str, lease: &str, node: &str) -> String {
    format!("{subnet:<42} {ip:<16} {mac:<19} {lease:<16} {node}").trim_end().to_owned()
}

/// A line for each side of a record, with the reason if it is kept out.
fn lines(raw: &RawRecord, bad: Option<&BadRecord>) -> Vec<String> {
    let lease = if raw.lease == 0 { "reservation".to_owned() } else { format!("{:x}", raw.lease) };
    let parsed = raw.key.parse::<SubnetKey>().map_err(|e| e.to_string());
    let parsed = parsed.and_then(|key| Ok((key, Record::parse(&raw.value).map_err(|e| e.to_string())?)));
    let (key, record) = match parsed {
        Ok(parsed) => parsed,
        Err(reason) => return vec![row(&raw.key, "-", "-", &lease, &format!("unusable: {reason}"))],
    };
    let node = record.node.as_deref().unwrap_or("-");
    let address = |family| match family {
        Family::V4 if record.public_ip.is_unspecified() => "-".to_owned(),
        Family::V4 => record.public_ip.to_string(),
        Family::V6 => record.public_ipv6.map_or("-".to_owned(), |ip| ip.to_string()),
    };
    let sides = [Family::V4, Family::V6].into_iter().filter_map(|family| {
        let mac = match record.peer(&key, family) {
            Some(peer) => peer.mac.to_string(),
            None if record.is_unused() => "not used yet".to_owned(),
            None => "-".to_owned(),
        };
        let line = row(&key.side(family)?.to_string(), &address(family), &mac, &lease, node);
        Some(bad.map_or(line.clone(), |bad| format!("{line}  kept out: {bad}")))
    });
    sides.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(key: &str, value: &str, lease: i64) -> Vec<String> {
        let raw = RawRecord { key: key.to_owned(), value: value.as_bytes().to_vec(), revision: 1, lease };
        let squeezed = |line: String| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let listing = Listing { config: None, records: vec![raw.clone()] };
        super::lines(&raw, listing.kept_out().get(key)).into_iter().map(squeezed).collect()
    }

    #[test]
    fn what_every_node_keeps_out_is_told_by_reason() {
        let value = |ip: u8, vni: u8, mac: u8| {
            format!(
                r#"{{"PublicIP":"10.99.0.{ip}","BackendType":"vxlan","BackendData":{{"VNI":{vni},"VtepMAC":"02:00:00:00:00:0{mac}"}}}}"#
            )
        };
        let records = [
            ("10.5.1.0-24", value(1, 1, 1)),
            ("10.5.2.0-24", value(2, 1, 1)),
            ("10.5.3.0-24", value(3, 7, 3)),
            ("10.6.4.0-24", value(4, 1, 4)),
            ("10.5.5.0-24", r#"{"PublicIP":"10.99.0.5"}"#.to_owned()),
            ("10.5.6.0-24", value(6, 1, 6).replace("vxlan", "host-gw")),
            ("10.5.7.0-24", value(0, 1, 7).replace("10.99.0.0", "0.0.0.0")),
            ("10.5.8.0-24", "junk".to_owned()),
            ("junk", value(9, 1, 9)),
        ];
        let raw = |(at, (key, value)): (usize, &(&str, String))| RawRecord {
            key: (*key).to_owned(),
            value: value.clone().into_bytes(),
            revision: at as i64,
            lease: 0,
        };
        let records: Vec<RawRecord> = records.iter().enumerate().map(raw).collect();
        let config = Some(br#"{"Network":"10.5.0.0/16"}"#.to_vec());
        let listing = Listing { config, records };
        let kept_out = listing.kept_out();
        let reasons: Vec<_> = kept_out.iter().map(|(key, bad)| (key.as_str(), bad.reason())).collect();
        let expected = [
            ("10.5.1.0-24", "mac_of_another"),
            ("10.5.3.0-24", "wrong_vni"),
            ("10.5.6.0-24", "other_backend"),
            ("10.5.7.0-24", "remote_not_unicast"),
            ("10.5.8.0-24", "value"),
            ("10.6.4.0-24", "outside_network"),
            ("junk", "key_form"),
        ];
        assert_eq!(reasons, expected);
        let line = &super::lines(&listing.records[0], kept_out.get("10.5.1.0-24"))[0];
        assert!(line.ends_with("kept out: the VTEP's MAC 02:00:00:00:00:01 is also that of 10.5.2.0/24"), "{line}");
    }

    #[test]
    fn each_kind_of_record_has_its_line() {
        let value = r#"{"PublicIP":"10.99.0.1","PublicIPv6":"fd99::1","BackendType":"vxlan",
            "BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:45"},
            "NodeID":"worker-1"}"#;
        let expected = [
            "10.5.1.0/24 10.99.0.1 c6:d2:32:6f:8f:44 1f worker-1",
            "fc00:0:0:1::/64 fd99::1 c6:d2:32:6f:8f:45 1f worker-1",
        ];
        assert_eq!(lines("10.5.1.0-24&fc00:0:0:1::-64", value, 0x1f), expected);
        let reserved = r#"{"PublicIP":"10.99.0.1","PublicIPv6":null}"#;
        assert_eq!(lines("10.5.1.0-24", reserved, 0), ["10.5.1.0/24 10.99.0.1 not used yet reservation -"]);
        let by_id = r#"{"PublicIP":"0.0.0.0","PublicIPv6":null,"NodeID":"worker-1"}"#;
        assert_eq!(lines("10.5.1.0-24", by_id, 0), ["10.5.1.0/24 - not used yet reservation worker-1"]);
        let other = r#"{"PublicIP":"10.99.0.1","BackendType":"host-gw"}"#;
        assert_eq!(lines("10.5.1.0-24", other, 0x1f), ["10.5.1.0/24 10.99.0.1 - 1f -"]);
        let [junk] = lines("junk", "{}", 0x1f).try_into().unwrap();
        assert!(junk.starts_with("junk - - 1f unusable: \"junk\" is not a subnet"), "{junk}");
    }
}
