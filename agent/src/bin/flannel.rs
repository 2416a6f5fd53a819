//! The CNI plugin. All of it is in [`twill_agent::cni`].

use std::io::{self, Write};
use std::process::ExitCode;

use twill_agent::cni;

fn main() -> ExitCode {
    let reply = std::panic::catch_unwind(|| cni::run(|name| std::env::var_os(name), io::stdin().lock()))
        .unwrap_or_else(|_| cni::internal_error("a panic; standard error has its message"));
    let _ = io::stderr().write_all(reply.stderr.as_bytes());
    let mut stdout = io::stdout().lock();
    // A runtime that is gone has not got the result: no success.
    let delivered = stdout.write_all(&reply.stdout).and_then(|()| stdout.flush()).is_ok();
    if reply.success && delivered { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
