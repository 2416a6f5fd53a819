//! The Twill agent: a flannel-compatible VXLAN overlay.
//!
//! `overlay` is pure; `store` (etcd) and `dataplane` (the kernel) do the I/O behind traits and don't know each other;
//! `eventloop` ties them together. ARCHITECTURE.md has the picture.

pub mod lease;
pub mod overlay;
pub mod store;
