//! Chains of nf_tables that are not ours: what an earlier flannel left, and what drops packets that our rules accept.
//!
//! Flannel's are known by their names: the chains `FLANNEL-POSTRTG` and `FLANNEL-FWD`, which iptables-nft keeps in nf_tables,
//! and the tables `flannel-ipv4` and `flannel-ipv6` of its own nftables mode. What iptables-legacy holds is `legacy`'s.
//! What the chains come to is decided in `chains`.

use std::collections::BTreeMap;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions, Hook as HookAttribute,
    HookNumber, Immediate, InetHookNumber, ListAttribute, Lookup, Meta, MetaKey, NfTablesMessage, Operator, Payload,
    Register, RuleAttribute, RuleMessage, TableAttribute, TableMessage, Verdict, VerdictAttribute,
};

use super::Error;
use super::chains::{Act, Chain, Chains, HARMLESS_TARGETS, Hook, Leftover, Ours, Removal, Rule, word};
use super::socket::{Nft, Shown};
use super::wire::{NETWORK_HEADER, Step};

const FLANNEL_TABLES: [(NetfilterProtoFamily, &str); 2] =
    [(NetfilterProtoFamily::IPv4, "flannel-ipv4"), (NetfilterProtoFamily::IPv6, "flannel-ipv6")];
/// `NF_DROP` and `NF_ACCEPT`, include/uapi/linux/netfilter.h.
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
/// `NFTA_TARGET_NAME` and `NFTA_MATCH_NAME`, include/uapi/linux/netfilter/nf_tables_compat.h.
const XT_NAME: u16 = 1;

/// Removes what an earlier flannel left and Twill has its own of, in one transaction for each thing.
pub(super) fn remove_flannel_s(nft: &mut Nft, chains: &Chains, ours: Ours) -> Removal {
    let mut removal = Removal::default();
    for (family, name) in FLANNEL_TABLES {
        match remove_table(nft, chains, ours, family, name) {
            Ok(true) => removal.removed.push(format!("table {} {name}", word(family))),
            Ok(false) => {}
            Err(error) => removal.failed.push(format!("table {} {name}: {error}", word(family))),
        }
    }
    let delete = |left: &Leftover<'_>| nft.transact("remove flannel's chain", &deletion(left));
    removal.extend(chains.remove_leftovers(ours, |chain| format!("chain {chain}"), delete));
    removal
}

/// Removes a table of flannel's nftables mode, if it is there and all its chains are ones that Twill has its own of.
fn remove_table(
    nft: &mut Nft,
    chains: &Chains,
    ours: Ours,
    family: NetfilterProtoFamily,
    name: &str,
) -> Result<bool, Error> {
    let mut inside = chains.0.iter().filter(|chain| chain.family == family && chain.table == name);
    let all_ours = inside.all(|chain| if chain.hook == Hook::Forward { ours.forward } else { ours.masquerade });
    let table = || TableMessage { attributes: vec![TableAttribute::Name(name.to_owned())] };
    let mut there = false;
    nft.read(family, NfTablesMessage::GetTable(table()), false, |_| there = true)?;
    if there && all_ours {
        let delete = Step { family, message: NfTablesMessage::DeleteTable(table()), flags: 0 };
        nft.transact("remove flannel's table", &[delete])?;
    }
    Ok(there && all_ours)
}

/// The rules that call a chain, its own rules, and itself.
fn deletion(left: &Leftover<'_>) -> Vec<Step> {
    let delete_rules = |chain: &Chain, handle: Option<u64>| {
        let mut attributes = vec![RuleAttribute::Table(chain.table.clone()), RuleAttribute::Chain(chain.name.clone())];
        attributes.extend(handle.map(RuleAttribute::Handle));
        let message = NfTablesMessage::DeleteRule(RuleMessage { attributes });
        Step { family: chain.family, message, flags: 0 }
    };
    let mut steps: Vec<Step> = left.calls.iter().map(|(chain, rule)| delete_rules(chain, Some(rule.handle))).collect();
    let Chain { family, table, name, .. } = left.chain;
    steps.push(delete_rules(left.chain, None));
    let attributes = vec![ChainAttribute::Table(table.clone()), ChainAttribute::Name(name.clone())];
    let message = NfTablesMessage::DeleteChain(ChainMessage { attributes });
    steps.push(Step { family: *family, message, flags: 0 });
    steps
}

/// The chains of all tables but ours; with their rules in those tables that forward packets or hold a chain of flannel's.
pub(super) fn read(nft: &mut Nft) -> Result<Chains, Error> {
    let all = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
    let mut chains = Vec::new();
    nft.read(NetfilterProtoFamily::Unspec, all, true, |shown| chains.extend(chain(shown)))?;
    let matters = |chain: &&Chain| chain.hook == Hook::Forward || chain.is_flannel_s();
    let mut tables: Vec<_> = chains.iter().filter(matters).map(|chain| (chain.family, chain.table.clone())).collect();
    tables.sort_by_key(|(family, table)| (u8::from(*family), table.clone()));
    tables.dedup();
    for (family, table) in tables {
        let inside = chains.iter_mut().filter(|chain| chain.family == family && chain.table == table);
        let mut inside: BTreeMap<String, &mut Chain> = inside.map(|chain| (chain.name.clone(), chain)).collect();
        let attributes = vec![RuleAttribute::Table(table)];
        nft.read(family, NfTablesMessage::GetRule(RuleMessage { attributes }), true, |shown| match rule(shown) {
            Some((name, rule)) => inside.get_mut(&name).into_iter().for_each(|chain| chain.rules.push(rule.clone())),
            // Whose it is cannot be told either.
            None => inside.values_mut().for_each(|chain| chain.rules.push(Rule::unknown())),
        })?;
    }
    Ok(Chains(chains))
}

fn chain(shown: Shown) -> Option<Chain> {
    let Some(NfTablesMessage::NewChain(message)) = shown.message else { return None };
    let (mut table, mut name, mut hook, mut drops) = (String::new(), String::new(), Hook::None, false);
    for attribute in message.attributes {
        match attribute {
            ChainAttribute::Table(text) => table = text,
            ChainAttribute::Name(text) => name = text,
            ChainAttribute::Policy(policy) => drops = policy == NF_DROP,
            ChainAttribute::Hook(parts) => {
                let forward = HookAttribute::Number(HookNumber::Inet(InetHookNumber::Forward));
                hook = if parts.contains(&forward) { Hook::Forward } else { Hook::Other };
            }
            _ => {}
        }
    }
    let ours = table.starts_with("twill.");
    (!ours).then_some(Chain { family: shown.family, table, name, hook, drops, rules: Vec::new() })
}

/// A rule and the name of its chain; `None` if it cannot be read.
fn rule(shown: Shown) -> Option<(String, Rule)> {
    let NfTablesMessage::NewRule(message) = shown.message? else { return None };
    let (mut chain, mut handle, mut reading) = (None, 0, Reading::default());
    for attribute in message.attributes {
        match attribute {
            RuleAttribute::Chain(name) => chain = Some(name),
            RuleAttribute::Handle(number) => handle = number,
            RuleAttribute::Expressions(list) => {
                for element in list {
                    match element {
                        ListAttribute::Element(parts) => reading.take(parts),
                        _ => reading.act = Some(Act::Unknown),
                    }
                }
            }
            _ => {}
        }
    }
    let Reading { act, nets, conditions, .. } = reading;
    Some((chain?, Rule { handle, act: act.unwrap_or(Act::Nothing), nets, conditions }))
}

/// What a rule's expressions come to, one after the other.
#[derive(Default)]
struct Reading {
    act: Option<Act>,
    nets: Vec<IpNetwork>,
    conditions: bool,
    loaded: Loaded,
    mask: Option<Vec<u8>>,
}

/// What the next comparison looks at.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Loaded {
    AddressV4,
    AddressV6,
    /// The family, which an address that is compared with says too.
    Family,
    #[default]
    Other,
}

impl Reading {
    fn take(&mut self, parts: Vec<ExpressionAttribute>) {
        let mut data = None;
        let mut name = String::new();
        for part in parts {
            match part {
                ExpressionAttribute::Name(text) => name = text,
                ExpressionAttribute::Data(expression) => data = Some(expression),
                _ => {}
            }
        }
        match data {
            Some(Expressions::Immediate(parts)) => self.immediate(parts),
            Some(Expressions::Cmp(parts)) => self.compare(&parts),
            Some(Expressions::Payload(parts)) => (self.loaded, self.mask) = (payload(&parts), None),
            Some(Expressions::Meta(parts)) => {
                let family = parts.contains(&Meta::Key(MetaKey::Nfproto));
                (self.loaded, self.mask) = (if family { Loaded::Family } else { Loaded::Other }, None);
            }
            Some(Expressions::Bitwise(parts)) => {
                self.mask = parts.into_iter().find_map(|part| match part {
                    Bitwise::Mask(DataAttribute::Value(bits)) => Some(bits),
                    _ => None,
                });
            }
            Some(Expressions::Lookup(parts)) => {
                self.conditions = true;
                if parts.contains(&Lookup::DestinationRegister(Register::Verdict)) {
                    self.act = Some(Act::Unknown);
                }
            }
            Some(Expressions::Other { attributes, .. }) => self.named(&name, &attributes),
            Some(_) => self.act = Some(Act::Unknown),
            None => self.named(&name, &[]),
        }
    }

    fn immediate(&mut self, parts: Vec<Immediate>) {
        for part in parts {
            let Immediate::Data(DataAttribute::Verdict(verdict)) = part else { continue };
            let target = verdict.iter().find_map(|part| match part {
                VerdictAttribute::Chain(name) => Some(name.clone()),
                _ => None,
            });
            let code = verdict.iter().find_map(|part| match part {
                VerdictAttribute::Code(code) => Some(*code),
                _ => None,
            });
            self.act = Some(match (code, target) {
                (Some(Verdict::Jump | Verdict::Goto), Some(target)) => Act::Call(target),
                (Some(Verdict::Other(NF_ACCEPT)), _) => Act::Accept,
                (Some(Verdict::Other(NF_DROP)), _) => Act::Drop,
                (Some(Verdict::Return), _) => Act::Return,
                (Some(Verdict::Continue | Verdict::Break), _) => Act::Nothing,
                _ => Act::Unknown,
            });
        }
    }

    fn compare(&mut self, parts: &[Cmp]) {
        let equal = parts.contains(&Cmp::Op(Operator::Equal));
        let value = parts.iter().find_map(|part| match part {
            Cmp::Data(DataAttribute::Value(value)) => Some(value.as_slice()),
            _ => None,
        });
        let net = value.filter(|_| equal).and_then(|value| net(self.loaded, value, self.mask.as_deref()));
        match net {
            Some(net) => self.nets.push(net),
            None => self.conditions |= self.loaded != Loaded::Family,
        }
    }

    /// What this library knows by its name only.
    fn named(&mut self, name: &str, attributes: &[DefaultNla]) {
        let of_xt = || {
            let name = attributes.iter().find(|attribute| attribute.kind() == XT_NAME)?;
            let mut bytes = vec![0; name.value_len()];
            name.emit_value(&mut bytes);
            String::from_utf8(bytes).ok().map(|text| text.trim_end_matches('\0').to_owned())
        };
        match name {
            "counter" | "log" | "notrack" | "last" => {}
            // `reject` ends the packet as a drop does.
            "reject" => self.act = Some(Act::Drop),
            "target" => match of_xt().as_deref() {
                Some("REJECT" | "DROP") => self.act = Some(Act::Drop),
                Some(target) if HARMLESS_TARGETS.contains(&target) => {}
                _ => self.act = Some(Act::Unknown),
            },
            "match" => self.conditions |= of_xt().as_deref() != Some("comment"),
            "ct" | "limit" | "quota" | "connlimit" | "range" | "fib" | "exthdr" | "socket" | "rt" | "osf"
            | "numgen" | "hash" | "byteorder" | "dynset" | "objref" | "xfrm" | "inner" | "tunnel" => {
                self.conditions = true
            }
            _ => self.act = Some(Act::Unknown),
        }
    }
}

/// Offsets of source and destination in the network header, as nft loads them.
fn payload(parts: &[Payload]) -> Loaded {
    let offset = parts.iter().find_map(|part| match part {
        Payload::Offset(offset) => Some(*offset),
        _ => None,
    });
    let length = parts.iter().find_map(|part| match part {
        Payload::Len(length) => Some(*length),
        _ => None,
    });
    match (parts.contains(&Payload::Base(NETWORK_HEADER)), offset, length) {
        (true, Some(12 | 16), Some(1..=4)) => Loaded::AddressV4,
        // What is shorter at 8 is IPv4's TTL and protocol.
        (true, Some(8 | 24), Some(3..=16)) => Loaded::AddressV6,
        _ => Loaded::Other,
    }
}

/// The network that a comparison asks for: of the value's own length, or of the mask's.
fn net(loaded: Loaded, value: &[u8], mask: Option<&[u8]>) -> Option<IpNetwork> {
    let length = match mask {
        None => value.len() * 8,
        Some(mask) => mask.iter().map(|byte| byte.count_ones() as usize).sum(),
    };
    let length = u8::try_from(length).ok()?;
    match loaded {
        Loaded::AddressV4 => {
            let mut octets = [0; 4];
            octets.get_mut(..value.len())?.copy_from_slice(value);
            Ipv4Network::new(octets.into(), length).ok().map(IpNetwork::V4)
        }
        Loaded::AddressV6 => {
            let mut octets = [0; 16];
            octets.get_mut(..value.len())?.copy_from_slice(value);
            Ipv6Network::new(octets.into(), length).ok().map(IpNetwork::V6)
        }
        Loaded::Family | Loaded::Other => None,
    }
}
