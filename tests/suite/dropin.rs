//! twilld in flanneld's place: its flags and variables, health, nftables rules, both families, the backend's keys.
//!
//! One program, so that it is linked once.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::time::Duration;

#[path = "directrouting.rs"]
mod directrouting;
#[path = "dualstack.rs"]
mod dualstack;
#[path = "everyflag.rs"]
mod everyflag;
#[path = "flags.rs"]
mod flags;
#[path = "health.rs"]
mod health;
#[path = "masquerade.rs"]
mod masquerade;

/// For states that take milliseconds on an idle machine, and for retries with a backoff of some seconds.
const PATIENCE: Duration = Duration::from_secs(30);
