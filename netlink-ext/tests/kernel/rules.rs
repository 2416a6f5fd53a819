//! Policy rules: what a dump shows, and that a change is heard.

use netlink_ext::route::Kind;
use netlink_ext::rule::{Action, Rule};
use netlink_ext::{Change, ChangeScope, ChangeSocket, Dumper, Family};

use crate::support::{address, block_on, in_namespace, ip, output};

fn rules(dumper: &mut Dumper, family: Family) -> Vec<Rule> {
    dumper.rules(family).unwrap()
}

#[test]
fn rules_are_read_with_what_they_ask_of_a_packet() {
    in_namespace(|| {
        ip("rule add to 10.5.0.0/16 lookup 100 priority 10\n\
            rule add from 10.5.1.0/24 to 10.5.7.9 prohibit priority 11\n\
            rule add not fwmark 0xca6c lookup 51820 priority 12\n\
            rule add lookup main suppress_prefixlength 0 priority 13\n\
            rule add iif lo lookup 7 priority 14\n\
            rule add fwmark 1 lookup 7 priority 15\n\
            rule add tos 0x10 lookup 7 priority 16\n\
            rule add ipproto tcp dport 80 lookup 7 priority 17\n\
            rule add uidrange 0-1 lookup 7 priority 18\n\
            rule add oif lo lookup 7 priority 19\n\
            rule add blackhole priority 20\n\
            rule add unreachable priority 21\n\
            rule add goto 32766 priority 22");
        output("ip -6 rule add to fc00::/48 lookup 100 priority 10");
        let mut dumper = Dumper::open().unwrap();
        let all = rules(&mut dumper, Family::V4);
        let plain = |priority, action| Rule {
            priority,
            from: None,
            to: None,
            iif: None,
            is_conditional: false,
            action,
            suppress_prefixlength: None,
        };
        let conditional = |priority| Rule { is_conditional: true, ..plain(priority, Action::Lookup(7)) };
        let net = |text: &str| Some(text.parse().unwrap());
        assert_eq!(
            all,
            [
                plain(0, Action::Lookup(255)),
                Rule { to: net("10.5.0.0/16"), ..plain(10, Action::Lookup(100)) },
                Rule { from: net("10.5.1.0/24"), to: net("10.5.7.9/32"), ..plain(11, Action::Prohibit) },
                Rule { is_conditional: true, ..plain(12, Action::Lookup(51820)) },
                Rule { suppress_prefixlength: Some(0), ..plain(13, Action::Lookup(254)) },
                Rule { iif: Some("lo".into()), ..plain(14, Action::Lookup(7)) },
                conditional(15),
                conditional(16),
                conditional(17),
                conditional(18),
                conditional(19),
                plain(20, Action::Blackhole),
                plain(21, Action::Unreachable),
                plain(22, Action::Goto(32766)),
                plain(32766, Action::Lookup(254)),
                plain(32767, Action::Lookup(253)),
            ],
            "{}",
            output("ip rule show")
        );
        let v6 = rules(&mut dumper, Family::V6);
        assert_eq!(v6[1], Rule { to: net("fc00::/48"), ..plain(10, Action::Lookup(100)) });
    });
}

#[test]
fn the_table_that_a_rule_leads_to_is_in_the_answer_to_a_lookup() {
    in_namespace(|| {
        ip("link add u0 type veth peer name u1\n\
            addr add 10.0.0.1/24 dev u0\n\
            addr add fd00::1/64 dev u0 nodad\n\
            link set u0 up\n\
            link set u1 up\n\
            route add 10.5.0.0/16 dev u0\n\
            route add fc00::/48 dev u0\n\
            route add 10.5.7.0/24 via 10.0.0.9 table 100\n\
            route add fc00:0:0:7::/64 via fd00::9 table 100\n\
            rule add from 10.0.0.0/24 lookup 100 priority 10");
        output("ip -6 rule add from fd00::/64 lookup 100 priority 10");
        let mut dumper = Dumper::open().unwrap();
        for (source, near, far) in [("10.0.0.1", "10.5.6.0", "10.5.7.0"), ("fd00::1", "fc00:0:0:6::", "fc00:0:0:7::")] {
            let mut table = |to: &str, source| {
                let route = dumper.route_to(address(to), source).unwrap().unwrap();
                (route.table, route.gateway.is_some())
            };
            let source = Some(address(source));
            assert_eq!(table(near, source), (254, false));
            assert_eq!(table(far, source), (100, true));
        }
        ip("rule add to 10.5.6.0/24 prohibit priority 9");
        assert_eq!(dumper.route_to(address("10.5.6.0"), None).unwrap(), None);
    });
}

#[test]
fn routes_of_one_table_and_kind_are_read() {
    in_namespace(|| {
        for table in [100, 1000] {
            ip(&format!(
                "route add unreachable default table {table}\n\
                 route add throw 10.5.0.0/16 table {table}\n\
                 route add blackhole 10.6.0.0/16 metric 7 table {table}\n\
                 route add unreachable fc00::/48 table {table}"
            ));
        }
        ip("route add unreachable 10.7.0.0/16");
        let mut dumper = Dumper::open().unwrap();
        let mut read = |family, table, kind| {
            let routes = dumper.table_routes(family, table, kind).unwrap().into_iter();
            routes.map(|route| (route.destination.to_string(), route.metric)).collect::<Vec<_>>()
        };
        for table in [100, 1000] {
            assert_eq!(read(Family::V4, table, Kind::Unreachable), [("0.0.0.0/0".to_owned(), 0)]);
            assert_eq!(read(Family::V4, table, Kind::Throw), [("10.5.0.0/16".to_owned(), 0)]);
            assert_eq!(read(Family::V4, table, Kind::Blackhole), [("10.6.0.0/16".to_owned(), 7)]);
            assert_eq!(read(Family::V6, table, Kind::Unreachable), [("fc00::/48".to_owned(), 1024)]);
            assert_eq!(read(Family::V4, table, Kind::Prohibit), []);
        }
        for family in Family::BOTH {
            assert_eq!(read(family, 4711, Kind::Unreachable), [], "there is no such table");
        }
    });
}

#[test]
fn a_rule_that_comes_or_goes_is_heard() {
    in_namespace(|| {
        block_on(async {
            let scope = ChangeScope { ifindex: 1, ignore_ports: Vec::new(), receive_buffer: 1 << 20 };
            let mut changes = ChangeSocket::open(&scope).unwrap();
            let mut next = async || loop {
                match changes.try_next().unwrap() {
                    None => changes.readable().await.unwrap(),
                    Some(Change::Rule { family }) => return family,
                    Some(_) => (),
                }
            };
            ip("rule add lookup 100 priority 10");
            assert_eq!(next().await, Family::V4);
            output("ip -6 rule add lookup 100 priority 10");
            assert_eq!(next().await, Family::V6);
            ip("rule del priority 10");
            assert_eq!(next().await, Family::V4);
        });
    });
}
