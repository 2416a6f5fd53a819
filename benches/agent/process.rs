//! A running twilld seen from outside: its memory, its CPU time, what its log says and when.

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use twill_lab::{Node, Twilld};

const DAY: u64 = 86_400_000_000;

/// A daemon with the time of its start.
pub(crate) struct Started {
    /// The daemon.
    pub(crate) daemon: Twilld,
    at: SystemTime,
}

/// Starts twilld on a node and waits for its "ready".
pub(crate) fn start(node: &Node, args: &[&str]) -> Result<Started> {
    let at = SystemTime::now();
    let started = Started { daemon: node.twilld(args), at };
    let waiting = Instant::now();
    while started.after("ready").is_none() {
        ensure!(waiting.elapsed() < Duration::from_secs(300), "not ready: {}", started.daemon.log());
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(started)
}

/// What the daemon logs when its device is there.
pub(crate) const DEVICE_UP: &str = "the device is up";

impl Started {
    /// When it logged the line with this message, from its start on.
    pub(crate) fn after(&self, message: &str) -> Option<Duration> {
        let log = self.daemon.log();
        let (before, rest) = (format!(" {message} "), format!(" {message}\n"));
        let line = log.split_inclusive('\n').find(|line| line.contains(&before) || line.contains(&rest))?;
        let at = of_day(line)?;
        let start = u64::try_from(self.at.duration_since(UNIX_EPOCH).ok()?.as_micros()).ok()? % DAY;
        Some(Duration::from_micros((at + DAY - start) % DAY))
    }

    /// Exec to ready.
    pub(crate) fn ready(&self) -> Duration {
        self.after("ready").unwrap_or_default()
    }

    /// When it came to each step, for people.
    pub(crate) fn steps(&self) -> String {
        let steps = [
            ("interface", "the tunnel goes over this interface"),
            ("lease", "this node holds its subnet"),
            ("device", DEVICE_UP),
            ("subnet.env", "subnet.env written"),
            ("ready", "ready"),
        ];
        let told = steps.iter().filter_map(|(step, line)| Some(format!("{step} {}", millis(self.after(line)?))));
        told.collect::<Vec<_>>().join(", ")
    }
}

/// The microsecond of the day in a log line: `2026-11-21T10:00:00.000000Z  INFO ...`.
fn of_day(line: &str) -> Option<u64> {
    let time = line.split_once('T')?.1.split_once('Z')?.0;
    let mut parts = time.split([':', '.']).map(str::parse::<u64>);
    let mut next = || parts.next()?.ok();
    let (hours, minutes, seconds, micros) = (next()?, next()?, next()?, next()?);
    Some(((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + micros)
}

/// The most memory that a process has had, in MiB.
pub(crate) fn peak_memory(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read the daemon's status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}

/// The CPU time of all threads of a process so far.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("read the daemon's threads")? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        nanos += text.split(' ').next().unwrap_or_default().parse::<u64>().context("schedstat")?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// A duration in milliseconds, for people.
pub(crate) fn millis(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1000.0;
    if millis < 10.0 { format!("{millis:.2} ms") } else { format!("{millis:.0} ms") }
}
