//! Commands whose outputs cannot be written: no panic, and an exit code that says what became of them.

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use twill_lab::{Lab, NODE_CONFIG, Peer, program};

/// Runs `twill` with the lab's etcd through a shell script in which `"$@"` stands for it.
fn twill(lab: &Lab, script: &str, args: &[&str]) -> Output {
    let mut command = lab.fabric().command("bash").unwrap();
    command.args(["-c", &format!("set -o pipefail; {script}"), "bash"]).arg(program("twill").unwrap());
    command.args(args).arg(format!("--etcd-endpoints={}", lab.etcd().url()));
    command.output().unwrap()
}

/// How a run ended, and what it said on standard error.
fn outcome(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn lab() -> Lab {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    // More than a pipe holds.
    for subnet in 1..=40 {
        lab.put_peer(&Peer::new(&format!("10.5.{subnet}.0/24"), "10.99.1.1", &format!("02:00:00:00:00:{subnet:02x}")));
    }
    lab
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let lab = lab();
    for script in ["\"$@\" | head -n 1", "\"$@\" | true", "\"$@\" >&-", "\"$@\" 2>/dev/full", "\"$@\" 2>&-"] {
        assert_eq!(outcome(&twill(&lab, script, &["leases"])), (Some(0), String::new()), "{script}");
    }
    for help in [&["--help"][..], &["leases", "--help"], &["--version"]] {
        assert_eq!(outcome(&twill(&lab, "\"$@\" | true", help)), (Some(0), String::new()), "{help:?}");
    }
}

#[test]
fn a_full_disk_is_an_error_that_says_what_is_done() {
    let lab = lab();
    let (code, said) = outcome(&twill(&lab, "\"$@\" >/dev/full", &["leases"]));
    assert_eq!(code, Some(1));
    assert_eq!(said, "twill: cannot write to standard output: No space left on device (os error 28)\n");
    let reserve = ["reserve", "10.5.77.0/24", "--public-ip=10.99.1.7"];
    let (code, said) = outcome(&twill(&lab, "\"$@\" >/dev/full", &reserve));
    assert_eq!(code, Some(1));
    assert!(said.contains("standard output") && said.contains("done: ") && said.contains("10.5.77.0"), "{said}");
    assert!(lab.records().iter().any(|record| record.key.ends_with("10.5.77.0-24")), "{said}");
    let (code, _) = outcome(&twill(&lab, "\"$@\" >/dev/full 2>/dev/full", &["release", "10.5.77.0/24"]));
    assert_eq!(code, Some(1));
    let (code, _) = outcome(&twill(&lab, "\"$@\" >/dev/full", &["--help"]));
    assert_eq!(code, Some(1));
    // A file at its limit is a signal as well.
    let limited = "ulimit -f 0; \"$@\" >limited";
    let dir = tempfile::tempdir().unwrap();
    let (code, said) = outcome(&twill(&lab, &format!("cd {}; {limited}", dir.path().display()), &["leases"]));
    assert_eq!(code, Some(1));
    assert!(said.contains("File too large"), "{said}");
}

#[test]
fn a_wrong_command_line_is_2_wherever_its_message_goes() {
    let lab = Lab::with_nodes(1);
    for script in ["\"$@\"", "\"$@\" 2>/dev/full", "\"$@\" 2>&-"] {
        assert_eq!(twill(&lab, script, &["no-such-command"]).status.code(), Some(2), "{script}");
    }
}

#[test]
fn the_demo_removes_all_when_its_reader_has_gone() {
    let mut demo = Command::new("bash");
    demo.args(["-c", "exec \"$@\" > >(head -n 1 >/dev/null)", "bash"]).arg(program("demo").unwrap()).env("NODES", "2");
    let demo = demo.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let own = format!("tw{}-", demo.id());
    let output = demo.wait_with_output().unwrap();
    assert_eq!(outcome(&output), (Some(0), String::new()));
    let left: Vec<_> = fs::read_dir("/run/netns").unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(&own)), "{left:?}");
}

#[test]
fn the_plugin_does_not_wait_for_a_reader_of_what_only_informs() {
    // Nobody reads it, and it is full.
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let mut full = fs::File::from(writer);
    fcntl(&full, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while full.write(&[b'#'; 4096]).is_ok() {}
    while full.write(b"#").is_ok() {}
    fcntl(&full, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    let plugin = Command::new(program("flannel").unwrap()).env_clear().stdin(Stdio::null()).stderr(full).status();
    assert_eq!(plugin.unwrap().code(), Some(0));
    drop(reader);
    for stderr in ["/dev/full", "/dev/null"] {
        let stderr = fs::OpenOptions::new().write(true).open(stderr).unwrap();
        let plugin = Command::new(program("flannel").unwrap()).env_clear().stdin(Stdio::null()).stderr(stderr).status();
        assert_eq!(plugin.unwrap().code(), Some(0));
    }
    // What it has to say is lost: no success.
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut version = Command::new(program("flannel").unwrap());
    let version = version.env_clear().env("CNI_COMMAND", "VERSION").stdin(Stdio::null()).stdout(full).output().unwrap();
    assert_eq!(outcome(&version), (Some(1), String::new()));
}
