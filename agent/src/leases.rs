//! `twill leases`: the records in etcd as a table.

use std::io::Write;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::cli::EtcdFlags;
use crate::overlay::record::{Family, Record, SubnetKey};
use crate::store::{Event, RawRecord, Store};

/// How long etcd may take to show all records.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Prints a line for each record.
pub async fn print(etcd: &EtcdFlags) -> Result<()> {
    let records = match tokio::time::timeout(ANSWER_WITHIN, read(etcd)).await {
        Ok(records) => records?,
        Err(_) => bail!("no answer from etcd ({}) within {ANSWER_WITHIN:?}", etcd.etcd_endpoints.join(", ")),
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:<42} {:<16} {:<19} LEASE", "SUBNET", "PUBLIC IP", "VTEP MAC")?;
    records.iter().try_for_each(|raw| writeln!(out, "{}", line(raw)))?;
    Ok(())
}

async fn read(etcd: &EtcdFlags) -> Result<Vec<RawRecord>> {
    let store = etcd.store()?;
    let mut events = store.follow();
    let mut records = Vec::new();
    while let Some(event) = events.recv().await {
        match event {
            Event::Listing => records.clear(),
            Event::Page(page) => records.extend(page),
            Event::Listed { .. } => return Ok(records),
            Event::Down { reason } => eprintln!("twill: etcd does not answer: {reason}"),
            Event::Up | Event::Config(_) | Event::Changes(_) => {}
        }
    }
    bail!("the reader of etcd has stopped")
}

fn line(raw: &RawRecord) -> String {
    let lease = if raw.lease == 0 { "reservation".to_owned() } else { format!("{:x}", raw.lease) };
    let parsed = raw.key.parse::<SubnetKey>().map_err(|e| e.to_string());
    let parsed = parsed.and_then(|key| Ok((key, Record::parse(&raw.value).map_err(|e| e.to_string())?)));
    let (key, record) = match parsed {
        Ok(parsed) => parsed,
        Err(reason) => return format!("{:<42} {:<16} {:<19} {lease}", raw.key, "-", format!("unusable: {reason}")),
    };
    let sides: Vec<_> = [Family::V4, Family::V6].iter().filter_map(|family| record.peer(&key, *family)).collect();
    let one = |side: &crate::overlay::record::PeerRecord| {
        format!("{:<42} {:<16} {:<19} {lease}", side.subnet.to_string(), side.remote.to_string(), side.mac.to_string())
    };
    match sides.as_slice() {
        [] => format!("{:<42} {:<16} {:<19} {lease}", raw.key, record.public_ip.to_string(), "-"),
        sides => sides.iter().map(one).collect::<Vec<_>>().join("\n"),
    }
}
