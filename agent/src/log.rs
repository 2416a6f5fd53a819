//! Where the programs log to: readable lines on standard error.

use tracing::error;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

mod writer;

pub use writer::Flush;

/// The level above which each packet that is asked about is logged; flannel's manifests rarely go beyond `-v=4`.
const PER_PACKET: u8 = 6;

/// Logs to standard error. `verbosity` is that of `-v`; RUST_LOG goes before it.
///
/// Keep what is returned until the program ends: it writes the last lines.
pub fn to_stderr(verbosity: u8) -> Flush {
    let level = match verbosity {
        0 => LevelFilter::INFO,
        1..PER_PACKET => LevelFilter::DEBUG,
        PER_PACKET.. => LevelFilter::TRACE,
    };
    // Libraries speak only when something is wrong, unless RUST_LOG names them.
    let default = format!("warn,twill_agent={level},twilld={level}");
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let (lines, flush) = writer::start();
    let logging = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(lines)
        // It would print them on standard error, and panic where that fails.
        .log_internal_errors(false)
        .with_ansi(ansi)
        .with_target(false)
        .finish();
    // It fails only where something else logs already.
    let _ = tracing::subscriber::set_global_default(logging);
    flush
}

/// Puts panics into the log too: what std does could wait for a standard error that nobody reads.
pub fn panics() {
    std::panic::set_hook(Box::new(|panic| {
        error!("a fault in the program: {}", panic.to_string().replace('\n', " "));
    }));
}
