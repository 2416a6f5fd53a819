//! The interfaces at the start: an address that the kernel is about to let be used is waited for, and one that may come.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use tracing::{info, warn};

use crate::dataplane::Dataplane;
use crate::dataplane::kernel::Kernel;
use crate::overlay::iface::{self, Interface, Wish};
use crate::passing::Passing;
use crate::site::Site;

/// Whether an address for the tunnel may come, of either family: which are needed is known only from the config.
pub(super) fn may_come(interfaces: &[Interface], wish: &Wish) -> bool {
    [false, true].into_iter().any(|v6| {
        let passes = || iface::choose(interfaces, wish, v6).is_err_and(|error| error.may_pass());
        iface::awaited(interfaces, wish, v6).is_some() || passes()
    })
}

/// The interfaces, as soon as duplicate address detection is through with the addresses that would be chosen.
pub(super) async fn settled(site: &Site, kernel: &mut Kernel, passing: &Passing) -> Result<Vec<Interface>> {
    /// Detection takes a second or two, unless somebody has set it to more.
    const MOST: Duration = Duration::from_secs(10);
    let deadline = Instant::now() + MOST;
    let mut said = Vec::new();
    loop {
        let interfaces = passing.wait("read the interfaces", async || kernel.interfaces()).await?;
        let awaited = site.awaited(&interfaces);
        if awaited.is_empty() {
            return Ok(interfaces);
        }
        if Instant::now() >= deadline {
            warn!(
                addresses = in_words(&awaited),
                "duplicate address detection is not through after {} s, going on without",
                MOST.as_secs()
            );
            return Ok(interfaces);
        }
        if awaited != said {
            info!(addresses = in_words(&awaited), "waiting for duplicate address detection");
            said = awaited;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn in_words(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
