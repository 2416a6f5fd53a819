//! DEL after an ADD that failed: it succeeds and leaves nothing where the configuration can never work, and fails as long
//! as a further DEL may find something to take down.

use std::fs;

use serde_json::{Value, json};

use crate::real::Cluster;
use crate::support::Node;

/// Configurations that bridge or its address plugin refuse, and a word of the refusal.
fn refused() -> Vec<(Value, &'static str)> {
    let delegate = |more: Value| json!({ "delegate": more });
    let ipam = |more: Value| json!({ "ipam": more });
    vec![
        (delegate(json!({"vlan": 5000})), "5000"),
        (delegate(json!({"vlan": "5"})), "cannot unmarshal string"),
        (delegate(json!({"mtu": "1450"})), "cannot unmarshal string"),
        (delegate(json!({"hairpinMode": "yes"})), "cannot unmarshal string"),
        (delegate(json!({"bridge": 7})), "cannot unmarshal number"),
        (delegate(json!({"capabilities": []})), "cannot unmarshal array"),
        (delegate(json!({"hairpinMode": true, "promiscMode": true})), "at the same time"),
        (delegate(json!({"bridge": "a-name-that-is-too-long"})), "numerical result out of range"),
        (ipam(json!({"type": "nosuch"})), "failed to find plugin \"nosuch\""),
        (ipam(json!({"type": 7})), "cannot unmarshal number"),
        (ipam(json!({"type": "../bridge"})), "../bridge"),
        (ipam(json!({"dataDir": 7})), "cannot unmarshal number"),
        (ipam(json!({"dataDir": "/proc/none"})), "/proc/none"),
        (ipam(json!({"rangeStart": 7})), "cannot unmarshal number"),
        // Its daemon doesn't run.
        (ipam(json!({"type": "dhcp", "daemonSocketPath": "/nowhere/dhcp.sock"})), "dhcp"),
        // An old plugin.
        (json!({"cniVersion": "1.1.0"}), "the plugin bridge does not know cniVersion 1.1.0"),
    ]
}

#[test]
fn del_after_an_add_that_the_delegate_refused_leaves_nothing() {
    let cluster = Cluster::new(1);
    for (more, word) in refused() {
        // As it was, with the configuration mended, and after the pod's namespace is gone.
        for (at_del, netns) in [(more.clone(), true), (json!({}), true), (more.clone(), false)] {
            let (_, msg, _) = cluster.call_with("ADD", 1, more.clone()).fails();
            assert!(msg.contains(word), "{more}: {msg}");
            assert_eq!(cluster.node.stored(), ["pod1"], "{more}");
            let del = cluster.call_with("DEL", 1, at_del);
            if netns {
                del.ok()
            } else {
                del.env("CNI_NETNS", "").ok()
            };
            assert!(cluster.node.stored().is_empty() && cluster.held().is_empty(), "{more}");
            if netns {
                assert!(cluster.links(1).lines().count() == 1, "{more}: {}", cluster.links(1));
            } else {
                // What the kernel does with a namespace.
                let _ = cluster.try_run(1, &["ip", "link", "del", "eth0"]);
            }
        }
    }
    // The pod gets its network as soon as the configuration is mended, and the bridge of ADDs that failed is gone: bridge
    // 1.1.1 can't use one that has lost its last port before it ever had an address.
    cluster.run_on_node(&["ip", "link", "del", "cni0"]);
    let result = cluster.add(1, json!({}));
    cluster.call_with("DEL", 1, json!({"prevResult": result})).ok();
    assert!(cluster.node.stored().is_empty() && cluster.held().is_empty());
}

#[test]
fn an_address_is_given_back_also_where_the_delegate_never_asks_for_it() {
    let cluster = Cluster::new(1);
    // A bridge that gets as far as its address, and then stops at every verb for one reason.
    let script = "if [ $CNI_COMMAND = ADD ]; then CNI_PATH=/usr/lib/cni /usr/lib/cni/host-local <$OWN/ADD.json >/dev/null || exit 9; fi\n\
                  echo '{\"code\":999,\"msg\":\"no such master\"}'; exit 1";
    cluster.node.delegate("bridge", &script.replace("$OWN", &cluster.node.path("").display().to_string()));
    let path = format!("{}:/usr/lib/cni", cluster.node.path("bin").display());
    let call = |verb: &str| cluster.call(verb, 1).env("CNI_PATH", &path);
    assert_eq!(call("ADD").fails().1, "no such master");
    assert_eq!(cluster.held(), ["10.5.52.2"]);
    call("DEL").ok();
    assert!(cluster.held().is_empty() && cluster.node.stored().is_empty());
    assert_eq!(cluster.node.seen("DEL").unwrap().get("ipam"), None, "the delegate's own part comes without ipam");
}

#[test]
fn an_address_of_a_pod_that_was_added_is_never_forgotten() {
    let cluster = Cluster::new(1);
    cluster.add(1, json!({}));
    // Without host-local the bridge can't give the address back, so DEL fails until it is there again.
    let bin = cluster.node.path("bin");
    fs::remove_file(bin.join("bridge")).unwrap();
    std::os::unix::fs::symlink("/usr/lib/cni/bridge", bin.join("bridge")).unwrap();
    for _ in 0..2 {
        let (_, msg, _) = cluster.call("DEL", 1).env("CNI_PATH", &bin).fails();
        assert!(msg.contains("failed to find plugin \"host-local\""), "{msg}");
        assert_eq!((cluster.held(), cluster.node.stored()), (vec!["10.5.52.2".to_string()], vec!["pod1".to_string()]));
    }
    cluster.call("DEL", 1).ok();
    assert!(cluster.held().is_empty() && cluster.node.stored().is_empty());
}

/// Lets bridge answer each verb with a code and words, and other verbs with success.
fn answers(node: &Node, add: (u32, &str), del: (u32, &str)) {
    let object = |(code, msg): (u32, &str)| format!(r#"echo '{{"code":{code},"msg":"{msg}"}}'; exit 1"#);
    let (add, del) = (object(add), object(del));
    node.delegate("bridge", &format!("case $CNI_COMMAND in ADD) {add};; DEL) {del};; esac"));
}

#[test]
fn del_fails_while_it_fails_for_another_reason_than_the_add() {
    let node = Node::new();
    for (add, del) in [
        ((999, "no addresses"), (999, "the lock is held")),
        ((7, "no such master"), (999, "no such master")),
        // To be tried again, whatever the ADD said.
        ((11, "busy"), (11, "busy")),
        ((999, "busy"), (11, "busy")),
    ] {
        answers(&node, add, del);
        assert_eq!(node.call("ADD").fails().1, add.1);
        for _ in 0..2 {
            assert_eq!(node.call("DEL").fails(), (u64::from(del.0), del.1.to_string(), String::new()));
            assert_eq!(node.stored(), ["c1"]);
        }
        node.delegate("bridge", "");
        node.call("DEL").ok();
        assert!(node.stored().is_empty());
    }
}

#[test]
fn a_delegate_without_words_gives_a_reason_too() {
    let node = Node::new();
    for script in [
        "exit 7",
        "echo nonsense; exit 1",
        "echo panic: no vlan, goroutine 1 at 0x$$ >&2; exit 2",
        "echo time=$(date +%s%N) no vlan >&2; exit 2",
    ] {
        node.delegate("bridge", script);
        node.call("ADD").fails();
        let outcome = node.call("DEL").run();
        assert_eq!(outcome.code, Some(0), "{script}: {outcome:?}");
        assert!(outcome.stderr.contains("flannel: forgetting an attachment that the delegate refused"), "{outcome:?}");
        assert!(node.stored().is_empty(), "{script}");
    }
    // Killed, so it has refused nothing.
    node.delegate("bridge", "kill -9 $$");
    for verb in ["ADD", "DEL", "DEL"] {
        let (_, msg, _) = node.call(verb).fails();
        assert!(msg.contains("signal: 9"), "{msg}");
        assert_eq!(node.stored(), ["c1"]);
    }
    node.delegate("bridge", "sleep 1000");
    for verb in ["ADD", "DEL", "DEL"] {
        assert_eq!(node.call_with(verb, json!({"delegateTimeoutSeconds": 1})).fails().0, 11);
        assert_eq!(node.stored(), ["c1"]);
    }
}

#[test]
fn an_add_that_succeeded_once_is_taken_down_however_a_further_one_failed() {
    let node = Node::new();
    node.call("ADD").ok();
    answers(&node, (999, "eth0 exists"), (999, "eth0 exists"));
    node.call("ADD").fails();
    node.call("DEL").fails();
    assert_eq!(node.stored(), ["c1"]);
    // Nor does one whose delegate could not be started take its configuration away.
    fs::write(node.path("bin/bridge"), "#!/no/such/interpreter\n").unwrap();
    let stored = fs::read(node.path("data/c1")).unwrap();
    node.call_with("ADD", json!({"delegate": {"mtu": 9000}})).fails();
    assert_eq!(fs::read(node.path("data/c1")).unwrap(), stored);
    node.delegate("bridge", "");
    node.call("DEL").ok();
    assert!(node.stored().is_empty());
    // One that failed before succeeds, and then counts as one that did.
    answers(&node, (999, "no vlan"), (999, "no vlan"));
    node.call("ADD").fails();
    node.delegate("bridge", "echo '{}'");
    node.call("ADD").ok();
    answers(&node, (999, "no vlan"), (999, "no vlan"));
    node.call("DEL").fails();
    assert_eq!(node.stored(), ["c1"]);
}

#[test]
fn a_mended_configuration_takes_down_what_it_finds_by_the_same_names() {
    let node = Node::new();
    // A bridge that was updated and no longer takes an MTU that it has taken.
    let script = "case $CNI_COMMAND in ADD) echo '{}';; DEL) ! grep -q '\"mtu\":9999' $OWN/DEL.json || \
                  { echo '{\"code\":999,\"msg\":\"no such mtu\"}'; exit 1; };; esac";
    node.delegate("bridge", &script.replace("$OWN", &node.path("").display().to_string()));
    let old = json!({"delegate": {"mtu": 9999}});
    node.call_with("ADD", old.clone()).ok();
    assert_eq!(node.call_with("DEL", old.clone()).fails().1, "no such mtu");
    // Another ipam, name or type would look in another place, so that is no way.
    for other in [json!({"ipam": {"dataDir": "/elsewhere"}}), json!({"delegate": {"ipMasq": true}})] {
        assert_eq!(node.call_with("DEL", other).fails().1, "no such mtu");
        assert_eq!(node.stored(), ["c1"]);
    }
    node.call("DEL").ok();
    assert_eq!(node.seen("DEL").unwrap()["mtu"], 1450);
    assert!(node.stored().is_empty());
}

#[test]
fn what_is_wrong_in_the_networks_own_configuration_keeps_no_pod_from_going() {
    let node = Node::new();
    let wrong = [
        json!({"delegate": "bridge"}),
        json!({"ipam": []}),
        json!({"subnetFile": 7}),
        json!({"delegateTimeoutSeconds": 0}),
        json!({"cniVersion": "9.9.9"}),
        json!({"cniVersion": 1}),
        json!({"delegate": {"type": "flannel"}}),
    ];
    for wrong in wrong {
        // Refused before anything was done.
        node.call_with("ADD", wrong.clone()).fails();
        node.call_with("DEL", wrong.clone()).ok();
        assert_eq!(node.seen("DEL"), None, "{wrong}");
        // And spoilt after the pod was added.
        node.call("ADD").ok();
        let added = node.seen("ADD").unwrap();
        node.call_with("DEL", wrong.clone()).ok();
        assert_eq!(node.seen("DEL"), Some(added), "{wrong}");
        assert!(node.stored().is_empty());
    }
    // Where the record would be, and whose it is, can't be guessed.
    for wrong in [json!({"dataDir": 7}), json!({"name": 7})] {
        node.call_with("DEL", wrong).fails();
    }
    // A directory that never was one holds nothing.
    fs::write(node.path("file"), "").unwrap();
    let no_directory = json!({"dataDir": node.path("file")});
    node.call_with("ADD", no_directory.clone()).fails();
    node.call_with("DEL", no_directory).ok();
}

#[test]
fn an_older_plugin_is_named_with_what_it_knows() {
    let node = Node::new();
    // bridge knows the version, its address plugin doesn't.
    let old = r#"echo '{"code":1,"msg":"incompatible CNI versions","details":"in words of its own"}'; exit 1"#;
    let knows = |versions: &str| {
        format!(
            r#"if [ $CNI_COMMAND = VERSION ]; then echo '{{"cniVersion":"1.0.0","supportedVersions":[{versions}]}}'; exit; fi"#
        )
    };
    node.delegate("bridge", &format!("{}\n{old}", knows(r#""0.4.0","1.0.0""#)));
    node.delegate("host-local", &format!("{}\n{old}", knows(r#""0.3.0","0.3.1""#)));
    let (code, msg, details) = node.call("ADD").fails();
    assert_eq!(
        (code, msg.as_str()),
        (1, "incompatible CNI versions: the plugin host-local does not know cniVersion 1.0.0")
    );
    assert!(details.contains("bin/host-local knows 0.3.0, 0.3.1: give"), "{details}");
    assert!(details.ends_with("it said: incompatible CNI versions (in words of its own)"), "{details}");
    // A verb that came later is unknown to it, which is no fault of the variables.
    let old = r#"echo '{"code":4,"msg":"unknown CNI_COMMAND: STATUS"}'; exit 1"#;
    node.delegate("bridge", &format!("{}\n{old}", knows(r#""1.0.0""#)));
    let (code, msg, _) = node.call_with("STATUS", json!({"cniVersion": "1.1.0"})).fails();
    assert_eq!(
        (code, msg.as_str()),
        (1, "incompatible CNI versions: the plugin bridge does not know cniVersion 1.1.0")
    );
    fs::remove_file(node.path("bin/host-local")).unwrap();
    // One that doesn't say what it knows is named all the same; other errors stay as they are.
    node.delegate("bridge", r#"echo '{"code":1,"msg":"too new"}'; exit 1"#);
    assert_eq!(node.call("ADD").fails().1, "too new: the plugin bridge was given cniVersion 1.0.0");
    node.delegate("bridge", r#"echo '{"code":4,"msg":"no CNI_ARGS"}'; exit 1"#);
    assert_eq!(node.call("ADD").fails().1, "no CNI_ARGS");
}
