//! Single values of flags: each reader says what it expected.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use regex_lite::Regex;

use crate::overlay::record::is_host;

pub(super) fn ip(text: &str) -> Result<IpAddr, String> {
    text.parse()
        .map_err(|_| "expected an IP address such as 192.0.2.1 or 2001:db8::1; names are not looked up".to_owned())
}

/// An address that a node may have as its public one.
pub fn host(text: &str) -> Result<IpAddr, String> {
    one_host(ip(text)?)
}

pub(super) fn ipv4(text: &str) -> Result<Ipv4Addr, String> {
    match text.parse() {
        Ok(IpAddr::V4(ip)) => one_host(ip),
        Ok(IpAddr::V6(_)) => Err("expected an IPv4 address; an IPv6 one goes with --public-ipv6".to_owned()),
        Err(_) => Err("expected an IPv4 address such as 192.0.2.1".to_owned()),
    }
}

pub(super) fn ipv6(text: &str) -> Result<Ipv6Addr, String> {
    match text.parse() {
        Ok(IpAddr::V6(ip)) if ip.is_unicast_link_local() => Err(
            "expected an address that other nodes reach this one by: a link-local one means another host on each link"
                .to_owned(),
        ),
        Ok(IpAddr::V6(ip)) => one_host(ip),
        Ok(IpAddr::V4(_)) => Err("expected an IPv6 address; an IPv4 one goes with --public-ip ".to_owned()),
        Err(_) => Err("expected an IPv6 address such as 2001:db8::1".to_owned()),
    }
}

/// Peers ignore a record with any other address.
fn one_host<T: Into<IpAddr> + Copy>(ip: T) -> Result<T, String> {
    let expected =
        "expected an address that other nodes reach this one by: no loopback, multicast, broadcast or unspecified one";
    if is_host(ip.into()) { Ok(ip) } else { Err(expected.to_owned()) }
}

pub(super) fn regex(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| format!("expected a regular expression: {error}"))
}

/// What Go's `strconv.ParseBool` takes.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// Reads a time as Go writes it: `90s`, `10m`, `1h`, `1h30m`, `500ms`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("expected a time such as 90s, 10m or 1h30m, got {text:?}");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|at| *at > 0).ok_or_else(bad)?;
        let number: u32 = rest[..digits].parse().map_err(|_| bad())?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        let unit = match &rest[digits..unit_end] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return Err(bad()),
        };
        total += unit.checked_mul(number).ok_or_else(bad)?;
        rest = &rest[unit_end..];
    }
    if total.is_zero() { Err(bad()) } else { Ok(total) }
}
