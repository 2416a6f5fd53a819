//! The queue with a standard error that fails in every way.

use std::sync::mpsc;
use std::thread;

use tracing_subscriber::filter::LevelFilter;

use super::*;

/// Standard error as a test has it: what was written, and what the next writes come to.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Faked>>);

#[derive(Default)]
struct Faked {
    written: Vec<u8>,
    /// So many bytes are taken, then there is no room.
    room: Option<usize>,
}

impl Fake {
    fn set_room(&self, room: Option<usize>) {
        self.0.lock().unwrap().room = room;
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().written.clone()).unwrap()
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut faked = self.0.lock().unwrap();
        let taken = faked.room.map_or(bytes.len(), |room| room.min(bytes.len()));
        if taken == 0 {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        faked.room = faked.room.map(|room| room - taken);
        faked.written.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }
}

/// Lets the thread's work be done on this one, with its own lines in a plain form, for what was pushed.
fn written(fake: &Fake, rounds: &[(&[&str], Option<usize>)]) -> String {
    let (lines, _flush) = unstarted();
    let form = tracing_subscriber::fmt().with_writer(lines.clone()).with_ansi(false).without_time().with_target(false);
    let form = form.with_max_level(LevelFilter::WARN).finish();
    tracing::subscriber::with_default(form, || {
        OWN_LINES.set(Some(Vec::new()));
        let mut writing = Writing::new(|bytes: &[u8]| fake.write(bytes));
        let mut taken = Vec::new();
        for (pushed, room) in rounds {
            fake.set_room(*room);
            pushed.iter().for_each(|line| lines.0.push(format!("{line}\n").as_bytes()));
            let (missing, _) = lines.0.take(&mut taken, Some(Duration::ZERO));
            writing.batch(&taken, missing);
            taken.clear();
        }
        OWN_LINES.set(None);
    });
    fake.text()
}

/// A queue whose thread is this one.
fn unstarted() -> (Lines, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    (Lines(Arc::clone(&queue)), queue)
}

const LOST_ONE: &str = " WARN lines of this log are lost: standard error could not be written lines=1 why=No space left on device (os error 28)\n";

#[test]
fn what_found_no_room_is_counted_where_it_is_missing() {
    let all = [(&["one"][..], None), (&["two"], Some(0)), (&["three"], None)];
    assert_eq!(written(&Fake::default(), &all), format!("one\n{LOST_ONE}three\n"));
}

#[test]
fn the_number_is_told_without_another_line() {
    assert_eq!(written(&Fake::default(), &[(&["one"], Some(0)), (&[], None)]), LOST_ONE);
    let still = [(&["one"][..], Some(0)), (&["two"], Some(0)), (&[], Some(0)), (&[], None)];
    let two = LOST_ONE.replace("lines=1", "lines=2");
    assert_eq!(written(&Fake::default(), &still), two);
}

#[test]
fn a_line_that_was_broken_off_is_ended_and_counted() {
    let all = [(&["one", "two"][..], Some(6)), (&["three"], None)];
    assert_eq!(written(&Fake::default(), &all), format!("one\ntw\n{LOST_ONE}three\n"));
}

#[test]
fn a_queue_that_is_full_loses_what_comes_and_keeps_the_order() {
    let (lines, queue) = unstarted();
    let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
    for _ in 0..ROOM / line.len() + 10 {
        (&lines).write_all(&line).unwrap();
    }
    // There would be room for it, but not behind those that are missing.
    queue.lock().lines.truncate(ROOM / 2);
    (&lines).write_all(b"short\n").unwrap();
    let mut taken = Vec::new();
    assert_eq!(queue.take(&mut taken, None), (11, false));
    assert_eq!(taken.len(), ROOM / 2);
    (&lines).write_all(b"short\n").unwrap();
    taken.clear();
    assert_eq!(queue.take(&mut taken, None), (0, false));
    assert_eq!(taken, b"short\n");
}

#[test]
fn pieces_are_whole_lines_that_a_pipe_takes_whole() {
    let lines: Vec<u8> = (0..3_000).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
    let cut: Vec<&[u8]> = pieces(&lines).collect();
    assert!(cut.iter().all(|piece| piece.len() <= PIECE && piece.ends_with(b"\n")));
    assert_eq!(cut.concat(), lines);
    let long = [b"x".repeat(PIECE * 2), b"\ny\nz".to_vec()].concat();
    let cut: Vec<usize> = pieces(&long).map(<[u8]>::len).collect();
    assert_eq!(cut, [PIECE * 2 + 1, 2, 1]);
}

#[test]
fn all_lines_are_written_at_the_end_and_a_stalled_reader_is_not_waited_for() {
    let fake = Fake::default();
    let (lines, queue) = unstarted();
    let (go, stalled) = mpsc::channel::<()>();
    let (for_thread, into) = (Arc::clone(&queue), fake.clone());
    let thread = thread::spawn(move || {
        let mut first = true;
        let write = |bytes: &[u8]| {
            if std::mem::take(&mut first) {
                stalled.recv().unwrap();
            }
            into.write(bytes)
        };
        Writing::new(write).run(&for_thread);
    });
    let all: Vec<String> = (0..1_000).map(|n| format!("line {n}\n")).collect();
    all.iter().for_each(|line| (&lines).write_all(line.as_bytes()).unwrap());
    // Nobody reads: it ends all the same.
    drop(Flush(Arc::clone(&queue)));
    assert_eq!(fake.text(), "");
    go.send(()).unwrap();
    drop(Flush(queue));
    thread.join().unwrap();
    assert_eq!(fake.text(), all.concat());
}
