//! Tables, chains and rules as nf_tables messages, such that `nft list ruleset` prints them as somebody would write them.
//!
//! Expressions are those that nft itself uses (`nft --debug=netlink`): a prefix of whole bytes is a short load and a
//! comparison, any other one a load, a mask and a comparison.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, Expressions, Hook as HookAttribute, Immediate,
    InetHookNumber, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register, RuleAttribute, RuleMessage,
    TableAttribute, TableMessage, Verdict as NftVerdict, VerdictAttribute,
};

use super::rules::{Chain, Family, Hook, Match, Rule, Table, Verdict};

/// `NF_DROP` and `NF_ACCEPT`, include/uapi/linux/netfilter.h.
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
/// `NFT_PAYLOAD_TRANSPORT_HEADER`, include/uapi/linux/netfilter/nf_tables.h.
const TRANSPORT_HEADER: u32 = 2;
/// `NFT_PAYLOAD_NETWORK_HEADER`, include/uapi/linux/netfilter/nf_tables.h.
pub(super) const NETWORK_HEADER: u32 = 1;
/// `NFTA_MASQ_FLAGS`, and the flag `NF_NAT_RANGE_PROTO_RANDOM_FULLY` (include/uapi/linux/netfilter/nf_nat.h).
const NFTA_MASQ_FLAGS: u16 = 1;
const RANDOM_FULLY: u32 = 1 << 4;
/// The type of a comment in a rule's user data (`NFTNL_UDATA_RULE_COMMENT`, libnftnl's udata.h).
const UDATA_COMMENT: u8 = 0;
/// The priorities that nft names `srcnat` and `filter`.
const PRIORITY_SRCNAT: u32 = 100;
const PRIORITY_FILTER: u32 = 0;

/// A message of a transaction, with the flags it needs beside NLM_F_REQUEST.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub family: NetfilterProtoFamily,
    pub message: NfTablesMessage,
    pub flags: u16,
}

/// The number of a family.
pub(super) fn family(family: Family) -> NetfilterProtoFamily {
    match family {
        Family::Ip => NetfilterProtoFamily::IPv4,
        Family::Ip6 => NetfilterProtoFamily::IPv6,
        Family::Arp => NetfilterProtoFamily::ARP,
    }
}

/// A transaction that replaces the table, whatever it holds.
///
/// The kernel refuses to delete what is not there, so it is put first: that is no error where it is there.
pub(super) fn replace(table: &Table) -> Vec<Step> {
    let family = family(table.family);
    let name = || TableMessage { attributes: vec![TableAttribute::Name(table.name.clone())] };
    let create = libc::NLM_F_CREATE as u16;
    let step = |message, flags| Step { family, message, flags };
    let mut steps =
        vec![step(NfTablesMessage::NewTable(name()), create), step(NfTablesMessage::DeleteTable(name()), 0)];
    steps.push(step(NfTablesMessage::NewTable(name()), create));
    for chain in &table.chains {
        steps.push(step(NfTablesMessage::NewChain(self::chain(table, chain)), create));
        for rule in &chain.rules {
            let message = self::rule(table, chain, rule);
            steps.push(step(NfTablesMessage::NewRule(message), create | libc::NLM_F_APPEND as u16));
        }
    }
    steps
}

fn chain(table: &Table, chain: &Chain) -> ChainMessage {
    let (kind, number, priority) = match chain.hook {
        Hook::Postrouting => ("nat", InetHookNumber::PostRouting, PRIORITY_SRCNAT),
        Hook::Forward => ("filter", InetHookNumber::Forward, PRIORITY_FILTER),
        // `NF_ARP_IN` has IP's number of prerouting (include/uapi/linux/netfilter_arp.h).
        Hook::Input if table.family == Family::Arp => ("filter", InetHookNumber::PreRouting, PRIORITY_FILTER),
        Hook::Input => ("filter", InetHookNumber::LocalIn, PRIORITY_FILTER),
    };
    let hook = vec![HookAttribute::Number(number.into()), HookAttribute::Priority(priority)];
    ChainMessage {
        attributes: vec![
            ChainAttribute::Table(table.name.clone()),
            ChainAttribute::Name(chain.name.to_owned()),
            ChainAttribute::Hook(hook),
            ChainAttribute::Policy(NF_ACCEPT),
            ChainAttribute::Type(kind.to_owned()),
        ],
    }
}

fn rule(table: &Table, chain: &Chain, rule: &Rule) -> RuleMessage {
    let mut expressions: Vec<Expressions> = rule.matches.iter().flat_map(matching).collect();
    expressions.push(verdict(rule.verdict));
    RuleMessage {
        attributes: vec![
            RuleAttribute::Table(table.name.clone()),
            RuleAttribute::Chain(chain.name.to_owned()),
            RuleAttribute::Expressions(expressions.into_iter().map(Into::into).collect()),
            RuleAttribute::UserData(comment(rule.comment)),
        ],
    }
}

/// Type, length, and the text with its zero.
fn comment(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    let mut data = vec![UDATA_COMMENT, length];
    data.extend(text.bytes().take(usize::from(length) - 1));
    data.push(0);
    data
}

fn matching(condition: &Match) -> Vec<Expressions> {
    match *condition {
        Match::Mark(mark) => {
            // Marks are numbers in the order of this machine.
            let bits = mark.to_ne_bytes().to_vec();
            vec![meta(MetaKey::Mark), mask(bits.clone()), compare(Operator::Equal, bits)]
        }
        Match::In(device) => vec![meta(MetaKey::Iifname), compare(Operator::Equal, device.to_vec())],
        Match::Protocol(protocol) => vec![meta(MetaKey::L4Proto), compare(Operator::Equal, vec![protocol])],
        Match::Type(first, last) => {
            let load = payload(TRANSPORT_HEADER, 0, 1);
            if first == last {
                return vec![load, compare(Operator::Equal, vec![first])];
            }
            let (from, to) = (Operator::GreatherThanEqual, Operator::LessThanEqual);
            vec![load, compare(from, vec![first]), compare(to, vec![last])]
        }
        Match::From(net) => address(net, Place::Source, Operator::Equal),
        Match::NotFrom(net) => address(net, Place::Source, Operator::NotEqual),
        Match::To(net) => address(net, Place::Destination, Operator::Equal),
        Match::NotTo(net) => address(net, Place::Destination, Operator::NotEqual),
    }
}

#[derive(Clone, Copy)]
enum Place {
    Source,
    Destination,
}

fn address(net: IpNetwork, place: Place, operator: Operator) -> Vec<Expressions> {
    let (bytes, offset) = match (net.network(), place) {
        (IpAddr::V4(ip), Place::Source) => (ip.octets().to_vec(), 12),
        (IpAddr::V4(ip), Place::Destination) => (ip.octets().to_vec(), 16),
        (IpAddr::V6(ip), Place::Source) => (ip.octets().to_vec(), 8),
        (IpAddr::V6(ip), Place::Destination) => (ip.octets().to_vec(), 24),
    };
    let prefix = usize::from(net.prefix());
    let whole = prefix % 8 == 0 && prefix > 0;
    let length = if whole { prefix / 8 } else { bytes.len() };
    let mut expressions = vec![payload(NETWORK_HEADER, offset, length as u32)];
    if !whole {
        let bits = |at: usize| prefix.saturating_sub(at * 8).min(8);
        expressions.push(mask((0..bytes.len()).map(|at| !(0xff_u16 >> bits(at)) as u8).collect()));
    }
    expressions.push(compare(operator, bytes[..length].to_vec()));
    expressions
}

fn meta(key: MetaKey) -> Expressions {
    Expressions::Meta(vec![Meta::DestinationRegister(Register::Reg1), Meta::Key(key)])
}

fn payload(base: u32, offset: u32, length: u32) -> Expressions {
    let from = [Payload::Base(base), Payload::Offset(offset), Payload::Len(length)];
    Expressions::Payload([Payload::DestinationRegister(Register::Reg1)].into_iter().chain(from).collect())
}

fn mask(bits: Vec<u8>) -> Expressions {
    let zero = vec![0; bits.len()];
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(bits.len() as u32),
        Bitwise::Mask(DataAttribute::Value(bits)),
        Bitwise::Xor(DataAttribute::Value(zero)),
    ])
}

fn compare(operator: Operator, value: Vec<u8>) -> Expressions {
    let data = Cmp::Data(DataAttribute::Value(value));
    Expressions::Cmp(vec![Cmp::SourceRegister(Register::Reg1), Cmp::Op(operator), data])
}

fn verdict(verdict: Verdict) -> Expressions {
    let code = match verdict {
        Verdict::Accept => NftVerdict::Other(NF_ACCEPT),
        Verdict::Drop => NftVerdict::Other(NF_DROP),
        Verdict::Return => NftVerdict::Return,
        Verdict::Masquerade { fully_random } => {
            let flags = DefaultNla::new(NFTA_MASQ_FLAGS, RANDOM_FULLY.to_be_bytes().to_vec());
            let attributes = if fully_random { vec![flags] } else { Vec::new() };
            return Expressions::Other { expression_type: "masq".to_owned(), attributes };
        }
    };
    let data = DataAttribute::Verdict(vec![VerdictAttribute::Code(code)]);
    Expressions::Immediate(vec![Immediate::DestinationRegister(Register::Verdict), Immediate::Data(data)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(net: &str) -> (Vec<u8>, Option<Vec<u8>>) {
        let expressions = address(net.parse().unwrap(), Place::Source, Operator::Equal);
        let mask = expressions.iter().find_map(|expression| match expression {
            Expressions::Bitwise(parts) => parts.iter().find_map(|part| match part {
                Bitwise::Mask(DataAttribute::Value(bits)) => Some(bits.clone()),
                _ => None,
            }),
            _ => None,
        });
        let value = expressions.iter().find_map(|expression| match expression {
            Expressions::Cmp(parts) => parts.iter().find_map(|part| match part {
                Cmp::Data(DataAttribute::Value(value)) => Some(value.clone()),
                _ => None,
            }),
            _ => None,
        });
        (value.unwrap(), mask)
    }

    #[test]
    fn a_prefix_of_whole_bytes_needs_no_mask() {
        assert_eq!(loaded("10.5.0.0/16"), (vec![10, 5], None));
        assert_eq!(loaded("fc00:0:0:22::/64").0, [0xfc, 0, 0, 0, 0, 0, 0, 0x22]);
    }

    #[test]
    fn any_other_prefix_is_masked() {
        assert_eq!(loaded("10.5.192.0/18"), (vec![10, 5, 192, 0], Some(vec![255, 255, 192, 0])));
        assert_eq!(loaded("10.5.0.6/31").1, Some(vec![255, 255, 255, 254]));
        let (value, mask) = loaded("fc00::/7");
        assert_eq!((value.len(), mask.unwrap()[..2].to_vec()), (16, vec![0xfe, 0]));
    }
}
