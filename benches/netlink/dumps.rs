//! Reading: full dumps of large tables, into values here and into /dev/null there.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netlink_ext::{BatchSocket, Dumper, Family};

use crate::peers::{PROTOCOL, Work, requests};
use crate::stage::{REMOTE, fresh_device, in_namespace, run_to_null};
use crate::table::{Row, Target};

const COUNT: u32 = 100_000;
const TABLES: [(&str, &str); 3] = [
    ("100,000 FDB rows", "bridge fdb show dev x0"),
    ("100,000 neighbours", "ip -4 neigh show dev x0"),
    ("100,000 routes", "ip -4 route show dev x0"),
];

/// Each table by us and by iproute2.
pub(crate) fn compare(rounds: usize) -> Result<Vec<Row>> {
    in_namespace(move || {
        let ifindex = fresh_device()?;
        let failures = BatchSocket::open()?.send(&requests(Work::Peer, COUNT, ifindex, REMOTE))?;
        ensure!(failures.is_empty(), "the kernel refused {failures:?}");
        let mut dumper = Dumper::open()?;
        let mut rows = Vec::new();
        for (name, command) in TABLES {
            let (mut ours, mut theirs) = (Duration::MAX, Duration::MAX);
            for _ in 0..rounds {
                ours = dump(&mut dumper, command, ifindex)?.min(ours);
                let start = Instant::now();
                run_to_null(command)?;
                theirs = start.elapsed().min(theirs);
            }
            rows.push(Row::times(name, ours, &format!("{command} > /dev/null"), theirs, Target::Times(1.0)));
        }
        Ok(rows)
    })
}

/// The same as a command by netlink-ext.
fn dump(dumper: &mut Dumper, command: &str, ifindex: u32) -> Result<Duration> {
    let start = Instant::now();
    let rows = match command.split_once(" show").map(|(what, _)| what) {
        Some("bridge fdb") => dumper.fdb(ifindex)?.len(),
        Some("ip -4 neigh") => dumper.neighbours(ifindex, Family::V4)?.len(),
        _ => dumper.routes(Family::V4, Some(ifindex), Some(PROTOCOL), None)?.len(),
    };
    let took = start.elapsed();
    ensure!(rows >= COUNT as usize, "{command}: only {rows} rows");
    Ok(took)
}
