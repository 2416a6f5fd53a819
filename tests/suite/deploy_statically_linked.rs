//! The static programs that are shipped, beside the libraries of the host that they run on.

use std::fs;

use twill_lab::{Lab, NODE_CONFIG};

use crate::image::programs;
use crate::run;

/// Services that are libraries of the host, before those that glibc has in itself. `hesiod` is a part of Debian's libc6.
const NSSWITCH: &str = "hosts: hesiod resolve myhostname files dns\n";

/// A library of the host brings the host's glibc into a program that has another one in itself, and that may crash.
#[test]
fn no_library_of_the_host_is_loaded_to_look_up_a_name() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let address = lab.etcd().url().strip_prefix("http://").unwrap();
    let (address, port) = address.rsplit_once(':').unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("nsswitch.conf"), NSSWITCH).unwrap();
    fs::write(folder.path().join("hosts"), format!("{address} etcd.example\n")).unwrap();
    let line = "mount --bind nsswitch.conf /etc/nsswitch.conf && mount --bind hosts /etc/hosts && \
                exec strace -f -qq -e trace=%file -o trace \"$0\" leases --etcd-endpoints=\"$1\"";
    let mut command = lab.node(1).netns().command("unshare").unwrap();
    command.current_dir(folder.path()).args(["--mount", "--propagation=private", "sh", "-ec", line]);
    run(command.arg(programs().join("twill")).arg(format!("http://etcd.example:{port}")));
    let trace = fs::read_to_string(folder.path().join("trace")).unwrap();
    assert!(trace.contains("\"/etc/hosts\""), "no name was looked up: {trace}");
    let libraries: Vec<&str> = trace.lines().filter(|line| line.contains(".so.")).collect();
    assert!(libraries.is_empty(), "{libraries:#?}");
}
