//! Routes of other programs on other devices that go before ours: in the words in which they are named.

use tracing::debug;

use super::FamilyPlane;
use crate::dataplane::Dataplane;
use crate::overlay::plane::contradiction::Contested;
use crate::overlay::words::GoesBefore;

/// What an operator can do about a route.
pub(in crate::eventloop) const ROUTE: &str =
    "the route is not on Twill's device: remove it or its address, or give it a higher metric than Twill's route";
/// The same about a policy rule.
pub(in crate::eventloop) const RULE: &str = "remove the rule, or add one that the kernel asks first: ip rule add to <network> lookup main priority <a smaller number>";
/// How many of them are named.
const NAMED: usize = 5;

/// What goes before our routes.
#[derive(Debug, Default)]
pub(in crate::eventloop) struct Named {
    /// All, in words.
    all: Vec<String>,
    /// Those because of which this node is not ready.
    pub blocking: Vec<String>,
}

impl Named {
    /// Whether anything goes before our routes.
    pub(in crate::eventloop) fn is_any(&self) -> bool {
        !self.all.is_empty()
    }
}

impl<D: Dataplane> FamilyPlane<D> {
    /// Works out which routes of other programs go before ours, where that may have changed. Returns those that are news.
    pub(in crate::eventloop) fn look_for_contested(&mut self) -> Vec<String> {
        if !self.plane.take_contested_changed() {
            return Vec::new();
        }
        // Those that block come first.
        let (mut contested, former): (Vec<Contested>, Vec<Contested>) =
            self.plane.contested().into_iter().partition(|contested| !contested.may_be_our_former());
        let blocking = contested.len();
        contested.extend(former);
        let mut all: Vec<String> = contested.iter().take(NAMED).map(|contested| self.words(contested)).collect();
        let mut named = Named { blocking: all.iter().take(blocking).cloned().collect(), all: Vec::new() };
        let more = |count: usize| format!("and {count} more routes of other programs go before ours");
        named.blocking.extend((blocking > NAMED).then(|| more(blocking - NAMED)));
        all.extend((contested.len() > NAMED).then(|| more(contested.len() - NAMED)));
        let news = all.iter().filter(|words| !self.contested.all.contains(words)).cloned().collect();
        named.all = all;
        self.contested = named;
        news
    }

    fn words(&mut self, contested: &Contested) -> String {
        let name = contested.ifindex.map_or(Ok(None), |ifindex| self.dataplane.device_name(ifindex));
        let device = name.unwrap_or_else(|error| {
            debug!(%error, "cannot read the name of a device");
            None
        });
        let is_peer = contested.part.prefix() == self.plane.setup().net.subnet_len;
        GoesBefore { contested, device: device.as_deref(), is_peer }.to_string()
    }
}
