//! Policy rules of other programs that take peers' packets before the main table is asked.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use tracing::debug;

use super::FamilyPlane;
use crate::dataplane::{Dataplane, Error};
use crate::overlay::rules::{DeadEnd, Does, Rule, Way, before_main, ends_at};

/// The routes of tables that send packets to our network nowhere.
type Tables = BTreeMap<u32, Vec<DeadEnd>>;

/// The kernel is asked for its way to so many peers at the most, where there are such rules: a millisecond's work. Once a rule
/// is found, it is asked as often again to count the peers.
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

/// Peers whose packets a policy rule of another program takes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Diversion {
    /// The first of them.
    subnet: IpNetwork,
    /// How many more there are.
    more: usize,
    /// There may be others still, of which the kernel was not asked.
    is_counted_in_part: bool,
    rule: Rule,
}

impl Display for Diversion {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { subnet, more, is_counted_in_part, rule } = self;
        let at_least = if *is_counted_in_part { "at least " } else { "" };
        let (others, these) = match more {
            0 => (String::new(), "this peer"),
            1 => (format!(" and {at_least}1 more peer"), "these peers"),
            more => (format!(" and {at_least}{more} more peers"), "these peers"),
        };
        write!(
            f,
            "peer {subnet}{others}: the policy rule `{rule}` of another program takes packets to {these} before the main table is asked"
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

impl<D: Dataplane> FamilyPlane<D> {
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

    /// The first rule that takes packets to a peer, or the one that was found last, as long as that holds.
    fn diversion(&mut self, rules: &[Rule]) -> Result<Option<Diversion>, Error> {
        let last = self.diversions.found.iter().filter(|last| rules.contains(&last.rule));
        let last = last.map(|last| (last.subnet, last.rule.clone()));
        let all = rules.iter().flat_map(|rule| self.fitting(rule).into_iter().map(|subnet| (subnet, rule.clone())));
        let pairs: Vec<(IpNetwork, Rule)> = last.chain(all).take(ASKED_FOR).collect();
        let mut tables = BTreeMap::new();
        for (subnet, rule) in pairs {
            if self.takes(&rule, subnet, &mut tables)? {
                return self.measured(subnet, rule, &mut tables).map(Some);
            }
        }
        Ok(None)
    }

    /// How many peers' packets a rule takes that takes those to one peer.
    fn measured(&mut self, one: IpNetwork, rule: Rule, tables: &mut Tables) -> Result<Diversion, Error> {
        let fitting = self.fitting(&rule);
        // Of more peers than that only the first ones are asked for.
        let is_counted_in_part = fitting.len() == ASKED_FOR;
        let (mut first, mut taken) = (None, 0_usize);
        for subnet in fitting {
            if self.takes(&rule, subnet, tables)? {
                first.get_or_insert(subnet);
                taken += 1;
            }
        }
        Ok(Diversion { subnet: first.unwrap_or(one), more: taken.saturating_sub(1), is_counted_in_part, rule })
    }

    /// Whether a rule takes the packets to a peer. `tables`: what was read of tables so far.
    fn takes(&mut self, rule: &Rule, subnet: IpNetwork, tables: &mut Tables) -> Result<bool, Error> {
        let peer = self.plane.peers().get(&subnet).filter(|peer| self.plane.reaches(peer));
        let Some(host) = peer.map(|peer| peer.endpoint.remote) else { return Ok(false) };
        let Some(target) = rule.target_in(subnet) else { return Ok(false) };
        let way = self.dataplane.way_to(target)?;
        let (Does::Lookup(table), Way::Refused) = (rule.does, way) else {
            return Ok(!leads_to(way, host) && rule.explains(way, target));
        };
        let dead_ends = match tables.entry(table) {
            Entry::Occupied(read) => read.into_mut(),
            Entry::Vacant(unread) => {
                let mut dead_ends = self.dataplane.dead_ends(table)?;
                dead_ends.retain(|end| end.concerns(self.plane.setup().net.network));
                unread.insert(dead_ends)
            }
        };
        Ok(rule.fits_to(target) && ends_at(dead_ends, target))
    }

    /// The subnets of peers that a rule fits, in order, and not more than are asked for.
    fn fitting(&self, rule: &Rule) -> Vec<IpNetwork> {
        let (peers, net) = (self.plane.peers(), &self.plane.setup().net);
        // That of a pod or of one subnet, of which there may be thousands.
        if let Some(to) = rule.to.filter(|to| to.prefix() >= net.subnet_len) {
            let is_reached = |subnet: &IpNetwork| peers.get(subnet).is_some_and(|peer| self.plane.reaches(peer));
            return net.subnet_of(to.network()).filter(is_reached).into_iter().collect();
        }
        let fits = |subnet: &IpNetwork| rule.target_in(*subnet).is_some();
        let reached = peers.iter().filter(|(_, peer)| self.plane.reaches(peer)).map(|(subnet, _)| *subnet);
        let mut subnets: Vec<IpNetwork> = reached.filter(fits).collect();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::Device;
    use crate::dataplane::fake::FakeKernel;
    use crate::overlay::peers::{Claim, Endpoint, Source, Standing};
    use crate::overlay::plane::{PeerMode, Plane, Setup};
    use crate::overlay::{MacAddr, NetworkConfig};

    /// A node with this many peers, the first of them 10.4.1.0/24, and a rule that asks table 100.
    fn family(peers: u16) -> FamilyPlane<FakeKernel> {
        let config = NetworkConfig::parse(br#"{"Network":"10.4.0.0/15"}"#).unwrap();
        let subnet = "10.5.250.0/24".parse().unwrap();
        let (net, ways, mode) = (config.ipv4.unwrap(), config.backend.ways(), PeerMode::OnDemand);
        let setup = Setup { net, subnet, ways, mode, idle: LOOK_EVERY };
        let mut plane = Plane::new(setup);
        for number in 1..=peers {
            let [high, low] = number.to_be_bytes();
            let subnet = format!("10.{}.{low}.0/24", 4 + high).parse().unwrap();
            let endpoint =
                Endpoint { mac: Some(MacAddr([2, 0, 0, 0, high, low])), remote: IpAddr::from([10, 99, high, low]) };
            plane.put(subnet, Source(0), Claim { endpoint, standing: Standing::new(1, 1, true, None) });
        }
        let main = Rule { does: Does::Lookup(254), ..rule(32766) };
        let mut kernel = FakeKernel::default();
        kernel.rules = vec![rule(100), main];
        let device = Device {
            name: "flannel.1".to_owned(),
            vxlan: None,
            local: IpAddr::from([10, 99, 0, 1]),
            underlay: 2,
            underlay_name: "eth0".to_owned(),
            mtu: 1450,
            address: subnet,
        };
        let mut family = FamilyPlane::new(plane, kernel, device, Instant::now());
        family.diversions.is_due = true;
        family
    }

    fn rule(priority: u32) -> Rule {
        let (from, to, suppress_prefixlength) = (None, None, None);
        let does = Does::Lookup(100);
        Rule { priority, from, to, has_device: false, is_conditional: false, does, suppress_prefixlength }
    }

    /// What is found where the packets to peers of these numbers go this way.
    fn found(family: &mut FamilyPlane<FakeKernel>, numbers: impl Iterator<Item = u16>, way: Way) -> Option<String> {
        family.dataplane.ways =
            numbers.map(u16::to_be_bytes).map(|[high, low]| ([10, 4 + high, low, 0].into(), way)).collect();
        family.diversions = Diversions { is_due: true, ..Diversions::default() };
        family.look_for_diversion(Instant::now())
    }

    #[test]
    fn the_line_says_how_many_peers_a_rule_takes_the_packets_of() {
        let mut family = family(300);
        let way = Way::Table(100, None);
        let words = |of: &str| {
            format!(
                "{of}: the policy rule `100: from all lookup 100` of another program takes packets to {} before the main table is asked",
                if of.contains(" and ") { "these peers" } else { "this peer" }
            )
        };
        for (numbers, of) in [
            (7..8, "peer 10.4.7.0/24"),
            (7..9, "peer 10.4.7.0/24 and at least 1 more peer"),
            (1..301, "peer 10.4.1.0/24 and at least 255 more peers"),
        ] {
            let expected = words(of);
            assert_eq!(found(&mut family, numbers, way), Some(expected));
        }
        assert_eq!(found(&mut family, 0..0, way), None);
        let mut family = self::family(5);
        assert_eq!(found(&mut family, 1..3, way), Some(words("peer 10.4.1.0/24 and 1 more peer")));
        assert_eq!(found(&mut family, 2..6, way), Some(words("peer 10.4.2.0/24 and 3 more peers")));
    }

    #[test]
    fn a_table_that_refuses_packets_makes_its_rule_the_one_that_takes_them() {
        let mut family = family(5);
        assert_eq!(found(&mut family, 1..6, Way::Refused), None, "nothing says that it is the rule's table");
        let end = |to: &str, is_throw| DeadEnd { to: to.parse().unwrap(), metric: 0, is_throw };
        family.dataplane.dead_ends.insert(100, vec![end("0.0.0.0/0", false)]);
        let line = found(&mut family, 1..6, Way::Refused).unwrap();
        assert!(
            line.starts_with("peer 10.4.1.0/24 and 4 more peers: the policy rule `100: from all lookup 100`"),
            "{line}"
        );
        family.dataplane.dead_ends.insert(100, vec![end("0.0.0.0/0", false), end("10.4.0.0/15", true)]);
        assert_eq!(found(&mut family, 1..6, Way::Refused), None);
        family.dataplane.dead_ends.insert(100, vec![end("10.4.3.0/24", false)]);
        let line = found(&mut family, 1..6, Way::Refused).unwrap();
        assert!(line.starts_with("peer 10.4.3.0/24: the policy rule"), "{line}");
    }
}
