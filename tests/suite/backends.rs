//! The backends that have no device.
//!
//! One program, so that it is linked once.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::time::Duration;

#[path = "alloc.rs"]
mod alloc;
#[path = "host_gw.rs"]
mod host_gw;

/// For states that take milliseconds on an idle machine, and for retries with a backoff of some seconds.
const PATIENCE: Duration = Duration::from_secs(30);
