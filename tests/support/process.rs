//! A program under test: started, signalled by its pid, awaited, and gone with its value.

use std::fs::{File, read_to_string};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How a program ended.
#[derive(Debug, Clone, Copy)]
pub struct Exit {
    /// Its exit status; [`ExitStatus::code`] is `None` after a signal.
    pub status: ExitStatus,
    /// From the signal (or the call that waited) to its end, to about 5 ms.
    pub took: Duration,
}

/// A running program whose output goes to a file; killed on drop.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with both outputs to the file `log`, which is made anew.
    pub(crate) fn start(mut command: Command, log: &Path) -> Result<Process> {
        let file = File::create(log).with_context(|| format!("make {}", log.display()))?;
        command.stdout(file.try_clone()?).stderr(file);
        let name = command.get_program().to_string_lossy().into_owned();
        let child = spawn(command).with_context(|| format!("start {name}"))?;
        Ok(Process { child, log: log.to_path_buf() })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far, both outputs.
    pub(crate) fn log(&self) -> String {
        read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal; to a process that has ended, none (its pid is ours until it is waited for, and then gone).
    pub(crate) fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            bail!("it has already ended");
        }
        let pid = i32::try_from(self.child.id()).context("a pid fits i32")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("send {signal}"))
    }

    /// Its exit status if it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end, at most `limit`.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<Exit> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Exit { status, took: start.elapsed() });
            }
            if start.elapsed() > limit {
                bail!("pid {} still runs after {limit:?}", self.child.id());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGKILL, and waits. Not an error if it has ended.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts a command from a thread that lives as long as this process. PR_SET_PDEATHSIG fires when the *thread*
/// that forked ends (prctl(2)), so a daemon started from a test's helper thread would die with that thread.
fn spawn(command: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::Sender<io::Result<Child>>);
    static STARTER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in inbox {
                // Nobody waits for the answer any more if the test has panicked; then the child goes as well.
                if let Err(mpsc::SendError(Ok(mut child))) = answer.send(command.spawn()) {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        });
        orders
    });
    let (answer, outcome) = mpsc::channel();
    let gone = |_| io::Error::other("the thread that starts programs is gone");
    starter.send((command, answer)).map_err(|_| io::Error::other("the thread that starts programs is gone"))?;
    outcome.recv().map_err(gone)?
}

/// The program `name` of this workspace, built into the directory of the running executable.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("find the running executable")?;
    // Tests run from target/<profile>/deps, the demo from target/<profile>.
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| {
        let near = own.parent().unwrap_or(Path::new("/")).display();
        format!("no {name} beside {near}: run `cargo build --workspace --bins` first")
    })
}
