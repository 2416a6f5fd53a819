use super::*;

fn flags(args: &[&str]) -> Result<Flags, clap::Error> {
    given(args, &[])
}

fn given(args: &[&str], env: &[(&str, &str)]) -> Result<Flags, clap::Error> {
    let args = std::iter::once("twilld").chain(args.iter().copied()).map(str::to_owned);
    let env = |name: &str| env.iter().find(|(there, _)| *there == name).map(|(_, value)| value.to_string());
    go::parse(args, env)
}

#[test]
fn go_spelling_is_read() {
    let flags = flags(&["-iface", "eth0", "-iface=eth1", "-v=2", "-etcd-endpoints=http://a:1,http://b:2"]).unwrap();
    assert_eq!(flags.iface, ["eth0", "eth1"]);
    assert_eq!((flags.verbosity, flags.etcd.etcd_endpoints.len()), (2, 2));
    for (args, level) in [(&["-v"][..], 1), (&["-v", "4"], 4), (&["--v=3"], 3), (&["--v", "5"], 5)] {
        assert_eq!(self::flags(args).unwrap().verbosity, level, "{args:?}");
    }
    assert!(!self::flags(&["-program-all-on-exit=false"]).unwrap().program_all_on_exit);
}

#[test]
fn go_s_booleans_are_read() {
    for (text, expected) in [("", true), ("=true", true), ("=1", true), ("=T", true), ("=False", false), ("=0", false)]
    {
        assert_eq!(flags(&[&format!("-ip-masq{text}")]).unwrap().ip_masq, expected, "{text}");
    }
    assert!(!flags(&[]).unwrap().ip_masq && flags(&[]).unwrap().iptables_forward_rules);
}

#[test]
fn the_last_of_a_repeated_flag_wins() {
    let flags = flags(&["--peer-mode=all", "--peer-mode=on-demand", "--peer-idle-timeout", "1h30m"]).unwrap();
    assert_eq!((flags.peer_mode, flags.peer_idle_timeout.as_secs()), (Mode::OnDemand, 5400));
}

#[test]
fn endpoints_are_those_of_the_last_flag_and_interfaces_those_of_all() {
    let flags = flags(&["--etcd-endpoints=http://a:1,http://b:1", "-etcd-endpoints", "http://c:1,http://d:1"]).unwrap();
    assert_eq!(flags.etcd.etcd_endpoints, ["http://c:1", "http://d:1"]);
    let flags = self::flags(&["--iface=a", "--iface-regex=b", "--iface", "c", "-iface-regex=d"]).unwrap();
    assert_eq!((flags.iface.len(), flags.iface_regex.len()), (2, 2));
}

#[test]
fn an_empty_value_counts_as_none() {
    let names = [
        "etcd-endpoints",
        "etcd-prefix",
        "etcd-cafile",
        "etcd-certfile",
        "etcd-keyfile",
        "etcd-username",
        "etcd-password",
        "iface",
        "iface-regex",
        "iface-can-reach",
        "public-ip",
        "public-ipv6",
        "subnet-file",
        "healthz-ip",
        "log-format",
        "peer-mode",
        "peer-idle-timeout",
        "node-id",
        "kubeconfig-file",
        "kube-api-url",
        "net-config-path",
        "listen",
        "networks",
        "kube-annotation-prefix",
    ];
    let unset = format!("{:?}", flags(&[]).unwrap());
    for name in names {
        for args in [vec![format!("--{name}=")], vec![format!("-{name}"), String::new()]] {
            let args: Vec<&str> = args.iter().map(String::as_str).chain(["--ip-masq=false"]).collect();
            let given = flags(&args).unwrap_or_else(|error| panic!("{args:?}: {error}"));
            assert_eq!(format!("{given:?}"), unset, "{args:?}");
        }
    }
    let flags = given(&["--iface=", "--iface=eth1", "--public-ip="], &[("FLANNELD_PUBLIC_IP", "192.0.2.1")]).unwrap();
    assert_eq!(
        (flags.iface, flags.public_ip),
        (vec!["eth1".to_owned()], None),
        "a given flag goes before its variable"
    );
    for number in ["--healthz-port=", "--iptables-resync=", "--subnet-lease-renew-margin=", "--ip-masq=", "-v="] {
        assert_eq!(self::flags(&[number]).unwrap_err().exit_code(), 2, "{number}");
    }
    assert!(self::flags(&["--iface"]).is_err(), "a value that is not there is not an empty one");
}

#[test]
fn a_variable_serves_where_the_flag_is_missing() {
    let env = [("FLANNELD_IFACE", "eth9"), ("FLANNELD_IP_MASQ", "true"), ("FLANNELD_PUBLIC_IP", "")];
    let from_env = given(&[], &env).unwrap();
    assert_eq!((from_env.iface, from_env.ip_masq, from_env.public_ip), (vec!["eth9".to_owned()], true, None));
    let both = given(&["-iface", "eth0", "--ip-masq=false"], &env).unwrap();
    assert_eq!((both.iface, both.ip_masq), (vec!["eth0".to_owned()], false));
    assert_eq!(given(&[], &[("FLANNELD_V", "4")]).unwrap().verbosity, 4);
    let error = given(&[], &[("FLANNELD_HEALTHZ_PORT", "70000")]).unwrap_err().to_string();
    assert!(error.contains("FLANNELD_HEALTHZ_PORT") && error.contains("70000"), "{error}");
}

#[test]
fn bad_values_are_named_with_their_flag() {
    for (args, expected) in [
        (vec!["--peer-idle-timeout=soon"], "--peer-idle-timeout"),
        (vec!["--peer-idle-timeout=0s"], "expected a time"),
        (vec!["--subnet-lease-renew-margin=0"], "1..=1439"),
        (vec!["--public-ip=here"], "--public-ip"),
        (vec!["--public-ip=fd99::1"], "--public-ipv6"),
        (vec!["--public-ip=0.0.0.0"], "other nodes reach"),
        (vec!["--public-ip=127.0.0.1"], "no loopback"),
        (vec!["--public-ip=224.0.0.1"], "multicast"),
        (vec!["--public-ipv6=::1"], "--public-ipv6"),
        (vec!["--public-ipv6=fe80::1"], "--public-ipv6"),
        (vec!["--public-ipv6=10.0.0.1"], "--public-ip "),
        (vec!["--iface-regex=("], "--iface-regex"),
        (vec!["--iface-can-reach=etcd.example"], "expected an IP address"),
        (vec!["--ip-masq=yes"], "expected true or false"),
        (vec!["--healthz-port=-1"], "--healthz-port"),
        (vec!["--etcd-endpoint=http://a:1"], "--etcd-endpoints"),
        (vec!["-ip-mask"], "--ip-masq"),
        (vec!["--ip-masq", "true"], "--ip-masq=true"),
    ] {
        let error = flags(&args).unwrap_err();
        assert!(error.to_string().contains(expected), "{args:?}: {error}");
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn flags_that_make_no_sense_here_say_what_does() {
    for (flag, expected) in [
        ("--kube-subnet-mgr", "--etcd-endpoints"),
        ("-kube-subnet-mgr=true", "--etcd-endpoints"),
        ("--net-config-path=/etc/kube-flannel/net-conf.json", "<etcd-prefix>/config"),
        ("--charon-vici-uri=x", "vxlan"),
        ("--listen=:8888", "--etcd-endpoints"),
    ] {
        let error = flags(&[flag]).unwrap_err();
        assert!(error.to_string().contains(expected), "{flag}: {error}");
        assert_eq!(error.exit_code(), 2);
    }
    let error = given(&[], &[("FLANNELD_KUBE_SUBNET_MGR", "true")]).unwrap_err().to_string();
    assert!(error.contains("FLANNELD_KUBE_SUBNET_MGR"), "{error}");
    // What asks for nothing is taken.
    assert!(
        flags(&["--kube-subnet-mgr=false", "--persistent-mac", "--vmodule=a=1", "-log_backtrace_at", "x:1"]).is_ok()
    );
}

#[test]
fn help_has_every_flag_in_its_group_and_the_exit_codes() {
    let help = flags(&["--help"]).unwrap_err().to_string();
    for group in ["etcd:", INTERFACE, NODE, RULES, HEALTH, LOG, OWN, "Exit codes:"] {
        assert!(help.contains(group), "no {group} in\n{help}");
    }
    assert!(help.find("--ip-masq").unwrap() < help.find("--peer-mode").unwrap(), "Twill's own come last");
}
