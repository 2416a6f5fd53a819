//! What a command prints: its result on standard output, everything else on standard error.
//!
//! `println!` and `eprintln!` panic where nobody reads or a disk is full, and are not used.

use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::process;

/// How long a note may wait for its reader.
const NOTE_WITHIN: Duration = Duration::from_secs(1);
/// A pipe that is ready takes so many bytes without blocking (`PIPE_BUF`, pipe(7)).
const PIECE: usize = 4096;

/// Prints a result, which ends with a line end.
///
/// # Errors
/// When it cannot be written. A reader that has gone (`| head`) has read what it wanted: no error.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), format!("cannot write to standard output: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// Prints the result of a command that has changed something.
///
/// # Errors
/// When it cannot be written. The error has the result: what is done is done.
pub fn print_done(result: &impl Display) -> io::Result<()> {
    print(&format!("{result}\n")).map_err(|error| io::Error::new(error.kind(), format!("{error}; done: {result}")))
}

/// Says something on standard error; see [`stderr`].
pub fn note(text: impl Display) {
    stderr(format!("{text}\n").as_bytes());
}

/// Has a panic say so on standard error in this way too. std's own way would wait for a pipe that nobody reads.
pub fn panics(program: &'static str) {
    std::panic::set_hook(Box::new(move |panic| {
        if !process::expects_panic() {
            note(format_args!("{program}: a fault in the program: {panic}"));
        }
    }));
}

/// Writes to standard error, as far as it takes it. That only informs: where it cannot be written, nothing happens, and a pipe
/// that nobody reads is waited for for a second at the most.
pub fn stderr(mut rest: &[u8]) {
    let stderr = io::stderr();
    let end = Instant::now() + NOTE_WITHIN;
    while !rest.is_empty() {
        let left = end.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let is_ready = poll(&mut [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)], left);
        let written = match is_ready {
            Ok(1..) => nix::unistd::write(stderr.as_fd(), &rest[..rest.len().min(PIECE)]),
            Ok(_) => return,
            Err(error) => Err(error),
        };
        match written {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(nix::Error::EINTR | nix::Error::EAGAIN) => {}
            Err(_) => return,
        }
    }
}
