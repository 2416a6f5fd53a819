//! Policy rules of other programs that take peers' packets before the main table is asked.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use tracing::debug;

use super::{Half, now};
use crate::dataplane::{Dataplane, Error};
use crate::overlay::rules::{Rule, Way, before_main};

/// The kernel is asked for its way to so many peers at the most, where there are such rules: a millisecond's work.
const ASKED_FOR: usize = 256;

impl<D: Dataplane> Half<D> {
    /// Looks for such a rule, where there may be another one than before. Returns one that is news.
    pub(in crate::eventloop) fn look_for_diversion(&mut self) -> Option<String> {
        let peers = self.plane.peers().len();
        let more = self.rules_looked_at.is_some_and(|before| before != peers);
        if !std::mem::take(&mut self.rules_due) && !more {
            return None;
        }
        let rules = self.dataplane.rules().map(|rules| before_main(rules, self.plane.setup().subnet));
        let found = rules.and_then(|rules| {
            self.rules_looked_at = (!rules.is_empty()).then_some(peers);
            self.diversion(&rules)
        });
        let found = found.unwrap_or_else(|source| {
            debug!(device = %self.device.name, error = %source, "cannot read the policy rules");
            if source.is_of_socket() {
                self.socket_failed(&source, now());
            }
            self.diverted.clone()
        });
        let news = found.clone().filter(|_| found != self.diverted);
        self.diverted = found;
        news
    }

    /// The first rule that takes packets to a peer, in words.
    fn diversion(&mut self, rules: &[Rule]) -> Result<Option<String>, Error> {
        let peers = self.plane.peers().iter().map(|(subnet, peer)| (*subnet, peer.vtep.remote));
        let targets = peers.flat_map(|(subnet, host)| {
            rules.iter().filter_map(move |rule| Some((subnet, host, rule, rule.target_in(subnet)?)))
        });
        let targets: Vec<(IpNetwork, IpAddr, &Rule, IpAddr)> = match rules {
            [] => Vec::new(),
            _ => targets.take(ASKED_FOR).collect(),
        };
        for (subnet, host, rule, target) in targets {
            let way = self.dataplane.way_to(target)?;
            // To the very host that the record names it is a tunnel less.
            let leads_there = matches!(way, Way::Table(_, Some(gateway)) if gateway == host);
            if !leads_there && rule.explains(way, target) {
                return Ok(Some(format!(
                    "peer {subnet}: a policy rule of another program, `{rule}`, goes before the main table"
                )));
            }
        }
        Ok(None)
    }
}
