//! The daemon; and the operator's command for whoever calls it by that name, so that an image holds both in one file.

// They panic where standard output or error cannot be written: the log doesn't.
#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use tracing::{error, info};
use twill_agent::cli::Flags;
use twill_agent::eventloop::Ended;
use twill_agent::{log, process, start};

#[path = "twill.rs"]
mod twill;

/// Our subnet is another node's.
const LEASE_LOST: u8 = 3;

fn main() -> ExitCode {
    let name = std::env::args_os().next();
    if name.is_some_and(|name| Path::new(&name).file_name() == Some(OsStr::new("twill"))) {
        return twill::main();
    }
    process::daemon_signals();
    process::look_up_names_by_files_and_dns();
    let flags = Flags::read();
    let _last_lines = log::to_stderr(flags.verbosity, flags.log_format);
    log::panics();
    match process::block_on(start::run(flags)) {
        Ok(Ended::Stopped) => {
            info!("stopped");
            ExitCode::SUCCESS
        }
        Ok(Ended::LeaseLost { holder }) => {
            error!(%holder, "stopped: another node holds our subnet; start again for another one, and make the pods with addresses of this one anew. \
                Once those are gone, remove their bridge (ip link del cni0, or as the CNI config names it): it still leads that subnet to this node");
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
