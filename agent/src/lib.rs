//! The Twill agent: a flannel-compatible VXLAN overlay.
//!
//! `overlay` is pure; `store` (etcd) and `dataplane` (the kernel) do the I/O behind traits and don't know each other;
//! `eventloop` ties them together. ARCHITECTURE.md has the picture.

// They panic where standard output or error cannot be written: `out` and the log don't.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod cli;
pub mod cni;
pub mod dataplane;
pub mod docker_opts;
pub mod eventloop;
mod files;
pub mod handoff;
pub mod http;
pub mod init_config;
pub mod install;
pub mod lease;
pub mod leases;
mod lock;
pub mod log;
pub mod masquerade;
mod metrics;
pub mod nodeid;
pub mod out;
pub mod overlay;
mod passing;
pub mod process;
mod reader;
pub mod reserve;
pub mod site;
pub mod snapshot;
pub mod start;
pub mod store;

/// The version and the commit, as `--version` shows them.
pub const VERSION: &str = env!("TWILL_VERSION");
