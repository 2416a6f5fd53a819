//! Which interface and address are chosen, and the words for why none is.

use super::*;

fn interface(index: u32, name: &str, addresses: &[&str], default_v4: Option<u32>) -> Interface {
    let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
    Interface {
        index,
        name: name.into(),
        mtu: 1500,
        addresses,
        default_v4: default_v4.map(DefaultHop::from),
        ..Interface::default()
    }
}

fn host() -> Vec<Interface> {
    vec![
        interface(1, "lo", &["127.0.0.1/8", "::1/128"], None),
        interface(2, "eth0", &["169.254.7.7/16", "10.99.0.10/16", "fe80::7/64", "fd99::10/64"], Some(100)),
        interface(3, "eth1", &["192.168.1.5/24"], Some(50)),
    ]
}

fn wish(names: &[&str]) -> Wish {
    Wish { iface: names.iter().map(|n| n.to_string()).collect(), ..Wish::default() }
}

fn patterns(patterns: &[&str]) -> Wish {
    Wish { regex: patterns.iter().map(|p| Regex::new(p).unwrap()).collect(), ..Wish::default() }
}

#[track_caller]
fn chosen(wish: &Wish, v6: bool) -> (String, String, String) {
    let chosen = choose(&host(), wish, v6).unwrap();
    (chosen.interface.name, chosen.local.to_string(), chosen.why)
}

fn is(name: &str, local: &str, why: &str) -> (String, String, String) {
    (name.to_owned(), local.to_owned(), why.to_owned())
}

#[test]
fn the_default_route_with_the_lowest_metric_wins() {
    assert_eq!(chosen(&wish(&[]), false), is("eth1", "192.168.1.5", "default route, metric 50"));
}

#[test]
fn the_first_named_interface_that_is_there_wins_and_link_local_addresses_are_passed_over() {
    assert_eq!(chosen(&wish(&["wlan0", "eth0", "eth1"]), false), is("eth0", "10.99.0.10", "--iface eth0"));
    assert_eq!(chosen(&wish(&["eth1", "eth0"]), true), is("eth0", "fd99::10", "--iface eth0"));
}

#[test]
fn an_address_names_its_interface_for_both_families() {
    assert_eq!(
        chosen(&wish(&["169.254.7.7"]), false),
        is(
            "eth0",
            "169.254.7.7",
            "--iface 169.254.7.7; 169.254.7.7 is a link-local address: expected one that means this host on other links too"
        )
    );
    assert_eq!(chosen(&wish(&["10.99.0.10"]), true), is("eth0", "fd99::10", "--iface 10.99.0.10"));
}

#[test]
fn patterns_come_after_names_and_look_at_addresses_first() {
    assert_eq!(chosen(&patterns(&["^wl", r"^192\.168\."]), false).0, "eth1");
    assert_eq!(chosen(&patterns(&["^eth"]), false), is("eth0", "10.99.0.10", "--iface-regex ^eth"));
    assert_eq!(chosen(&patterns(&["^fd99"]), true).1, "fd99::10");
    assert_eq!(chosen(&patterns(&["^fd99"]), false).1, "10.99.0.10", "by the other family's address");
    let both = Wish { iface: vec!["eth1".into()], ..patterns(&["eth0"]) };
    assert_eq!(chosen(&both, false).0, "eth1");
}

#[test]
fn what_the_kernel_would_take_comes_last() {
    let mut host = host();
    host[1].reaches_from = Some("10.99.0.10".parse().unwrap());
    let asked = Wish { can_reach: Some("10.99.0.1".parse().unwrap()), ..wish(&["wlan0"]) };
    let chosen = choose(&host, &asked, false).unwrap();
    assert_eq!((chosen.interface.index, chosen.why.as_str()), (2, "--iface-can-reach 10.99.0.1"));
}

#[test]
fn a_public_address_of_this_host_chooses_and_another_is_only_told() {
    let here = Wish { public_ip: Some("10.99.0.10".parse().unwrap()), ..Wish::default() };
    assert_eq!(chosen(&here, false), is("eth0", "10.99.0.10", "it has --public-ip 10.99.0.10"));
    let nat = Wish { public_ip: Some("203.0.113.7".parse().unwrap()), ..Wish::default() };
    let chosen = choose(&host(), &nat, false).unwrap();
    assert_eq!((chosen.local.to_string(), chosen.public.to_string()), ("192.168.1.5".into(), "203.0.113.7".into()));
}

#[test]
fn a_loopback_address_never_serves_and_names_the_reason() {
    for wish in [wish(&["lo"]), wish(&["127.0.0.1"]), patterns(&["^lo$"]), patterns(&[r"^127\."])] {
        let error = choose(&host(), &wish, false).unwrap_err().to_string();
        assert!(error.contains("127.0.0.1 is a loopback address: nothing sent from it leaves this host"), "{error}");
    }
    for pattern in [".*", "^lo$|^eth1$", r"^1(27|92)\."] {
        assert_ne!(chosen(&patterns(&[pattern]), false).0, "lo", "{pattern}");
    }
    let mut host = host();
    host[0].default_v4 = Some(0.into());
    assert!(matches!(choose(&host, &wish(&[]), false), Err(ChooseError::NoAddress { .. })));
    // As routers have it.
    host[0].addresses.push("10.99.0.99/32".parse().unwrap());
    assert_eq!(choose(&host, &patterns(&[r"^10\.99\.0\.99$"]), false).unwrap().interface.name, "lo");
    assert_eq!(choose(&host, &wish(&["lo"]), false).unwrap().local.to_string(), "10.99.0.99");
}

#[test]
fn an_address_that_is_not_reached_says_why() {
    let reach = |to: &str| Wish { can_reach: Some(to.parse().unwrap()), ..Wish::default() };
    let error = |to| choose(&host(), &reach(to), false).unwrap_err().to_string();
    assert!(error("203.0.113.7").contains("the kernel has no route to 203.0.113.7"), "{}", error("203.0.113.7"));
    assert!(error("10.99.0.10").contains("10.99.0.10 is an address of this host, on eth0"), "{}", error("10.99.0.10"));
}

#[test]
fn errors_say_what_was_tried_and_what_there_is() {
    let error = choose(&host(), &wish(&["wlan0", "eth1"]), true).unwrap_err().to_string();
    assert!(error.contains("IPv6: --iface wlan0: no such interface"), "{error}");
    assert!(
        error.contains("--iface eth1: eth1 has no IPv6 address") && error.contains("eth1 (192.168.1.5)"),
        "{error}"
    );
    assert!(matches!(choose(&host()[..1], &wish(&[]), false), Err(ChooseError::NoDefault { .. })));
}
/// `eth0` with these addresses, each followed by what it is: `fd99::a/64 temporary`.
fn eth0(addresses: &[&str]) -> Interface {
    let address = |text: &&str| {
        let mut words = text.split(' ');
        let mut address: Address = words.next().unwrap().parse().unwrap();
        for word in words {
            match word {
                "temporary" => address.temporary = true,
                "deprecated" => address.deprecated = true,
                "ends" => address.ends = true,
                "secondary" => address.secondary = true,
                "tentative" => address.tentative = true,
                "duplicate" => address.duplicate = true,
                "host" => address.scope = Scope::Host,
                "link" => address.scope = Scope::Link,
                _ => panic!("{word}"),
            }
        }
        address
    };
    let addresses = addresses.iter().map(address).collect();
    let (default_v4, default_v6) = (Some(0.into()), Some(1024.into()));
    Interface { index: 2, name: "eth0".into(), mtu: 1500, addresses, default_v4, default_v6, ..Interface::default() }
}

#[test]
fn of_several_addresses_the_one_that_lasts_is_taken_whatever_stands_first() {
    for (addresses, v6, local) in [
        (&["fd99::a/64 temporary", "fd99::10/64"][..], true, Some("fd99::10")),
        (&["fd99::a/64 temporary", "fd99::b/64 deprecated", "fd99::10/64", "fe80::1/64"], true, Some("fd99::10")),
        (&["fd99::a/64 tentative", "fd99::10/64"], true, Some("fd99::10")),
        (&["fd99::a/64 duplicate", "fd99::10/64"], true, Some("fd99::10")),
        (&["fd99::a/64 deprecated", "fe80::1/64"], true, Some("fd99::a")),
        (&["fd99::a/64 temporary deprecated", "fe80::1/64"], true, None),
        (&["fe80::1/64"], true, None),
        (&["169.254.7.7/16 link", "10.0.0.5/24 deprecated"], false, Some("10.0.0.5")),
        (&["169.254.7.7/16"], false, None),
        (&["fd99::a/64 temporary", "fd99::b/64 duplicate", "fd99::c/64 tentative"], true, None),
        (&["10.0.0.9/24 deprecated", "10.0.0.5/24"], false, Some("10.0.0.5")),
        (&["10.0.0.9/24 deprecated"], false, Some("10.0.0.9")),
        // With a lifetime only where there is no permanent one, unless that one came second.
        (&["10.0.0.9/24 ends", "10.1.0.5/24"], false, Some("10.1.0.5")),
        (&["fd99::a/64 ends", "fd99::10/64"], true, Some("fd99::10")),
        (&["10.0.0.9/24 ends", "10.0.0.5/24 secondary"], false, Some("10.0.0.9")),
        (&["10.0.0.9/24", "10.0.0.5/24 secondary"], false, Some("10.0.0.9")),
        (&["10.0.0.9/24 ends", "10.1.0.5/32"], false, Some("10.0.0.9")),
        (&["10.0.0.9/24 ends"], false, Some("10.0.0.9")),
        (&["10.0.0.9/24 deprecated ends", "10.1.0.5/24 ends"], false, Some("10.1.0.5")),
        (&["10.0.0.9/32", "10.0.0.5/24"], false, Some("10.0.0.5")),
        (&["10.0.0.9/32"], false, Some("10.0.0.9")),
        (&["10.0.0.9/24 host", "10.0.0.8/24 link", "10.0.0.5/24"], false, Some("10.0.0.5")),
        (&["10.0.0.9/24 host", "10.0.0.8/24 link"], false, Some("10.0.0.8")),
        (&["10.0.0.9/24 host"], false, None),
    ] {
        let hosts = [eth0(addresses)];
        for wish in [wish(&[]), wish(&["eth0"]), patterns(&["^eth"]), patterns(&["^(fd|fe|10)"])] {
            let chosen = choose(&hosts, &wish, v6).map(|chosen| chosen.local.to_string());
            assert_eq!(chosen.ok().as_deref(), local, "{addresses:?} {wish:?}");
        }
    }
}

#[test]
fn an_address_that_is_named_is_taken_as_it_is_unless_nothing_can_be_sent_from_it() {
    let hosts = [eth0(&["fd99::a/64 temporary", "fd99::b/64 deprecated", "fd99::c/64 duplicate", "fd99::10/64"])];
    for named in ["fd99::a", "fd99::b"] {
        let public = Wish { public_ipv6: Some(named.parse().unwrap()), ..Wish::default() };
        for wish in [wish(&[named]), public] {
            let chosen = choose(&hosts, &wish, true).unwrap();
            assert_eq!((chosen.local.to_string(), chosen.public.to_string()), (named.into(), named.into()));
        }
    }
    let public = Wish { public_ipv6: Some("fd99::c".parse().unwrap()), ..Wish::default() };
    for wish in [wish(&["fd99::c"]), public] {
        let error = choose(&hosts, &wish, true).unwrap_err().to_string();
        assert!(error.contains("fd99::c") && error.contains("failed duplicate address detection"), "{error}");
    }
}

#[test]
fn a_link_local_ipv6_address_is_not_even_taken_where_it_is_named() {
    let hosts = [eth0(&["fe80::1/64", "fd99::10/64"])];
    let error = choose(&hosts, &wish(&["fe80::1"]), true).unwrap_err();
    assert!(error.to_string().contains("fe80::1 is a link-local address: expected one that"), "{error}");
    assert!(!error.may_pass(), "another address than the named one is not waited for");
}

#[test]
fn an_address_may_come_where_there_is_a_link_local_one_only() {
    let may_pass =
        |addresses: &[&str], names: &[&str], v6| choose(&[eth0(addresses)], &wish(names), v6).unwrap_err().may_pass();
    for names in [&[][..], &["eth0"]] {
        assert!(may_pass(&["fe80::1/64"], names, true) && may_pass(&["169.254.7.7/16"], names, false));
        assert!(may_pass(&["fd99::a/64 temporary", "fe80::1/64 tentative"], names, true));
        assert!(!may_pass(&["fe80::1/64"], names, false) && !may_pass(&[], names, true));
        assert!(!may_pass(&["fd99::a/64 duplicate"], names, true));
    }
    assert!(!may_pass(&["fe80::1/64"], &["eth1"], true));
}

#[test]
fn the_kernel_s_source_gives_way_where_it_is_temporary() {
    let mut hosts = [eth0(&["fd99::a/64 temporary", "fd99::10/64"])];
    hosts[0].reaches_from = Some("fd99::a".parse().unwrap());
    let wish = Wish { can_reach: Some("fd99::1".parse().unwrap()), ..Wish::default() };
    let chosen = choose(&hosts, &wish, true).unwrap();
    assert_eq!(chosen.local.to_string(), "fd99::10");
    let why = "--iface-can-reach fd99::1; passed over: fd99::a is temporary (privacy extensions)";
    assert_eq!(chosen.why, why);
}

#[test]
fn the_reasons_are_in_the_log_and_in_the_error() {
    let passed = ["fd99::a/64 temporary", "fd99::b/64 duplicate", "fd99::c/64 deprecated"];
    let hosts = [eth0(&[&passed[..], &["fd99::10/64"]].concat())];
    let why = choose(&hosts, &wish(&[]), true).unwrap().why;
    let reasons = "fd99::a is temporary (privacy extensions), \
                   fd99::b failed duplicate address detection: another host on the link has it, \
                   fd99::c is deprecated (its preferred lifetime is over)";
    assert_eq!(why, format!("default route, metric 1024; passed over: {reasons}"));

    let early = eth0(&["fd99::a/64 temporary tentative", "fe80::1/64 tentative", "fd99::10/64"]);
    let why = choose(&[early], &wish(&[]), true).unwrap().why;
    assert_eq!(why, "default route, metric 1024; passed over: fd99::a is temporary (privacy extensions)");

    let error = choose(&[eth0(&passed[..2])], &wish(&["eth0"]), true).unwrap_err().to_string();
    for words in [
        "--iface eth0: eth0 has no IPv6 address that can carry the tunnel: fd99::a is temporary (privacy extensions)",
        "fd99::b failed duplicate address detection",
        "this host has eth0 (fd99::a [temporary], fd99::b [duplicate])",
    ] {
        assert!(error.contains(words), "no {words}: {error}");
    }
    let why = choose(&[eth0(&["10.0.0.9/32", "10.0.0.5/24"])], &wish(&[]), false).unwrap().why;
    assert_eq!(why, "default route, metric 0; passed over: 10.0.0.9 is a /32, as a virtual address has it");
    let why = choose(&[eth0(&["fd99::c/64 deprecated"])], &wish(&[]), true).unwrap().why;
    assert_eq!(why, "default route, metric 1024; fd99::c is deprecated (its preferred lifetime is over)");
}

#[test]
fn a_tentative_address_is_worth_a_wait_where_it_would_be_chosen() {
    let awaited = |addresses: &[&str], named: &[&str]| {
        super::awaited(&[eth0(addresses)], &wish(named), true).map(|ip| ip.to_string())
    };
    assert_eq!(awaited(&["fd99::10/64 tentative"], &[]).as_deref(), Some("fd99::10"));
    assert_eq!(awaited(&["fd99::10/64 tentative", "fd99::11/64"], &[]).as_deref(), Some("fd99::10"));
    assert_eq!(awaited(&["fd99::11/64", "fd99::10/64 tentative"], &[]), None);
    assert_eq!(awaited(&["fd99::11/64", "fd99::10/64 tentative"], &["fd99::10"]).as_deref(), Some("fd99::10"));
    assert_eq!(awaited(&["fd99::10/64 tentative duplicate"], &[]), None);
    assert_eq!(awaited(&["fd99::10/64 tentative temporary", "fd99::11/64"], &[]), None);
}

#[test]
fn we_stay_with_our_address_until_it_is_worse_in_kind() {
    let stays = |addresses: &[&str], ours: &str| {
        let mut chosen = choose(&[eth0(addresses)], &wish(&[]), true).unwrap();
        chosen.keep(ours.parse().unwrap());
        assert_eq!(chosen.public, chosen.local);
        chosen.local.to_string() == ours
    };
    assert!(stays(&["fd99::1/64", "fd99::2/64"], "fd99::2"));
    assert!(stays(&["fd99::2/64 deprecated", "fe80::1/64"], "fd99::2"));
    assert!(stays(&["fd99::1/64 deprecated", "fd99::2/64 deprecated"], "fd99::2"));
    for worse in ["deprecated", "duplicate", "temporary"] {
        assert!(!stays(&["fd99::1/64", &format!("fd99::2/64 {worse}")], "fd99::2"), "{worse}");
    }
    assert!(!stays(&["fd99::1/64", "fe80::1/64"], "fe80::1"));
    assert!(!stays(&["fd99::1/64"], "fd99::2"), "it is gone");
}

/// Two interfaces that are next hops of one default route.
fn two_hops(first: DefaultHop, second: Option<DefaultHop>) -> [Interface; 2] {
    let eth0 = Interface { default_v4: Some(first), ..eth0(&["10.1.0.5/24"]) };
    let eth1 = interface(3, "eth1", &["10.2.0.5/24"], None);
    [eth0, Interface { default_v4: second, ..eth1 }]
}

#[test]
fn of_several_next_hops_the_first_whose_link_is_up_is_taken() {
    let hop = |place, linkdown| DefaultHop { metric: 0, linkdown, place, of: 2 };
    let chosen = |hosts: &[Interface]| choose(hosts, &wish(&[]), false).unwrap();
    let both = chosen(&two_hops(hop(2, false), Some(hop(1, false))));
    assert_eq!((both.interface.name.as_str(), both.why.as_str()), ("eth1", "default route, metric 0, next hop 1 of 2"));
    let linkdown = chosen(&two_hops(hop(1, true), Some(hop(2, false))));
    assert_eq!(linkdown.why, "default route, metric 0, next hop 2 of 2");
    assert_eq!(chosen(&two_hops(hop(2, true), Some(hop(1, true)))).interface.name, "eth1", "no link is up");
    // The kernel prefers a lower metric whatever the carrier.
    assert_eq!(chosen(&two_hops(DefaultHop { linkdown: true, ..5.into() }, Some(9.into()))).interface.name, "eth0");
    let mut bare = two_hops(hop(1, false), Some(hop(2, false)));
    bare[0].addresses.clear();
    assert_eq!(chosen(&bare).interface.name, "eth1", "the first has no address");

    let as_good = |hosts: &[Interface]| chosen(hosts).is_no_better_than("eth1", "10.2.0.5".parse().unwrap(), hosts);
    assert!(as_good(&two_hops(hop(1, false), Some(hop(2, false)))));
    assert!(!as_good(&two_hops(hop(1, false), Some(hop(2, true)))) && !as_good(&two_hops(hop(1, false), None)));
}

#[test]
fn what_there_is_is_cut_to_a_readable_length() {
    let many: Vec<String> = (0..1000).map(|n| format!("10.96.{}.{}/32", n / 250, n % 250)).collect();
    let services = interface(7, "kube-ipvs0", &many.iter().map(String::as_str).collect::<Vec<_>>(), None);
    let pods = (8..500).map(|index| interface(index, &format!("veth{index}"), &[], None));
    let hosts: Vec<Interface> = host().into_iter().chain([services]).chain(pods).collect();
    let error = choose(&hosts, &wish(&["wlan0"]), false).unwrap_err().to_string();
    assert!(error.contains("and 992 more") && error.contains("and 484 more") && error.len() < 1000, "{error}");
}
