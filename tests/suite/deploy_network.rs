//! `twill init-config`, as the Job of the manifests runs it, against a real etcd.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Output, Stdio};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use twill_lab::{Lab, PREFIX};

/// Runs it on the fabric with these arguments and etcd's URL; how it ended, and what it said.
fn run(lab: &Lab, args: &[&str]) -> (Option<i32>, String) {
    let mut command = lab.fabric().command(twill_lab::program("twill").unwrap()).unwrap();
    let url = format!("--etcd-endpoints={}", lab.etcd().url());
    let Output { status, stdout, stderr } = command.arg("init-config").arg(url).args(args).output().unwrap();
    (status.code(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

/// The same with this text in the file.
fn init(lab: &Lab, text: &str, args: &[&str]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("net-conf.json");
    fs::write(&file, text).unwrap();
    run(lab, &[&[file.to_str().unwrap()], args].concat())
}

#[test]
fn the_network_config_is_written_once_and_never_changed() {
    let lab = Lab::with_nodes(1);
    let key = format!("{PREFIX}/config");
    let text = "{\n  \"Network\": \"10.5.0.0/16\",\n  \"Backend\": {\"Type\": \"vxlan\"}\n}\n";
    assert_eq!(init(&lab, text, &[]), (Some(0), format!("{key} is written\n")));
    let written = lab.get(&key).unwrap();
    assert_eq!((written.value.as_str(), written.lease), (text, 0));
    let same = format!("{key} is there already and says the same: left as it is\n");
    assert_eq!(init(&lab, r#"{"Network":"10.5.0.0/16"}"#, &[]), (Some(0), same));
    let asked = r#"{"Network":"10.6.0.0/16"}"#;
    let there = r#"{ "Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"} }"#;
    let other =
        format!("{key} is there already and says something else: left as it is; there: {there}; asked for: {asked}\n");
    assert_eq!(init(&lab, asked, &[]), (Some(4), format!("twill: {other}")));
    assert_eq!(init(&lab, asked, &["--if-missing"]), (Some(0), other));
    assert_eq!(lab.get(&key).unwrap(), written);
    // Nodes start with it.
    let _daemons = lab.start_all(&[]);
    // What stands may be anything.
    lab.put(&key, "\x1b[2J");
    let (code, said) = init(&lab, asked, &[]);
    assert!(code == Some(4) && said.contains(r"there: \u{1b}[2J; asked for"), "{said}");
}

/// etcd refuses a transaction that could write to whoever may only read, so the config has to be read first.
#[test]
fn a_user_who_may_only_read_finds_the_config_and_one_who_may_write_makes_it() {
    let lab = Lab::with_nodes(1);
    let key = format!("{PREFIX}/config");
    for (role, permission) in [("node", "read"), ("setup", "readwrite")] {
        lab.etcdctl(&["user", "add", &format!("{role}:secret")]).unwrap();
        lab.etcdctl(&["role", "add", role]).unwrap();
        lab.etcdctl(&["role", "grant-permission", role, permission, &key]).unwrap();
        lab.etcdctl(&["user", "grant-role", role, role]).unwrap();
    }
    for words in ["user add root:secret", "user grant-role root root", "auth enable"] {
        lab.etcdctl(&words.split(' ').collect::<Vec<_>>()).unwrap();
    }
    let text = r#"{"Network":"10.5.0.0/16"}"#;
    let [node, setup] = ["node", "setup"]
        .map(|user| init(&lab, text, &[&format!("--etcd-username={user}"), "--etcd-password=secret", "--if-missing"]));
    let needed = format!("the user needs a role with readwrite permission on {key}");
    assert!(node.0 == Some(1) && node.1.contains(&needed), "{node:?}");
    assert_eq!(setup, (Some(0), format!("{key} is written\n")));
    let again = init(&lab, text, &["--etcd-username=node", "--etcd-password=secret", "--if-missing"]);
    assert_eq!(again, (Some(0), format!("{key} is there already and says the same: left as it is\n")));
}

#[test]
fn what_is_no_regular_file_is_neither_waited_for_nor_read() {
    let lab = Lab::with_nodes(1);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    mkfifo(Path::new(&path("fifo")), Mode::S_IRWXU).unwrap();
    fs::write(path("long"), vec![b' '; 2 << 20]).unwrap();
    for (file, words) in [
        (path("fifo"), "not a regular file"),
        (path(""), "not a regular file"),
        ("/dev/zero".to_owned(), "not a regular file"),
        (path("long"), "longer than 1572864 bytes"),
        (path("none"), "No such file"),
    ] {
        let (code, said) = run(&lab, &[&file]);
        assert!(code == Some(1) && said.contains(&format!("read {file}: ")) && said.contains(words), "{said}");
    }
    assert_eq!(lab.get(&format!("{PREFIX}/config")), None);
    // A ConfigMap's file is a link; standard input may be a pipe.
    fs::write(path("data"), r#"{"Network":"10.5.0.0/16"}"#).unwrap();
    std::os::unix::fs::symlink("data", path("net-conf.json")).unwrap();
    assert_eq!(run(&lab, &[&path("net-conf.json")]).0, Some(0));
    let mut command = lab.fabric().command(twill_lab::program("twill").unwrap()).unwrap();
    command.args(["init-config", "-", &format!("--etcd-endpoints={}", lab.etcd().url())]);
    let mut twill = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    twill.stdin.take().unwrap().write_all(br#"{"Network":"10.5.0.0/16"}"#).unwrap();
    let said = twill.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&said.stdout).contains("says the same"), "{said:?}");
}

#[test]
fn an_etcd_that_does_not_answer_is_waited_for_as_long_as_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("net-conf.json");
    fs::write(&file, r#"{"Network":"10.5.0.0/16"}"#).unwrap();
    // It takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let mut command = std::process::Command::new(twill_lab::program("twill").unwrap());
    command.arg("init-config").arg(&file).args([&format!("--etcd-endpoints={url}"), "--timeout=1500ms"]);
    let said = command.output().unwrap();
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(said.status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("no answer from etcd at {url} within 1.5s")), "{text}");
}

#[test]
fn a_config_that_no_node_could_use_is_not_written() {
    let lab = Lab::with_nodes(1);
    let (code, said) = init(&lab, r#"{"Network":"10.5.0.0/33"}"#, &[]);
    assert!(code == Some(1) && said.contains("net-conf.json: not usable: Network: 10.5.0.0/33"), "{said}");
    assert_eq!(lab.get(&format!("{PREFIX}/config")), None);
}
