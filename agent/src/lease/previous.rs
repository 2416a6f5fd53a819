//! When a search turns away from the subnet that the node had before.
//!
//! `subnet.env` still names it then, and the CNI plugin would give out addresses that are another node's. So this is told
//! before anything is waited for.

use super::{Census, Progress, Search, Tell};
use crate::overlay::alloc::{Decision, Wanted};
use crate::overlay::record::{Family, SubnetKey};
use crate::store::Store;

/// Tells why a node's previous subnet can't be its own again, as far as what is held shows that.
pub fn tell_of_previous(wanted: &Wanted<'_>, census: Census<'_>, tell: Tell<'_>) {
    if let Some(previous) = wanted.previous
        && let Some(why) = taken(wanted, census, &previous)
    {
        tell(Progress::PreviousGivenUp(&sentence(&previous, &why)));
    }
}

impl<S: Store> Search<'_, S> {
    /// Tells why the decision is not for the previous subnet, if it is not and that is news.
    pub(super) fn note_previous(&mut self, decision: &Decision) {
        let Some(previous) = self.wanted.previous else { return };
        let why = match decision {
            Decision::TakeOver { key, .. } | Decision::Create { key } | Decision::Restore { key, .. }
                if *key == previous =>
            {
                return;
            }
            Decision::Doubled { key, .. } if *key == previous => {
                "its record has our public IP and the ids of another machine, which is asked whether it is alive"
                    .to_owned()
            }
            _ => self.why_not(&previous, decision),
        };
        let why = sentence(&previous, &why);
        if self.given_up.as_ref() != Some(&why) {
            self.outage.tell(Progress::PreviousGivenUp(&why));
            self.given_up = Some(why);
        }
    }

    fn why_not(&self, previous: &SubnetKey, decision: &Decision) -> String {
        taken(self.wanted, self.census, previous).unwrap_or_else(|| match decision {
            Decision::TakeOver { key, .. } => format!("the node's record is {key}"),
            Decision::Doubled { key, .. } => {
                format!("the record {key} has our public IP and the ids of another machine")
            }
            Decision::NoFreeSubnet { network } => format!("{network} has no free subnet"),
            Decision::Create { .. } | Decision::Restore { .. } => "another node has taken it".to_owned(),
        })
    }
}

fn taken(wanted: &Wanted<'_>, census: Census<'_>, previous: &SubnetKey) -> Option<String> {
    if !wanted.fits(previous) {
        return Some("it does not fit the network config".to_owned());
    }
    census.holder(previous)
}

fn sentence(previous: &SubnetKey, why: &str) -> String {
    format!("this node cannot keep its last subnet {}: {why}", subnets(previous))
}

/// The subnets of a key as people write them.
fn subnets(key: &SubnetKey) -> String {
    let sides = [Family::V4, Family::V6].into_iter().filter_map(|family| key.side(family));
    sides.map(|side| side.to_string()).collect::<Vec<_>>().join(" and ")
}
