//! Kills, races and full disks: a clear error, and nothing that a DEL does not clean up.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::support::{Node, wait_dead, wait_for};

#[test]
fn a_killed_add_takes_its_delegate_along_and_del_cleans_up() {
    let node = Node::new();
    node.delegate("bridge", "[ $CNI_COMMAND = DEL ] || exec sleep 1000");
    let mut add = node.call("ADD").start();
    wait_for("the delegate", || node.path("ADD.json").exists().then_some(()));
    add.kill().unwrap();
    add.wait().unwrap();
    // Or it would go on adding while the runtime already deletes.
    wait_dead(&fs::read_to_string(node.path("ADD.pid")).unwrap());
    assert_eq!(node.stored(), ["c1"]);
    node.call("DEL").env("CNI_NETNS", "").ok();
    assert!(node.seen("DEL").is_some());
    assert!(node.stored().is_empty());
}

#[test]
fn del_removes_what_a_killed_add_left_unfinished() {
    let node = Node::new();
    fs::create_dir(node.path("data")).unwrap();
    for added in [false, true] {
        if added {
            node.call("ADD").ok();
        }
        for name in [".new-Ab12Cd:c1:net:eth0", ".new-Ab12Cd:c2:net:eth0"] {
            fs::write(node.path("data").join(name), "{").unwrap();
        }
        node.call("DEL").ok();
        assert_eq!(node.stored(), [".new-Ab12Cd:c2:net:eth0"]);
    }
}

#[test]
fn two_adds_at_once_leave_one_configuration() {
    let node = Node::new();
    for _ in 0..10 {
        // The first one wins, the second gets bridge's own error.
        let taken = node.path("taken");
        let script = format!(
            "[ $CNI_COMMAND = DEL ] && exec rmdir {0}\n\
             mkdir {0} 2>/dev/null || {{ echo '{{\"code\":999,\"msg\":\"eth0 already exists\"}}'; exit 1; }}\n\
             echo '{{}}'",
            taken.display()
        );
        node.delegate("bridge", &script);
        let both = [node.call("ADD").start(), node.call("ADD").start()];
        let outputs = both.map(|child| child.wait_with_output().unwrap());
        assert_eq!(outputs.iter().filter(|o| o.status.success()).count(), 1);
        assert!(outputs.iter().any(|o| String::from_utf8_lossy(&o.stdout).contains("eth0 already exists")));
        // The one that failed has not taken the other's configuration away.
        assert_eq!(node.stored(), ["c1"]);
        node.call("DEL").ok();
        assert!(node.stored().is_empty() && !taken.exists());
    }
}

#[test]
fn many_containers_at_once_keep_apart() {
    let node = Node::new();
    node.delegate("bridge", "echo '{}'");
    let ids: Vec<String> = (0..40).map(|n| format!("c{n}")).collect();
    for verb in ["ADD", "DEL"] {
        let running: Vec<_> = ids.iter().map(|id| node.call(verb).id(id).start()).collect();
        for child in running {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        assert_eq!(node.stored().len(), if verb == "ADD" { 40 } else { 0 });
    }
}

#[test]
fn a_data_directory_that_is_none_stops_the_add_before_the_delegate() {
    let node = Node::new();
    fs::write(node.path("data"), "a file").unwrap();
    let (code, msg, _) = node.call("ADD").fails();
    assert_eq!(code, 5);
    assert!(msg.starts_with("save the stored configuration in "), "{msg}");
    assert_eq!(node.seen("ADD"), None);
}

#[test]
fn a_full_disk_stops_the_add_before_the_delegate() {
    let node = Node::new();
    fs::create_dir(node.path("data")).unwrap();
    let data = node.path("data").display().to_string();
    // In a mount namespace of its own: 4 KiB, all of it taken.
    let script = format!(
        "mount -t tmpfs -o size=4k,mode=700 none {data} && head -c 4096 /dev/zero > {data}/full && \
         {{ \"$0\"; code=$?; ls -A {data} > {data}.left; exit $code; }}"
    );
    let (code, msg, _) = node.call("ADD").under(&["unshare", "--mount", "sh", "-c", &script]).fails();
    assert_eq!(code, 5);
    assert!(msg.ends_with(": no space left on device"), "{msg}");
    assert_eq!(node.seen("ADD"), None);
    assert_eq!(fs::read_to_string(node.path("data.left")).unwrap(), "full\n");
}

#[test]
fn nobody_listening_is_a_failure_and_no_panic() {
    let node = Node::new();
    node.delegate("bridge", "echo \"a word on $CNI_COMMAND\" >&2; echo '{}'");
    // A disk that is full, and a reader that is gone.
    for (stdout, stderr, code) in [
        (">/dev/full", "", 1),
        ("", "2>/dev/full", 0),
        (">/dev/full", "2>/dev/full", 1),
        ("> >(exec true)", "", 1),
        ("", "2> >(exec true)", 0),
        ("", "2>&-", 0),
        ("", "<&- 2>&-", 1),
    ] {
        let script = format!("exec {stdout} {stderr}; wait; exec \"$0\"");
        let outcome = node.call("ADD").under(&["bash", "-c", &script]).run();
        assert_eq!(outcome.code, Some(code), "{script}: {outcome:?}");
        assert!(!outcome.stderr.contains("panic") && !outcome.stdout.contains("panic"), "{outcome:?}");
        node.call("DEL").under(&["bash", "-c", &script.replace("<&-", "")]).run();
        node.call("DEL").ok();
        assert!(node.stored().is_empty());
    }
}

#[test]
fn a_runtime_that_reads_no_standard_error_holds_nobody_up() {
    let node = Node::new();
    // More than a pipe holds.
    node.delegate("bridge", "head -c 1000000 /dev/zero | tr '\\0' x >&2; echo '{}'");
    let mut child = node.call("ADD").start();
    assert!(child.wait().unwrap().success());
}

/// Runs a call with 200 MB of address space, so that what reads without end fails at once.
const BOUNDED: [&str; 3] = ["prlimit", "--as=200000000", "--"];

#[test]
fn a_subnet_file_that_is_none_is_neither_waited_for_nor_read_without_end() {
    let node = Node::new();
    let file = node.path("subnet.env");
    let run = |words: &[&str]| assert!(Command::new(words[0]).args(&words[1..]).status().unwrap().success());
    let name = file.display().to_string();
    for (make, why) in [
        (vec!["mkfifo", &name], "not a regular file"),
        (vec!["ln", "-s", "/dev/zero", &name], "not a regular file"),
        (vec!["ln", "-s", "/dev/stdin", &name], "not a regular file"),
        (vec!["mkdir", &name], "not a regular file"),
        (vec!["truncate", "--size=4G", &name], "longer than 65536 bytes"),
        (vec!["ln", "-s", &name, &name], "too many levels of symbolic links"),
    ] {
        run(&["rm", "-rf", &name]);
        run(&make);
        let (code, msg, _) = node.call("ADD").under(&BOUNDED).fails();
        assert_eq!((code, msg), (11, format!("loadFlannelSubnetEnv failed: open {name}: {why}")));
    }
    run(&["rm", "-rf", &name]);
    // Nor is what the daemon last reported.
    let status = format!("{name}.status");
    for make in [vec!["mkfifo", &status], vec!["ln", "-s", "/etc/shadow", &status], vec!["mkdir", &status]] {
        run(&["rm", "-rf", &status]);
        run(&make);
        let (_, msg, _) = node.call("ADD").under(&BOUNDED).fails();
        assert_eq!(msg, format!("loadFlannelSubnetEnv failed: open {name}: no such file or directory"));
    }
}

#[test]
fn what_stands_in_the_data_directory_and_is_no_configuration_is_nobodys() {
    let node = Node::new();
    fs::create_dir(node.path("data")).unwrap();
    let name = node.path("data/c1").display().to_string();
    for make in [vec!["mkfifo", &name], vec!["ln", "-s", "/dev/zero", &name], vec!["mkdir", &name]] {
        assert!(Command::new(make[0]).args(&make[1..]).status().unwrap().success());
        node.call("DEL").under(&BOUNDED).ok();
        assert_eq!(node.seen("DEL"), None);
        node.call("ADD").under(&BOUNDED).ok();
        assert_eq!(node.stored(), ["c1", "c1:net:eth0"]);
        node.call("DEL").under(&BOUNDED).ok();
        assert!(node.seen("DEL").is_some());
        assert!(Command::new("rm").args(["-r", &name]).status().unwrap().success());
    }
    // What is longer than anything that we store is taken for unreadable.
    assert!(Command::new("truncate").args(["--size=4G", &name]).status().unwrap().success());
    node.call("DEL").under(&BOUNDED).ok();
    assert_eq!(node.seen("DEL").unwrap()["type"], "bridge");
    assert!(node.stored().is_empty());
}

#[test]
fn a_configuration_without_end_is_refused() {
    let node = Node::new();
    let outcome = node.call("ADD").under(&["sh", "-c", "exec prlimit --as=200000000 -- \"$0\" </dev/zero"]).run();
    assert!(outcome.stdout.contains("the network configuration is longer than 4 MiB"), "{outcome:?}");
}

#[test]
fn a_configuration_is_stored_through_no_link() {
    let node = Node::new();
    fs::create_dir(node.path("data")).unwrap();
    fs::write(node.path("theirs"), "theirs").unwrap();
    for name in ["c1", "c1:net:eth0"] {
        std::os::unix::fs::symlink(node.path("theirs"), node.path("data").join(name)).unwrap();
    }
    node.call("ADD").ok();
    assert_eq!(fs::read_to_string(node.path("theirs")).unwrap(), "theirs");
    node.call("DEL").ok();
    assert_eq!(fs::read_to_string(node.path("theirs")).unwrap(), "theirs");
    assert!(node.seen("DEL").is_some());
}

#[test]
fn a_delegate_that_is_being_written_is_waited_for() {
    let node = Node::new();
    let path = node.path("bin/bridge");
    // A copy of a real program, since only those are protected while they are open for writing.
    fs::remove_file(&path).unwrap();
    fs::copy("/bin/cat", &path).unwrap();
    let writer = fs::OpenOptions::new().append(true).open(&path).unwrap();
    let add = node.call_with("ADD", json!({"name": "net"})).start();
    wait_for("the stored configuration", || node.path("data/c1").exists().then_some(()));
    drop(writer);
    let output = add.wait_with_output().unwrap();
    // cat's result is its configuration.
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn it_links_nothing_that_it_does_not_need() {
    let symbols = Command::new("nm").arg("-C").arg(env!("CARGO_BIN_EXE_flannel")).stderr(Stdio::null()).output();
    let symbols = String::from_utf8(symbols.unwrap().stdout).unwrap();
    assert!(symbols.contains("twill_agent::cni"), "no symbols to look at");
    for crate_name in ["tokio", "etcd_client", "tonic", "rtnetlink", "netlink_ext", "clap", "rustls"] {
        let own = format!("{crate_name}::");
        assert!(!symbols.lines().any(|line| line.contains(&own)), "{crate_name} is in the plugin");
    }
}
