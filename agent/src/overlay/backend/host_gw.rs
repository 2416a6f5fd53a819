//! host-gw: a route to each peer's subnet through the peer's host, and no tunnel.
//!
//! All hosts have to be on one link: a router between two of them would have to know the pods' subnets too. Nothing is added to
//! a packet. A record says where the host is and no more, as flannel's
//! (<https://github.com/flannel-io/flannel/blob/v0.28.9/pkg/backend/hostgw/hostgw.go>); like flannel's, the backend has no
//! settings.

use super::{Seam, Ways};

/// The backend host-gw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostGw;

impl Seam for HostGw {
    fn name(&self) -> &'static str {
        "host-gw"
    }

    fn ways(&self) -> Ways {
        Ways { tunnel: false, host: true }
    }

    fn needs_own_address(&self) -> bool {
        true
    }
}
