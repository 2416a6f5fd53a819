//! The first phase: this host, with the sockets to its kernel and to etcd.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};
use tokio::sync::watch;
use tracing::info;

use super::identity::Identity;
use super::interfaces;
use crate::cli::Flags;
use crate::dataplane::Dataplane;
use crate::dataplane::kernel::Kernel;
use crate::lock::Lock;
use crate::overlay::iface::{self, Wish};
use crate::passing::Passing;
use crate::reader::Reader;
use crate::snapshot::{Publisher, Snapshot};
use crate::store::etcd::EtcdStore;
use crate::{http, process};

/// This host: what is open, and who it is.
pub(super) struct Host {
    pub(super) flags: Flags,
    /// Which interface the operator wants.
    pub(super) wish: Wish,
    pub(super) publisher: Publisher,
    pub(super) passing: Passing,
    pub(super) kernel: Kernel,
    pub(super) store: EtcdStore,
    pub(super) reader: Reader<EtcdStore>,
    pub(super) identity: Identity,
    /// Keeps other daemons from this network's devices, once their name is known.
    pub(super) lock: Option<Lock>,
}

impl Host {
    /// Opens all of it. From here on `/healthz`, `/readyz` and `/metrics` answer, where the flags ask for them.
    ///
    /// # Errors
    /// What waiting would not mend: no CAP_NET_ADMIN, an interface that the flags name and the host lacks, unusable flags.
    pub(super) async fn open(flags: Flags, publisher: Publisher, snapshot: watch::Receiver<Snapshot>) -> Result<Self> {
        info!(version = crate::VERSION, peer_mode = %flags.peer_mode, "twilld starts");
        privileged()?;
        process::raise_priority();
        let descriptors = process::raise_descriptor_limit();
        if let Some(address) = flags.healthz() {
            tokio::spawn(http::serve(address, snapshot, descriptors));
        }
        let passing = Passing::new(&publisher, &flags.subnet_file);
        let mut kernel = passing.wait("open the netlink sockets", async || Kernel::open()).await?;
        let wish = flags.wish();
        kernel.reach = wish.can_reach;
        let interfaces = passing.wait("read the interfaces", async || kernel.interfaces()).await?;
        // Which families are needed is known only from the config; an interface that isn't there is said at once.
        let may_come = interfaces::may_come(&interfaces, &wish);
        if let (false, Err(error)) = (may_come, iface::choose(&interfaces, &wish, false)) {
            iface::choose(&interfaces, &wish, true).map_err(|_| error)?;
        }
        let store = flags.etcd.store()?;
        let identity = Identity::read(&flags);
        let previous = identity.previous(&wish, &interfaces);
        let endpoints = flags.etcd.etcd_endpoints.join(", ");
        let reader = Reader::new(store.clone(), endpoints, flags.subnet_file.clone(), previous);
        Ok(Self { flags, wish, publisher, passing, kernel, store, reader, identity, lock: None })
    }

    /// The endpoints of etcd that are addresses and no names, each with its address.
    pub(super) fn literal_endpoints(&self) -> impl Iterator<Item = (&str, IpAddr)> {
        let endpoints = self.flags.etcd.etcd_endpoints.iter();
        endpoints.filter_map(|endpoint| Some((endpoint.as_str(), literal(endpoint)?)))
    }
}

/// The address of an endpoint that has no name.
fn literal(endpoint: &str) -> Option<IpAddr> {
    let host = endpoint.rsplit("://").next()?.trim_end_matches('/');
    host.parse::<SocketAddr>().map(|address| address.ip()).or_else(|_| host.parse()).ok()
}

/// Fails early where nothing could be done to the network at all.
fn privileged() -> Result<()> {
    if process::has_net_admin("self") == Some(false) {
        bail!(
            "no CAP_NET_ADMIN: run twilld as root or give it that capability; without it no device, route or neighbour can be made"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_without_a_name_have_an_address() {
        for (endpoint, ip) in [
            ("http://10.0.0.5:2379", Some("10.0.0.5")),
            ("https://[fd99::1]:2379/", Some("fd99::1")),
            ("10.0.0.5", Some("10.0.0.5")),
            ("http://etcd.example:2379", None),
        ] {
            assert_eq!(literal(endpoint), ip.map(|ip| ip.parse().unwrap()), "{endpoint}");
        }
    }
}
