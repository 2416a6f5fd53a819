//! `make demo`: a network of nodes comes up, shows what Twill does in a short report, and is removed again.
//!
//! Takes `NODES` (3) and `KEEP=1` (stays up until a signal) from the environment. Ends with 1 if a ping failed.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::process::{ExitCode, exit};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use twill_lab::{Lab, NODE_CONFIG, Node, Options, PREFIX, Pod, remove_own, wait_for};

/// What shows a node's VXLAN state, in the order a packet meets it.
const STATE: [&str; 3] = ["ip route", "ip neigh show dev flannel.1", "bridge fdb show dev flannel.1"];

/// Set when a signal is the way to end, and no interruption.
static KEPT: AtomicBool = AtomicBool::new(false);

/// `println!` for a reader that may have gone: see [`show`].
macro_rules! say {
    ($($text:tt)*) => { show(&format!("{}\n", format_args!($($text)*))) };
}

/// `print!` likewise.
macro_rules! put {
    ($($text:tt)*) => { show(&format!($($text)*)) };
}

/// `eprintln!` that does nothing where standard error cannot be written.
macro_rules! complain {
    ($($text:tt)*) => {{
        let _ = writeln!(io::stderr(), $($text)*);
    }};
}

fn main() -> ExitCode {
    // A lab that can't go on panics with a message for people: no line numbers before it, no advice after.
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.payload().downcast_ref::<String>().map_or("it failed", String::as_str);
        complain!("demo: {text}");
    }));
    match prepare().and_then(|(nodes, keep)| demo(nodes, keep)) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            complain!("demo: {failed} pings failed");
            ExitCode::FAILURE
        }
        Err(e) => {
            complain!("demo: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Reads the two variables and sees to it that a signal removes everything.
fn prepare() -> Result<(usize, bool)> {
    let text = |name| std::env::var(name).unwrap_or_default();
    let nodes = match text("NODES").as_str() {
        "" => 3,
        n => n.parse().ok().filter(|n| (2..=50).contains(n)).with_context(|| format!("NODES={n}: want 2 to 50"))?,
    };
    let keep = match text("KEEP").as_str() {
        "" | "0" => false,
        "1" => true,
        other => bail!("KEEP={other}: want 0 or 1"),
    };
    // Blocked before there is any other thread, so that the one below gets them. Children start with none blocked.
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().context("block signals")?;
    std::thread::spawn(move || {
        let _ = signals.wait();
        remove_own();
        // Whether anybody reads that or not.
        let _ = writeln!(io::stdout(), "Everything is removed.");
        // The children die with this process.
        exit(if KEPT.load(Ordering::Relaxed) { 0 } else { 130 });
    });
    Ok((nodes, keep))
}

/// The whole report; returns how many pings failed.
fn demo(nodes: usize, keep: bool) -> Result<usize> {
    say!("Twill: an etcd and {nodes} nodes in network namespaces, a twilld and a pod in each.");
    let lab = Lab::build(&Options { nodes, ..Options::default() })?;
    lab.put_config(NODE_CONFIG);
    let daemons = lab.start_all(&[]);
    let node = lab.node(1);

    heading("The network and its leases, in etcd");
    print_output(&format!("etcdctl get --prefix {PREFIX}"), &lab.etcdctl(&["get", "--prefix", PREFIX])?);

    heading("What each node's CNI plugin reads: subnet.env");
    put!("{}", side_by_side(lab.nodes())?);

    let pods: Vec<Pod> = lab.nodes().iter().map(|node| node.pod(1)).collect();
    heading("Node 1 before its first packet to a pod elsewhere: no peer in the kernel");
    let before = state(&node)?;
    print_output("ip -d link show flannel.1", &node.exec("ip -d link show flannel.1")?);
    for (command, output) in STATE.iter().zip(&before) {
        print_output(command, output);
    }

    let first_packet = first_packet(&lab, &pods, &before)?;
    heading("All pods to all: round-trip times in ms, from the row's pod to the column's");
    let failed = matrix(&pods) + usize::from(!first_packet);

    if keep {
        keep_up(&lab);
    }
    drop((pods, daemons, lab));
    say!("\nEverything is removed.");
    Ok(failed)
}

/// Pings node 2's pod for the first time, and shows what that put into node 1's kernel. Whether it was answered.
fn first_packet(lab: &Lab, pods: &[Pod], before: &[String]) -> Result<bool> {
    let (node, to) = (lab.node(1), pods[1].addr());
    heading(&format!("The first packet: pod {} on node 1 pings pod {to} on node 2", pods[0].addr()));
    let times = [pods[0].ping(to), pods[0].ping(to)];
    for (which, time) in ["first, answered by way of twilld", "second, by the kernel alone"].iter().zip(&times) {
        match time {
            Ok(time) => say!("  {:>8.3} ms  {which}", time.as_secs_f64() * 1000.0),
            Err(e) => say!("  lost: {e:#}"),
        }
    }
    // The packet goes first, the rest of the peer follows within milliseconds.
    let peer = lab.node(2).as_peer();
    if let Err(e) = wait_for("node 2 in node 1's kernel", Duration::from_secs(5), || node.holds(&peer)) {
        say!("  {e}");
    }
    say!("\n  What it put into node 1's kernel: one of each for the whole of node 2's subnet.");
    for ((command, before), after) in STATE.iter().zip(before).zip(&state(&node)?) {
        say!("  $ {command}");
        let (old, new): (HashSet<&str>, HashSet<&str>) = (before.lines().collect(), after.lines().collect());
        before.lines().filter(|line| !new.contains(line)).for_each(|line| say!("    - {}", line.trim_end()));
        after.lines().filter(|line| !old.contains(line)).for_each(|line| say!("    + {}", line.trim_end()));
    }
    Ok(times.iter().all(Result::is_ok))
}

/// Pings every pod from every pod and prints the times; how many were lost.
fn matrix(pods: &[Pod]) -> usize {
    let mut failed = 0;
    put!("  {:<16}", "");
    pods.iter().for_each(|pod| put!("{:>14}", pod.addr().to_string()));
    say!("");
    for from in pods {
        put!("  node {:<2} {:<10}", from.node().index(), from.addr().to_string());
        for to in pods {
            match from.ping(to.addr()) {
                Ok(time) => put!("{:>14.3}", time.as_secs_f64() * 1000.0),
                Err(_) => {
                    failed += 1;
                    put!("{:>14}", "lost");
                }
            }
        }
        say!("");
    }
    failed
}

/// Says how to look around, and waits for a signal, which ends the process.
fn keep_up(lab: &Lab) -> ! {
    let (fabric, node) = (lab.fabric().name(), lab.node(1));
    let netns = node.netns().name();
    let logs = node.run_dir().parent().unwrap_or(node.run_dir()).display();
    let etcdctl = format!("ETCDCTL_API=3 etcdctl --endpoints={}", lab.etcd().url());
    heading("It stays up (KEEP=1)");
    say!("  enter node 1   ip netns exec {netns} bash");
    say!("  enter its pod  ip netns exec {netns}-pod1 bash");
    say!("  ask etcd       ip netns exec {fabric} env {etcdctl} get --prefix {PREFIX}");
    say!("  read the logs  {logs}/node1-twilld-1.log");
    say!("  tear down      Ctrl-C here, or: kill {}", std::process::id());
    KEPT.store(true, Ordering::Relaxed);
    loop {
        std::thread::park();
    }
}

fn state(node: &Node) -> Result<Vec<String>> {
    STATE.iter().map(|command| node.exec(command)).collect()
}

/// The nodes' subnet.env in columns, as many beside each other as a line holds.
fn side_by_side(nodes: &[Node]) -> Result<String> {
    const WIDTH: usize = 32;
    let mut text = String::new();
    for row in nodes.chunks(3) {
        let columns: Vec<Vec<String>> = row
            .iter()
            .map(|node| {
                let file = fs::read_to_string(node.subnet_file()).context("read subnet.env")?;
                Ok(std::iter::once(format!("node {}", node.index())).chain(file.lines().map(String::from)).collect())
            })
            .collect::<Result<_>>()?;
        let height = columns.iter().map(Vec::len).max().unwrap_or(0);
        for line in 0..height {
            let cells = columns.iter().map(|c| format!("{:<WIDTH$}", c.get(line).map_or("", String::as_str)));
            text += &format!("  {}\n", cells.collect::<String>().trim_end());
        }
    }
    Ok(text)
}

/// Prints a part of the report. Where it cannot be written the demo is over and removes everything: quietly if its reader has
/// seen enough (`| head`).
fn show(text: &str) {
    let written = {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush())
    };
    let Err(error) = written else { return };
    remove_own();
    if error.kind() == io::ErrorKind::BrokenPipe {
        exit(0);
    }
    complain!("demo: cannot write to standard output: {error}");
    exit(1);
}

fn heading(text: &str) {
    say!("\n== {text} ==");
}

/// A command and what it printed, indented; `(nothing)` where it printed nothing.
fn print_output(command: &str, output: &str) {
    say!("  $ {command}");
    if output.trim().is_empty() {
        say!("    (nothing)");
    }
    output.lines().for_each(|line| say!("    {}", line.trim_end()));
}
