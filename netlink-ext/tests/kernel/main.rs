//! Each operation against the running kernel, in a network namespace of its own. Needs root and iproute2.
#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests, but clippy does not take their helpers for tests

mod batches;
mod changes;
mod conf;
mod dumps;
mod links;
mod misses;
mod rules;
mod support;
mod tables;
mod underlay;
