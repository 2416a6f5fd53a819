//! `twill leases`: the records in etcd as a table. Also the one complete read that other commands begin with.

use std::io::Write;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::cli::EtcdFlags;
use crate::overlay::record::{Family, Record, SubnetKey};
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

/// Prints a line for each record.
pub async fn print(etcd: &EtcdFlags) -> Result<()> {
    let (_, listing) = open(etcd).await?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", row("SUBNET", "PUBLIC IP", "VTEP MAC", "LEASE", "NODE"))?;
    listing.records.iter().flat_map(lines).try_for_each(|line| writeln!(out, "{line}"))?;
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
            Event::Down { reason } => eprintln!("twill: etcd does not answer: {reason}"),
            Event::Up | Event::Changes(_) => {}
        }
    }
    bail!("the reader of etcd has stopped")
}

fn row(subnet: &str, ip: &str, mac: &str, lease: &str, node: &str) -> String {
    format!("{subnet:<42} {ip:<16} {mac:<19} {lease:<16} {node}").trim_end().to_owned()
}

/// A line for each side of a record.
fn lines(raw: &RawRecord) -> Vec<String> {
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
        Some(row(&key.side(family)?.to_string(), &address(family), &mac, &lease, node))
    });
    sides.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(key: &str, value: &str, lease: i64) -> Vec<String> {
        let raw = RawRecord { key: key.to_owned(), value: value.as_bytes().to_vec(), revision: 1, lease };
        let squeezed = |line: String| line.split_whitespace().collect::<Vec<_>>().join(" ");
        super::lines(&raw).into_iter().map(squeezed).collect()
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
