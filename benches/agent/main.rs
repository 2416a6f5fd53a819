//! The whole program in namespaces, with a real kernel and a real etcd, against what it has to reach.
//!
//! `cargo build --release -p twill-agent && cargo bench -p twill-benches --bench agent`. Words after `--` choose parts
//! (`ten`, `hundred`, `unleased`, `idle`); without any, all run. `idle` takes a minute and nothing else happens in it.

use std::time::Duration;

use anyhow::{Context, Result};
use process::{millis, start};
use records::{CONFIG, Records, subnet};
use table::Table;
use twill_lab::{Lab, Node, Twilld};

mod iproute;
mod kernel;
mod process;
mod records;
mod table;
mod unleased;

const ALL: &[&str] = &["--peer-mode=all"];
const TEN: u32 = 10_000;
const HUNDRED: u32 = 100_000;
/// Far beyond every target.
const LIMIT: Duration = Duration::from_secs(120);

fn main() -> Result<()> {
    let parts: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|p| p == part);
    let mut table = Table::default();
    if wanted("ten") || wanted("idle") {
        ten_thousand(&mut table, wanted("ten"), wanted("idle"))?;
    }
    if wanted("hundred") {
        hundred_thousand(&mut table)?;
    }
    if wanted("unleased") {
        unleased::bench(&mut table)?;
    }
    println!("\n{}", if table.finish() { "all reached" } else { "not all reached" });
    Ok(())
}

/// Runs a future in a node's namespace.
fn within<T: Send>(node: &Node, work: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
    let inside = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(work())
    };
    node.netns().enter(inside)?
}

fn load(lab: &Lab, records: u32) -> Result<()> {
    lab.put_config(CONFIG);
    within(&lab.node(1), async || {
        let mut etcd = Records::connect(lab.etcd().url()).await?;
        etcd.put(0..records).await?;
        Ok(())
    })
}

fn ten_thousand(table: &mut Table, all: bool, idle: bool) -> Result<()> {
    let lab = Lab::with_nodes(3);
    load(&lab, TEN)?;
    let node = lab.node(1);
    let mut daemon = start_all(table, &lab, TEN, Duration::from_millis(500), 12.0)?;
    if all {
        daemon = restart(table, &lab, daemon)?;
        device_deleted(table, &node)?;
        latency(table, &lab)?;
        at_once(table, &lab)?;
    }
    if idle {
        idle_minute(table, &daemon)?;
    }
    Ok(())
}

fn hundred_thousand(table: &mut Table) -> Result<()> {
    let lab = Lab::with_nodes(3);
    load(&lab, HUNDRED)?;
    start_all(table, &lab, HUNDRED, Duration::from_secs(4), 45.0)?;
    Ok(())
}

/// Start in `--peer-mode=all` with so many records, and the memory it takes.
fn start_all(table: &mut Table, lab: &Lab, peers: u32, target: Duration, memory: f64) -> Result<Twilld> {
    let node = lab.node(1);
    let beside = iproute::program(&lab.node(3), peers)?;
    let started = start(&node, ALL)?;
    node.netns().enter(|| kernel::check(peers as usize))??;
    let ready = started.ready();
    let programming = ready.saturating_sub(started.after(process::DEVICE_UP).unwrap_or_default());
    let pid = started.daemon.pid();
    table.row(
        &format!("start with {peers} records, all programmed"),
        &format!("< {}", millis(target)),
        millis(ready),
        &format!("ip/bridge -batch {}", millis(beside)),
        ready < target,
    );
    table.note(&format!("{}; CPU {}", started.steps(), millis(process::cpu(pid)?)));
    let ratio = programming.as_secs_f64() / beside.as_secs_f64();
    let value = format!("{} ({ratio:.2} x)", millis(programming));
    table.row("  of which programming", "< 1.5 x ip -batch", value, "", ratio < 1.5);
    let peak = process::peak_memory(pid)?;
    let target = format!("{memory} MiB");
    table.row(&format!("peak memory, {peers} records"), &target, format!("{peak:.1} MiB"), "", peak <= memory);
    Ok(started.daemon)
}

/// Restart with everything right, under a running ping.
fn restart(table: &mut Table, lab: &Lab, mut daemon: Twilld) -> Result<Twilld> {
    let node = lab.node(1);
    let mut other = start(&lab.node(2), &[])?.daemon;
    daemon.wait_log(&["peer joined", &lab.node(2).as_peer().subnet.to_string()], LIMIT);
    let pods = [node.pod(1), lab.node(2).pod(1)];
    let ping = pods[0].ping_running(pods[1].addr(), 5);
    ping.wait_received(20);
    daemon.terminate();
    let (started, watch) = within(&node, async || {
        let mut watch = kernel::Watch::open(kernel::ifindex()?)?;
        let started = start(&node, ALL)?;
        watch.drain()?;
        Ok((started, watch))
    })?;
    ping.wait_received(20);
    let ping = ping.stop();
    let rewritten = watch.put.sum() + watch.gone.sum();
    let ready = started.ready();
    table.row(
        "restart with 10000 right peers",
        "< 300 ms, 0 lost, 0 written",
        format!("{}, {} lost, {rewritten} written", millis(ready), ping.lost),
        "",
        ready < Duration::from_millis(300) && ping.lost == 0 && rewritten == 0,
    );
    table.note(&format!("{}; CPU {}", started.steps(), millis(process::cpu(started.daemon.pid())?)));
    other.terminate();
    Ok(started.daemon)
}

/// The device deleted by somebody.
fn device_deleted(table: &mut Table, node: &Node) -> Result<()> {
    // One more: the other node's record stays.
    let peers = TEN as usize + 1;
    let took = within(node, async || {
        let mut watch = kernel::Watch::open(0)?;
        let start = std::time::Instant::now();
        node.exec("ip link del flannel.1")?;
        let back = watch.until(LIMIT, |watch| watch.put.routes >= peers).await?;
        kernel::check(peers)?;
        Ok(back - start)
    })?;
    let reached = took < Duration::from_millis(500);
    table.row("ip link del flannel.1, 10000 peers back", "< 500 ms", millis(took), "", reached);
    Ok(())
}

/// From a put to the route in the kernel, one after the other.
fn latency(table: &mut Table, lab: &Lab) -> Result<()> {
    const PUTS: u32 = 500;
    let (mut bare, mut times) = within(&lab.node(1), async || {
        let mut etcd = Records::connect(lab.etcd().url()).await?;
        let bare = etcd.bare_watch(PUTS).await?;
        let mut watch = kernel::Watch::open(0)?;
        let mut times = Vec::new();
        for i in TEN..TEN + PUTS {
            let wanted = subnet(i).parse().context("a subnet")?;
            let start = std::time::Instant::now();
            let there = watch.until(LIMIT, |watch| watch.last_route == Some(wanted));
            let (put, there) = tokio::join!(etcd.put_one(i), there);
            put?;
            times.push(there? - start);
        }
        etcd.delete(TEN..TEN + PUTS).await?;
        watch.until(LIMIT, |watch| watch.gone.routes >= PUTS as usize).await?;
        Ok((bare, times))
    })?;
    let (bare, times) = (percentiles(&mut bare), percentiles(&mut times));
    let slack = Duration::from_micros(300);
    let reached = (times.0 < Duration::from_micros(800) || times.0 < bare.0 + slack)
        && (times.1 < Duration::from_millis(3) || times.1 < bare.1 + slack);
    table.row(
        "a put to its entry, p50 / p99 of 500",
        "0.8 / 3 ms or watch + 0.3",
        format!("{} / {}", millis(times.0), millis(times.1)),
        &format!("bare watch {} / {}", millis(bare.0), millis(bare.1)),
        reached,
    );
    Ok(())
}

fn percentiles(times: &mut [Duration]) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

/// Many records, and many deletions, as fast as etcd takes them.
fn at_once(table: &mut Table, lab: &Lab) -> Result<()> {
    const MANY: u32 = 5_000;
    let (put, deleted) = within(&lab.node(1), async || {
        let mut etcd = Records::connect(lab.etcd().url()).await?;
        let mut watch = kernel::Watch::open(kernel::ifindex()?)?;
        let all = MANY as usize;
        let (written, there) = tokio::join!(etcd.put(TEN..TEN + MANY), watch.until(LIMIT, |w| w.put.routes >= all));
        let put = there?.saturating_duration_since(written?);
        let (written, there) = tokio::join!(
            etcd.delete(TEN..TEN + MANY),
            watch.until(LIMIT, |w| w.gone.fdb >= all && w.gone.neighbours >= all && w.gone.routes >= all)
        );
        Ok((put, there?.saturating_duration_since(written?)))
    })?;
    let target = Duration::from_millis(300);
    table.row("5000 records at once, after the last write", "< 300 ms", millis(put), "", put < target);
    table.row("5000 deletions at once, after the last", "< 300 ms", millis(deleted), "", deleted < target);
    Ok(())
}

/// What a daemon with nothing to do costs.
fn idle_minute(table: &mut Table, daemon: &Twilld) -> Result<()> {
    let before = process::cpu(daemon.pid())?;
    std::thread::sleep(Duration::from_secs(60));
    let used = process::cpu(daemon.pid())? - before;
    table.row("CPU in an idle minute, 10000 peers", "< 50 ms", millis(used), "", used < Duration::from_millis(50));
    Ok(())
}
