//! Policy rules of other programs (`ip rule`): which of them take packets to peers before the main table is asked.
//!
//! Twill removes no policy rule. It names a rule that takes packets to a peer. The kernel is asked whether a rule does, since
//! that depends on the routes in the rule's table. Where the kernel sends a packet nowhere it does not say which table made
//! it do so: then the tables are read for routes that end the way ([`DeadEnd`]). A rule with a condition (a mark, a device, a port, a user, `not`) is not
//! looked at: its operator wants it.

use std::cmp::Reverse;
use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

const DEFAULT: u32 = 253;
const MAIN: u32 = 254;
const LOCAL: u32 = 255;

/// What a rule does with a packet that fits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    /// It is looked up in this table.
    Lookup(u32),
    /// It goes on with the rule of this priority.
    Goto(u32),
    /// It is dropped: `blackhole`, `unreachable` or `prohibit`.
    Drop(&'static str),
}

/// A policy rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its place; the lowest is asked first.
    pub priority: u32,
    /// Packets from here only.
    pub from: Option<IpNetwork>,
    /// Packets to there only.
    pub to: Option<IpNetwork>,
    /// Packets that came in through one device only.
    pub has_device: bool,
    /// The rule has another condition (a mark, a port, a user, ...), or it is negated (`not`).
    pub is_conditional: bool,
    /// What it does.
    pub does: Does,
    /// A route whose prefix is not longer than this does not count.
    pub suppress_prefixlength: Option<u32>,
}

/// Which way the kernel sends what goes to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// As the main table says, or through our device.
    Ours,
    /// As another table says: through this gateway, if there is one.
    Table(u32, Option<IpAddr>),
    /// Nowhere.
    Refused,
}

/// A route that ends a packet's way through the tables (`unreachable`, `blackhole`, `prohibit`), or through its own table
/// (`throw`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadEnd {
    /// Where to.
    pub to: IpNetwork,
    /// Its metric. The lowest of equal prefixes counts.
    pub metric: u32,
    /// The packet goes on with the next rule.
    pub is_throw: bool,
}

/// Whether a table with these dead ends lets no packet to an address pass, where it has no route that sends it.
pub fn ends_at(dead_ends: &[DeadEnd], to: IpAddr) -> bool {
    let fitting = dead_ends.iter().filter(|end| end.to.contains(to));
    fitting.min_by_key(|end| (Reverse(end.to.prefix()), end.metric)).is_some_and(|end| !end.is_throw)
}

impl DeadEnd {
    /// Whether it concerns any address of a network.
    pub fn concerns(&self, network: IpNetwork) -> bool {
        network.contains(self.to.network()) || self.to.contains(network.network())
    }
}

impl Rule {
    /// Whether it fits packets to this address.
    pub fn fits_to(&self, to: IpAddr) -> bool {
        self.to.is_none_or(|net| net.contains(to))
    }

    /// Whether it fits all packets from a subnet.
    fn fits_all_from(&self, subnet: IpNetwork) -> bool {
        let covers = |from: &IpNetwork| from.prefix() <= subnet.prefix() && from.contains(subnet.network());
        !self.is_conditional && self.from.as_ref().is_none_or(covers)
    }

    /// Whether it may have sent a packet to this address this way. What its table refuses, [`ends_at`] tells.
    pub fn explains(&self, way: Way, to: IpAddr) -> bool {
        let acts = match (self.does, way) {
            (Does::Lookup(asked), Way::Table(table, _)) => asked == table,
            (Does::Drop(_), Way::Refused) => true,
            _ => false,
        };
        acts && self.fits_to(to)
    }

    /// An address of a subnet that the rule fits.
    pub fn target_in(&self, subnet: IpNetwork) -> Option<IpAddr> {
        match self.to {
            None => Some(subnet.network()),
            Some(to) if to.contains(subnet.network()) => Some(subnet.network()),
            Some(to) => subnet.contains(to.network()).then(|| to.network()),
        }
    }
}

/// The rules that come before the main table for all packets from our own subnet. `rules` are in the kernel's order.
pub fn before_main(rules: Vec<Rule>, own: IpNetwork) -> Vec<Rule> {
    let mut before = Vec::new();
    for rule in rules {
        match rule.does {
            _ if !rule.fits_all_from(own) => {}
            // The routes to peers do not count for it.
            Does::Lookup(MAIN) if rule.suppress_prefixlength.is_some_and(|length| length >= own.prefix().into()) => {}
            // Also a rule for one device: that device may be the pods' bridge.
            Does::Lookup(MAIN) | Does::Goto(_) if rule.to.is_none() => break,
            Does::Lookup(MAIN | LOCAL) | Does::Goto(_) => {}
            _ if rule.has_device => {}
            _ => before.push(rule),
        }
    }
    before
}

impl Display for Rule {
    /// As iproute2 shows it.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let host = |net: IpNetwork| {
            let is_one = net.prefix() == if net.is_ipv4() { 32 } else { 128 };
            if is_one { net.ip().to_string() } else { net.to_string() }
        };
        write!(f, "{}: from {}", self.priority, self.from.map_or_else(|| "all".to_owned(), host))?;
        if let Some(to) = self.to {
            write!(f, " to {}", host(to))?;
        }
        match self.does {
            Does::Lookup(DEFAULT) => write!(f, " lookup default")?,
            Does::Lookup(table) => write!(f, " lookup {table}")?,
            Does::Goto(target) => write!(f, " goto {target}")?,
            Does::Drop(how) => write!(f, " {how}")?,
        }
        match self.suppress_prefixlength {
            Some(length) => write!(f, " suppress_prefixlength {length}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "10.5.1.0/24";

    fn rule(priority: u32, does: Does) -> Rule {
        let (from, to, has_device, is_conditional, suppress_prefixlength) = (None, None, false, false, None);
        Rule { priority, from, to, has_device, is_conditional, does, suppress_prefixlength }
    }

    fn net(text: &str) -> Option<IpNetwork> {
        Some(text.parse().unwrap())
    }

    /// The priorities of those before the main table, with the kernel's own three.
    fn before(others: &[Rule]) -> Vec<u32> {
        let mut all =
            vec![rule(0, Does::Lookup(LOCAL)), rule(32766, Does::Lookup(MAIN)), rule(32767, Does::Lookup(DEFAULT))];
        all.extend_from_slice(others);
        all.sort_by_key(|rule| rule.priority);
        before_main(all, OWN.parse().unwrap()).iter().map(|rule| rule.priority).collect()
    }

    #[test]
    fn only_rules_for_all_packets_before_the_main_table_are_asked_for() {
        let look = rule(100, Does::Lookup(100));
        assert_eq!(before(&[]), [0; 0]);
        assert_eq!(before(&[look.clone(), rule(32766, Does::Lookup(7)), rule(40000, Does::Lookup(8))]), [100]);
        for (fits, changed) in [
            (true, Rule { to: net("10.5.0.0/16"), ..look.clone() }),
            (true, Rule { to: net("10.5.7.9/32"), does: Does::Drop("prohibit"), ..look.clone() }),
            (true, Rule { from: net("10.5.0.0/16"), ..look.clone() }),
            (true, Rule { from: net(OWN), ..look.clone() }),
            (false, Rule { from: net("10.5.1.9/32"), ..look.clone() }),
            (false, Rule { from: net("10.99.0.0/16"), ..look.clone() }),
            (false, Rule { has_device: true, ..look.clone() }),
            (false, Rule { is_conditional: true, ..look.clone() }),
        ] {
            assert_eq!(before(std::slice::from_ref(&changed)), if fits { &[100][..] } else { &[] }, "{changed}");
        }
    }

    #[test]
    fn behind_a_rule_that_asks_the_main_table_nothing_is_taken() {
        let look = rule(100, Does::Lookup(100));
        let wireguard = [
            Rule { suppress_prefixlength: Some(0), ..rule(90, Does::Lookup(MAIN)) },
            Rule { is_conditional: true, ..rule(91, Does::Lookup(51820)) },
            look.clone(),
        ];
        assert_eq!(before(&wireguard), [0; 0]);
        assert_eq!(before(&[Rule { has_device: true, ..rule(90, Does::Lookup(MAIN)) }, look.clone()]), [0; 0]);
        assert_eq!(before(&[Rule { is_conditional: true, ..rule(90, Does::Lookup(MAIN)) }, look.clone()]), [100]);
        let suppressed = Rule { suppress_prefixlength: Some(24), ..rule(90, Does::Lookup(MAIN)) };
        assert_eq!(before(&[suppressed, look.clone()]), [100]);
        assert_eq!(before(&[Rule { to: net("10.7.0.0/16"), ..rule(90, Does::Lookup(MAIN)) }, look]), [100]);
    }

    #[test]
    fn a_rule_explains_what_its_table_or_it_did() {
        let (to, other) = ("10.5.7.0".parse().unwrap(), "10.6.0.1".parse().unwrap());
        let look = Rule { to: net("10.5.0.0/16"), ..rule(100, Does::Lookup(100)) };
        assert!(look.explains(Way::Table(100, None), to) && !look.explains(Way::Table(100, None), other));
        assert!(!look.explains(Way::Table(7, None), to) && !look.explains(Way::Refused, to));
        assert!(!look.explains(Way::Ours, to));
        assert!(rule(1, Does::Drop("blackhole")).explains(Way::Refused, to));
        let subnet = "10.5.7.0/24".parse().unwrap();
        assert_eq!(look.target_in(subnet), Some(to));
        let pod = Rule { to: net("10.5.7.9/32"), ..look };
        assert_eq!(pod.target_in(subnet), Some("10.5.7.9".parse().unwrap()));
        assert_eq!(pod.target_in("10.5.8.0/24".parse().unwrap()), None);
    }

    #[test]
    fn a_table_ends_the_way_by_its_longest_prefix_and_lowest_metric_and_throw_ends_nothing() {
        let end = |to: &str, metric, is_throw| DeadEnd { to: to.parse().unwrap(), metric, is_throw };
        let (all, part) = (end("0.0.0.0/0", 0, false), end("10.5.0.0/16", 0, true));
        let to = "10.5.7.0".parse().unwrap();
        for (dead_ends, ends) in [
            (&[][..], false),
            (&[all], true),
            (&[part], false),
            (&[all, part], false),
            (&[end("0.0.0.0/0", 0, true), end("10.5.0.0/16", 7, false)], true),
            (&[end("10.5.0.0/16", 7, false), part], false),
            (&[end("10.5.0.0/16", 7, true), end("10.5.0.0/16", 3, false)], true),
            (&[end("10.6.0.0/16", 0, false)], false),
        ] {
            assert_eq!(ends_at(dead_ends, to), ends, "{dead_ends:?}");
        }
        let network = "10.5.0.0/16".parse().unwrap();
        assert!(all.concerns(network) && part.concerns(network));
        assert!(end("10.5.7.9/32", 0, false).concerns(network) && !end("10.6.0.0/16", 0, false).concerns(network));
    }

    #[test]
    fn rules_read_as_iproute2_shows_them() {
        let look = Rule { to: net("10.5.0.0/16"), suppress_prefixlength: Some(0), ..rule(100, Does::Lookup(100)) };
        assert_eq!(look.to_string(), "100: from all to 10.5.0.0/16 lookup 100 suppress_prefixlength 0");
        let drop = Rule { from: net("10.5.1.0/24"), to: net("10.5.7.9/32"), ..rule(7, Does::Drop("unreachable")) };
        assert_eq!(drop.to_string(), "7: from 10.5.1.0/24 to 10.5.7.9 unreachable");
    }
}
