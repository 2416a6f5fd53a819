//! Agents under random faults, and a checker of what they believe.
//!
//! `TWILL_CHAOS_SECONDS` (30) says for how long, `TWILL_CHAOS_SEED` repeats the faults of an earlier run, as far as the
//! machine's timing lets it.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its tests do")]
#![allow(dead_code, reason = "the server's helpers are shared with other tests")]

mod etcd_server;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_server::agents::{Agent, Checker, Plan, record};
use etcd_server::cluster::{Cluster, MEMBERS, OVER};
use etcd_server::mirror::Mirror;
use etcd_server::{Etcd, Release};
use nix::sys::signal::Signal;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::runtime::Handle;
use twill_agent::overlay::NetworkConfig;
use twill_agent::store::{RawRecord, Store};

/// Nearly as many as there are subnets, so that their ways cross.
const AGENTS: usize = 20;
const SUBNETS: usize = 24;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    KillMember,
    StopMember,
    KillAllMembers,
    Cut,
    Compact,
    KillAgents,
    ReplaceAgents,
}

const FAULTS: [Fault; 10] = [
    Fault::KillMember,
    Fault::StopMember,
    Fault::KillAllMembers,
    Fault::Cut,
    Fault::Cut,
    Fault::Compact,
    Fault::KillAgents,
    Fault::KillAgents,
    Fault::ReplaceAgents,
    Fault::ReplaceAgents,
];

/// Everything that is alive. Faults come from the thread that made the members: they go when it does.
struct Chaos {
    cluster: Cluster,
    runtime: Handle,
    plan: Plan,
    agents: Vec<Agent>,
    /// The number of the next node that comes.
    next: usize,
    random: SmallRng,
    done: BTreeMap<Fault, usize>,
}

impl Chaos {
    fn new(release: Release, seed: u64) -> Self {
        let cluster = Cluster::start(release);
        let runtime = runtime();
        let config = format!(r#"{{"Network":"10.5.0.0/16","SubnetMax":"10.5.{SUBNETS}.0"}}"#);
        let config = NetworkConfig::parse(config.as_bytes()).unwrap();
        let plan = Plan { options: cluster.options(&[0, 1, 2]), config, checker: Arc::new(Checker::default()) };
        let agents = (1..=AGENTS).map(|number| Agent::spawn(&runtime, &plan, number)).collect();
        let random = SmallRng::seed_from_u64(seed);
        Self { cluster, runtime, plan, agents, next: AGENTS + 1, random, done: BTreeMap::new() }
    }

    /// One fault, from its beginning to its end; agents come and go meanwhile.
    fn strike(&mut self) {
        let fault = *FAULTS.choose(&mut self.random).unwrap();
        *self.done.entry(fault).or_default() += 1;
        let member = self.random.random_range(0..MEMBERS);
        match fault {
            Fault::KillMember => {
                self.cluster.kill(member);
                self.pause(100..3_000);
                self.cluster.restart(member);
            }
            Fault::StopMember => {
                self.cluster.signal(member, Signal::SIGSTOP);
                self.pause(100..6_000);
                self.cluster.signal(member, Signal::SIGCONT);
            }
            Fault::KillAllMembers => {
                (0..MEMBERS).for_each(|member| self.cluster.kill(member));
                self.kill_agents();
                self.pause(100..2_000);
                (0..MEMBERS).for_each(|member| self.cluster.restart(member));
            }
            Fault::Cut => self.cluster.cut(member),
            Fault::Compact => {
                // In an outage there is nothing to compact.
                let revision = self.cluster.ctl_at(&[member], &["endpoint", "status", "-w", "fields"]);
                let revision = revision.ok().and_then(|fields| {
                    let line = fields.lines().find(|line| line.starts_with("\"Revision\""))?.to_owned();
                    Some(line.rsplit(' ').next()?.to_owned())
                });
                if let Some(revision) = revision {
                    let _ = self.cluster.ctl_at(&[member], &["compact", &revision]);
                }
            }
            Fault::KillAgents => self.kill_agents(),
            Fault::ReplaceAgents => self.replace_agents(),
        }
        self.pause(0..800);
    }

    /// Some agents die and come again, also while etcd is away.
    fn kill_agents(&mut self) {
        for _ in 0..self.random.random_range(1..6) {
            let at = self.random.random_range(0..AGENTS);
            self.runtime.block_on(self.agents[at].kill());
            let number = self.agents[at].number;
            self.agents[at] = Agent::spawn(&self.runtime, &self.plan, number);
        }
    }

    /// Some nodes are gone for good, and as many others come at the same moment and race for what is free.
    fn replace_agents(&mut self) {
        let mut gone = Vec::new();
        for _ in 0..5 {
            let at = self.random.random_range(0..AGENTS);
            let (held, number) = (self.plan.checker.held(), self.agents[at].number);
            let Some((key, _)) = held.iter().find(|(_, agent)| **agent == number) else { continue };
            self.runtime.block_on(self.agents[at].kill());
            // Its lease ends, a day early.
            self.cluster.ctl(&["del", &Etcd::key(key)]);
            gone.push(at);
        }
        for at in gone {
            self.agents[at] = Agent::spawn(&self.runtime, &self.plan, self.next);
            self.next = 1 + self.next % 250;
        }
    }

    fn pause(&mut self, milliseconds: std::ops::Range<u64>) {
        std::thread::sleep(Duration::from_millis(self.random.random_range(milliseconds)));
    }

    /// Waits until every agent has a subnet and the table that etcd has.
    fn converge(&mut self) -> BTreeMap<String, RawRecord> {
        let end = Instant::now() + OVER;
        self.cluster.wait_healthy();
        loop {
            let store = self.cluster.store();
            let now = self.runtime.block_on(async { Mirror::new(store.follow()).await.table });
            let apart = self.agents.iter().filter(|agent| *agent.table.lock().unwrap() != now);
            let apart: Vec<_> = apart.map(|agent| agent.number).collect();
            let held = self.plan.checker.held();
            if apart.is_empty() && held.len() == AGENTS {
                return now;
            }
            assert!(
                Instant::now() < end,
                "agents {apart:?} have other tables than etcd; held: {held:?}; etcd: {now:?}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn chaos(release: Release) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("TWILL_CHAOS_SEED").unwrap_or_else(rand::random);
    let time = Duration::from_secs(number("TWILL_CHAOS_SECONDS").unwrap_or(30));
    // Shown where the test fails, to repeat it.
    println!("seed {seed}");
    let mut chaos = Chaos::new(release, seed);
    chaos.converge();
    let (began, mut longest) = (Instant::now(), Duration::ZERO);
    while began.elapsed() < time {
        for _ in 0..4 {
            chaos.strike();
        }
        // Between storms all must come to rest.
        let storm = Instant::now();
        chaos.converge();
        longest = longest.max(storm.elapsed());
    }
    let table = chaos.converge();
    let checker = Arc::clone(&chaos.plan.checker);
    let (records, held) = (table.len(), checker.held().len());
    say(&format!(
        "{release:?}, seed {seed}, {AGENTS} agents on {SUBNETS} subnets, faults for {time:?}\n  faults: {:?}\n  agents: \
         {:?}\n  at the end: {records} records, {held} subnets held; longest way back to rest: {longest:?}\n  held by two: {:?}\n",
        chaos.done,
        checker.counts.lock().unwrap(),
        checker.doubled.lock().unwrap(),
    ));
    assert!(chaos.agents.iter().all(Agent::is_alive), "an agent gave up");
    assert_eq!(*checker.doubled.lock().unwrap(), Vec::<String>::new());
    let held = checker.held();
    for (key, number) in &held {
        assert_eq!(table[key].value, record(*number).to_json(), "{key}");
    }
    // A write whose node was killed meanwhile may be carried out after that node's next life has looked: it ends in a day.
    for (key, raw) in table.iter().filter(|(key, _)| !held.contains_key(*key)) {
        assert_ne!(raw.lease, 0, "{key} is of nobody and never ends");
    }
}

/// A runtime on a thread of its own, which goes on while this one waits for a fault.
fn runtime() -> Handle {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        sender.send(runtime.handle().clone()).unwrap();
        runtime.block_on(std::future::pending::<()>());
    });
    receiver.recv().unwrap()
}

/// Says it where it is seen also when the test passes.
fn say(text: &str) {
    std::io::stdout().write_all(text.as_bytes()).unwrap();
}

#[test]
fn no_fault_doubles_a_subnet_or_leaves_a_table_wrong() {
    chaos(Release::Distribution);
}

#[test]
fn no_fault_doubles_a_subnet_or_leaves_a_table_wrong_on_etcd_3_5() {
    chaos(Release::V35);
}
