//! The lines of the log on their way to standard error: a bounded queue, and a thread that writes.
//!
//! Whoever logs never waits and never fails. Standard error may be a pipe that nobody reads, a full disk or a reader that is
//! gone; the daemon serves its node all the same. Lines that cannot be written are lost and counted, and a line with their
//! number follows as soon as one can be written again.
//!
//! Not the crate `tracing-appender`: its queue is bounded in lines and not in bytes, and it forgets a line that could not be
//! written without counting it.

use std::cell::RefCell;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::warn;
use tracing_subscriber::fmt::MakeWriter;

/// How many bytes may wait to be written: some 8,000 lines.
const ROOM: usize = 1 << 20;
/// Lines are written together up to this length, which a pipe takes whole (`PIPE_BUF`, pipe(7)): no other process's line
/// gets in between.
const PIECE: usize = 4096;
/// How often the number of lost lines is tried while there is nothing else to write.
const TRY_EVERY: Duration = Duration::from_secs(5);
/// How long an end of the program may wait for the last lines.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

thread_local! {
    /// Takes in the lines that the writing thread logs itself; they don't go through the queue.
    static OWN_LINES: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// Where the log's lines go. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Lines(Arc<Queue>);

/// Sees to it that the last lines are written before the program ends: see [`Flush::drop`].
#[derive(Debug)]
#[must_use = "the last lines are written when it is dropped"]
pub struct Flush(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// Something is waiting, or the end has come.
    more: Condvar,
    /// The thread has nothing left to do.
    idle: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    /// How many lines found no room behind `lines`.
    lost: u64,
    /// The thread is writing what it took last.
    writing: bool,
    /// No more lines will come.
    closed: bool,
    /// There is no thread: whoever logs writes.
    direct: bool,
}

/// Starts the thread.
pub(super) fn start() -> (Lines, Flush) {
    let queue = Arc::new(Queue::default());
    let for_thread = Arc::clone(&queue);
    let work = move || Writing::new(stderr).run(&for_thread);
    if std::thread::Builder::new().name("log".to_owned()).spawn(work).is_err() {
        queue.lock().direct = true;
    }
    (Lines(Arc::clone(&queue)), Flush(queue))
}

/// One write to standard error. Where another process has made it non-blocking, this waits.
fn stderr(bytes: &[u8]) -> io::Result<usize> {
    let stderr = io::stderr();
    loop {
        // Not through `io::Stderr`: its lock would be held while a write blocks.
        match nix::unistd::write(stderr.as_fd(), bytes) {
            Err(nix::Error::EAGAIN) => {
                poll(&mut [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
            }
            written => return Ok(written?),
        }
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Lines;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// Each write is a whole line: tracing-subscriber makes one for each event.
impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let own = OWN_LINES.with_borrow_mut(|own| own.as_mut().map(|own| own.extend_from_slice(line)).is_some());
        if !own {
            self.0.push(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Flush {
    /// Waits until all lines are written, for a second at the most.
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.closed = true;
        self.0.more.notify_one();
        let busy = |waiting: &mut Waiting| !waiting.direct && (waiting.writing || !waiting.is_empty());
        // Whether they are or not, the program ends.
        let _ = self.0.idle.wait_timeout_while(waiting, FLUSH_WITHIN, busy);
    }
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.lost == 0
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing in here leaves it half changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut waiting = self.lock();
        if waiting.direct {
            drop(waiting);
            let _ = stderr(line);
            return;
        }
        // Once a line is lost, those after it are as well: the count stands where they are missing.
        if waiting.lost > 0 || waiting.lines.len() + line.len() > ROOM {
            waiting.lost += 1;
            return;
        }
        waiting.lines.extend_from_slice(line);
        drop(waiting);
        self.more.notify_one();
    }

    /// What waits, in exchange for `taken`, which is empty; the number of lines that are missing behind it; and whether it
    /// is the last. After `patience`, if there is one, also without a line.
    fn take(&self, taken: &mut Vec<u8>, patience: Option<Duration>) -> (u64, bool) {
        let mut waiting = self.lock();
        waiting.writing = false;
        self.idle.notify_all();
        let nothing = |waiting: &mut Waiting| waiting.is_empty() && !waiting.closed;
        waiting = match patience {
            None => self.more.wait_while(waiting, nothing).unwrap_or_else(PoisonError::into_inner),
            Some(patience) => {
                self.more.wait_timeout_while(waiting, patience, nothing).unwrap_or_else(PoisonError::into_inner).0
            }
        };
        waiting.writing = true;
        std::mem::swap(&mut waiting.lines, taken);
        (std::mem::take(&mut waiting.lost), waiting.closed)
    }
}

/// The thread's side.
struct Writing<W> {
    write: W,
    /// Lines that are missing in what was written, and why the last of them is.
    lost: u64,
    why: String,
    /// The last write ended within a line.
    broken_off: bool,
}

impl<W: FnMut(&[u8]) -> io::Result<usize>> Writing<W> {
    fn new(write: W) -> Self {
        Self { write, lost: 0, why: String::new(), broken_off: false }
    }

    /// Writes until the end.
    fn run(mut self, queue: &Queue) {
        OWN_LINES.set(Some(Vec::new()));
        let mut lines = Vec::new();
        loop {
            let (missing, last) = queue.take(&mut lines, (self.lost > 0).then_some(TRY_EVERY));
            self.batch(&lines, missing);
            lines.clear();
            // After a stall, its memory is given back.
            lines.shrink_to(PIECE);
            if last {
                queue.lock().writing = false;
                queue.idle.notify_all();
                return;
            }
        }
    }

    /// Writes some lines, behind which so many are missing.
    fn batch(&mut self, lines: &[u8], missing: u64) {
        for piece in pieces(lines) {
            self.piece(piece);
        }
        if missing > 0 {
            self.lost += missing;
            self.why = "it took nothing for a while".to_owned();
        }
        self.tell_lost();
    }

    /// Writes whole lines, the number of those that are missing before them first.
    fn piece(&mut self, lines: &[u8]) {
        self.tell_lost();
        if self.lost == 0 {
            self.write(lines);
        } else {
            self.lost += count(lines);
        }
    }

    /// Says how many lines are missing, if any are. As the log's own line, in whatever form it has.
    fn tell_lost(&mut self) {
        if self.lost == 0 {
            return;
        }
        warn!(lines = self.lost, why = %self.why, "lines of this log are lost: standard error could not be written");
        let note = OWN_LINES.with_borrow_mut(|own| own.as_mut().map(std::mem::take)).unwrap_or_default();
        let lost = std::mem::take(&mut self.lost);
        if !self.write(&note) {
            // The line with the number was not written either, so the number stays.
            self.lost = lost;
        }
    }

    /// Writes some lines; counts those of which the end could not be written. Whether there are none.
    fn write(&mut self, lines: &[u8]) -> bool {
        let mut rest = lines;
        while !rest.is_empty() {
            let next = if self.broken_off { b"\n" } else { rest };
            match (self.write)(next) {
                Ok(0) => return self.failed(rest, &io::ErrorKind::WriteZero.into()),
                Ok(_) if self.broken_off => self.broken_off = false,
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let done = lines.len() - rest.len();
                    self.broken_off |= done > 0 && lines[done - 1] != b'\n';
                    return self.failed(rest, &error);
                }
            }
        }
        true
    }

    fn failed(&mut self, rest: &[u8], error: &io::Error) -> bool {
        self.lost += count(rest);
        self.why = error.to_string();
        false
    }
}

/// How many lines end in these bytes.
fn count(lines: &[u8]) -> u64 {
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// Cuts lines into pieces of whole lines, none longer than [`PIECE`] but for a single line that is.
fn pieces(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let most = rest.get(..PIECE).unwrap_or(rest);
        let end = most.iter().rposition(|byte| *byte == b'\n').or_else(|| rest.iter().position(|byte| *byte == b'\n'));
        let (piece, after) = rest.split_at(end.map_or(rest.len(), |end| end + 1));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests;
