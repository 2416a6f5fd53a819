//! Policy rules of other programs that take peers' packets before the main table is asked.

use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use tracing::debug;

use super::Half;
use crate::dataplane::{Dataplane, Error};
use crate::overlay::rules::{Rule, Way, before_main};

/// The kernel is asked for its way to so many peers at the most, where there are such rules: a millisecond's work.
const ASKED_FOR: usize = 256;
/// The least time between two looks: another program may change rules by the thousand.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// When the policy rules are looked at, and what was found.
#[derive(Debug, Default)]
pub(super) struct Diversions {
    /// The rules, or what they lead to, may be others now.
    pub(super) is_due: bool,
    /// For how many peers they were looked at last, if there was a rule to ask for.
    peers: Option<usize>,
    looked_at: Option<Instant>,
    found: Option<Diversion>,
}

/// A peer whose packets a policy rule of another program takes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Diversion {
    subnet: IpNetwork,
    rule: Rule,
}

impl Display for Diversion {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { subnet, rule } = self;
        write!(
            f,
            "peer {subnet}: the policy rule `{rule}` of another program takes packets to this peer before the main table is asked"
        )
    }
}

impl Diversions {
    /// What was found last, in words.
    pub(super) fn words(&self) -> Option<String> {
        self.found.as_ref().map(Diversion::to_string)
    }

    /// When the next look may be, if one is due.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.looked_at.filter(|_| self.is_due).map(|at| at + LOOK_EVERY)
    }
}

impl<D: Dataplane> Half<D> {
    /// What keeps this node from being ready, in words: routes and policy rules of other programs.
    pub(in crate::eventloop) fn blocking(&self) -> impl Iterator<Item = String> {
        self.contested.blocking.iter().cloned().chain(self.diversions.words())
    }

    /// Looks for such a rule, where there may be another one than before. Returns one that is news.
    pub(in crate::eventloop) fn look_for_diversion(&mut self, now: Instant) -> Option<String> {
        let peers = self.plane.peers().len();
        self.diversions.is_due |= self.diversions.peers.is_some_and(|before| before != peers);
        if !self.diversions.is_due || self.diversions.next_look().is_some_and(|at| at > now) {
            return None;
        }
        self.diversions.looked_at = Some(now);
        let rules = self.dataplane.rules().map(|rules| before_main(rules, self.plane.setup().subnet));
        let found = rules.and_then(|rules| {
            self.diversions.peers = (!rules.is_empty()).then_some(peers);
            self.diversion(&rules)
        });
        match found {
            Ok(found) => {
                self.diversions.is_due = false;
                let is_news =
                    |found: &Diversion| self.diversions.found.as_ref().is_none_or(|last| last.rule != found.rule);
                let news = found.as_ref().filter(|found| is_news(found)).map(Diversion::to_string);
                self.diversions.found = found;
                news
            }
            // It stays due.
            Err(source) => {
                debug!(device = %self.device.name, error = %source, "cannot read the policy rules");
                if source.is_of_socket() {
                    self.socket_failed(&source, now);
                }
                None
            }
        }
    }

    /// The first rule that takes packets to a peer: what was found last, as long as that holds.
    fn diversion(&mut self, rules: &[Rule]) -> Result<Option<Diversion>, Error> {
        let last = self.diversions.found.iter().filter(|last| rules.contains(&last.rule));
        let last = last.map(|last| (last.subnet, last.rule.clone()));
        let all = rules.iter().flat_map(|rule| self.fitting(rule).into_iter().map(|subnet| (subnet, rule.clone())));
        let pairs: Vec<(IpNetwork, Rule)> = last.chain(all).take(ASKED_FOR).collect();
        for (subnet, rule) in pairs {
            let Some(host) = self.plane.peers().get(&subnet).map(|peer| peer.vtep.remote) else { continue };
            let Some(target) = rule.target_in(subnet) else { continue };
            let way = self.dataplane.way_to(target)?;
            if !leads_to(way, host) && rule.explains(way, target) {
                return Ok(Some(Diversion { subnet, rule }));
            }
        }
        Ok(None)
    }

    /// The subnets of peers that a rule fits, in order, and not more than are asked for.
    fn fitting(&self, rule: &Rule) -> Vec<IpNetwork> {
        let (peers, net) = (self.plane.peers(), &self.plane.setup().net);
        // That of a pod or of one subnet, of which there may be thousands.
        if let Some(to) = rule.to.filter(|to| to.prefix() >= net.subnet_len) {
            return net.subnet_of(to.network()).filter(|subnet| peers.get(subnet).is_some()).into_iter().collect();
        }
        let fits = |subnet: &IpNetwork| rule.target_in(*subnet).is_some();
        let mut subnets: Vec<IpNetwork> = peers.iter().map(|(subnet, _)| *subnet).filter(fits).collect();
        if subnets.len() > ASKED_FOR {
            subnets.select_nth_unstable(ASKED_FOR);
            subnets.truncate(ASKED_FOR);
        }
        subnets.sort_unstable();
        subnets
    }
}

/// Whether a way leads to the very host that the record names, without a tunnel.
fn leads_to(way: Way, host: IpAddr) -> bool {
    matches!(way, Way::Table(_, Some(gateway)) if gateway == host)
}
