//! Bytes captured with strace from ip(8) and bridge(8) 6.1 and from a Linux 6.18 kernel, each with its command: what we
//! write says the same as the tools, and what the kernel writes is read right.
//!
//! x0 is `ip link add x0 ... type vxlan`, ifindex 4; u0, its underlay, has 3.

use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;

use crate::batch::Request;
use crate::link::{Difference, Link, Vxlan, VxlanSpec};
use crate::wire::{Attributes, Datagram, Message, Messages};
use crate::{Family, Miss, addr, fdb, neigh, neightbl, route};

const X0: u32 = 4;
const U0: u32 = 3;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(str::chars)
        .filter_map(|digit| digit.to_digit(16).map(|value| value as u8))
        .collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// An attribute with what is nested in it, in the order of types: the order of attributes has no meaning.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tree {
    Leaf(u16, Vec<u8>),
    Nest(u16, Vec<Tree>),
}

fn tree(attributes: Attributes<'_>, nests: &[u16]) -> Vec<Tree> {
    let mut trees: Vec<Tree> = attributes
        .map(|(kind, value)| match nests.split_first() {
            Some((nest, deeper)) if *nest == kind => Tree::Nest(kind, tree(Attributes::new(value), deeper)),
            // ip(8) ends some strings with a zero and some not; the kernel takes both.
            _ => Tree::Leaf(kind, value.strip_suffix(&[0]).filter(|text| text.is_ascii()).unwrap_or(value).to_vec()),
        })
        .collect();
    trees.sort();
    trees
}

/// Type, flags without ACK, header, attributes.
fn meaning(message: Message<'_>) -> (u16, u16, Vec<u8>, Vec<Tree>) {
    let (header, nests): (usize, &[u16]) = match message.kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => (16, &[18, 2]),
        libc::RTM_NEWADDR | libc::RTM_DELADDR => (8, &[]),
        libc::RTM_SETNEIGHTBL => (4, &[6]),
        _ => (12, &[]),
    };
    let (header, attributes) = message.body.split_at(header);
    let flags = message.flags & !(libc::NLM_F_ACK as u16);
    (message.kind, flags, header.to_vec(), tree(Attributes::new(attributes), nests))
}

#[track_caller]
fn same(request: &Request, command: &str, hex: &str) {
    let mut ours = Datagram::default();
    request.write(&mut ours, 1);
    same_bytes(ours.bytes(), command, hex);
}

/// The same for a request about a link, which rtnetlink sends.
#[track_caller]
fn same_link(message: &LinkMessage, flags: u16, command: &str, hex: &str) {
    let mut ours = NetlinkMessage::from(RouteNetlinkMessage::NewLink(message.clone()));
    ours.header.flags = NLM_F_REQUEST | flags;
    ours.finalize();
    let mut bytes = vec![0; ours.buffer_len()];
    ours.serialize(&mut bytes);
    same_bytes(&bytes, command, hex);
}

#[track_caller]
fn same_bytes(ours: &[u8], command: &str, hex: &str) {
    let theirs = bytes(hex);
    let read = |bytes| meaning(Messages::new(bytes).next().unwrap().unwrap());
    assert_eq!(read(ours), read(&theirs), "{command}");
}

fn row(last: u8, remote: &str) -> fdb::Row {
    fdb::Row { ifindex: X0, mac: [2, 0, 0, 0, 1, last], remote: ip(remote) }
}

#[test]
fn fdb_requests_are_those_of_bridge() {
    same(
        &Request::PutFdb(row(1, "10.0.0.7")),
        "bridge fdb replace 02:00:00:00:01:01 dev x0 dst 10.0.0.7 self permanent",
        "300000001c0005051817026b000000000700000004000000c00002000a0002000200000001010000080001000a000007",
    );
    same(
        &Request::PutFdb(row(2, "fd00::7")),
        "bridge fdb replace 02:00:00:00:01:02 dev x0 dst fd00::7 self permanent",
        "3c0000001c0005051817026b000000000700000004000000c00002000a000200020000000102000014000100fd000000\
         000000000000000000000007",
    );
    same(
        &Request::DelFdb(row(1, "10.0.0.7")),
        "bridge fdb del 02:00:00:00:01:01 dev x0 dst 10.0.0.7 self",
        "300000001d0005001817026b000000000700000004000000c00002000a0002000200000001010000080001000a000007",
    );
}

fn entry(address: &str, state: neigh::State, ext_learned: bool, protocol: u8) -> neigh::Entry {
    neigh::Entry { ifindex: X0, address: ip(address), mac: [2, 0, 0, 0, 1, 1], state, ext_learned, protocol }
}

#[test]
fn neighbour_requests_are_those_of_ip() {
    same(
        &Request::PutNeigh(entry("10.244.1.0", neigh::State::Permanent, false, 116)),
        "ip neigh replace 10.244.1.0 lladdr 02:00:00:00:01:01 dev x0 nud permanent protocol 116",
        "380000001c0005051817026b0000000002000000040000008000000005000c0074000000080001000af401000a000200\
         0200000001010000",
    );
    same(
        &Request::PutNeigh(entry("fd01::1", neigh::State::Reachable, true, 0)),
        "ip neigh replace fd01::1 lladdr 02:00:00:00:01:01 dev x0 nud reachable extern_learn",
        "3c0000001c0005051917026b000000000a000000040000000200100014000100fd010000000000000000000000000001\
         0a0002000200000001010000",
    );
    same(
        &Request::DelNeigh { ifindex: X0, address: ip("10.244.1.0") },
        "ip neigh del 10.244.1.0 dev x0, but for the state 0x80, which the kernel does not look at (neigh_delete)",
        "240000001d0005001917026b00000000020000000400000000000000080001000af40100",
    );
}

#[test]
fn address_requests_are_those_of_ip() {
    let address = |text: &str| addr::Address { ifindex: X0, address: text.parse().unwrap() };
    same(
        &Request::PutAddress(address("10.244.0.0/32")),
        "ip addr replace 10.244.0.0/32 dev x0",
        "28000000140005051817026b000000000220000004000000080002000af40000080001000af40000",
    );
    same(
        &Request::PutAddress(address("fd01::5/128")),
        "ip addr replace fd01::5/128 dev x0 nodad",
        "40000000140005051817026b000000000a8002000400000014000200fd0100000000000000000000000000051400010\
         0fd010000000000000000000000000005",
    );
    same(
        &Request::DelAddress(address("10.244.0.0/32")),
        "ip addr del 10.244.0.0/32 dev x0",
        "28000000150005001817026b000000000220000004000000080002000af40000080001000af40000",
    );
}

fn via(destination: &str, gateway: &str) -> route::Route {
    route::Route {
        destination: destination.parse().unwrap(),
        kind: route::Kind::Unicast,
        ifindex: Some(X0),
        gateway: Some(ip(gateway)),
        onlink: true,
        source: None,
        protocol: 116,
        metric: 77,
        table: route::TABLE_MAIN,
    }
}

fn on_link() -> route::Route {
    let source = Some(ip("10.244.0.0"));
    route::Route { gateway: None, onlink: false, metric: 0, source, ..via("10.244.0.0/16", "10.244.1.0") }
}

fn dropping(destination: &str, kind: route::Kind) -> route::Route {
    route::Route { kind, ifindex: None, gateway: None, onlink: false, metric: 4096, ..via(destination, "::") }
}

#[test]
fn route_requests_are_those_of_ip() {
    same(
        &Request::PutRoute(via("10.244.1.0/24", "10.244.1.0")),
        "ip route replace 10.244.1.0/24 via 10.244.1.0 dev x0 onlink proto 116 metric 77",
        "3c000000180005051817026b0000000002180000fe74000104000000080001000af40100080005000af4010008000600\
         4d0000000800040004000000",
    );
    same(
        &Request::PutRoute(on_link()),
        "ip route replace 10.244.0.0/16 dev x0 proto 116 src 10.244.0.0",
        "34000000180005051917026b0000000002100000fe74fd0100000000080001000af40000080007000af4000008000400\
         04000000",
    );
    same(
        &Request::PutRoute(dropping("10.244.9.0/24", route::Kind::Unreachable)),
        "ip route replace unreachable 10.244.9.0/24 proto 116 metric 4096",
        "2c000000180005051917026b0000000002180000fe74000700000000080001000af409000800060000100000",
    );
    same(
        &Request::PutRoute(via("fd01:1::/64", "fd01:1::")),
        "ip route replace fd01:1::/64 via fd01:1:: dev x0 onlink proto 116 metric 77",
        "54000000180005051917026b000000000a400000fe7400010400000014000100fd010001000000000000000000000000\
         14000500fd010001000000000000000000000000080006004d0000000800040004000000",
    );
    same(
        &Request::PutRoute(dropping("fd01:2::/64", route::Kind::Blackhole)),
        "ip route replace blackhole fd01:2::/64 proto 116 metric 4096",
        "38000000180005051917026b000000000a400000fe7400060000000014000100fd010002000000000000000000000000\
         0800060000100000",
    );
    same(
        &Request::DelRoute(via("10.244.1.0/24", "10.244.1.0")),
        "ip route del 10.244.1.0/24 via 10.244.1.0 dev x0 onlink proto 116 metric 77, but for the type (unicast), \
         which ip leaves 0",
        "3c000000190005001917026b0000000002180000fe74ff0104000000080001000af40100080005000af4010008000600\
         4d0000000800040004000000",
    );
}

fn spec() -> VxlanSpec {
    VxlanSpec {
        name: "x1".into(),
        vni: 9,
        port: 8473,
        local: ip("10.0.0.1"),
        underlay: U0,
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1400,
        learning: false,
        gbp: true,
        l2miss: true,
    }
}

#[test]
fn link_requests_are_those_of_ip() {
    same_link(
        &spec().message(),
        NLM_F_CREATE | NLM_F_EXCL,
        "ip link add x1 address 02:00:00:00:00:01 mtu 1400 type vxlan id 9 dev u0 local 10.0.0.1 dstport 8473 \
         nolearning l2miss gbp",
        "84000000100005061917026b00000000000000000000000000000000000000000a000100020000000001000008000400\
         780500000700030078310000480012000900010076786c616e00000038000200080003000300000005000d0001000000\
         040017000800010009000000080004000a000001050007000000000006000f0021190000",
    );
    let spec = VxlanSpec { local: ip("10.0.0.9"), learning: true, mtu: 1300, mac: [2, 0, 0, 0, 0, 9], ..spec() };
    let differences = [
        Difference::Local { wanted: spec.local, seen: None },
        Difference::Learning { wanted: true, seen: false },
        Difference::Mtu { wanted: 1300, seen: 1400 },
    ];
    let messages = spec.change_messages(X0, &differences);
    assert_eq!(messages.len(), 2, "the driver refuses an MTU beside its own attributes");
    same_link(
        &messages[0],
        0,
        "ip link set x0 type vxlan local 10.0.0.9 learning",
        "44000000100005001917026b0000000000000000040000000000000000000000240012000900010076786c616e000000\
         14000200080004000a0000090500070001000000",
    );
    same_link(
        &messages[1],
        0,
        "ip link set x0 mtu 1300",
        "28000000100005001a17026b00000000000000000400000000000000000000000800040014050000",
    );
    let mac = [Difference::Mac { wanted: spec.mac, seen: None }];
    same_link(
        &spec.change_messages(X0, &mac)[0],
        0,
        "ip link set x0 address 02:00:00:00:00:09",
        "2c000000100005001a17026b00000000000000000400000000000000000000000a0001000200000000090000",
    );
}

const PARAMS: neightbl::Params =
    neightbl::Params { ifindex: X0, family: Family::V4, app_probes: 3, ucast_probes: 0, mcast_probes: 0 };

#[test]
fn neighbour_table_requests_are_those_of_ip() {
    same(
        &Request::SetNeighParams(PARAMS),
        "ip ntable change name arp_cache dev x0 app_probes 3 ucast_probes 0 mcast_probes 0, \
         but for the family, which ip leaves to the name, and NLM_F_REPLACE, which means nothing here",
        "48000000430001001a17026b00000000020000000e0001006172705f6361636865000000240006000800010004000000\
         080009000300000008000a000000000008000b0000000000",
    );
}

/// The first message in captured bytes.
fn read<T>(hex: &str, parse: impl Fn(&Message<'_>) -> Option<T>) -> T {
    parse(&Messages::new(&bytes(hex)).next().unwrap().unwrap()).unwrap()
}

#[test]
fn fdb_rows_and_neighbours_are_read() {
    // bridge fdb show dev x0
    let seen = read(
        "440000001c000200571a026b792c00000700000004000000c00002010a0002000200000001010000080001000a000007\
         1400030000000000020000000200000000000000",
        fdb::Seen::parse,
    );
    assert_eq!((seen.row, seen.state, seen.flags), (row(1, "10.0.0.7"), 0xc0, 2));
    assert_eq!(seen.used, Duration::from_millis(20));
    assert!(seen.is_permanent());

    // ip -4 neigh show dev x0
    let seen = read(
        "540000001c002200571a026ba02c0000020000000400000080000001080001000af401000a0002000200000001010000\
         0800040000000000140003000b0000000b0000000b0000000000000005000c0074000000",
        neigh::Seen::parse,
    );
    assert_eq!((seen.address, seen.mac, seen.protocol), (ip("10.244.1.0"), Some([2, 0, 0, 0, 1, 1]), 116));
    assert!(seen.is_permanent() && !seen.is_ext_learned() && !seen.is_incomplete());

    // ip -6 neigh show dev x0
    let seen = read(
        "580000001c002200571a026bce2c00000a000000040000000200100114000100fd010000000000000000000000000001\
         0a0002000200000001010000080004000000000014000300160000001600000016000000 01000000",
        neigh::Seen::parse,
    );
    assert_eq!((seen.address, seen.protocol, seen.state), (ip("fd01::1"), 0, 2));
    assert!(seen.is_ext_learned() && !seen.is_permanent());
}

#[test]
fn routes_are_read() {
    // ip -4 route show proto 116
    let cases = [
        (
            "3c00000018002200561a026bfa2c000002100000fe74fd010000000008000f00fe000000080001000af4000008000700\
             0af400000800040004000000",
            on_link(),
        ),
        (
            "4400000018002200561a026bfa2c000002180000fe7400010400000008000f00fe000000080001000af4010008000600\
             4d000000080005000af401000800040004000000",
            via("10.244.1.0/24", "10.244.1.0"),
        ),
        (
            "3400000018002200561a026bfa2c000002180000fe7400070000000008000f00fe000000080001000af4090008000600\
             00100000",
            dropping("10.244.9.0/24", route::Kind::Unreachable),
        ),
        // ip -6 route show proto 116
        (
            "8800000018002200561a026b272d00000a400000fe7400010400000008000f00fe00000014000100fd01000100000000\
             0000000000000000080006004d00000014000500fd010001000000000000000000000000080004000400000024000c00\
             00000000000000000000000000000000000000000000000000000000000000000500140000000000",
            via("fd01:1::/64", "fd01:1::"),
        ),
        (
            "7400000018002200561a026b272d00000a400000fe7400060000000008000f00fe00000014000100fd01000200000000\
             00000000000000000800060000100000080004000100000024000c000000000000000000000000000000000000000000\
             0000000000000000000000000500140000000000",
            dropping("fd01:2::/64", route::Kind::Blackhole),
        ),
    ];
    for (hex, route) in cases {
        assert_eq!(read(hex, route::Route::parse), route);
    }
}

#[test]
fn addresses_are_read() {
    // ip addr show dev x0
    let cases = [
        (
            "4c00000014002200581a026b542d00000220800004000000080001000af40000080002000af400000700030078300000\
             08000800 8000000014000600ffffffffffffffffc20d0300c20d0300",
            "10.244.0.0/32",
        ),
        (
            "4800000014002200581a026b542d00000a8082000400000014000100fd01000000000000000000000000000514000600\
             ffffffffffffffffc20d0300c20d03000800080082000000",
            "fd01::5/128",
        ),
    ];
    for (hex, text) in cases {
        let address = addr::Address { ifindex: X0, address: text.parse().unwrap() };
        let seen = read(hex, addr::Seen::parse);
        assert_eq!((seen.address, seen.peer, seen.is_deprecated(), seen.is_tentative()), (address, None, false, false));
    }
}

#[test]
fn links_and_neighbour_tables_are_read() {
    let link = read(include_str!("../tests/captured/link.hex"), Link::parse);
    let vxlan = Vxlan {
        vni: 9,
        port: 8473,
        local: Some(ip("10.0.0.1")),
        underlay: Some(U0),
        gbp: true,
        l2miss: true,
        ..Vxlan::default()
    };
    assert_eq!(link.vxlan, Some(vxlan));
    assert_eq!((link.index, link.name.as_str(), link.mtu, link.up, link.lower_up), (X0, "x0", 1400, true, true));
    assert_eq!(spec().differences(&link), []);

    let hex = bytes(include_str!("../tests/captured/neightbl.hex"));
    let messages = Messages::new(&hex).map(|message| neightbl::Params::parse(&message.unwrap()));
    assert_eq!(messages.collect::<Vec<_>>(), [None, Some(PARAMS)], "the table itself, then x0");
}

#[test]
fn misses_are_read() {
    // ip monitor neigh: "miss 10.244.5.5 dev x0 INCOMPLETE"
    let miss = read(
        "400000001e0001000000000000000000020000000400000001000001080001000af40505080004000000000014000300\
         70170000000000000000000001000000",
        Miss::parse,
    );
    assert_eq!(miss, Miss::L3 { ifindex: X0, address: ip("10.244.5.5") });
    // "miss fd01:0:5::5 dev x0 INCOMPLETE"
    let miss = read(
        "4c0000001e00010000000000000000000a000000040000000100000114000100fd010000000500000000000000000005\
         08000400000000001400030070170000000000000000000001000000",
        Miss::parse,
    );
    assert_eq!(miss, Miss::L3 { ifindex: X0, address: ip("fd01:0:5::5") });
    // "miss dev x0 lladdr 02:00:00:00:01:01 STALE"
    let miss = read(
        "440000001e00000000000000000000000200000004000000040000010a00020002000000010100000800070000000000\
         140003000000000073ff686673ff686600000000",
        Miss::parse,
    );
    assert_eq!(miss, Miss::L2 { ifindex: X0, mac: [2, 0, 0, 0, 1, 1] });
}
