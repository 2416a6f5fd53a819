//! What is wanted, as data: tables, chains and rules in flannel's order.
//!
//! The order is flannel's (<https://github.com/flannel-io/flannel/blob/v0.28.9/pkg/trafficmngr/iptables/iptables.go>).
//! Pure; how it looks on the wire is `wire`'s.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::{Side, WantedRules};

/// The mark by which kube-proxy knows packets that it masquerades itself.
pub(super) const KUBE_PROXY_MARK: u32 = 0x4000;

/// ICMP's redirect, and ICMPv6's multicast listener and neighbour discovery messages (RFC 792, 2710, 3810, 4861).
const ICMP_REDIRECT: u8 = 5;
const ICMPV6_LISTENER_QUERY: u8 = 130;
const ICMPV6_REDIRECT: u8 = 137;
const ICMPV6_LISTENER_REPORT_2: u8 = 143;
const IPPROTO_ICMP: u8 = 1;
const IPPROTO_IGMP: u8 = 2;
const IPPROTO_ICMPV6: u8 = 58;

/// A family of nf_tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Ip,
    Ip6,
    Arp,
}

/// A table of ours with all it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub family: Family,
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
    /// `type filter hook input priority filter`
    Input,
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
    /// It came in through the device that has this name.
    In(Device),
    /// It is of this protocol above IP.
    Protocol(u8),
    /// The first byte behind the IP headers, which is ICMP's type, is in this range.
    Type(u8, u8),
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
    Drop,
    Return,
    Masquerade { fully_random: bool },
}

/// A device's name, as long as the kernel has them (`IFNAMSIZ`), with zeros behind it.
pub(super) type Device = [u8; 16];

impl Table {
    /// Whether it holds nothing but what keeps a frame from the tunnel from changing this host.
    pub(super) fn is_guard_only(&self) -> bool {
        self.chains.iter().all(|chain| chain.hook == Hook::Input)
    }

    /// How many rules it has.
    pub(super) fn rules(&self) -> usize {
        self.chains.iter().map(|chain| chain.rules.len()).sum()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
            Family::Arp => "arp",
        };
        write!(f, "{family} {}", self.name)
    }
}

/// The name of our tables, in each family.
pub(super) fn table_name(mark: &str) -> String {
    format!("twill.{mark}")
}

/// The tables of all families.
pub(super) fn tables(wanted: &WantedRules) -> Vec<Table> {
    let devices = wanted.sides.iter().filter_map(|side| side.device.as_ref());
    let table = |family: Family| {
        let v6 = family == Family::Ip6;
        let side = wanted.sides.iter().find(|side| side.network.is_ipv6() == v6 && family != Family::Arp);
        let guard: Vec<Rule> = devices.clone().flat_map(|name| guard(family, device(name))).collect();
        let input = (!guard.is_empty()).then_some(Chain { name: "input", hook: Hook::Input, rules: guard });
        let mut chains: Vec<Chain> = input.into_iter().collect();
        if let Some(side) = side {
            if wanted.masquerade {
                let rules = postrouting(side, wanted.fully_random);
                chains.push(Chain { name: "postrouting", hook: Hook::Postrouting, rules });
            }
            if wanted.forward {
                chains.push(Chain { name: "forward", hook: Hook::Forward, rules: forward(side) });
            }
        }
        Table { family, name: table_name(&wanted.mark), chains }
    };
    vec![table(Family::Ip), table(Family::Ip6), table(Family::Arp)]
}

fn device(name: &str) -> Device {
    let mut device = [0; 16];
    device.iter_mut().zip(name.bytes()).for_each(|(to, byte)| *to = byte);
    device
}

/// What a frame from the tunnel could change of this host by: no peer sends any of it. Forwarded packets don't pass here.
fn guard(family: Family, device: Device) -> Vec<Rule> {
    let drop = |matches: &[Match], comment| {
        let matches = [&[Match::In(device)], matches].concat();
        Rule { matches, verdict: Verdict::Drop, comment }
    };
    let of_type = |first, last| [Match::Protocol(IPPROTO_ICMPV6), Match::Type(first, last)];
    match family {
        Family::Arp => vec![drop(&[], "peers' MACs are written by twilld, not learned")],
        Family::Ip => vec![
            drop(
                &[Match::Protocol(IPPROTO_ICMP), Match::Type(ICMP_REDIRECT, ICMP_REDIRECT)],
                "no other way is learned",
            ),
            drop(&[Match::Protocol(IPPROTO_IGMP)], "no multicast in the tunnel"),
        ],
        Family::Ip6 => vec![
            drop(&of_type(ICMPV6_LISTENER_QUERY, ICMPV6_REDIRECT), "no router, neighbour or other way is learned"),
            drop(&of_type(ICMPV6_LISTENER_REPORT_2, ICMPV6_LISTENER_REPORT_2), "no multicast in the tunnel"),
        ],
    }
}

fn postrouting(side: &Side, fully_random: bool) -> Vec<Rule> {
    use Match::{From, Mark, NotFrom, NotTo, To};
    let Side { network, subnet, .. } = *side;
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

    fn wanted(sides: &[(&str, &str)]) -> WantedRules {
        let side = |(network, subnet): &(&str, &str)| Side {
            network: network.parse().unwrap(),
            subnet: subnet.parse().unwrap(),
            device: Some(if network.contains(':') { "flannel-v6.1" } else { "flannel.1" }.to_owned()),
        };
        let sides = sides.iter().map(side).collect();
        WantedRules { mark: "1".to_owned(), sides, masquerade: true, fully_random: true, forward: true }
    }

    #[test]
    fn flannel_s_order_in_each_family() {
        let wanted = wanted(&[("10.5.0.0/16", "10.5.52.0/24"), ("fc00::/48", "fc00:0:0:22::/64")]);
        let tables = tables(&wanted);
        let names: Vec<String> = tables.iter().map(Table::to_string).collect();
        assert_eq!(names, ["ip twill.1", "ip6 twill.1", "arp twill.1"]);
        for table in &tables[..2] {
            let verdicts: Vec<Verdict> = table.chains[1].rules.iter().map(|rule| rule.verdict).collect();
            let masquerade = Verdict::Masquerade { fully_random: true };
            assert_eq!(verdicts, [[Verdict::Return; 4].as_slice(), &[masquerade; 2]].concat());
            assert_eq!(table.chains[2].rules.len(), 2);
        }
        let to_multicast = Match::NotTo("ff00::/8".parse().unwrap());
        assert_eq!(tables[1].chains[1].rules[4].matches[1], to_multicast);
    }

    #[test]
    fn each_device_is_guarded_in_each_family() {
        let wanted = wanted(&[("10.5.0.0/16", "10.5.52.0/24"), ("fc00::/48", "fc00:0:0:22::/64")]);
        let devices = [device("flannel.1"), device("flannel-v6.1")];
        for table in tables(&wanted) {
            let rules = &table.chains[0].rules;
            assert!(rules.iter().all(|rule| rule.verdict == Verdict::Drop), "{table}");
            for device in devices {
                assert!(rules.iter().any(|rule| rule.matches[0] == Match::In(device)), "{table}");
            }
        }
    }

    #[test]
    fn without_a_device_there_is_nothing_to_guard() {
        let mut wanted = wanted(&[("10.5.0.0/16", "10.5.52.0/24")]);
        (wanted.mark, wanted.sides[0].device) = ("host-gw".to_owned(), None);
        let tables = tables(&wanted);
        assert_eq!(tables[0].to_string(), "ip twill.host-gw");
        let chains: Vec<&str> = tables.iter().flat_map(|table| &table.chains).map(|chain| chain.name).collect();
        assert_eq!(chains, ["postrouting", "forward"]);
    }

    #[test]
    fn what_is_off_has_no_chain() {
        let mut wanted = wanted(&[("10.5.0.0/16", "10.5.52.0/24")]);
        wanted.masquerade = false;
        assert_eq!(tables(&wanted)[0].chains.len(), 2);
        wanted.forward = false;
        assert!(tables(&wanted).iter().all(Table::is_guard_only));
    }
}
