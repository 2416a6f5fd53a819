//! Policy rules, which tell the kernel what tables to look a packet up in: `ip rule show`.
//!
//! Kernel: net/core/fib_rules.c (`fib_nl_fill_rule`), net/ipv4/fib_rules.c, net/ipv6/fib6_rules.c.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::Family;
use crate::wire::{Message, address, u32_value};

/// Length of `struct fib_rule_hdr`: family, bits of destination and source, tos, table, two reserved, action, flags.
const HEADER: usize = 12;
const FIB_RULE_INVERT: u32 = 2;

const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_GOTO: u16 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_FLOW: u16 = 11;
const FRA_SUPPRESS_IFGROUP: u16 = 13;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_PAD: u16 = 18;
const FRA_PROTOCOL: u16 = 21;

/// What becomes of a packet that a rule fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The packet is looked up in this table, and goes on to the next rule if the table has no route for it.
    Lookup(u32),
    /// The packet goes on with the rule of this priority.
    Goto(u32),
    /// The packet is dropped, and its sender is told nothing.
    Blackhole,
    /// The packet is dropped, and its sender gets "network unreachable".
    Unreachable,
    /// The packet is dropped, and its sender gets "communication administratively prohibited".
    Prohibit,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its place: the kernel begins with the lowest.
    pub priority: u32,
    /// Packets from here only.
    pub from: Option<IpNetwork>,
    /// Packets to there only.
    pub to: Option<IpNetwork>,
    /// Packets that come in through this device only.
    pub iif: Option<String>,
    /// The rule has another condition (a mark, a port, a user, ...), or it is negated (`not`).
    pub is_conditional: bool,
    /// What it does.
    pub action: Action,
    /// A route that is found with a prefix of this length or a shorter one does not count.
    pub suppress_prefixlength: Option<u32>,
}

impl Rule {
    /// `None` for a rule that does nothing, or something that a newer kernel knows.
    pub(crate) fn parse(message: &Message<'_>) -> Option<Self> {
        let (header, attributes) = message.split::<HEADER>()?;
        let family = Family::from_number(header[0])?;
        let flags = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let mut rule = Self {
            priority: 0,
            from: any(family, header[2]),
            to: any(family, header[1]),
            iif: None,
            is_conditional: flags & FIB_RULE_INVERT != 0 || header[3] != 0,
            action: Action::Lookup(header[4].into()),
            suppress_prefixlength: None,
        };
        let (mut table, mut target) = (u32::from(header[4]), 0);
        for (kind, value) in attributes {
            match kind {
                FRA_DST => rule.to = IpNetwork::new(address(value)?, header[1]).ok(),
                FRA_SRC => rule.from = IpNetwork::new(address(value)?, header[2]).ok(),
                FRA_IIFNAME => rule.iif = Some(crate::wire::string(value)),
                FRA_GOTO => target = u32_value(value)?,
                FRA_PRIORITY => rule.priority = u32_value(value)?,
                FRA_TABLE => table = u32_value(value)?,
                FRA_SUPPRESS_PREFIXLEN => rule.suppress_prefixlength = given(value),
                FRA_SUPPRESS_IFGROUP => rule.is_conditional |= given(value).is_some(),
                FRA_FLOW | FRA_PAD | FRA_PROTOCOL => (),
                _ => rule.is_conditional = true,
            }
        }
        // FR_ACT_..., include/uapi/linux/fib_rules.h
        rule.action = match header[7] {
            1 => Action::Lookup(table),
            2 => Action::Goto(target),
            6 => Action::Blackhole,
            7 => Action::Unreachable,
            8 => Action::Prohibit,
            _ => return None,
        };
        Some(rule)
    }
}

/// A prefix that the message names no address for, which has to be all zeros.
fn any(family: Family, prefix: u8) -> Option<IpNetwork> {
    let zeros = match family {
        Family::V4 => IpAddr::from([0; 4]),
        Family::V6 => IpAddr::from([0; 16]),
    };
    if prefix == 0 { None } else { IpNetwork::new(zeros, prefix).ok() }
}

/// A number for which -1 stands for none.
fn given(value: &[u8]) -> Option<u32> {
    u32_value(value).filter(|number| *number != u32::MAX)
}

/// The family of a rule that is told to be new or gone.
pub(crate) fn family(message: &Message<'_>) -> Option<Family> {
    let (header, _) = message.split::<HEADER>()?;
    Family::from_number(header[0])
}

/// The header of a dump request.
pub(crate) fn query_header(family: Family) -> [u8; HEADER] {
    [family.number(), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}
