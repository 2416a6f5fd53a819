//! The same rows written by iproute2: `bridge -batch` and `ip -batch`, which keep each request waiting for its answer.

use std::fmt::Write as _;
use std::io::{Seek, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use twill_lab::Node;

use super::records::{gateway, mac, remote, subnet};

/// Makes a VXLAN device on a node with no daemon, programs so many peers, and removes it; the time for the rows.
pub(crate) fn program(node: &Node, peers: u32) -> Result<Duration> {
    node.exec(&format!(
        "ip link add flannel.1 type vxlan id 1 dev eth0 local {} dstport 8472 nolearning",
        node.addr()
    ))?;
    node.exec("ip link set flannel.1 up")?;
    let (mut fdb, mut rest) = (String::new(), String::new());
    for i in 0..peers {
        writeln!(fdb, "fdb replace {} dev flannel.1 dst {} self permanent", mac(i), remote(i))?;
        writeln!(rest, "neigh replace {} lladdr {} dev flannel.1 nud permanent protocol 116", gateway(i), mac(i))?;
        writeln!(
            rest,
            "route replace {} via {} dev flannel.1 onlink proto 116 metric {}",
            subnet(i),
            gateway(i),
            1000 + i
        )?;
    }
    let took = batch(node, "bridge", &fdb)? + batch(node, "ip", &rest)?;
    node.exec("ip link del flannel.1")?;
    Ok(took)
}

fn batch(node: &Node, program: &str, lines: &str) -> Result<Duration> {
    let mut input = tempfile::tempfile().context("make a file for iproute2")?;
    input.write_all(lines.as_bytes())?;
    input.rewind()?;
    let start = Instant::now();
    let output = node.netns().command(program)?.args(["-batch", "-"]).stdin(input).output()?;
    let took = start.elapsed();
    ensure!(output.status.success(), "{program} -batch: {}", String::from_utf8_lossy(&output.stderr));
    Ok(took)
}
