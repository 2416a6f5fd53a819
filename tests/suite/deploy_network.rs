//! `twill init-config`, as the Job of the manifests runs it, against a real etcd.

use std::fs;
use std::process::Output;

use twill_lab::{Lab, PREFIX};

/// Runs it on the fabric with this text in the file; whether it ended well, and what it said.
fn init(lab: &Lab, text: &str) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("net-conf.json");
    fs::write(&file, text).unwrap();
    let mut command = lab.fabric().command(twill_lab::program("twill").unwrap()).unwrap();
    let Output { status, stdout, stderr } =
        command.arg("init-config").arg(&file).arg(format!("--etcd-endpoints={}", lab.etcd().url())).output().unwrap();
    (status.success(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

#[test]
fn the_network_config_is_written_once_and_never_changed() {
    let lab = Lab::with_nodes(1);
    let key = format!("{PREFIX}/config");
    let text = "{\n  \"Network\": \"10.5.0.0/16\",\n  \"Backend\": {\"Type\": \"vxlan\"}\n}\n";
    assert_eq!(init(&lab, text), (true, format!("{key} is written\n")));
    let written = lab.get(&key).unwrap();
    assert_eq!((written.value.as_str(), written.lease), (text, 0));
    let same = format!("{key} is there already and says the same: left as it is\n");
    assert_eq!(init(&lab, r#"{"Network":"10.5.0.0/16"}"#), (true, same));
    let other = format!("{key} is there already and says something else: left as it is\n");
    assert_eq!(init(&lab, r#"{"Network":"10.6.0.0/16"}"#), (true, other));
    assert_eq!(lab.get(&key).unwrap(), written);
    // Nodes start with it.
    let _daemons = lab.start_all(&[]);
}

#[test]
fn a_config_that_no_node_could_use_is_not_written() {
    let lab = Lab::with_nodes(1);
    let (well, said) = init(&lab, r#"{"Network":"10.5.0.0/33"}"#);
    assert!(!well && said.contains("net-conf.json: not usable: Network: 10.5.0.0/33"), "{said}");
    assert_eq!(lab.get(&format!("{PREFIX}/config")), None);
}
