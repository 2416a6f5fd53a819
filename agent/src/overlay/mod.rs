//! What the overlay should look like: records, allocation, peers, what the kernel should hold, answers to misses.
//!
//! Everything here is pure: no tokio, no netlink, no clock, no file system, no environment. Time, random numbers and
//! bytes are arguments. `tests/suite/layers.rs` holds that.

pub mod alloc;
pub mod backend;
pub mod config;
pub mod counts;
pub mod family;
pub mod iface;
mod json;
pub mod kernel;
pub mod mac;
pub mod peers;
pub mod plane;
pub mod presence;
pub mod programmed;
pub mod record;
pub mod records;
pub mod repeats;
pub mod restores;
pub mod rules;
mod settings;
pub mod shown;
mod sighting;
pub mod words;

pub use config::NetworkConfig;
pub use mac::MacAddr;
pub use record::{Record, SubnetKey};
pub use shown::{Shown, shown};
