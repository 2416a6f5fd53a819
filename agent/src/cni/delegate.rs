//! The other plugin: found in `CNI_PATH`, started, fed, awaited, and understood.
//!
//! Messages are those of libcni where it has one, because people search for them
//! (<https://github.com/containernetworking/cni/blob/v1.2.3/pkg/invoke/raw_exec.go>).

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;

use super::call::Verb;
use super::error::{Error, code, excerpt, os_text};

/// No result is that long; a delegate that prints without end must not fill the memory.
const MOST_OUTPUT: usize = 4 << 20;

/// How long a plugin may take to say which versions it speaks.
const SAYS_WITHIN: Duration = Duration::from_secs(10);

/// How often to look whether the delegate ended while something else keeps its output open.
const LOOK: Duration = Duration::from_millis(50);

/// How long a killed delegate may take to be gone.
const DIES_WITHIN: Duration = Duration::from_secs(2);

/// A delegate that has been started.
#[derive(Debug)]
pub struct Delegate {
    child: Child,
    name: String,
    verb: Verb,
}

/// Why a delegate has not done what it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It ended by itself and said no: this is its own answer.
    Refused(Error),
    /// It did not come to an end of its own, or gave no answer that can be used: what it has done by then is not known.
    Unfinished(Error),
}

/// A plugin where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugin {
    /// Its `type`.
    pub name: String,
    /// The file.
    pub program: PathBuf,
}

/// What a delegate left behind.
struct Output {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// `None` if it had to be killed.
    status: Option<ExitStatus>,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        match failure {
            Failure::Refused(error) | Failure::Unfinished(error) => error,
        }
    }
}

impl Plugin {
    /// Finds the plugin `name` in the directories of `CNI_PATH`.
    pub fn find(name: &str, path: &[PathBuf]) -> Result<Plugin, Error> {
        let found = path.iter().map(|dir| dir.join(name)).find(|file| fs::metadata(file).is_ok_and(|m| m.is_file()));
        let found = found.map(|program| Plugin { name: name.to_owned(), program });
        found.ok_or_else(|| {
            let path: Vec<_> = path.iter().map(|dir| dir.to_string_lossy()).collect();
            let msg = format!("failed to find plugin \"{name}\" in path [{}]", path.join(" "));
            Error::new(code::IO, msg).details(format!("install the CNI plugin {name} there"))
        })
    }

    /// The versions of the specification that it speaks, as it says itself; `None` if it doesn't.
    pub fn versions(&self) -> Option<Vec<String>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Answer {
            supported_versions: Vec<String>,
        }
        let asked = Delegate::start(self, Verb::Version).ok()?;
        let answer = asked.finish(br#"{"cniVersion":"0.1.0"}"#, Instant::now() + SAYS_WITHIN).ok()?;
        serde_json::from_slice::<Answer>(&answer).ok().map(|answer| answer.supported_versions)
    }
}

impl Delegate {
    /// Starts a plugin for `verb`. It gets our environment, so the runtime's variables.
    pub fn start(plugin: &Plugin, verb: Verb) -> Result<Delegate, Error> {
        let program = &plugin.program;
        let mut command = Command::new(program);
        command.env("CNI_COMMAND", verb.name());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own, so that killing it reaches what it has started (host-local, dhcp).
        command.process_group(0);
        let parent = Pid::this();
        // SAFETY: between fork and exec only async-signal-safe calls are allowed; these are two bare system calls.
        #[expect(unsafe_code, reason = "std has no safe way to tie a child's life to ours")]
        unsafe {
            command.pre_exec(move || {
                set_pdeathsig(Signal::SIGKILL)?;
                // We died before the line above.
                if Pid::parent() == parent { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
            });
        }
        let child = spawn(&mut command).map_err(|e| {
            let msg = format!("failed to delegate {}: exec {}: {}", lower(verb), program.display(), os_text(&e));
            Error::new(code::IO, msg).details(format!("is {} an executable for this machine?", program.display()))
        })?;
        Ok(Delegate { child, name: plugin.name.clone(), verb })
    }

    /// Hands it its configuration, waits for its end until the deadline, and returns what it printed.
    pub fn finish(mut self, config: &[u8], deadline: Instant) -> Result<Vec<u8>, Failure> {
        let limit = deadline.saturating_duration_since(Instant::now());
        let output = self.converse(config, deadline).map_err(|e| {
            let _ = self.kill();
            Failure::Unfinished(self.error(code::IO, format!("talking to plugin \"{}\": {}", self.name, os_text(&e))))
        })?;
        // What a plugin says there is for the runtime's log.
        crate::out::stderr(&output.stderr);
        self.judge(output, limit)
    }

    /// Feeds and reads it until it ended, or kills it at the deadline.
    fn converse(&mut self, input: &[u8], deadline: Instant) -> io::Result<Output> {
        let (mut stdin, mut stdout, mut stderr) =
            (self.child.stdin.take(), self.child.stdout.take(), self.child.stderr.take());
        for fd in [stdin.as_ref().map(AsFd::as_fd), stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)]
        {
            nonblocking(fd)?;
        }
        let mut output = Output { stdout: Vec::new(), stderr: Vec::new(), status: None };
        let mut rest = input;
        loop {
            feed(&mut stdin, &mut rest)?;
            drain(&mut stdout, &mut output.stdout)?;
            drain(&mut stderr, &mut output.stderr)?;
            if stdout.is_none() && stderr.is_none() {
                break;
            }
            // It may have ended and left its output to a child in the background: what is there has been read above.
            if output.status.is_some() {
                return Ok(output);
            }
            let wait = deadline.saturating_duration_since(Instant::now());
            if wait.is_zero() || output.stdout.len() > MOST_OUTPUT {
                self.kill()?;
                return Ok(output);
            }
            let ready = {
                let read = [stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)];
                let mut fds: Vec<PollFd<'_>> =
                    read.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
                fds.extend(stdin.as_ref().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLOUT)));
                poll(&mut fds, PollTimeout::try_from(wait.min(LOOK)).unwrap_or(PollTimeout::ZERO))
            };
            if ready == Ok(0) {
                output.status = self.child.try_wait()?;
            }
        }
        // Its output is closed, so it is ending, or hangs without any.
        loop {
            output.status = self.child.try_wait()?;
            if output.status.is_some() {
                return Ok(output);
            }
            if Instant::now() >= deadline {
                self.kill()?;
                return Ok(output);
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Makes a result or an error of what it left.
    fn judge(&self, output: Output, limit: Duration) -> Result<Vec<u8>, Failure> {
        let Some(status) = output.status else {
            let (code, why) = if output.stdout.len() > MOST_OUTPUT {
                (code::DECODE, format!("printed more than {} MiB", MOST_OUTPUT >> 20))
            } else {
                (code::TRY_AGAIN, format!("did not end within {} s", limit.as_secs_f32().round()))
            };
            let error = self.error(code, format!("plugin \"{}\" {why} and was killed", self.name));
            return Err(Failure::Unfinished(error.details(excerpt(&output.stderr))));
        };
        if status.success() {
            // Only ADD has a result; the other verbs print nothing, or what nobody reads.
            if self.verb == Verb::Add && !is_object(&output.stdout) {
                let printed = excerpt(&output.stdout);
                let msg = format!("plugin \"{}\" succeeded but printed no CNI result: \"{printed}\"", self.name);
                return Err(Failure::Unfinished(self.error(code::DECODE, msg)));
            }
            return Ok(output.stdout);
        }
        match serde_json::from_slice::<Error>(&output.stdout) {
            Ok(error) if error.code == code::TRY_AGAIN => Err(Failure::Unfinished(error)),
            Ok(error) => Err(Failure::Refused(error)),
            // Somebody killed it, for want of memory perhaps.
            Err(_) if status.code().is_none() => Err(Failure::Unfinished(self.wordless(&output, status))),
            Err(_) => Err(Failure::Refused(self.wordless(&output, status))),
        }
    }

    /// The error of one that failed and printed no error object.
    fn wordless(&self, output: &Output, status: ExitStatus) -> Error {
        let msg = match (excerpt(&output.stdout), excerpt(&output.stderr)) {
            (out, err) if out.is_empty() && err.is_empty() => {
                format!("netplugin failed with no error message: {status}")
            }
            (out, err) if out.is_empty() => format!("netplugin failed: \"{err}\": {status}"),
            (out, _) => format!("netplugin failed but error parsing its diagnostic message \"{out}\": {status}"),
        };
        self.error(code::DELEGATE_FAILED, msg).details(format!("the plugin was \"{}\"", self.name))
    }

    /// Kills it and all it has started in its group, and waits for its own end, though not for ever: what the kernel
    /// doesn't let go of (a dead disk, a network file system) may never come to it.
    fn kill(&mut self) -> io::Result<()> {
        // Not waited for yet, so the number is still its own.
        let _ = i32::try_from(self.child.id()).map(|pid| killpg(Pid::from_raw(pid), Signal::SIGKILL));
        let killed = Instant::now();
        while self.child.try_wait()?.is_none() && killed.elapsed() < DIES_WITHIN {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn error(&self, code: u32, msg: String) -> Error {
        Error::new(code, format!("failed to delegate {}: {msg}", lower(self.verb)))
    }
}

fn lower(verb: Verb) -> String {
    verb.name().to_lowercase()
}

/// Starts it; again if the file is being written at this moment (an installer that does not rename), as libcni does.
fn spawn(command: &mut Command) -> io::Result<Child> {
    const TRIES: u32 = 50;
    for _ in 1..TRIES {
        match command.spawn() {
            Err(e) if e.raw_os_error() == Some(libc::ETXTBSY) => std::thread::sleep(Duration::from_millis(100)),
            result => return result,
        }
    }
    command.spawn()
}

fn nonblocking(fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let Some(fd) = fd else { return Ok(()) };
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Writes what the pipe takes; closes it at the end, or when nobody reads.
fn feed(pipe: &mut Option<impl Write>, rest: &mut &[u8]) -> io::Result<()> {
    while let Some(open) = pipe {
        if rest.is_empty() {
            *pipe = None;
            break;
        }
        match open.write(rest) {
            Ok(n) => *rest = &rest[n..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // It may not want to know.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => *pipe = None,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Reads what is there, as far as we want to know; `None` at the end.
fn drain(pipe: &mut Option<impl Read>, into: &mut Vec<u8>) -> io::Result<()> {
    let mut chunk = [0; 8192];
    while let Some(open) = pipe {
        match open.read(&mut chunk) {
            Ok(0) => *pipe = None,
            Ok(n) if into.len() <= MOST_OUTPUT => into.extend_from_slice(&chunk[..n]),
            // Back to the caller, who looks at the clock.
            Ok(_) => break,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn is_object(json: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(json).is_ok()
}
