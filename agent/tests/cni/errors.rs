//! Every error that an operator can meet: what it says, and that nothing is left behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::support::{ENV, Node, wait_dead};

#[test]
fn no_lease_keeps_flannels_words_and_adds_the_daemons() {
    let node = Node::new();
    fs::remove_file(node.path("subnet.env")).unwrap();
    let path = node.path("subnet.env").display().to_string();
    let (code, msg, details) = node.call("ADD").fails();
    let known = format!("loadFlannelSubnetEnv failed: open {path}: no such file or directory");
    assert_eq!((code, &msg), (11, &known));
    assert!(details.contains("twilld"), "{details}");

    fs::write(format!("{path}.status"), "no etcd endpoint answers: connection refused\n").unwrap();
    let (_, msg, _) = node.call("ADD").fails();
    assert_eq!(msg, format!("{known} (twilld last reported: no etcd endpoint answers: connection refused)"));
    assert_eq!((node.seen("ADD"), node.stored().len()), (None, 0));
}

#[test]
fn a_half_written_lease_says_what_is_missing() {
    let node = Node::new();
    node.lease("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\n");
    let (_, msg, _) = node.call("ADD").fails();
    assert!(msg.ends_with("subnet.env is missing FLANNEL_MTU, FLANNEL_IPMASQ"), "{msg}");
    node.lease("FLANNEL_NETWORK=10.5.0.0/99\n");
    let (_, msg, _) = node.call("ADD").fails();
    assert!(msg.contains("invalid CIDR address: 10.5.0.0/99"), "{msg}");
}

#[test]
fn a_lease_that_no_pod_can_live_on_is_named() {
    let node = Node::new();
    for (from, to, said) in [
        ("SUBNET=10.5.52.1/24", "SUBNET=::1/64", "FLANNEL_SUBNET=::1/64: expected IPv4, as in 10.5.52.1/24"),
        (
            "SUBNET=10.5.52.1/24",
            "SUBNET=10.6.52.1/24",
            "FLANNEL_SUBNET=10.6.52.1/24: expected a subnet of FLANNEL_NETWORK=10.5.0.0/16",
        ),
        ("MTU=1450", "MTU=0", "FLANNEL_MTU=0: expected a number of bytes, 68 to 65535"),
        ("MTU=1450", "MTU=100000", "FLANNEL_MTU=100000: expected a number of bytes, 68 to 65535"),
        ("IPMASQ=true", "IPMASQ=yes", "FLANNEL_IPMASQ=yes: expected true or false"),
    ] {
        node.lease(&ENV.replace(from, to));
        let (code, msg, _) = node.call("ADD").fails();
        let file = node.path("subnet.env").display().to_string();
        assert_eq!((code, msg), (11, format!("loadFlannelSubnetEnv failed: {file} has {said}")));
        assert_eq!((node.seen("ADD"), node.stored().len()), (None, 0));
    }
}

#[test]
fn a_lease_that_an_editor_or_a_script_wrote_is_read() {
    let node = Node::new();
    node.call("ADD").ok();
    let wanted = node.seen("ADD").unwrap();
    for text in [
        format!("\u{feff}{ENV}"),
        ENV.replace('\n', "\r\n"),
        ENV.trim_end().to_owned(),
        ENV.replace("FLANNEL", "export FLANNEL"),
        ENV.replace('=', "=\"").replace('\n', "\"\n"),
        ENV.replace('\n', " \n"),
        format!("FLANNEL_SUBNET=10.5.9.1/24\n# written by hand\n\n{ENV}"),
    ] {
        node.lease(&text);
        node.call("ADD").ok();
        assert_eq!(node.seen("ADD").unwrap(), wanted, "{text:?}");
    }
}

#[test]
fn wrong_configurations_are_refused_before_anything_happens() {
    let node = Node::new();
    for (more, msg) in [
        (
            json!({"delegate": {"name": "x"}}),
            "'delegate' dictionary must not have 'name' field, it'll be set by flannel",
        ),
        (
            json!({"delegate": {"ipam": {}}}),
            "'delegate' dictionary must not have 'ipam' field, it'll be set by flannel",
        ),
        (json!({"delegate": {"type": 1}}), "'delegate' dictionary, if present, must have (string) 'type' field"),
        (json!({"delegate": {"type": "../bridge"}}), "invalid plugin name: ../bridge"),
        (json!({"name": ""}), "missing network name"),
        (json!({"name": "../x"}), "invalid characters found in network name"),
    ] {
        let (code, said, _) = node.call_with("ADD", more).fails();
        assert_eq!((code, said.as_str()), (7, msg));
    }
    for (more, word) in [
        (json!({"ipam": "host-local"}), "'ipam'"),
        (json!({"delegate": []}), "'delegate'"),
        (json!({"ipam": {"routes": "all"}}), "failed to parse ipam.routes"),
        (json!({"ipam": {"routes": [{"dst": "10.0.0.0"}]}}), "invalid CIDR address: 10.0.0.0"),
    ] {
        let (_, said, _) = node.call_with("ADD", more).fails();
        assert!(said.contains(word), "{said}");
    }
    let (code, said, _) = node.call("ADD").stdin("{").fails();
    assert_eq!(code, 6);
    assert!(said.starts_with("loadFlannelNetConf failed: failed to load netconf"), "{said}");
    assert_eq!((node.seen("ADD"), node.stored().len()), (None, 0));
}

#[test]
fn a_name_that_no_file_can_have_is_refused_and_was_never_added() {
    let node = Node::new();
    let name = json!({"name": "n".repeat(240)});
    let (code, msg, details) = node.call_with("ADD", name.clone()).fails();
    assert_eq!(code, 7);
    assert!(
        msg.starts_with("the network name nnn") && msg.ends_with("is too long for container c1, interface eth0"),
        "{msg}"
    );
    assert!(details.contains("bytes together"), "{details}");
    node.call_with("DEL", name).ok();
    node.call_with("DEL", json!({})).id(&"c".repeat(300)).ok();
    assert_eq!((node.seen("ADD"), node.seen("DEL"), node.stored().len()), (None, None, 0));
}

#[test]
fn wrong_variables_are_named() {
    let node = Node::new();
    let (code, msg, _) = node.call("ADD").env("CNI_NETNS", "").env("CNI_PATH", "").fails();
    assert_eq!((code, msg.as_str()), (4, "required env variables [CNI_NETNS,CNI_PATH] missing"));
    let (code, msg, details) = node.call("DEL").id("../../etc/passwd").fails();
    assert_eq!((code, msg.as_str(), details.as_str()), (4, "invalid characters in containerID", "../../etc/passwd"));
    assert_eq!(node.call("ADD").ifname("a/b").fails().0, 4);
    assert_eq!(node.call("UPDATE").fails().1, "unknown CNI_COMMAND: UPDATE");
}

#[test]
fn a_delegate_that_is_missing_is_named_with_the_path() {
    let node = Node::new();
    let bin = node.path("bin").display().to_string();
    let call = node.call_with("ADD", json!({"delegate": {"type": "macvlan"}}));
    let (code, msg, _) = call.env("CNI_PATH", format!("/nowhere:{bin}")).fails();
    assert_eq!(code, 5);
    assert_eq!(msg, format!("failed to delegate add: failed to find plugin \"macvlan\" in path [/nowhere {bin}]"));
    assert!(node.stored().is_empty());
}

#[test]
fn a_delegate_that_can_not_run_leaves_nothing_stored() {
    let node = Node::new();
    fs::set_permissions(node.path("bin/bridge"), fs::Permissions::from_mode(0o644)).unwrap();
    let (code, msg, _) = node.call("ADD").fails();
    assert_eq!(code, 5);
    assert!(msg.starts_with("failed to delegate add: exec ") && msg.ends_with(": permission denied"), "{msg}");
    assert!(node.stored().is_empty());
    node.program("bridge", "#!/no/such/interpreter\n");
    let (_, msg, _) = node.call("ADD").fails();
    assert!(msg.ends_with("bin/bridge: no such file or directory"), "{msg}");
    assert!(node.stored().is_empty());
}

#[test]
fn the_delegates_error_is_passed_on() {
    let node = Node::new();
    let object = r#"{"cniVersion":"0.3.1","code":101,"msg":"no addresses","details":"try \"later\"","more":1}"#;
    node.delegate("bridge", &format!("echo '{object}'; echo and a log line >&2; exit 3"));
    let outcome = node.call("ADD").run();
    let said: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    let wanted = json!({"cniVersion": "1.0.0", "code": 101, "msg": "no addresses", "details": "try \"later\""});
    assert_eq!((outcome.code, said), (Some(1), wanted));
    assert_eq!(outcome.stderr, "and a log line\n");
    // DEL comes next, and finds what it needs.
    assert_eq!(node.stored(), ["c1"]);
}

#[test]
fn rubbish_becomes_an_error_object() {
    let node = Node::new();
    for (script, code, words) in [
        ("echo nonsense; exit 1", 100, ["error parsing its diagnostic message \"nonsense\"", "exit status: 1"]),
        ("echo '[1]'; exit 1", 100, ["error parsing its diagnostic message", "[1]"]),
        ("exit 7", 100, ["netplugin failed with no error message", "exit status: 7"]),
        ("echo panic: oh no >&2; exit 2", 100, ["netplugin failed: \"panic: oh no\"", "exit status: 2"]),
        ("kill -9 $$", 100, ["netplugin failed with no error message", "signal: 9"]),
        ("echo done", 6, ["printed no CNI result", "done"]),
        ("true", 6, ["printed no CNI result", "\"\""]),
        ("printf '\\377\\376'", 6, ["printed no CNI result", "bridge"]),
    ] {
        node.delegate("bridge", script);
        let (said, msg, _) = node.call("ADD").fails();
        assert_eq!(said, code, "{script}: {msg}");
        for word in words.iter().chain(&["failed to delegate add: "]) {
            assert!(msg.contains(word), "{script}: {msg}");
        }
    }
}

#[test]
fn a_delegate_that_hangs_is_killed_with_its_children() {
    let node = Node::new();
    let child = node.path("child");
    for closed in ["", "exec >&- 2>&-"] {
        node.delegate("bridge", &format!("{closed}\nsleep 1000 & echo $! > {}\nwait", child.display()));
        let (code, msg, _) = node.call_with("ADD", json!({"delegateTimeoutSeconds": 1})).fails();
        let wanted = "failed to delegate add: plugin \"bridge\" did not end within 1 s and was killed";
        assert_eq!((code, msg.as_str()), (11, wanted));
        wait_dead(&fs::read_to_string(node.path("ADD.pid")).unwrap());
        wait_dead(&fs::read_to_string(&child).unwrap());
        // What it had begun, DEL can undo.
        assert_eq!(node.stored(), ["c1"]);
        node.delegate("bridge", "");
        node.call("DEL").ok();
        assert!(node.stored().is_empty());
    }
}

#[test]
fn a_delegate_that_prints_without_end_is_killed() {
    let node = Node::new();
    node.delegate("bridge", "while :; do printf '%0100000d' 0; done");
    let (code, msg, _) = node.call("ADD").fails();
    assert_eq!(code, 6);
    assert!(msg.contains("printed more than 4 MiB and was killed"), "{msg}");
    wait_dead(&fs::read_to_string(node.path("ADD.pid")).unwrap());
}

#[test]
fn what_a_delegate_leaves_running_holds_nobody_up() {
    let node = Node::new();
    // Like a daemon that was started without closing its output; the limit would be two minutes.
    node.delegate("bridge", &format!("sleep 1000 & echo $! > {}; echo '{{}}'", node.path("child").display()));
    assert_eq!(node.call("ADD").ok(), "{}\n");
    let pid: i32 = fs::read_to_string(node.path("child")).unwrap().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[test]
fn a_delegate_need_not_read() {
    let node = Node::new();
    node.program("bridge", "#!/bin/sh\necho '{}'\n");
    // More than any pipe takes.
    node.call_with("ADD", json!({"delegate": {"filler": "x".repeat(1 << 20)}})).ok();
}

#[test]
fn large_configurations_and_results_arrive_whole() {
    let node = Node::new();
    let filler = "x".repeat(1 << 20);
    node.delegate("bridge", &format!("cat {}/ADD.json", node.path("").display()));
    let result = node.call_with("ADD", json!({"delegate": {"filler": filler}})).ok();
    let result: serde_json::Value = serde_json::from_str(&result).unwrap();
    assert_eq!(result["filler"], filler);
}
