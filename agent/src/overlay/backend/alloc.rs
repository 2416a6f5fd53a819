//! alloc: a subnet for each node, and nothing else. Somebody else carries the packets.
//!
//! The node has its record, `subnet.env` and the nftables rules. Its record names no backend, as flannel's
//! (<https://github.com/flannel-io/flannel/blob/v0.28.9/pkg/backend/alloc/alloc.go>), and so looks like a reservation: one that
//! says where a host is counts as that host's.

use super::{Seam, Ways};

/// The backend alloc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alloc;

impl Seam for Alloc {
    fn name(&self) -> &'static str {
        "alloc"
    }

    fn record_type(&self) -> &'static str {
        ""
    }

    fn ways(&self) -> Ways {
        Ways { tunnel: false, host: false }
    }
}
