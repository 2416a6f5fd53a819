//! Whether the tunnel can go over this node's interfaces with the network config. The start waits where it can't yet: for another
//! config, if the config covers one of the node's own addresses; for another address, if an interface has a link-local one only.

use std::time::Duration;

use anyhow::Result;

use super::host::Host;
use super::interfaces;
use crate::overlay::iface::Interface;
use crate::reader::REMIND;
use crate::site::{Site, TunnelEnd, Unfit};

/// How often the interfaces are looked at while an address is waited for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The interfaces, and the tunnel's ends over them. `None`: the start is to begin again with a complete read, since the config
/// may be another one by now, and records came that nobody took in.
///
/// # Errors
/// What no other config and no other address would mend.
pub(super) async fn ends(site: &Site, host: &mut Host) -> Result<Option<(Vec<Interface>, Vec<TunnelEnd>)>> {
    let Host { flags, kernel, passing, reader, publisher, .. } = host;
    let prefix = &flags.etcd.etcd_prefix;
    let mut has_waited = false;
    loop {
        let interfaces = interfaces::settled(site, kernel, passing).await?;
        let unfit = match site.ends(&interfaces) {
            Ok(_) if has_waited => return Ok(None),
            Ok(ends) => return Ok(Some((interfaces, ends))),
            Err(unfit) => unfit,
        };
        let (why, pause) = if unfit.may_pass() {
            let what = format!("choose the tunnel's interface: {unfit}; trying until it works");
            publisher.cannot(&what);
            (format!("cannot {what}"), LOOK_EVERY)
        } else if let Some(why) = in_words(site, prefix, &unfit) {
            publisher.waits_for(&format!("another network config: {why}"));
            (why, REMIND)
        } else {
            return Err(unfit.into());
        };
        reader.await_other_config(&why, pause).await?;
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
