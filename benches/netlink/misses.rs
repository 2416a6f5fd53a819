//! Misses: how long the first packet to a peer waits, and what becomes of many at once.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use twill_lab::{Lab, Node, Twilld};

use crate::answer;
use crate::far::{Far, GIVEN_UP, Sender, now};
use crate::peers::Peer;
use crate::table::{Row, Target};

/// Destinations of the first packets, one after the other.
const FIRST: u32 = 500;
/// As many of them in a turn.
const BLOCK: u32 = 50;
/// First packets that are not measured.
const WARM_UP: u32 = 5;
/// Between two first packets: whoever answered has done the rest by then.
const GAP: Duration = Duration::from_millis(2);
/// For the rest of a burst's peers to be programmed.
const REST: Duration = Duration::from_millis(500);
/// Misses at once, and the most rounds of them: a round takes as many new peers.
const BURSTS: [(u32, usize); 3] = [(500, 5), (2_000, 3), (10_000, 2)];

/// The names of who answers; the first is the floor.
const NAMES: [&str; 3] = ["blocking loop", "netlink-ext", "twilld"];

/// A lab with a node for each of those who answer.
pub(crate) struct Misses {
    far: Far,
    runners: Vec<Runner>,
    // Ends before the lab that it runs in.
    _twilld: Twilld,
    _lab: Lab,
}

struct Runner {
    node: Node,
    sender: Sender,
    /// The next peer that nothing has been sent to.
    next: u32,
}

/// What became of misses at once.
#[derive(Debug, Clone, Copy)]
struct Burst {
    /// From the first packet sent to the last arrived.
    time: Duration,
    /// Packets that never arrived.
    lost: usize,
    /// Peers that could not be reached afterwards either, and addresses still without an answer.
    unanswered: usize,
}

impl Misses {
    pub(crate) fn new(rounds: usize) -> Result<Self> {
        let lab = Lab::with_nodes(NAMES.len());
        let far = Far::open(lab.fabric())?;
        let of_bursts: u32 = BURSTS.iter().map(|(size, most)| size * rounds.min(*most) as u32).sum();
        let needed = FIRST * rounds as u32 + of_bursts + WARM_UP + 1;
        answer::floor(&lab.node(1))?;
        answer::ours(&lab.node(2))?;
        let twilld = answer::twilld(&lab, &lab.node(3), needed)?;
        let runner = |node: &Node| Ok(Runner { sender: Sender::open(node.netns())?, node: node.clone(), next: 1 });
        let runners = lab.nodes().iter().map(runner).collect::<Result<Vec<_>>>()?;
        let mut misses = Self { far, runners, _twilld: twilld, _lab: lab };
        misses.warm_up()?;
        Ok(misses)
    }

    /// The underlay's own neighbours are resolved, caches are warm.
    fn warm_up(&mut self) -> Result<()> {
        for runner in &mut self.runners {
            for _ in 0..WARM_UP {
                ensure!(first_packet(runner, &self.far)?.is_some(), "no packet arrives in the lab");
            }
        }
        Ok(())
    }

    /// First packets, one at a time. Those who answer take turns: what a wakeup costs here differs from one second to the
    /// next.
    pub(crate) fn first(&mut self, rounds: usize) -> Result<Vec<Row>> {
        let mut best = [[Duration::MAX; 2]; 3];
        let mut lost = [0; 3];
        for _ in 0..rounds {
            let mut times = [const { Vec::new() }; 3];
            for _ in 0..FIRST / BLOCK {
                for (times, runner) in times.iter_mut().zip(&mut self.runners) {
                    for _ in 0..BLOCK {
                        times.extend(first_packet(runner, &self.far)?);
                    }
                }
            }
            for (at, mut times) in times.into_iter().enumerate() {
                lost[at] += FIRST as usize - times.len();
                times.sort();
                let of = |percent: usize| times[(times.len() - 1) * percent / 100];
                best[at] = [best[at][0].min(of(50)), best[at][1].min(of(99))];
            }
        }
        let mut rows = Vec::new();
        for at in 1..NAMES.len() {
            for (which, (percentile, limit)) in [("p50", 1.3), ("p99", 2.0)].into_iter().enumerate() {
                let name = format!("first packet, {percentile}, {}", NAMES[at]);
                rows.push(Row::times(&name, best[at][which], NAMES[0], best[0][which], Target::Times(limit)));
            }
            let name = format!("lost of them, {}", NAMES[at]);
            rows.push(Row::counts(&name, lost[at], NAMES[0], lost[0], Target::Zero));
        }
        Ok(rows)
    }

    /// Many at once.
    pub(crate) fn bursts(&mut self, rounds: usize) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (size, most) in BURSTS {
            let rounds = rounds.min(most);
            let mut all = [const { Vec::new() }; 3];
            for _ in 0..rounds {
                for (results, runner) in all.iter_mut().zip(&mut self.runners) {
                    results.push(burst(runner, &self.far, size)?);
                }
            }
            let best = all.each_ref().map(|bursts| bursts.iter().map(|burst| burst.time).min().unwrap_or_default());
            let lost = all.each_ref().map(|bursts| bursts.iter().map(|burst| burst.lost).sum::<usize>() / rounds);
            let left = all.each_ref().map(|bursts| bursts.iter().map(|burst| burst.unanswered).sum::<usize>());
            let (time, loss) =
                if size == 500 { (Target::Times(1.5), Target::Zero) } else { (Target::Shown, Target::NoMore) };
            for at in 1..NAMES.len() {
                let who = NAMES[at];
                rows.push(Row::times(&format!("{size} at once, time, {who}"), best[at], NAMES[0], best[0], time));
                rows.push(Row::counts(
                    &format!("{size} at once, lost (mean), {who}"),
                    lost[at],
                    NAMES[0],
                    lost[0],
                    loss,
                ));
                let name = format!("{size} at once, never answered, {who}");
                rows.push(Row::counts(&name, left[at], NAMES[0], left[0], Target::Zero));
            }
        }
        Ok(rows)
    }
}

impl Runner {
    fn take(&mut self, count: u32) -> std::ops::Range<u32> {
        let start = self.next;
        self.next += count;
        start..self.next
    }
}

/// The time that the next peer's first packet took, if it was not lost.
fn first_packet(runner: &mut Runner, far: &Far) -> Result<Option<Duration>> {
    let number = runner.take(1).start;
    let sent = now()?;
    runner.sender.send(Peer(number));
    let mut took = None;
    while let Some((peer, arrived)) = far.receive()? {
        if peer.0 == number {
            took = Some(arrived.saturating_sub(sent));
            break;
        }
    }
    std::thread::sleep(GAP);
    Ok(took)
}

fn burst(runner: &mut Runner, far: &Far, size: u32) -> Result<Burst> {
    let mut missing: BTreeSet<u32> = runner.take(size).collect();
    let start = now()?;
    for number in &missing {
        runner.sender.send(Peer(*number));
    }
    let mut last = start;
    while !missing.is_empty()
        && let Some((peer, arrived)) = far.receive()?
    {
        if missing.remove(&peer.0) {
            last = last.max(arrived);
        }
    }
    let lost = missing.len();
    let unreachable = reach(runner, far, missing)?;
    let pending = answer::unanswered(&runner.node, GIVEN_UP)?;
    std::thread::sleep(REST);
    Ok(Burst { time: last.saturating_sub(start), lost, unanswered: unreachable + pending })
}

/// Sends to peers once more, a few at a time; how many remain out of reach.
fn reach(runner: &Runner, far: &Far, mut missing: BTreeSet<u32>) -> Result<usize> {
    let numbers: Vec<u32> = missing.iter().copied().collect();
    for numbers in numbers.chunks(100) {
        numbers.iter().for_each(|number| runner.sender.send(Peer(*number)));
        while numbers.iter().any(|number| missing.contains(number))
            && let Some((peer, _)) = far.receive()?
        {
            missing.remove(&peer.0);
        }
    }
    Ok(missing.len())
}
