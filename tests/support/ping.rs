//! ping(8) in a namespace: once for its round-trip time, or running while something happens, to count what is lost.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::names;
use crate::netns::Namespace;
use crate::process::Process;
use crate::wait::wait_until;

/// Between two answers of a running ping, also on a machine that builds something else at the same time.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running ping; stopped on drop.
#[derive(Debug)]
pub struct Ping {
    process: Process,
    /// Holds the output.
    _dir: TempDir,
}

/// What a running ping has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PingReport {
    /// Packets sent whose answer was due.
    pub sent: u32,
    /// Answers, duplicates not counted.
    pub received: u32,
    /// The difference.
    pub lost: u32,
}

/// One packet, and its round-trip time if the answer comes in `seconds`.
pub(crate) fn once(netns: &Namespace, to: IpAddr, seconds: f32) -> Result<Duration> {
    let output = netns.run(&["ping", "-n", "-c1", &format!("-W{seconds}"), &to.to_string()])?;
    let time = output.split_once("time=").and_then(|(_, rest)| rest.split_once(' '));
    let (millis, _) = time.with_context(|| format!("no time in {output}"))?;
    Ok(Duration::from_secs_f64(millis.parse::<f64>()? / 1000.0))
}

impl Ping {
    pub(crate) fn start(netns: &Namespace, to: IpAddr, interval_ms: u32) -> Result<Ping> {
        let dir = names::temp_dir()?;
        let mut command = netns.command("ping")?;
        command.args(["-n", "-i", &format!("{:.3}", f64::from(interval_ms) / 1000.0), &to.to_string()]);
        let process = Process::start(command, &dir.path().join("ping"))?;
        Ok(Ping { process, _dir: dir })
    }

    /// Answers so far.
    pub fn received(&self) -> u32 {
        answers(&self.process.log()).count
    }

    /// Waits for `more` answers from now on.
    #[track_caller]
    pub fn wait_received(&self, more: u32) {
        let start = self.received();
        wait_until(&format!("{more} more answers to a running ping"), PATIENCE, || {
            let now = self.received();
            if now >= start + more { Ok(()) } else { Err(format!("{} came", now - start)) }
        });
    }

    /// Stops it and returns what it has counted.
    #[track_caller]
    pub fn stop(mut self) -> PingReport {
        let stopped = self.process.signal(Signal::SIGINT).and_then(|()| self.process.wait(PATIENCE));
        let output = self.process.log();
        match stopped.and_then(|_| report(&output)) {
            Ok(report) => report,
            Err(e) => panic!("stop ping: {e:#}\n{output}"),
        }
    }
}

#[derive(Debug, Default)]
struct Answers {
    count: u32,
    last_seq: u32,
}

fn answers(output: &str) -> Answers {
    let mut found = Answers::default();
    for line in output.lines().filter(|l| l.contains(" bytes from ") && !l.contains("(DUP!)")) {
        // A line still being written has no number yet.
        let seq = line.split_once("icmp_seq=").and_then(|(_, rest)| rest.split_once(' ')?.0.parse().ok());
        if let Some(seq) = seq {
            found.count += 1;
            found.last_seq = seq;
        }
    }
    found
}

/// Reads ping's own summary. The packet sent last may still be under way when ping is stopped: where only that one
/// is unanswered it is not counted.
fn report(output: &str) -> Result<PingReport> {
    let line = output.lines().find(|l| l.contains(" packets transmitted")).context("no summary")?;
    let sent: u32 = line.split(' ').next().unwrap_or_default().parse().context("packets transmitted")?;
    let Answers { count: received, last_seq } = answers(output);
    let under_way = u32::from(last_seq + 1 == sent);
    let sent = sent - under_way;
    Ok(PingReport { sent, received, lost: sent.saturating_sub(received) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(seqs: &[u32], transmitted: u32) -> String {
        let mut text = String::from("PING 10.5.2.2 (10.5.2.2) 56(84) bytes of data.\n");
        for seq in seqs {
            text += &format!("64 bytes from 10.5.2.2: icmp_seq={seq} ttl=62 time=0.069 ms\n");
        }
        text + &format!(
            "\n--- 10.5.2.2 ping statistics ---\n{transmitted} packets transmitted, {} received, \
                         0% packet loss, time 1ms\n",
            seqs.len()
        )
    }

    #[test]
    fn counts_what_is_lost_in_between() {
        let expected = PingReport { sent: 5, received: 3, lost: 2 };
        assert_eq!(report(&output(&[1, 4, 5], 5)).unwrap(), expected);
    }

    #[test]
    fn the_one_under_way_is_not_lost() {
        assert_eq!(report(&output(&[1, 2], 3)).unwrap(), PingReport { sent: 2, received: 2, lost: 0 });
    }

    #[test]
    fn two_unanswered_at_the_end_are_lost() {
        assert_eq!(report(&output(&[1, 2], 4)).unwrap(), PingReport { sent: 4, received: 2, lost: 2 });
    }

    #[test]
    fn a_duplicate_is_no_answer() {
        let text = output(&[1], 2).replace("\n\n", "\n64 bytes from x: icmp_seq=1 ttl=62 time=1 ms (DUP!)\n\n");
        assert_eq!(report(&text).unwrap().received, 1);
    }
}
