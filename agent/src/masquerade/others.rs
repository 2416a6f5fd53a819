//! Chains that are not ours: what an earlier flannel left, and what drops packets that our rules accept.
//!
//! Flannel's are known by their names: the chains `FLANNEL-POSTRTG` and `FLANNEL-FWD`, which iptables-nft keeps in nf_tables,
//! and the tables `flannel-ipv4` and `flannel-ipv6` of its own nftables mode. What iptables-legacy holds is not seen here.
//!
//! `accept` ends one base chain only; the packet goes on to the others of the same hook, and a drop in any of them is
//! final (nft(8), "verdict statement"). So `FLANNEL-FWD` stays where the chain that calls it would drop without it.

use ipnetwork::IpNetwork;
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions, Hook, HookNumber, Immediate,
    InetHookNumber, ListAttribute, NfTablesMessage, RuleAttribute, RuleMessage, TableAttribute, TableMessage, Verdict,
    VerdictAttribute,
};

use super::socket::Nft;
use super::wire::Step;
use super::{Error, Side};

const POSTRTG: &str = "FLANNEL-POSTRTG";
const FWD: &str = "FLANNEL-FWD";
const FLANNEL_TABLES: [(NetfilterProtoFamily, &str); 2] =
    [(NetfilterProtoFamily::IPv4, "flannel-ipv4"), (NetfilterProtoFamily::IPv6, "flannel-ipv6")];
/// `NF_DROP` and `NF_ACCEPT`, include/uapi/linux/netfilter.h.
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

/// A chain of any table.
struct Chain {
    family: NetfilterProtoFamily,
    table: String,
    name: String,
    hook: Option<InetHookNumber>,
    drops: bool,
}

/// A rule, as far as it matters here.
#[derive(Default)]
struct Rule {
    handle: u64,
    verdict: Option<Verdict>,
    /// The chain it calls.
    target: Option<String>,
    /// The values it compares with.
    compared: Vec<Vec<u8>>,
    /// It has no condition.
    always: bool,
}

/// Removes what an earlier flannel left, in one transaction for each thing; says what.
pub(super) fn remove_flannel_s(nft: &mut Nft) -> Result<Vec<String>, Error> {
    let mut removed = Vec::new();
    for (family, name) in FLANNEL_TABLES {
        let table = || TableMessage { attributes: vec![TableAttribute::Name(name.to_owned())] };
        if !nft.read(family, NfTablesMessage::GetTable(table()), false)?.is_empty() {
            let delete = Step { family, message: NfTablesMessage::DeleteTable(table()), flags: 0 };
            nft.transact("remove flannel's table", &[delete])?;
            removed.push(format!("table {} {name}", word(family)));
        }
    }
    let chains = chains(nft)?;
    for left in chains.iter().filter(|chain| [POSTRTG, FWD].contains(&chain.name.as_str())) {
        let mut steps = Vec::new();
        let mut needed = false;
        for caller in chains.iter().filter(|c| c.family == left.family && c.table == left.table && c.hook.is_some()) {
            let rules = rules(nft, caller)?;
            let mut calls = rules.iter().filter(|rule| rule.target.as_deref() == Some(&left.name)).peekable();
            needed |= left.name == FWD && calls.peek().is_some() && drops(caller, &rules);
            steps.extend(calls.map(|rule| delete_rules(caller, Some(rule.handle))));
        }
        if needed {
            continue;
        }
        steps.push(delete_rules(left, None));
        let attributes = vec![ChainAttribute::Table(left.table.clone()), ChainAttribute::Name(left.name.clone())];
        let message = NfTablesMessage::DeleteChain(ChainMessage { attributes });
        steps.push(Step { family: left.family, message, flags: 0 });
        nft.transact("remove flannel's chain", &steps)?;
        removed.push(format!("chain {left}"));
    }
    Ok(removed)
}

/// Chains of others at the forward hook that drop what they don't accept themselves, and accept none of our networks.
pub(super) fn against_forwarding(nft: &mut Nft, sides: &[Side]) -> Result<Vec<String>, Error> {
    let mut against = Vec::new();
    for chain in chains(nft)?.iter().filter(|chain| chain.hook == Some(InetHookNumber::Forward)) {
        let mut concerned = sides.iter().filter(|side| match chain.family {
            NetfilterProtoFamily::IPv4 => side.network.is_ipv4(),
            NetfilterProtoFamily::IPv6 => side.network.is_ipv6(),
            family => family == NetfilterProtoFamily::Inet,
        });
        let rules = rules(nft, chain)?;
        let accepted = |side: &Side| {
            let calls_flannel_s = rules.iter().any(|rule| rule.target.as_deref() == Some(FWD));
            calls_flannel_s || rules.iter().any(|rule| rule.accepts(side.network))
        };
        if drops(chain, &rules) && concerned.any(|side| !accepted(side)) {
            against.push(format!("{chain} ({})", if chain.drops { "policy drop" } else { "a rule drops the rest" }));
        }
    }
    Ok(against)
}

/// Whether a chain drops what none of its rules accepts.
fn drops(chain: &Chain, rules: &[Rule]) -> bool {
    chain.drops || rules.iter().any(|rule| rule.always && rule.verdict == Some(Verdict::Other(NF_DROP)))
}

impl Rule {
    fn accepts(&self, network: IpNetwork) -> bool {
        let octets = match network {
            IpNetwork::V4(net) => net.network().octets().to_vec(),
            IpNetwork::V6(net) => net.network().octets().to_vec(),
        };
        let short = &octets[..usize::from(network.prefix()) / 8];
        self.verdict == Some(Verdict::Other(NF_ACCEPT))
            && self.compared.iter().any(|value| value == short || *value == octets)
    }
}

impl std::fmt::Display for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", word(self.family), self.table, self.name)
    }
}

/// A family as nft writes it.
fn word(family: NetfilterProtoFamily) -> &'static str {
    match family {
        NetfilterProtoFamily::IPv4 => "ip",
        NetfilterProtoFamily::IPv6 => "ip6",
        NetfilterProtoFamily::Inet => "inet",
        _ => "other",
    }
}

fn delete_rules(chain: &Chain, handle: Option<u64>) -> Step {
    let mut attributes = vec![RuleAttribute::Table(chain.table.clone()), RuleAttribute::Chain(chain.name.clone())];
    attributes.extend(handle.map(RuleAttribute::Handle));
    let message = NfTablesMessage::DeleteRule(RuleMessage { attributes });
    Step { family: chain.family, message, flags: 0 }
}

/// The chains of all tables but ours.
fn chains(nft: &mut Nft) -> Result<Vec<Chain>, Error> {
    let all = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
    let shown = nft.read(NetfilterProtoFamily::Unspec, all, true)?;
    Ok(shown.into_iter().filter_map(|shown| chain(shown.family, shown.message)).collect())
}

fn chain(family: NetfilterProtoFamily, message: NfTablesMessage) -> Option<Chain> {
    let NfTablesMessage::NewChain(message) = message else { return None };
    let mut chain = Chain { family, table: String::new(), name: String::new(), hook: None, drops: false };
    for attribute in message.attributes {
        match attribute {
            ChainAttribute::Table(table) => chain.table = table,
            ChainAttribute::Name(name) => chain.name = name,
            ChainAttribute::Policy(policy) => chain.drops = policy == NF_DROP,
            ChainAttribute::Hook(parts) => {
                chain.hook = parts.iter().find_map(|part| match part {
                    Hook::Number(HookNumber::Inet(hook)) => Some(*hook),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    (!chain.table.starts_with("twill.")).then_some(chain)
}

fn rules(nft: &mut Nft, chain: &Chain) -> Result<Vec<Rule>, Error> {
    let attributes = vec![RuleAttribute::Table(chain.table.clone()), RuleAttribute::Chain(chain.name.clone())];
    let shown = nft.read(chain.family, NfTablesMessage::GetRule(RuleMessage { attributes }), true)?;
    Ok(shown.into_iter().filter_map(|shown| rule(&chain.name, shown.message)).collect())
}

fn rule(chain: &str, message: NfTablesMessage) -> Option<Rule> {
    let NfTablesMessage::NewRule(message) = message else { return None };
    let mut rule = Rule { always: true, ..Rule::default() };
    for attribute in message.attributes {
        match attribute {
            // Old kernels don't filter by chain.
            RuleAttribute::Chain(name) if name != chain => return None,
            RuleAttribute::Handle(handle) => rule.handle = handle,
            RuleAttribute::Expressions(list) => {
                for element in list {
                    let ListAttribute::Element(parts) = element else { continue };
                    for part in parts {
                        if let ExpressionAttribute::Data(expression) = part {
                            rule.take(expression);
                        }
                    }
                }
            }
            _ => {}
        }
    }
    Some(rule)
}

impl Rule {
    fn take(&mut self, expression: Expressions) {
        match expression {
            Expressions::Immediate(parts) => {
                for part in parts {
                    let Immediate::Data(DataAttribute::Verdict(verdict)) = part else { continue };
                    for part in verdict {
                        match part {
                            VerdictAttribute::Code(code) => self.verdict = Some(code),
                            VerdictAttribute::Chain(name) => self.target = Some(name),
                            _ => {}
                        }
                    }
                }
            }
            Expressions::Cmp(parts) => {
                self.always = false;
                self.compared.extend(parts.into_iter().filter_map(|part| match part {
                    Cmp::Data(DataAttribute::Value(value)) => Some(value),
                    _ => None,
                }));
            }
            Expressions::Other { ref expression_type, .. } if expression_type == "counter" => {}
            // `reject` ends the packet as a drop does.
            Expressions::Other { ref expression_type, .. } if expression_type == "reject" => {
                self.verdict = Some(Verdict::Other(NF_DROP));
            }
            // Conditions, or what may be one (iptables' `match`).
            _ => self.always = false,
        }
    }
}
