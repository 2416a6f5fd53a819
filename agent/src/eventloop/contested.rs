//! Routes of other programs on other devices that go before ours: in the words in which they are named.

use tracing::debug;

use super::Half;
use crate::dataplane::Dataplane;
use crate::overlay::words::GoesBefore;

/// How many routes of other programs are named that go before ours.
const NAMED: usize = 5;

impl<D: Dataplane> Half<D> {
    /// Works out which routes of other programs go before ours, where that may have changed. Returns those that are news.
    pub(super) fn look_for_contested(&mut self) -> Vec<String> {
        if !self.plane.take_contested_changed() {
            return Vec::new();
        }
        let subnet_len = self.plane.setup().net.subnet_len;
        let contested = self.plane.contested();
        let more = contested.len().saturating_sub(NAMED);
        let mut words: Vec<String> = contested
            .iter()
            .take(NAMED)
            .map(|contested| {
                let name = contested.ifindex.map(|ifindex| self.dataplane.device_name(ifindex));
                let name = name.and_then(|name| {
                    name.unwrap_or_else(|error| {
                        debug!(%error, "cannot read the name of a device");
                        None
                    })
                });
                let is_peer = contested.part.prefix() == subnet_len;
                GoesBefore { contested, device: name.as_deref(), is_peer }.to_string()
            })
            .collect();
        if more > 0 {
            words.push(format!("and {more} more routes of other programs go before ours"));
        }
        let news = words.iter().filter(|words| !self.contested.contains(words)).cloned().collect();
        self.contested = words;
        news
    }
}
