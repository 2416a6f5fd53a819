//! One network namespace: made and removed as `ip netns` does, so that people can look into it with `ip netns exec`.
//!
//! Owns its life and the ways of running something inside. See ip-netns(8), network_namespaces(7).

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::names;

/// A network namespace that is removed with this value.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes the namespace `name` with `lo` up.
    pub(crate) fn new(name: String) -> Result<Namespace> {
        add(&name)?;
        let namespace = Namespace { name };
        namespace.ip_batch(["link set lo up"])?;
        Ok(namespace)
    }

    /// Its name for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run in this namespace, in a process group of its own (a Ctrl-C is for us, and we stop it)
    /// and that the kernel kills when the thread that starts it ends.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let netns = self.open()?;
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).process_group(0);
        // SAFETY: between fork and exec only async-signal-safe calls are allowed; these are two bare system calls on
        // a descriptor opened before, with no allocation and no lock.
        #[expect(unsafe_code, reason = "std offers no safe way to start a process in another namespace")]
        unsafe {
            command.pre_exec(move || {
                setns(&netns, CloneFlags::CLONE_NEWNET)?;
                set_pdeathsig(Signal::SIGKILL)?;
                Ok(())
            });
        }
        Ok(command)
    }

    /// Runs a program with its arguments inside and returns what it printed; its complaint if it fails.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let (program, args) = words.split_first().context("a command has at least a name")?;
        finish(self.command(program)?.args(args), words)
    }

    /// [`Namespace::run`] for a line without quoting: `exec("ip route show")`.
    pub fn exec(&self, line: &str) -> Result<String> {
        self.run(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs lines of `ip -batch` inside: many changes at the price of one program.
    pub fn ip_batch<S: AsRef<str>>(&self, lines: impl IntoIterator<Item = S>) -> Result<()> {
        let lines: Vec<String> = lines.into_iter().map(|l| l.as_ref().to_string()).collect();
        // Through a file: a pipe needs somebody to feed it while the program already answers.
        let mut input = tempfile::tempfile().context("make a file for ip -batch")?;
        std::io::Write::write_all(&mut input, (lines.join("\n") + "\n").as_bytes())?;
        std::io::Seek::rewind(&mut input)?;
        let words = ["ip", "-batch", "-"];
        finish(self.command("ip")?.args(&words[1..]).stdin(input), &words)
            .with_context(|| format!("in {}:\n  {}", self.name, lines.join("\n  ")))?;
        Ok(())
    }

    /// Runs `work` in a fresh thread that has entered the namespace: for sockets and for `/proc/sys/net`, which show
    /// the namespace of the thread that opens them. (`/sys/class/net` does not.)
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let netns = self.open()?;
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || -> Result<T> {
                setns(&netns, CloneFlags::CLONE_NEWNET).context("enter the namespace")?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Writes a kernel parameter below `/proc/sys/net`, as `ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{key}");
        self.enter(|| fs::write(&path, value))?.with_context(|| format!("write {value} to {path} in {}", self.name))
    }

    fn open(&self) -> Result<File> {
        File::open(names::netns_path(&self.name)).with_context(|| format!("open the namespace {}", self.name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let removed = Command::new("ip").args(["netns", "del", &self.name]).output();
        if !removed.is_ok_and(|r| r.status.success()) {
            let _ = writeln!(io::stderr(), "the namespace {} could not be removed; the next run will", self.name);
        }
    }
}

/// `ip netns add`, one at a time on the whole machine: the first one ever mounts `/run/netns`, and two at once
/// mount it twice, which hides the names of one of them.
fn add(name: &str) -> Result<()> {
    static THREADS: Mutex<()> = Mutex::new(());
    let _threads = THREADS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let file = File::create("/run/twill-lab.lock").context("make /run/twill-lab.lock")?;
    let _processes =
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e).context("lock /run/twill-lab.lock")?;
    let words = ["ip", "netns", "add", name];
    finish(Command::new("ip").args(&words[1..]), &words)?;
    Ok(())
}

/// Runs a command to its end; standard output if it succeeds, an error with both outputs if not.
pub(crate) fn finish(command: &mut Command, words: &[&str]) -> Result<String> {
    let line = words.join(" ");
    let output = match command.output() {
        Ok(output) => output,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            bail!("{} is not installed: run deploy/setup/debian.sh first", words[0])
        }
        Err(e) => return Err(e).with_context(|| format!("start `{line}`")),
    };
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{line}` ended with {}: {}{}", output.status, stderr.trim(), {
        let out = stdout.trim();
        if out.is_empty() { String::new() } else { format!("\n{out}") }
    });
    Ok(stdout)
}
