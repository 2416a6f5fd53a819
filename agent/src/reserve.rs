//! `twill reserve` and `twill release`: subnets set aside for a node, made ahead of it or while it runs.
//!
//! A reservation is a record that hangs on no etcd lease and so never ends, as flannel has them
//! (<https://github.com/flannel-io/flannel/blob/v0.28.9/Documentation/reservations.md>). One made ahead of its node says
//! nothing but whose it is: a public IP, by which flannel and Twill know it as theirs, or a node id, which only Twill
//! knows. Every write here is conditional on what was read.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;

use crate::lease::TTL;
use crate::leases::{Listing, cell, name};
use crate::overlay::NetworkConfig;
use crate::overlay::Shown;
use crate::overlay::config::{ConfigError, FamilyConfig};
use crate::overlay::record::{Family, Record, SubnetKey};
use crate::store::{self, LeaseId, RawRecord, Store, Written};

/// For whom a subnet is reserved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whom {
    /// The node with this public IP.
    Address(IpAddr),
    /// The node with this id.
    Node(String),
    /// The node that holds the subnet now.
    Holder,
}

/// Why nothing was done.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(missing_docs, reason = "each says itself what it is")]
pub enum Refusal {
    #[error(
        "\"{}\" is not a subnet: expected one as in 10.5.7.0/24, with two families as in 10.5.7.0/24,fc00:0:0:7::/64",
        Shown::new(.0)
    )]
    NoSubnet(String),
    #[error("there is no network config")]
    NoConfig,
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("the network has no {0} side")]
    OtherFamily(Family),
    #[error("name the subnet's {0} side as well")]
    MissingFamily(Family),
    #[error("{subnet} has the wrong length: the network's subnets are /{expected}")]
    WrongLength { subnet: IpNetwork, expected: u8 },
    #[error("{subnet} is outside the network {network}")]
    Outside { subnet: IpNetwork, network: IpNetwork },
    #[error("{subnet} is not between SubnetMin {min} and SubnetMax {max}: no node would take it")]
    NotGivenOut { subnet: IpNetwork, min: IpAddr, max: IpAddr },
    #[error("{key} is held by {holder}")]
    Held { key: String, holder: String },
    #[error("{key} is reserved for {holder}")]
    ReservedForAnother { key: String, holder: String },
    #[error("{holder} has a reservation already: {key}; release that one first")]
    HasReservation { key: String, holder: String },
    #[error("nobody holds {0}: say for whom it is, with --public-ip or --node")]
    NobodyHolds(String),
    #[error("nobody holds {0}, and it is not reserved")]
    NothingThere(String),
    #[error(
        "{key} is not reserved: {holder} holds it, by a lease that ends a day after its last renewal; if that node is gone for good, --force deletes the record at once"
    )]
    NotReserved { key: String, holder: String },
    #[error("the record of {0} can't be read; `twill release --force` deletes it all the same")]
    Unreadable(String),
    #[error("the key {0} names no subnet, so no node uses its record; --force deletes it")]
    NoSubnetKey(String),
    #[error("{count} keys are shown as {text}: delete the right one with etcdctl del")]
    SeveralKeys { text: String, count: usize },
    #[error("{0} changed in this very moment: look again")]
    Changed(String),
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Reserves a subnet; says what was done.
///
/// # Errors
/// What stands in the way, with the holder's name.
pub async fn reserve(store: &impl Store, listing: &Listing, subnet: &str, whom: &Whom) -> Result<String, Refusal> {
    let config = NetworkConfig::parse(listing.config.as_ref().ok_or(Refusal::NoConfig)?)?;
    let key = complete(&config, sides(subnet)?)?;
    let text = key.to_string();
    if let Some(raw) = listing.records.iter().find(|raw| raw.key == text) {
        return settle(store, raw, whom).await;
    }
    if let Some(raw) = listing.records.iter().find(|raw| overlaps(&raw.key, &key)) {
        return Err(Refusal::Held { key: name(&raw.key), holder: holder(raw) });
    }
    let subnet = key.slashed();
    let Some(record) = reservation(&config, whom)? else { return Err(Refusal::NobodyHolds(subnet)) };
    let (mut note, theirs) = (String::new(), listing.records.iter().filter(|raw| is_for(raw, whom)));
    for raw in theirs {
        if raw.lease == 0 {
            return Err(Refusal::HasReservation { key: name(&raw.key), holder: holder(raw) });
        }
        note = format!("; it goes on with {} until it starts without its subnet.env", name(&raw.key));
    }
    match store.create(&text, &record.to_json(), None).await? {
        Written::At(_) => Ok(format!("{subnet} is reserved for {}{note}", record.holder())),
        Written::Conflict => Err(Refusal::Changed(subnet)),
    }
}

/// Ends a reservation; says what was done. One that a node uses becomes an ordinary lease, which that node renews if it is
/// alive. `force` deletes whatever record the subnet has, or the record of this very key, as etcd has it or as
/// `twill leases` shows it.
///
/// # Errors
/// What is there instead of a reservation.
pub async fn release(store: &impl Store, listing: &Listing, subnet: &str, force: bool) -> Result<String, Refusal> {
    let raw = match junk(listing, subnet)? {
        Some(junk) if force => return delete_junk(store, junk).await,
        Some(junk) => return Err(Refusal::NoSubnetKey(name(&junk.key))),
        None => of_subnet(listing, subnet)?,
    };
    let (key, holder) = (name(&raw.key), holder(raw));
    let record = Record::parse(&raw.value);
    let is_unused = record.as_ref().is_ok_and(Record::is_unused) && raw.lease == 0;
    if !force && !is_unused {
        return match record {
            Err(_) => Err(Refusal::Unreadable(key)),
            Ok(_) if raw.lease != 0 => Err(Refusal::NotReserved { key, holder }),
            Ok(_) => hang_on_lease(store, raw, &holder).await,
        };
    }
    match store.delete(&raw.key, raw.revision).await? {
        Written::At(_) if is_unused => Ok(format!("{key} is free again; it was reserved for {holder}")),
        Written::At(_) => Ok(match record {
            Ok(record) if record.has_address() || record.node.is_some() => {
                format!("{key} is free again; {holder} makes its record anew if it is alive and holds that subnet")
            }
            Ok(_) => format!("{key} is free again; its record named nobody"),
            Err(_) => format!("{key} is free again; its record could not be read"),
        }),
        Written::Conflict => Err(Refusal::Changed(key)),
    }
}

/// The record of a subnet, by its key if that is given, else by any side of it.
fn of_subnet<'a>(listing: &'a Listing, subnet: &str) -> Result<&'a RawRecord, Refusal> {
    let wanted = sides(subnet)?;
    let is_meant = |raw: &&RawRecord| {
        let key = raw.key.parse::<SubnetKey>().ok();
        let same =
            |family| wanted.side(family).is_none_or(|side| key.is_some_and(|key| key.side(family) == Some(side)));
        same(Family::V4) && same(Family::V6)
    };
    let exact = listing.records.iter().find(|raw| raw.key == wanted.to_string());
    exact.or_else(|| listing.records.iter().find(is_meant)).ok_or_else(|| Refusal::NothingThere(wanted.slashed()))
}

/// The record whose key names no subnet and is this text, as it is or as it is shown.
fn junk<'a>(listing: &'a Listing, text: &str) -> Result<Option<&'a RawRecord>, Refusal> {
    let junk = || listing.records.iter().filter(|raw| raw.key.parse::<SubnetKey>().is_err());
    if let Some(exact) = junk().find(|raw| raw.key == text) {
        return Ok(Some(exact));
    }
    let shown: Vec<&RawRecord> = junk().filter(|raw| cell(&raw.key) == text || name(&raw.key) == text).collect();
    match shown[..] {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        _ => Err(Refusal::SeveralKeys { text: name(text), count: shown.len() }),
    }
}

async fn delete_junk(store: &impl Store, raw: &RawRecord) -> Result<String, Refusal> {
    let key = name(&raw.key);
    match store.delete(&raw.key, raw.revision).await? {
        Written::At(_) => Ok(format!("the key {key}, which named no subnet, is deleted")),
        Written::Conflict => Err(Refusal::Changed(key)),
    }
}

/// The subnet has a record already.
async fn settle(store: &impl Store, raw: &RawRecord, whom: &Whom) -> Result<String, Refusal> {
    let (key, holder) = (name(&raw.key), holder(raw));
    match (is_for(raw, whom), raw.lease) {
        (false, _) if Record::parse(&raw.value).is_err() => Err(Refusal::Unreadable(key)),
        (false, 0) => Err(Refusal::ReservedForAnother { key, holder }),
        (false, _) => Err(Refusal::Held { key, holder }),
        (true, 0) => Ok(format!("{key} is reserved for {holder} already")),
        (true, _) => match store.update(&raw.key, &raw.value, None, raw.revision).await? {
            Written::At(_) => Ok(format!("{key} is reserved for {holder}, which holds it")),
            Written::Conflict => Err(Refusal::Changed(key)),
        },
    }
}

/// A reservation in use becomes a lease, without a moment in which the subnet is free.
async fn hang_on_lease(store: &impl Store, raw: &RawRecord, holder: &str) -> Result<String, Refusal> {
    let lease = store.grant(TTL).await?;
    let written = store.update(&raw.key, &raw.value, Some(lease), raw.revision).await;
    if !matches!(written, Ok(Written::At(_))) {
        unless_used(store, raw, lease).await;
    }
    match written? {
        Written::At(_) => {
            Ok(format!("{} is no longer reserved; {holder} keeps it while it renews its lease", name(&raw.key)))
        }
        Written::Conflict => Err(Refusal::Changed(name(&raw.key))),
    }
}

/// Ends a lease unless the record hangs on it after all: an answer may have got lost.
async fn unless_used(store: &impl Store, raw: &RawRecord, lease: LeaseId) {
    if store.record(&raw.key).await.is_ok_and(|now| now.is_none_or(|now| now.lease != lease.0)) {
        // It ends by itself in a day.
        let _ = store.revoke(lease).await;
    }
}

/// What a reservation says; `None` where it depends on a holder.
fn reservation(config: &NetworkConfig, whom: &Whom) -> Result<Option<Record>, Refusal> {
    let bare = Record::of;
    let unspecified = Ipv4Addr::UNSPECIFIED;
    Ok(match whom {
        Whom::Holder => None,
        Whom::Node(node) => Some(Record { node: Some(node.clone()), ..bare(unspecified) }),
        // A node is known by its IPv4 address wherever there is IPv4.
        Whom::Address(IpAddr::V4(ip)) if config.ipv4.is_some() => Some(bare(*ip)),
        Whom::Address(IpAddr::V6(ip)) if config.ipv4.is_none() => {
            Some(Record { public_ipv6: Some(*ip), ..bare(unspecified) })
        }
        Whom::Address(ip) => {
            return Err(Refusal::OtherFamily(if ip.is_ipv4() { Family::V4 } else { Family::V6 }));
        }
    })
}

/// Whether a record is of whom is meant.
fn is_for(raw: &RawRecord, whom: &Whom) -> bool {
    let Ok(record) = Record::parse(&raw.value) else { return false };
    match whom {
        Whom::Address(IpAddr::V4(ip)) => record.public_ip == *ip,
        Whom::Address(IpAddr::V6(ip)) => record.public_ip.is_unspecified() && record.public_ipv6 == Some(*ip),
        Whom::Node(node) => record.node.as_deref() == Some(node),
        Whom::Holder => true,
    }
}

fn holder(raw: &RawRecord) -> String {
    Record::parse(&raw.value).map_or_else(|_| "a record that can't be read".to_owned(), |record| record.holder())
}

fn overlaps(text: &str, key: &SubnetKey) -> bool {
    let Some(other) = SubnetKey::occupied(text) else { return false };
    [Family::V4, Family::V6].into_iter().any(|family| match (other.side(family), key.side(family)) {
        (Some(one), Some(other)) => one.contains(other.network()) || other.contains(one.network()),
        _ => false,
    })
}

/// Reads a subnet as people or as etcd's keys write it.
fn sides(text: &str) -> Result<SubnetKey, Refusal> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    let bad = || Refusal::NoSubnet(text.to_owned());
    let mut key = SubnetKey { ipv4: None, ipv6: None };
    for side in text.split(',') {
        let net: IpNetwork = side.trim().parse().map_err(|_| bad())?;
        let is_clean = net.ip() == net.network() && net.prefix() > 0 && side.contains('/');
        let before = match net {
            IpNetwork::V4(net) => key.ipv4.replace(net).map(IpNetwork::V4),
            IpNetwork::V6(net) => key.ipv6.replace(net).map(IpNetwork::V6),
        };
        if !is_clean || before.is_some() {
            return Err(bad());
        }
    }
    Ok(key)
}

/// Checks a subnet against the config. An IPv6 side that was not named is the one with the IPv4 side's number, as nodes
/// choose it.
fn complete(config: &NetworkConfig, mut key: SubnetKey) -> Result<SubnetKey, Refusal> {
    if let (Some(family4), Some(family6), Some(subnet), None) = (&config.ipv4, &config.ipv6, key.ipv4, key.ipv6)
        && family4.contains_subnet(&subnet.into())
        && let Some(IpNetwork::V6(paired)) = family6.nth(family4.index(&subnet.into()))
    {
        key.ipv6 = Some(paired);
    }
    for (family, net) in [(Family::V4, &config.ipv4), (Family::V6, &config.ipv6)] {
        match (net, key.side(family)) {
            (Some(net), Some(subnet)) => check(net, subnet)?,
            (Some(_), None) => return Err(Refusal::MissingFamily(family)),
            (None, Some(_)) => return Err(Refusal::OtherFamily(family)),
            (None, None) => {}
        }
    }
    Ok(key)
}

fn check(net: &FamilyConfig, subnet: IpNetwork) -> Result<(), Refusal> {
    let (min, max) = (net.subnet_min, net.subnet_max);
    if subnet.prefix() != net.subnet_len {
        Err(Refusal::WrongLength { subnet, expected: net.subnet_len })
    } else if !net.contains_subnet(&subnet) {
        Err(Refusal::Outside { subnet, network: net.network })
    } else if !net.fits(&subnet) {
        Err(Refusal::NotGivenOut { subnet, min, max })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
