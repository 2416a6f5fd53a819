//! A namespace with a VXLAN device to write to. Nothing is ever sent there.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use tempfile::NamedTempFile;

/// The device's name.
pub(crate) const DEVICE: &str = "x0";
/// Where all peers live.
pub(crate) const REMOTE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// For the kernel to finish what deleting a device leaves behind.
const PAUSE: Duration = Duration::from_millis(30);

/// Runs `work` on a thread with a network namespace of its own, which goes with the thread.
pub(crate) fn in_namespace<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).context("a new network namespace")?;
        commands("ip", "link set lo up\nlink add u0 type veth peer name u1\naddr add 192.0.2.1/24 dev u0\n")?;
        commands("ip", "link set u0 up\nlink set u1 up\n")?;
        work()
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Makes the device anew, and with it empty tables; its index.
pub(crate) fn fresh_device() -> Result<u32> {
    if nix::net::if_::if_nametoindex(DEVICE).is_ok() {
        commands("ip", &format!("link del {DEVICE}\n"))?;
        std::thread::sleep(PAUSE);
    }
    commands(
        "ip",
        &format!(
            "link add {DEVICE} type vxlan id 1 dev u0 local 192.0.2.1 dstport 8472 nolearning\n\
             addr add 10.128.0.0/32 dev {DEVICE}\n\
             link set {DEVICE} up\n"
        ),
    )?;
    Ok(nix::net::if_::if_nametoindex(DEVICE)?)
}

/// Runs lines of `ip -batch` or `bridge -batch`.
pub(crate) fn commands(program: &str, lines: &str) -> Result<()> {
    batch(program, &batch_file(lines)?)
}

/// Lines in a file, for [`batch`].
pub(crate) fn batch_file(lines: &str) -> Result<NamedTempFile> {
    let mut file = NamedTempFile::new()?;
    file.write_all(lines.as_bytes())?;
    Ok(file)
}

/// Runs a file of `ip -batch` or `bridge -batch`.
pub(crate) fn batch(program: &str, file: &NamedTempFile) -> Result<()> {
    let status = Command::new(program).arg("-batch").arg(file.path()).status().with_context(|| program.to_owned())?;
    ensure!(status.success(), "{program} -batch ended with {status}");
    Ok(())
}

/// Runs a program and throws away what it prints.
pub(crate) fn run_to_null(line: &str) -> Result<()> {
    let mut words = line.split_whitespace();
    let null = File::create("/dev/null")?;
    let mut command = Command::new(words.next().context("a program")?);
    let status = command.args(words).stdout(Stdio::from(null)).status().with_context(|| line.to_owned())?;
    ensure!(status.success(), "{line} ended with {status}");
    Ok(())
}
