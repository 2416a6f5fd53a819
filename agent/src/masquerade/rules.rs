//! What is wanted, as data: tables, chains and rules in flannel's order.
//!
//! The order is flannel's (<https://github.com/flannel-io/flannel/blob/v0.28.9/pkg/trafficmngr/iptables/iptables.go>).
//! Pure; how it looks on the wire is `wire`'s.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::{Side, Wanted};

/// The mark by which kube-proxy knows packets that it masquerades itself.
pub(super) const KUBE_PROXY_MARK: u32 = 0x4000;

/// A table of ours with all it holds; without chains it shall not be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub v6: bool,
    pub name: String,
    pub chains: Vec<Chain>,
}

/// A base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub name: &'static str,
    pub hook: Hook,
    pub rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    /// `type nat hook postrouting priority srcnat`
    Postrouting,
    /// `type filter hook forward priority filter`
    Forward,
}

/// A rule: all matches, then the verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub matches: Vec<Match>,
    pub verdict: Verdict,
    /// Shown by `nft list ruleset`.
    pub comment: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Match {
    /// All bits of this mark are set.
    Mark(u32),
    /// The source is in it.
    From(IpNetwork),
    /// The source is not in it.
    NotFrom(IpNetwork),
    /// The destination is in it.
    To(IpNetwork),
    /// The destination is not in it.
    NotTo(IpNetwork),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Return,
    Masquerade { fully_random: bool },
}

impl Table {
    /// How many rules it has.
    pub(super) fn rules(&self) -> usize {
        self.chains.iter().map(|chain| chain.rules.len()).sum()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", if self.v6 { "ip6" } else { "ip" }, self.name)
    }
}

/// The tables of both families; that of a family without rules is to be removed.
pub(super) fn tables(wanted: &Wanted) -> Vec<Table> {
    let table = |v6: bool| {
        let side = wanted.sides.iter().find(|side| side.network.is_ipv6() == v6);
        let mut chains = Vec::new();
        if let Some(side) = side {
            if wanted.masquerade {
                let rules = postrouting(side, wanted.fully_random);
                chains.push(Chain { name: "postrouting", hook: Hook::Postrouting, rules });
            }
            if wanted.forward {
                chains.push(Chain { name: "forward", hook: Hook::Forward, rules: forward(side) });
            }
        }
        Table { v6, name: format!("twill.{}", wanted.vni), chains }
    };
    vec![table(false), table(true)]
}

fn postrouting(side: &Side, fully_random: bool) -> Vec<Rule> {
    use Match::{From, Mark, NotFrom, NotTo, To};
    let Side { network, subnet } = *side;
    let masquerade = Verdict::Masquerade { fully_random };
    let rule = |matches: &[Match], verdict, comment| Rule { matches: matches.to_vec(), verdict, comment };
    vec![
        rule(&[Mark(KUBE_PROXY_MARK)], Verdict::Return, "kube-proxy masquerades these itself"),
        rule(&[From(subnet), To(network)], Verdict::Return, "from our pods to pods"),
        rule(&[From(network), To(subnet)], Verdict::Return, "from pods to our pods"),
        rule(&[NotFrom(network), To(subnet)], Verdict::Return, "from outside to our pods"),
        rule(&[From(network), NotTo(multicast(network))], masquerade, "from pods to the outside"),
        rule(&[NotFrom(network), To(network)], masquerade, "from this host or outside to pods elsewhere"),
    ]
}

fn forward(side: &Side) -> Vec<Rule> {
    let accept = |of, comment| Rule { matches: vec![of], verdict: Verdict::Accept, comment };
    vec![accept(Match::From(side.network), "from the network"), accept(Match::To(side.network), "to the network")]
}

/// All multicast addresses of a network's family.
fn multicast(network: IpNetwork) -> IpNetwork {
    let (address, prefix) = match network {
        IpNetwork::V4(_) => (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
        IpNetwork::V6(_) => (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
    };
    IpNetwork::new(address, prefix).unwrap_or_else(|_| address.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(sides: &[(&str, &str)]) -> Wanted {
        let side = |(network, subnet): &(&str, &str)| Side {
            network: network.parse().unwrap(),
            subnet: subnet.parse().unwrap(),
        };
        let sides = sides.iter().map(side).collect();
        Wanted { vni: 1, sides, masquerade: true, fully_random: true, forward: true }
    }

    #[test]
    fn flannel_s_order_in_each_family() {
        let wanted = wanted(&[("10.5.0.0/16", "10.5.52.0/24"), ("fc00::/48", "fc00:0:0:22::/64")]);
        let tables = tables(&wanted);
        assert_eq!([tables[0].to_string(), tables[1].to_string()], ["ip twill.1", "ip6 twill.1"]);
        for table in &tables {
            let verdicts: Vec<Verdict> = table.chains[0].rules.iter().map(|rule| rule.verdict).collect();
            let masquerade = Verdict::Masquerade { fully_random: true };
            assert_eq!(verdicts, [[Verdict::Return; 4].as_slice(), &[masquerade; 2]].concat());
            assert_eq!(table.chains[1].rules.len(), 2);
        }
        let to_multicast = Match::NotTo("ff00::/8".parse().unwrap());
        assert_eq!(tables[1].chains[0].rules[4].matches[1], to_multicast);
    }

    #[test]
    fn what_is_off_has_no_chain() {
        let mut wanted = wanted(&[("10.5.0.0/16", "10.5.52.0/24")]);
        wanted.masquerade = false;
        assert_eq!(tables(&wanted)[0].chains.len(), 1);
        wanted.forward = false;
        assert!(tables(&wanted).iter().all(|table| table.chains.is_empty()));
    }
}
