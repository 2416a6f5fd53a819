//! Chains that are not ours, as data: what may become of a packet that walks through them.
//!
//! Pure. `others` fills it from nf_tables, `legacy` from iptables-legacy; both ask the same questions. In doubt a rule may
//! drop: a target, an expression or a chain that is not known here, a rule that cannot be read.

use std::fmt;

use ipnetwork::IpNetwork;
use netlink_packet_netfilter::NetfilterProtoFamily;

use super::Side;

const POSTRTG: &str = "FLANNEL-POSTRTG";
const FWD: &str = "FLANNEL-FWD";
/// How deep chains call each other: `NFT_JUMP_STACK_SIZE`, include/net/netfilter/nf_tables.h. What goes deeper was changed
/// while it was read.
const DEPTH: u8 = 16;

/// Targets of iptables after which a packet goes on.
pub(super) const HARMLESS_TARGETS: [&str; 8] =
    ["LOG", "NFLOG", "MARK", "CONNMARK", "TCPMSS", "TRACE", "CLASSIFY", "CT"];

/// A chain of any table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub family: NetfilterProtoFamily,
    pub table: String,
    pub name: String,
    pub hook: Hook,
    /// Its policy is to drop.
    pub drops: bool,
    pub rules: Vec<Rule>,
}

/// Where packets enter a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    /// From rules of other chains.
    None,
    /// At the forward hook.
    Forward,
    /// At another hook.
    Other,
}

/// A rule, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    /// By which whoever read it finds it again.
    pub handle: u64,
    pub act: Act,
    /// The sources and destinations that it asks for.
    pub nets: Vec<IpNetwork>,
    /// It has other conditions besides.
    pub conditions: bool,
}

/// What a rule does with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// The packet goes on to the next rule.
    Nothing,
    Accept,
    Drop,
    /// Back to the chain that called.
    Return,
    /// Into another chain.
    Call(String),
    /// Not known here.
    Unknown,
}

/// What of an earlier flannel's Twill does itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ours {
    pub masquerade: bool,
    pub forward: bool,
}

/// A chain of an earlier flannel, and the rules that call it.
pub(super) struct Leftover<'a> {
    pub chain: &'a Chain,
    pub calls: Vec<(&'a Chain, &'a Rule)>,
    /// Without it packets of the network may be dropped by what comes behind its call.
    pub needed: bool,
}

/// What came of removing what an earlier flannel left.
#[derive(Debug, Default)]
pub(super) struct Removal {
    /// What is gone.
    pub removed: Vec<String>,
    /// Chains that stay since packets of the network may be dropped without them.
    pub kept: Vec<String>,
    /// What could not be removed, and why.
    pub failed: Vec<String>,
}

impl Removal {
    pub(super) fn extend(&mut self, more: Removal) {
        self.removed.extend(more.removed);
        self.kept.extend(more.kept);
        self.failed.extend(more.failed);
    }
}

/// All chains of some tables.
#[derive(Debug, Default)]
pub(super) struct Chains(pub Vec<Chain>);

impl Chains {
    /// The chains of an earlier flannel of which Twill has its own.
    pub(super) fn leftovers(&self, ours: Ours) -> impl Iterator<Item = Leftover<'_>> {
        let is_one =
            move |chain: &&Chain| (chain.name == POSTRTG && ours.masquerade) || (chain.name == FWD && ours.forward);
        self.0.iter().filter(is_one).map(|chain| {
            let calls: Vec<_> = self.calls(chain).collect();
            // accept ends one base chain only (nft(8), "verdict statement"): ours cannot take this one's place.
            let needed = chain.name == FWD && calls.iter().any(|(caller, at)| self.may_drop_behind(caller, *at, DEPTH));
            let calls = calls.into_iter().map(|(caller, at)| (caller, &caller.rules[at])).collect();
            Leftover { chain, calls, needed }
        })
    }

    /// Removes them, each by `delete`, but for those that are needed; `name` is what the log calls one.
    pub(super) fn remove_leftovers<E: fmt::Display>(
        &self,
        ours: Ours,
        name: impl Fn(&Chain) -> String,
        mut delete: impl FnMut(&Leftover<'_>) -> Result<(), E>,
    ) -> Removal {
        let mut removal = Removal::default();
        for left in self.leftovers(ours) {
            let name = name(left.chain);
            if left.needed {
                removal.kept.push(name);
                continue;
            }
            match delete(&left) {
                Ok(()) => removal.removed.push(name),
                Err(error) => removal.failed.push(format!("{name}: {error}")),
            }
        }
        removal
    }

    /// What drops forwarded packets from or to these networks before a rule of the same chain accepts them.
    pub(super) fn against(&self, sides: &[Side]) -> Vec<String> {
        let mut against = Vec::new();
        for chain in self.0.iter().filter(|chain| chain.hook == Hook::Forward) {
            let mut reasons = Vec::new();
            for side in sides.iter().filter(|side| chain.carries(side.network)) {
                if !self.walk(chain, side.network, &mut reasons, DEPTH) && chain.drops {
                    reasons.push("policy drop".to_owned());
                }
            }
            reasons.dedup();
            against.extend((!reasons.is_empty()).then(|| format!("{chain} ({})", reasons.join(", "))));
        }
        against
    }

    /// Each rule that calls a chain: its chain and its place in it.
    fn calls<'a>(&'a self, called: &'a Chain) -> impl Iterator<Item = (&'a Chain, usize)> {
        let same_table = |chain: &&Chain| chain.family == called.family && chain.table == called.table;
        self.0.iter().filter(same_table).flat_map(|chain| {
            let calls = |rule: &Rule| matches!(&rule.act, Act::Call(name) if *name == called.name);
            chain.rules.iter().enumerate().filter(move |(_, rule)| calls(rule)).map(move |(at, _)| (chain, at))
        })
    }

    fn called(&self, chain: &Chain, name: &str) -> Option<&Chain> {
        self.0.iter().find(|c| c.family == chain.family && c.table == chain.table && c.name == name)
    }

    /// Whether a packet that goes on behind this rule may be dropped before it leaves the hook's chain.
    fn may_drop_behind(&self, chain: &Chain, at: usize, depth: u8) -> bool {
        let Some(depth) = depth.checked_sub(1) else { return true };
        let here = chain.rules.iter().skip(at + 1).any(|rule| self.may_drop(chain, rule, depth));
        let behind = || self.calls(chain).any(|(caller, at)| self.may_drop_behind(caller, at, depth));
        here || if chain.hook == Hook::None { behind() } else { chain.drops }
    }

    fn may_drop(&self, chain: &Chain, rule: &Rule, depth: u8) -> bool {
        match &rule.act {
            Act::Nothing | Act::Accept | Act::Return => false,
            Act::Drop | Act::Unknown => true,
            Act::Call(name) => match (self.called(chain, name), depth.checked_sub(1)) {
                (Some(called), Some(depth)) => called.rules.iter().any(|rule| self.may_drop(called, rule, depth)),
                _ => true,
            },
        }
    }

    /// Goes through a chain as a packet of the network does, and notes what drops it; whether that was the end of it.
    fn walk(&self, chain: &Chain, network: IpNetwork, reasons: &mut Vec<String>, depth: u8) -> bool {
        let Some(depth) = depth.checked_sub(1) else { return false };
        for rule in &chain.rules {
            let concerned = rule.nets.iter().find(|net| overlap(**net, network));
            let all = !rule.conditions && rule.nets.len() <= 1 && rule.nets.iter().all(|net| covers(*net, network));
            match (&rule.act, concerned) {
                (Act::Accept, _) if all => return true,
                (Act::Drop, None) if all => {
                    reasons.push("a rule drops the rest".to_owned());
                    return true;
                }
                (Act::Drop, Some(net)) => reasons.push(format!("a rule drops {net}")),
                (Act::Return, _) if all => return false,
                (Act::Call(name), _) if all || concerned.is_some() => {
                    let ended = self.called(chain, name).is_some_and(|c| self.walk(c, network, reasons, depth));
                    if ended && all {
                        return true;
                    }
                }
                _ => {}
            }
        }
        false
    }
}

impl Rule {
    /// A rule that cannot be read.
    pub(super) fn unknown() -> Self {
        Self { handle: 0, act: Act::Unknown, nets: Vec::new(), conditions: true }
    }
}

impl Chain {
    /// Whether it bears a name of flannel's.
    pub(super) fn is_flannel_s(&self) -> bool {
        [POSTRTG, FWD].contains(&self.name.as_str())
    }

    fn carries(&self, network: IpNetwork) -> bool {
        match self.family {
            NetfilterProtoFamily::IPv4 => network.is_ipv4(),
            NetfilterProtoFamily::IPv6 => network.is_ipv6(),
            family => family == NetfilterProtoFamily::Inet,
        }
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", word(self.family), self.table, self.name)
    }
}

/// A family as nft writes it.
pub(super) fn word(family: NetfilterProtoFamily) -> &'static str {
    match family {
        NetfilterProtoFamily::IPv4 => "ip",
        NetfilterProtoFamily::IPv6 => "ip6",
        NetfilterProtoFamily::Inet => "inet",
        _ => "other",
    }
}

fn covers(net: IpNetwork, network: IpNetwork) -> bool {
    net.prefix() <= network.prefix() && net.contains(network.network())
}

fn overlap(one: IpNetwork, other: IpNetwork) -> bool {
    covers(one, other) || covers(other, one)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Ours = Ours { masquerade: true, forward: true };

    fn rule(act: Act) -> Rule {
        Rule { handle: 0, act, nets: Vec::new(), conditions: false }
    }

    fn of(net: &str, act: Act) -> Rule {
        Rule { nets: vec![net.parse().unwrap()], ..rule(act) }
    }

    fn call(name: &str) -> Rule {
        rule(Act::Call(name.to_owned()))
    }

    fn chain(name: &str, hook: Hook, rules: Vec<Rule>) -> Chain {
        let (table, name) = ("filter".to_owned(), name.to_owned());
        Chain { family: NetfilterProtoFamily::IPv4, table, name, hook, drops: false, rules }
    }

    /// A FORWARD chain and flannel's, which it may call.
    fn forward(rules: Vec<Rule>) -> Chains {
        let accepts = vec![of("10.5.0.0/16", Act::Accept)];
        Chains(vec![chain("FORWARD", Hook::Forward, rules), chain(FWD, Hook::None, accepts)])
    }

    fn needed(chains: &Chains) -> bool {
        chains.leftovers(OURS).next().unwrap().needed
    }

    #[test]
    fn the_chain_stays_where_anything_behind_its_call_may_drop() {
        let conditional = Rule { conditions: true, ..rule(Act::Drop) };
        for behind in [rule(Act::Drop), rule(Act::Unknown), conditional, of("192.0.2.0/24", Act::Drop), call("GONE")] {
            assert!(needed(&forward(vec![call(FWD), behind.clone()])), "{behind:?}");
            assert!(!needed(&forward(vec![behind.clone(), call(FWD)])), "before its call: {behind:?}");
        }
        assert!(!needed(&forward(vec![call(FWD), rule(Act::Accept), rule(Act::Nothing), rule(Act::Return)])));
        let mut policy = forward(vec![call(FWD)]);
        policy.0[0].drops = true;
        assert!(needed(&policy));
    }

    #[test]
    fn what_called_chains_and_callers_do_counts() {
        let mut chains = forward(vec![call(FWD), call("OTHER")]);
        chains.0.push(chain("OTHER", Hook::None, vec![call("DEEPER")]));
        chains.0.push(chain("DEEPER", Hook::None, vec![rule(Act::Accept)]));
        assert!(!needed(&chains));
        chains.0[3].rules.push(rule(Act::Drop));
        assert!(needed(&chains));

        let mut chains = forward(vec![call("OTHER"), rule(Act::Drop)]);
        chains.0.push(chain("OTHER", Hook::None, vec![call(FWD)]));
        assert!(needed(&chains), "the caller's caller drops");
        chains.0[0].rules.pop();
        assert!(!needed(&chains));
    }

    #[test]
    fn chains_that_call_each_other_for_ever_end() {
        let mut chains = forward(vec![call(FWD), call("ONE")]);
        chains.0.push(chain("ONE", Hook::None, vec![call("ONE")]));
        assert!(needed(&chains));
        assert!(chains.against(&[]).is_empty());
    }

    #[test]
    fn only_what_is_ours_goes() {
        let mut chains = forward(vec![call(FWD)]);
        chains.0.push(chain(POSTRTG, Hook::None, Vec::new()));
        let names = |ours| chains.leftovers(ours).map(|left| left.chain.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(OURS), [FWD, POSTRTG]);
        assert_eq!(names(Ours { masquerade: false, forward: true }), [FWD]);
        assert_eq!(names(Ours { masquerade: true, forward: false }), [POSTRTG]);
    }

    #[test]
    fn drops_of_our_packets_are_named_up_to_the_rule_that_accepts_them() {
        let (network, subnet) = ("10.5.0.0/16".parse().unwrap(), "10.5.1.0/24".parse().unwrap());
        let side = Side { network, subnet, device: Some("flannel.1".to_owned()) };
        let against = |rules: Vec<Rule>| forward(rules).against(std::slice::from_ref(&side)).join("; ");
        let part = || of("10.5.7.0/24", Act::Drop);
        assert_eq!(against(vec![part()]), "ip filter FORWARD (a rule drops 10.5.7.0/24)");
        assert_eq!(
            against(vec![part(), rule(Act::Drop)]),
            "ip filter FORWARD (a rule drops 10.5.7.0/24, a rule drops the rest)"
        );
        assert_eq!(against(vec![of("10.0.0.0/8", Act::Drop)]), "ip filter FORWARD (a rule drops 10.0.0.0/8)");
        assert_eq!(against(vec![call(FWD), rule(Act::Drop)]), "");
        assert_eq!(against(vec![of("10.0.0.0/8", Act::Accept), rule(Act::Drop)]), "");
        assert_eq!(against(vec![of("172.17.0.0/16", Act::Drop)]), "");
        let invalid = Rule { conditions: true, ..rule(Act::Drop) };
        assert_eq!(against(vec![invalid]), "", "a condition that has nothing to do with us");
        let elsewhere = Rule { conditions: true, ..call(FWD) };
        assert_eq!(against(vec![elsewhere, rule(Act::Drop)]), "ip filter FORWARD (a rule drops the rest)");
    }
}
