//! Whether the network config suits this node. If it covers one of the node's own addresses, the start waits for another config,
//! as it does when the config cannot be read.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::interfaces;
use super::subnet::Etcd;
use crate::dataplane::kernel::Kernel;
use crate::http::Readiness;
use crate::overlay::iface::Interface;
use crate::passing::Passing;
use crate::site::{End, Site, Unfit};

/// How long the interfaces may take before etcd is listened to as well. What etcd tells then is missing from the records read
/// before, so the start begins again: not for duplicate address detection, which takes 10 s at the most and would begin again too.
const LISTEN_AFTER: Duration = Duration::from_secs(15);

/// The interfaces, and the tunnel's ends over them. `None`: there are none with this config, and the start is to begin again,
/// since the config or the interfaces are others by now.
///
/// # Errors
/// What no other config would mend.
pub(super) async fn ends(
    site: &Site,
    prefix: &str,
    etcd: Etcd<'_>,
    kernel: &mut Kernel,
    passing: &Passing<'_>,
) -> Result<Option<(Vec<Interface>, Vec<End>)>> {
    let Etcd { reader, readiness, .. } = etcd;
    let mut has_waited = false;
    loop {
        let began = Instant::now();
        let (interfaces, ends) = tokio::select! {
            biased;
            ends = interfaces::ends(site, kernel, passing) => ends?,
            changed = reader.other_config_after(LISTEN_AFTER) => return changed.map(|()| None),
        };
        has_waited |= began.elapsed() >= LISTEN_AFTER;
        let why = match ends {
            // The records of the read that had the config went by meanwhile.
            Ok(_) if has_waited => return Ok(None),
            Ok(ends) => return Ok(Some((interfaces, ends))),
            Err(unfit) => match in_words(site, prefix, &unfit) {
                Some(why) => why,
                None => return Err(unfit.into()),
            },
        };
        readiness.send_replace(Readiness::waiting(&format!("another network config: {why}")));
        reader.await_other_config(&why).await?;
        if reader.is_config_changed() {
            return Ok(None);
        }
        has_waited = true;
    }
}

/// What is wrong with the config, if another one would do.
fn in_words(site: &Site, prefix: &str, unfit: &Unfit) -> Option<String> {
    let address = unfit.covered()?;
    let network = site.config.families().map(|family| family.network).find(|network| network.contains(address))?;
    let key = if network.is_ipv4() { "Network" } else { "IPv6Network" };
    Some(format!(
        "the network config {prefix}/config is not usable on this node: {key}: {network}: expected one that leaves out {address}: {unfit}"
    ))
}
