//! All that hangs on a node's VXLAN device, to compare with what was there before something was broken.

use std::fmt;

use anyhow::{Result, ensure};

use crate::kernel::{self, Route};
use crate::node::Node;

/// The device and every row on it, and the routes with Twill's protocol that have no device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    dev: String,
    lines: Vec<String>,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))
    }
}

impl Node {
    /// What flannel.1 is now; see [`Node::state_of`].
    pub fn state(&self) -> Result<State> {
        self.state_of("flannel.1")
    }

    /// What a VXLAN device is now: an error if it isn't there. Its index is left out, so that one made anew is the same
    /// if all else is.
    pub fn state_of(&self, dev: &str) -> Result<State> {
        let (netns, link) = (self.netns(), self.link(dev)?);
        let up = link.flags.iter().any(|flag| flag == "UP");
        let mut lines = vec![format!("{dev} {} mtu {} {}", link.mac, link.mtu, if up { "up" } else { "down" })];
        lines.extend(kernel::addresses(netns, dev)?.iter().map(|address| format!("address {address}")));
        lines.extend(kernel::fdb(netns, dev)?.iter().map(|row| format!("fdb {row}")));
        lines.extend(kernel::neighbours(netns, "-4", dev)?.iter().map(|row| format!("neighbour {row}")));
        let routes = kernel::routes(netns, "-4")?;
        let is_here = |route: &&Route| route.dev.as_ref().map_or(route.protocol == "116", |of| of == dev);
        let ours = routes.iter().filter(is_here);
        lines.extend(ours.map(|route| format!("route {route} metric {}", route.metric.unwrap_or_default())));
        lines.sort();
        Ok(State { dev: dev.to_owned(), lines })
    }

    /// Whether the device is what it was; the error says what differs. Made to be polled.
    pub fn is_again(&self, before: &State) -> Result<()> {
        let now = self.state_of(&before.dev)?;
        let missing: Vec<_> = before.lines.iter().filter(|line| !now.lines.contains(line)).collect();
        let added: Vec<_> = now.lines.iter().filter(|line| !before.lines.contains(line)).collect();
        ensure!(missing.is_empty() && added.is_empty(), "missing {missing:?}, not there before {added:?}");
        Ok(())
    }
}
