//! Every verb in every version, with delegates that are scripts.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::support::{ENV, Node, RESULT};

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

#[test]
fn add_renders_stores_and_passes_the_result_on_byte_for_byte() {
    let node = Node::new();
    let stdout = node.call_with("ADD", json!({"delegate": {"hairpinMode": true}})).ok();
    assert_eq!(stdout, RESULT);
    let wanted = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "bridge", "mtu": 1450, "ipMasq": false, "isGateway": true,
        "hairpinMode": true, "ipam": {
            "type": "host-local", "ranges": [[{"subnet": "10.5.52.0/24"}]], "routes": [{"dst": "10.5.0.0/16"}]
        }
    });
    assert_eq!(node.seen("ADD").unwrap(), wanted);
    let mut stored: Value = serde_json::from_slice(&fs::read(node.path("data/c1")).unwrap()).unwrap();
    assert_eq!(stored.as_object_mut().unwrap().remove("twill.attachment"), Some(json!({"ifname": "eth0"})));
    assert_eq!(stored, wanted);
    let mode = |name: &str| fs::metadata(node.path(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("data"), mode("data/c1")), (0o700, 0o600));
}

#[test]
fn the_configuration_is_stored_before_the_delegate_runs() {
    let node = Node::new();
    node.delegate("bridge", &format!("cp {0}/data/c1 {0}/then; echo '{{}}'", node.path("").display()));
    node.call("ADD").ok();
    assert_eq!(fs::read(node.path("then")).unwrap(), fs::read(node.path("data/c1")).unwrap());
}

#[test]
fn the_delegate_gets_the_runtimes_variables() {
    let node = Node::new();
    node.call("ADD").env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=x").ok();
    let env = fs::read_to_string(node.path("ADD.env")).unwrap();
    for line in ["CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS=/run/netns/none"] {
        assert!(env.lines().any(|l| l == line), "{line} in {env}");
    }
    assert!(env.contains("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=x"), "{env}");
}

#[test]
fn every_version_adds_and_deletes() {
    let node = Node::new();
    for version in VERSIONS {
        node.call_with("ADD", json!({"cniVersion": version})).ok();
        assert_eq!(node.seen("ADD").unwrap()["cniVersion"], version);
        node.call_with("DEL", json!({"cniVersion": version})).ok();
        assert_eq!(node.seen("DEL").unwrap()["cniVersion"], version);
        assert!(node.stored().is_empty());
    }
    // None is 0.1.0, and the delegate decides for itself.
    node.call_with("ADD", json!({"cniVersion": ""})).ok();
    assert_eq!(node.seen("ADD").unwrap().get("cniVersion"), None);
    let (code, msg, details) = node.call_with("ADD", json!({"cniVersion": "1.2.0"})).fails();
    assert_eq!((code, msg.as_str()), (1, "incompatible CNI versions"));
    assert!(details.contains("1.2.0") && details.contains("1.1.0"), "{details}");
}

#[test]
fn younger_verbs_need_their_version() {
    let node = Node::new();
    let more = |version: &str| json!({"cniVersion": version, "prevResult": {}, "cni.dev/valid-attachments": []});
    for (verb, since) in [("CHECK", "0.4.0"), ("STATUS", "1.1.0"), ("GC", "1.1.0")] {
        for version in VERSIONS {
            node.call_with("ADD", json!({"cniVersion": version})).ok();
            let call = node.call_with(verb, more(version));
            if version >= since {
                call.ok();
            } else {
                let (code, msg, _) = call.fails();
                assert_eq!((code, msg), (1, format!("config version does not allow {verb}")));
            }
        }
    }
}

#[test]
fn version_works_with_dummies_and_without_reading() {
    let node = Node::new();
    let mut call = node.call("VERSION").stdin("no JSON");
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"] {
        call = call.env(name, "dummy");
    }
    let said: Value = serde_json::from_str(&call.ok()).unwrap();
    assert_eq!(said, json!({"cniVersion": "1.1.0", "supportedVersions": VERSIONS}));
}

#[test]
fn del_hands_back_what_add_was_given() {
    let node = Node::new();
    node.call("ADD").ok();
    let added = node.seen("ADD").unwrap();
    // Meanwhile the node got another subnet, and the daemon is gone: neither matters.
    fs::remove_file(node.path("subnet.env")).unwrap();
    node.call_with("DEL", json!({"delegate": {"type": "macvlan"}})).env("CNI_NETNS", "").ok();
    assert_eq!(node.seen("DEL").unwrap(), added);
    assert!(node.stored().is_empty());
}

#[test]
fn del_twice_and_del_of_nothing_succeed_without_a_delegate() {
    let node = Node::new();
    node.call("DEL").ok();
    assert_eq!(node.seen("DEL"), None);
    node.call("ADD").ok();
    node.call("DEL").env("CNI_NETNS", "").ok();
    assert!(node.seen("DEL").is_some());
    node.call("DEL").env("CNI_NETNS", "").ok();
    assert_eq!(node.seen("DEL"), None);
}

#[test]
fn del_keeps_its_configuration_until_the_delegate_succeeded() {
    let node = Node::new();
    node.call("ADD").ok();
    let stored = node.stored();
    node.delegate("bridge", r#"echo '{"code":77,"msg":"busy"}'; exit 1"#);
    for _ in 0..2 {
        assert_eq!(node.call("DEL").fails(), (77, "busy".into(), String::new()));
        assert_eq!(node.stored(), stored);
    }
    fs::remove_file(node.path("bin/bridge")).unwrap();
    let (_, msg, _) = node.call("DEL").fails();
    assert!(msg.contains("failed to find plugin \"bridge\""), "{msg}");
    assert_eq!(node.stored(), stored);
    node.delegate("bridge", "");
    node.call("DEL").ok();
    assert!(node.stored().is_empty());
}

#[test]
fn del_hands_the_previous_result_on_in_its_own_version_only() {
    let node = Node::new();
    let result = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.5.52.7/24"}]});
    node.call("ADD").ok();
    node.call_with("DEL", json!({"prevResult": result})).ok();
    assert_eq!(node.seen("DEL").unwrap()["prevResult"], result);
    node.call_with("ADD", json!({"cniVersion": "0.4.0"})).ok();
    node.call_with("DEL", json!({"prevResult": result})).ok();
    let seen = node.seen("DEL").unwrap();
    assert_eq!((&seen["cniVersion"], seen.get("prevResult")), (&json!("0.4.0"), None));
}

#[test]
fn check_hands_on_the_result_and_todays_version() {
    let node = Node::new();
    let result = json!({"cniVersion": "1.1.0", "ips": [], "big": 12345678901234567890u64});
    let conf = json!({"cniVersion": "1.1.0", "prevResult": result, "runtimeConfig": {"mac": "x"}});
    node.call("ADD").ok();
    let mut wanted = node.seen("ADD").unwrap();
    node.call_with("CHECK", conf.clone()).ok();
    for key in ["cniVersion", "prevResult", "runtimeConfig"] {
        wanted[key] = conf[key].clone();
    }
    assert_eq!(node.seen("CHECK").unwrap(), wanted);
    node.delegate("bridge", r#"echo '{"code":999,"msg":"eth0 is gone","details":"really"}'; exit 1"#);
    assert_eq!(node.call_with("CHECK", conf).fails(), (999, "eth0 is gone".into(), "really".into()));
}

#[test]
fn check_refuses_an_unknown_container_and_no_result() {
    let node = Node::new();
    let (code, msg, _) = node.call_with("CHECK", json!({"prevResult": {}})).fails();
    assert_eq!((code, msg.as_str()), (3, "container c1 was not added to network net"));
    node.call("ADD").ok();
    let (code, msg, _) = node.call("CHECK").fails();
    assert_eq!((code, msg.as_str()), (7, "required prevResult missing"));
}

#[test]
fn check_sees_that_the_node_has_another_subnet() {
    let node = Node::new();
    node.call("ADD").ok();
    node.lease(&ENV.replace("10.5.52.1", "10.5.60.1"));
    let (code, msg, _) = node.call_with("CHECK", json!({"prevResult": {}})).fails();
    assert_eq!(code, 101);
    assert!(msg.contains("10.5.52.0/24") && msg.contains("10.5.60.0/24"), "{msg}");
    // Nothing to compare with is no fault of the pod.
    fs::remove_file(node.path("subnet.env")).unwrap();
    node.call_with("CHECK", json!({"prevResult": {}})).ok();
}

#[test]
fn check_takes_no_family_that_came_later_for_a_fault() {
    let node = Node::new();
    node.call("ADD").ok();
    let ipv6 = "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00:0:0:22::1/64\n";
    node.lease(&format!("{ENV}{ipv6}"));
    node.call_with("CHECK", json!({"prevResult": {}})).ok();
    // The pods of both families, when one of them goes.
    node.call("ADD").id("c2").ok();
    node.lease(ENV);
    let (code, msg, _) = node.call_with("CHECK", json!({"prevResult": {}})).id("c2").fails();
    assert_eq!(code, 101);
    assert!(msg.contains("fc00:0:0:22::/64"), "{msg}");
}

#[test]
fn status_needs_the_lease_and_the_delegate() {
    let node = Node::new();
    let status = |more: Value| {
        let mut conf = json!({"cniVersion": "1.1.0"});
        conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        // A runtime has no container to name.
        node.call_with("STATUS", conf).env("CNI_CONTAINERID", "").env("CNI_IFNAME", "").env("CNI_NETNS", "")
    };
    status(json!({})).ok();
    assert_eq!(node.seen("STATUS").unwrap()["type"], "bridge");
    assert!(node.stored().is_empty());

    let (code, msg, _) = status(json!({"delegate": {"type": "nosuch"}})).fails();
    assert_eq!(code, 50);
    assert!(msg.contains("failed to find plugin \"nosuch\""), "{msg}");

    node.lease("FLANNEL_MTU=1450\n");
    let (code, msg, _) = status(json!({})).fails();
    assert_eq!(code, 50);
    assert!(msg.contains("is missing FLANNEL_NETWORK"), "{msg}");

    fs::remove_file(node.path("subnet.env")).unwrap();
    let (code, msg, _) = status(json!({})).fails();
    assert_eq!(code, 50);
    assert!(msg.contains("subnet.env: no such file or directory"), "{msg}");
}

#[test]
fn status_is_the_delegates_too() {
    let node = Node::new();
    node.delegate("bridge", r#"echo '{"code":51,"msg":"no addresses left"}'; exit 1"#);
    let call = node.call_with("STATUS", json!({"cniVersion": "1.1.0"}));
    assert_eq!(call.fails(), (51, "no addresses left".into(), String::new()));
}

#[test]
fn gc_hands_the_valid_ones_on_and_forgets_the_others() {
    let node = Node::new();
    for (id, ifname) in [("c1", "eth0"), ("c1", "net1"), ("c2", "eth0")] {
        node.call("ADD").id(id).ifname(ifname).ok();
    }
    node.call_with("ADD", json!({"name": "blue"})).id("c3").ok();
    let valid = json!([{"containerID": "c1", "ifname": "net1"}]);
    let conf = json!({"cniVersion": "1.1.0", "cni.dev/valid-attachments": valid});
    let gc = || node.call_with("GC", conf.clone()).env("CNI_CONTAINERID", "").env("CNI_IFNAME", "");

    // Not while the delegate failed.
    let all = node.stored();
    node.delegate("bridge", r#"echo '{"code":5,"msg":"later"}'; exit 1"#);
    assert_eq!(gc().fails().0, 5);
    assert_eq!(node.stored(), all);

    node.delegate("bridge", "");
    gc().ok();
    let seen = node.seen("GC").unwrap();
    assert_eq!(seen["cni.dev/valid-attachments"], valid);
    assert_eq!((&seen["type"], &seen["name"]), (&json!("bridge"), &json!("net")));
    assert_eq!(node.stored(), ["c1:net:net1", "c3"]);
}

#[test]
fn gc_without_a_list_forgets_nothing() {
    let node = Node::new();
    node.call("ADD").ok();
    let stored = node.stored();
    let (code, msg, _) = node.call_with("GC", json!({"cniVersion": "1.1.0"})).fails();
    assert_eq!((code, msg.as_str()), (7, "required cni.dev/valid-attachments missing"));
    assert_eq!((node.stored(), node.seen("GC")), (stored, None));
    node.call_with("GC", json!({"cniVersion": "1.1.0", "cni.dev/valid-attachments": null})).ok();
    assert!(node.stored().is_empty());
}

#[test]
fn without_a_command_it_introduces_itself() {
    let node = Node::new();
    let outcome = node.call("").run();
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(0), ""));
    assert!(outcome.stderr.contains("CNI plugin flannel"), "{}", outcome.stderr);
}
