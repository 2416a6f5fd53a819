//! The CNI plugin. All of it is in [`twill_agent::cni`].

// They panic where standard output or error cannot be written: `out` doesn't.
#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::io::{self, Write};
use std::process::ExitCode;

use twill_agent::{cni, out, process};

fn main() -> ExitCode {
    process::command_signals();
    out::panics("flannel");
    let reply = std::panic::catch_unwind(|| cni::run(|name| std::env::var_os(name), io::stdin().lock()))
        .unwrap_or_else(|_| cni::internal_error("a panic; standard error has its message"));
    out::stderr(reply.stderr.as_bytes());
    let mut stdout = io::stdout().lock();
    // A runtime that is gone has not got the result: no success.
    let delivered = stdout.write_all(&reply.stdout).and_then(|()| stdout.flush()).is_ok();
    if reply.success && delivered { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
