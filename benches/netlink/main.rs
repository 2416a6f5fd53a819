//! What netlink-ext costs, beside the least that the same work can cost here. Prints one table.
//!
//! Needs root, iproute2 and an etcd, and `twilld` built with the same profile: `make bench` sees to that. All traffic stays
//! in network namespaces that the run makes and removes. Each time is the least of several rounds, in which those
//! compared take turns; a p50 or p99 is the least that a round had.
//!
//! `--only program|routes|dumps|first|bursts` (repeatable) measures a part, `--rounds N` (5) more or less thoroughly.

mod answer;
mod dumps;
mod far;
mod misses;
mod peers;
mod program;
mod raw;
mod stage;
mod table;

use anyhow::{Context, Result, bail};

const PARTS: [&str; 5] = ["program", "routes", "dumps", "first", "bursts"];

/// What the command line asks for.
struct Wanted {
    parts: Vec<String>,
    rounds: usize,
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == program::ONCE) {
        return program::once();
    }
    let wanted = wanted(&args)?;
    heading()?;
    let mut missed = 0;
    if wanted.has("program") {
        missed += table::print("Writing", &program::compare(wanted.rounds)?);
        match program::system_calls()? {
            Some(counts) => println!("\nSystem calls for 10,000 peers (strace -f -c -e trace=network)\n{counts}"),
            None => println!("\nSystem calls for 10,000 peers: not counted, strace is not installed"),
        }
    }
    if wanted.has("routes") {
        missed += table::print("Many routes, each with a metric of its own", &program::routes(wanted.rounds)?);
    }
    if wanted.has("dumps") {
        missed += table::print("Full dumps", &dumps::compare(wanted.rounds)?);
    }
    if wanted.has("first") || wanted.has("bursts") {
        let mut misses = misses::Misses::new(wanted.rounds)?;
        if wanted.has("first") {
            missed += table::print("First packets, from sendto to the far namespace", &misses.first(wanted.rounds)?);
        }
        if wanted.has("bursts") {
            missed += table::print("Misses at once, as many peers", &misses.bursts(wanted.rounds)?);
        }
    }
    println!(
        "\n{}",
        if missed == 0 { "Every target is reached.".to_owned() } else { format!("{missed} targets missed.") }
    );
    Ok(())
}

impl Wanted {
    fn has(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }
}

fn wanted(args: &[String]) -> Result<Wanted> {
    let mut wanted = Wanted { parts: Vec::new(), rounds: 5 };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bench" => {} // cargo's
            "--only" => {
                let part = args.next().filter(|part| PARTS.contains(&part.as_str()));
                wanted.parts.push(part.with_context(|| format!("--only wants one of {PARTS:?}"))?.clone());
            }
            "--rounds" => {
                let rounds = args.next().and_then(|text| text.parse().ok()).filter(|rounds| (1..=20).contains(rounds));
                wanted.rounds = rounds.context("--rounds wants a number from 1 to 20")?;
            }
            other => bail!("{other}: unknown; want --only PART or --rounds N"),
        }
    }
    Ok(wanted)
}

fn heading() -> Result<()> {
    let system = nix::sys::utsname::uname()?;
    let cores = std::thread::available_parallelism()?;
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    println!(
        "{} {} on {}, {cores} cores, {profile} build",
        system.sysname().to_string_lossy(),
        system.release().to_string_lossy(),
        system.machine().to_string_lossy()
    );
    Ok(())
}
