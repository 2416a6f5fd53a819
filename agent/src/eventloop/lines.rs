//! The lines that a test's own thread logs.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use tracing::subscriber::DefaultGuard;

/// All lines since [`Lines::begin`], for as long as it lives.
pub(super) struct Lines {
    sink: Sink,
    _guard: DefaultGuard,
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// Takes in what this thread logs from now on.
    pub(super) fn begin() -> Self {
        let sink = Sink::default();
        let writer = sink.clone();
        let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        Self { sink, _guard: tracing::subscriber::set_default(lines) }
    }

    /// Those with these words.
    pub(super) fn with(&self, words: &str) -> Vec<String> {
        let text = String::from_utf8(self.sink.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains(words)).map(str::to_owned).collect()
    }
}
