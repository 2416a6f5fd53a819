//! The table of `twill leases`: aligned for people, and the same number of columns in each line for scripts. No cell but the
//! last one of a line has a space in it.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Left, Listing};
use crate::overlay::record::{BadRecord, Family, Record, SubnetKey};
use crate::overlay::words::Span;
use crate::overlay::{Shown, shown};
use crate::store::RawRecord;

const HEAD: [&str; 7] = ["SUBNET", "PUBLIC-IP", "BACKEND", "VTEP-MAC", "NODE", "LEFT", "STATE"];
const HEAD_OF_JUNK: [&str; 3] = ["KEY", "LEFT", "STATE"];
/// For what a record does not say.
const NONE: &str = "-";

/// All records: those of subnets first, then the keys that are none.
pub(super) fn render(listing: &Listing, left: &Left, ignored: &BTreeMap<&str, BadRecord>) -> String {
    let (mut rows, mut junk) = (Vec::new(), Vec::new());
    for raw in &listing.records {
        let bad = ignored.get(raw.key.as_str());
        match raw.key.parse::<SubnetKey>() {
            Ok(key) => rows.extend(subnets(raw, &key, left, bad)),
            Err(_) => junk.push([cell(&raw.key), time_left(raw, left, false), state(bad, None, raw.lease)]),
        }
    }
    let mut text = String::new();
    write_columns(&mut text, HEAD, &rows);
    if !junk.is_empty() {
        text += "\nKeys that name no subnet; `twill release --force KEY` deletes one:\n";
        write_columns(&mut text, HEAD_OF_JUNK, &junk);
    }
    text
}

/// A line for each side of a record.
fn subnets(raw: &RawRecord, key: &SubnetKey, left: &Left, bad: Option<&BadRecord>) -> Vec<[String; 7]> {
    let record = Record::parse(&raw.value).ok();
    let node = record.as_ref().and_then(|record| record.node.as_ref()).map_or(NONE.to_owned(), |node| cell(node));
    let backend = record.as_ref().map(|record| &record.backend_type).filter(|backend| !backend.is_empty());
    let backend = backend.map_or(NONE.to_owned(), |backend| cell(backend));
    let left = time_left(raw, left, bad.is_none());
    let sides = [Family::V4, Family::V6].into_iter().filter_map(|family| {
        let side = key.side(family)?.to_string();
        let mac = record.as_ref().and_then(|record| record.mac(family)).map(|mac| mac.to_string());
        let address = record.as_ref().and_then(|record| address(record, family));
        let none = || NONE.to_owned();
        Some([
            side,
            address.unwrap_or_else(none),
            backend.clone(),
            mac.unwrap_or_else(none),
            node.clone(),
            left.clone(),
            state(bad, record.as_ref(), raw.lease),
        ])
    });
    sides.collect()
}

fn address(record: &Record, family: Family) -> Option<String> {
    match family {
        Family::V4 if record.public_ip.is_unspecified() => None,
        Family::V4 => Some(record.public_ip.to_string()),
        Family::V6 => record.public_ipv6.map(|ip| ip.to_string()),
    }
}

fn state(bad: Option<&BadRecord>, record: Option<&Record>, lease: i64) -> String {
    match (bad, record) {
        (Some(bad), _) => format!("ignored: {bad}"),
        (None, Some(record)) if record.is_unused() && lease == 0 => "reserved, not used yet".to_owned(),
        (None, _) => "ok".to_owned(),
    }
}

/// What is left of the record's lease. A record that is in order and has none is a reservation.
fn time_left(raw: &RawRecord, left: &Left, is_good: bool) -> String {
    match (raw.lease, left.get(&raw.lease)) {
        (0, _) if is_good => "reservation".to_owned(),
        (0, _) => "no-lease".to_owned(),
        (_, Some(Some(left))) => Span(*left).to_string(),
        (_, Some(None)) => "ended".to_owned(),
        (_, None) => NONE.to_owned(),
    }
}

/// A text from outside without a space, so that it stays one column.
pub(crate) fn cell(text: &str) -> String {
    match shown(text).replace(' ', "\\x20") {
        empty if empty.is_empty() => "\"\"".to_owned(),
        text => text,
    }
}

fn write_columns<const N: usize>(text: &mut String, head: [&str; N], rows: &[[String; N]]) {
    let mut widths = head.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut line = |cells: [&str; N]| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            // Writing to a String never fails.
            let _ = write!(line, "{cell:<width$}  ");
        }
        *text += line.trim_end();
        text.push('\n');
    };
    line(head);
    rows.iter().for_each(|row| line(std::array::from_fn(|at| row[at].as_str())));
}

/// A record's key as people name the subnet, and as `twill` takes it.
pub(crate) fn name(key: &str) -> String {
    key.parse::<SubnetKey>().map_or_else(|_| Shown::new(key).to_string(), |key| key.slashed())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The lines of a table, with single spaces between the cells.
    fn lines(records: &[(&str, &str, i64)]) -> Vec<String> {
        let raw = |(key, value, lease): &(&str, &str, i64)| RawRecord {
            key: (*key).to_owned(),
            value: value.as_bytes().to_vec(),
            created: 1,
            revision: 1,
            lease: *lease,
        };
        let listing = Listing { config: None, records: records.iter().map(raw).collect() };
        let left =
            Left::from([(31, Some(Duration::from_secs(86_399))), (32, None), (33, Some(Duration::from_secs(3_599)))]);
        let text = render(&listing, &left, &listing.ignored());
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn each_kind_of_record_has_its_line() {
        let value = r#"{"PublicIP":"10.99.0.1","PublicIPv6":"fd99::1","BackendType":"vxlan",
            "BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:45"},
            "NodeID":"worker-1"}"#;
        let table = lines(&[
            ("10.5.1.0-24&fc00:0:0:1::-64", value, 31),
            ("10.5.2.0-24", r#"{"PublicIP":"10.99.0.1","PublicIPv6":null}"#, 0),
            ("10.5.3.0-24", r#"{"PublicIP":"0.0.0.0","PublicIPv6":null,"NodeID":"worker-1"}"#, 0),
            ("10.5.4.0-24", value, 0),
            ("10.5.5.0-24", "{}", 0),
            ("10.5.6.0-24", "{", 32),
            (
                "10.5.7.0-24",
                r#"{"PublicIP":"10.99.0.7","BackendType":"vxlan","BackendData":{"VtepMAC":"c6:d2:32:6f:8f:47"},"NodeID":"a b\u001b"}"#,
                33,
            ),
            ("10.5.8.0-24", r#"{"PublicIP":"10.99.0.8","BackendType":"host-gw"}"#, 33),
        ]);
        let expected = [
            "SUBNET PUBLIC-IP BACKEND VTEP-MAC NODE LEFT STATE",
            "10.5.1.0/24 10.99.0.1 vxlan c6:d2:32:6f:8f:44 worker-1 23h59m ok",
            "fc00:0:0:1::/64 fd99::1 vxlan c6:d2:32:6f:8f:45 worker-1 23h59m ok",
            "10.5.2.0/24 10.99.0.1 - - - reservation reserved, not used yet",
            "10.5.3.0/24 - - - worker-1 reservation reserved, not used yet",
            "10.5.4.0/24 10.99.0.1 vxlan c6:d2:32:6f:8f:44 worker-1 reservation ok",
            "10.5.5.0/24 - - - - no-lease ignored: the record has no PublicIP",
            "10.5.6.0/24 - - - - ended ignored: not a JSON object: EOF while parsing an object at line 1 column 1",
            "10.5.7.0/24 10.99.0.7 vxlan c6:d2:32:6f:8f:47 a\\x20b\\u{1b} 59m59s ok",
            "10.5.8.0/24 10.99.0.8 host-gw - - 59m59s ok",
        ];
        assert_eq!(table, expected);
    }

    #[test]
    fn keys_that_name_no_subnet_stand_apart() {
        let long = "x".repeat(3_000);
        let table = lines(&[("10.5.1.0-24", "{", 31), ("a\n\u{1b}[2J b", "{}", 0), (&long, "{}", 31), ("", "{}", 32)]);
        assert_eq!(table[2..4], ["", "Keys that name no subnet; `twill release --force KEY` deletes one:"]);
        assert_eq!(table[4], "KEY LEFT STATE");
        assert!(table[5].starts_with("a\\n\\u{1b}[2J\\x20b no-lease ignored: \""), "{table:?}");
        assert!(
            table[6].starts_with(&format!("{}...\\x20(3,000\\x20bytes) 23h59m ignored: ", "x".repeat(120))),
            "{table:?}"
        );
        assert!(table[7].starts_with("\"\" ended ignored: "), "{table:?}");
    }
}
