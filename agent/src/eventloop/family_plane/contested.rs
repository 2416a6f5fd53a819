//! Routes of other programs on other devices that go before ours: in the words in which they are named.

use std::collections::BTreeMap;

use tracing::debug;

use super::FamilyPlane;
use crate::dataplane::Dataplane;
use crate::eventloop::clock;
use crate::overlay::Shown;
use crate::overlay::kernel::OtherDevice;
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
    /// Works out which routes of other programs go before ours, where that may have changed. Returns those that are news, each
    /// with what an operator can do about it.
    pub(in crate::eventloop) fn look_for_contested(&mut self) -> Vec<(String, String)> {
        if !self.plane.take_contested_changed() {
            return Vec::new();
        }
        let contested = self.plane.contested();
        let devices = if contested.is_empty() { Ok(BTreeMap::new()) } else { self.dataplane.devices() };
        let devices = match devices {
            Ok(devices) => devices,
            // What was found last stands until they can be read.
            Err(error) => {
                debug!(%error, "cannot read the names of the devices");
                if error.is_of_socket() {
                    self.socket_failed(&error, clock::now());
                }
                self.plane.recheck_contested();
                return Vec::new();
            }
        };
        let device = |contested: &Contested| contested.ifindex.and_then(|ifindex| devices.get(&ifindex));
        // Those that block come first.
        let (mut contested, former): (Vec<Contested>, Vec<Contested>) =
            contested.into_iter().partition(|contested| !contested.may_be_our_former(device(contested)));
        let blocking = contested.len();
        contested.extend(former);
        let subnet_len = self.plane.setup().net.subnet_len;
        let mut all: Vec<String> =
            contested.iter().take(NAMED).map(|contested| words(contested, device(contested), subnet_len)).collect();
        let mut named = Named { blocking: all.iter().take(blocking).cloned().collect(), all: Vec::new() };
        let more = |count: usize| format!("and {count} more routes of other programs go before ours");
        named.blocking.extend((blocking > NAMED).then(|| more(blocking - NAMED)));
        all.extend((contested.len() > NAMED).then(|| more(contested.len() - NAMED)));
        let former =
            |place: usize| contested.get(place).filter(|_| place >= blocking && place < NAMED).and_then(device);
        let news = all.iter().enumerate().filter(|(_, words)| !self.contested.all.contains(words));
        let news =
            news.map(|(place, words)| (words.clone(), former(place).map_or_else(|| ROUTE.to_owned(), left_over)));
        let news = news.collect();
        named.all = all;
        self.contested = named;
        news
    }
}

fn words(contested: &Contested, device: Option<&OtherDevice>, subnet_len: u8) -> String {
    let is_peer = contested.part.prefix() == subnet_len;
    GoesBefore { contested, device: device.map(|device| device.name.as_str()), is_peer }.to_string()
}

/// What an operator can do about the bridge of a subnet that this node had before.
fn left_over(device: &OtherDevice) -> String {
    let name = Shown::new(&device.name);
    format!(
        "if {name} is the pods' bridge of a subnet that this node had before, remove it once its pods are gone: \
        ip link del {name}; if not, remove its address"
    )
}
