//! The operator's command.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use twill_agent::cli::{self, EtcdFlags};
use twill_agent::{leases, log};

/// Looks at a Twill (or flannel) network.
#[derive(Debug, Parser)]
#[command(name = "twill", version, max_term_width = 120)]
struct Flags {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    etcd: EtcdFlags,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the subnets that nodes hold, as etcd has them.
    Leases,
}

fn main() -> ExitCode {
    let flags = Flags::parse_from(cli::args());
    log::to_stderr(0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match (runtime, flags.command) {
        (Ok(runtime), Command::Leases) => runtime.block_on(leases::print(&flags.etcd)),
        (Err(source), _) => Err(source.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("twill: {failure:#}");
            ExitCode::FAILURE
        }
    }
}
