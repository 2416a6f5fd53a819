//! Where the programs log to: readable lines on standard error.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

/// The level above which each packet that is asked about is logged; flannel's manifests rarely go beyond `-v=4`.
const PER_PACKET: u8 = 6;

/// Logs to standard error. `verbosity` is that of `-v`; RUST_LOG goes before it.
pub fn to_stderr(verbosity: u8) {
    let level = match verbosity {
        0 => LevelFilter::INFO,
        1..PER_PACKET => LevelFilter::DEBUG,
        PER_PACKET.. => LevelFilter::TRACE,
    };
    // Libraries speak only when something is wrong, unless RUST_LOG names them.
    let default = format!("warn,twill_agent={level},twilld={level}");
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        .with_target(false)
        .init();
}
