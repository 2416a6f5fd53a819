//! The process itself: what its log, its signals and its outputs may do to it.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::time::Duration;

#[path = "commands.rs"]
mod commands;
#[path = "fights.rs"]
mod fights;
#[path = "log.rs"]
mod log;
#[path = "signals.rs"]
mod signals;
#[path = "takeover.rs"]
mod takeover;

/// For states that take milliseconds on an idle machine, and for retries with a backoff of some seconds.
const PATIENCE: Duration = Duration::from_secs(30);
