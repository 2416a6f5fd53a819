//! Where the programs log to: one line for each thing that happened, on standard error.
//!
//! As text, as JSON, or for the journal with its priorities; `line` has the forms. What a library or a record brings along
//! can neither end a line nor make it endless.

use std::io::IsTerminal;

use tracing::error;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::process;

mod line;
mod writer;

use line::{Form, Line};
pub use writer::Flush;

/// The level above which each packet that is asked about is logged; flannel's manifests rarely go beyond `-v=4`.
const PER_PACKET: u8 = 6;

/// What a line looks like: `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One object a line, for programs.
    Json,
}

/// Logs to standard error. `verbosity` is that of `-v`; RUST_LOG goes before it.
///
/// Keep what is returned until the program ends: it writes the last lines.
pub fn to_stderr(verbosity: u8, format: Format) -> Flush {
    let level = match verbosity {
        0 => LevelFilter::INFO,
        1..PER_PACKET => LevelFilter::DEBUG,
        PER_PACKET.. => LevelFilter::TRACE,
    };
    // Libraries speak only when something is wrong, unless RUST_LOG names them.
    let default = || {
        let ours = ["twill_agent", "twilld"].map(|target| (target, level));
        Targets::new().with_default(LevelFilter::WARN).with_targets(ours)
    };
    let wanted = std::env::var("RUST_LOG").ok().filter(|wanted| !wanted.is_empty());
    let (filter, mistake) = match wanted.as_ref().map(|wanted| wanted.parse::<Targets>()) {
        None => (default(), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(mistake)) => (default(), Some(mistake)),
    };
    let form = match format {
        Format::Json => Form::Json,
        Format::Text if is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref()) => Form::Journal,
        Format::Text => Form::Text,
    };
    let (lines, flush) = writer::start();
    let logging = tracing_subscriber::fmt::layer()
        .with_writer(lines)
        // It would print them on standard error, and panic where that fails.
        .log_internal_errors(false)
        .with_ansi(form == Form::Text && std::io::stderr().is_terminal())
        .event_format(Line(form));
    // It fails only where something else logs already.
    let _ = tracing_subscriber::registry().with(logging).with(filter).try_init();
    if let Some(mistake) = mistake {
        tracing::warn!(RUST_LOG = wanted, error = %mistake, "the variable RUST_LOG is not usable: logging without it");
    }
    flush
}

/// Puts panics into the log too: what std does could wait for a standard error that nobody reads.
pub fn panics() {
    std::panic::set_hook(Box::new(|panic| {
        if !process::expects_panic() {
            error!("a fault in the program: {}", panic.to_string().replace('\n', " "));
        }
    }));
}

/// Whether standard error goes to the journal: systemd names the device and the inode of the socket that it made for it
/// (<https://www.freedesktop.org/software/systemd/man/systemd.exec.html#%24JOURNAL_STREAM>).
fn is_journal(stream: Option<&str>) -> bool {
    let Ok(stat) = nix::sys::stat::fstat(std::io::stderr()) else { return false };
    stream.is_some_and(|stream| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_known_by_the_socket_that_it_names() {
        let stat = nix::sys::stat::fstat(std::io::stderr()).unwrap();
        assert!(is_journal(Some(&format!("{}:{}", stat.st_dev, stat.st_ino))));
        assert!(!is_journal(Some(&format!("{}:{}", stat.st_dev, stat.st_ino + 1))));
        for no in [None, Some(""), Some("8"), Some("8:x")] {
            assert!(!is_journal(no), "{no:?}");
        }
    }
}
