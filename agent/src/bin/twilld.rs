//! The daemon.

use std::process::ExitCode;

use tracing::{error, info};
use twill_agent::cli::Flags;
use twill_agent::eventloop::Ended;
use twill_agent::{log, start};

/// Our subnet is another node's.
const LEASE_LOST: u8 = 3;

fn main() -> ExitCode {
    let flags = Flags::read();
    log::to_stderr(flags.verbosity);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(start::run(flags)),
        Err(source) => Err(source.into()),
    };
    match ended {
        Ok(Ended::Stopped) => {
            info!("stopped");
            ExitCode::SUCCESS
        }
        Ok(Ended::LeaseLost { holder }) => {
            error!(%holder, "stopped: another node holds our subnet; start again for another one, and make the pods with addresses of this one anew");
            ExitCode::from(LEASE_LOST)
        }
        Ok(Ended::Broken { part }) => {
            error!(%part, "stopped: a part of the daemon works no more; start it again");
            ExitCode::FAILURE
        }
        Err(failure) => {
            error!("{failure:#}");
            ExitCode::FAILURE
        }
    }
}
