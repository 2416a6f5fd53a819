//! Two daemons for one device on one node: the second waits, takes over or ends, and at no time do both write.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::Command;
use std::time::Duration;

use twill_lab::{Lab, NODE_CONFIG, Node, Peer, wait_until};

use crate::PATIENCE;

const MASQ: &str = "--ip-masq";

fn lab() -> Lab {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    lab
}

/// The handles of all tables and rules: they change with every rewrite.
fn handles(node: &Node) -> String {
    node.exec("nft -a list ruleset").unwrap()
}

/// The lines of a log without their times.
fn lines(log: &str) -> Vec<&str> {
    log.lines().filter_map(|line| line.split_once(' ')).map(|(_, rest)| rest.trim_start()).collect()
}

#[test]
fn the_second_waits_until_the_first_has_stopped_and_takes_over() {
    let lab = lab();
    let peer = Peer::new("10.5.7.0/24", "10.99.1.1", "02:00:00:00:00:01");
    lab.put_peer(&peer);
    let node = lab.node(1);
    let mut first = node.twilld(&[MASQ]);
    first.wait_ready();
    let (rules, record) = (handles(&node), lab.records());
    let health = "--healthz-port=10250";
    let mut second = node.twilld(&[MASQ, health]);
    let pid = format!("pid {}", first.pid());
    second.wait_log(&["another twilld", "flannel.1", &pid, "45s"], PATIENCE);
    wait_until("/readyz names the first one", PATIENCE, || {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect("127.0.0.1:10250")?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = node.netns().enter(ask).map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        if answer.contains(" 503 ") && answer.contains(&pid) { Ok(()) } else { Err(answer) }
    });
    assert_eq!((handles(&node), lab.records()), (rules, record), "the second has written something");
    assert!(first.runs() && second.runs());

    assert_eq!(first.terminate().status.code(), Some(0));
    second.wait_log(&["the other twilld has gone", "taking over"], PATIENCE);
    second.wait_ready();
    // It found everyone programmed: the first one had done that before it let go.
    node.holds(&peer).unwrap();
    let log = second.log();
    let told = lines(&log);
    let at =
        |words: &str| told.iter().position(|line| line.contains(words)).unwrap_or_else(|| panic!("{words}: {log}"));
    assert!(
        at("taking over") < at("this node holds its subnet") && at("taking over") < at("the device is up"),
        "{log}"
    );
    assert!(!first.log().contains("restored") && !log.contains("another program"), "{}{log}", first.log());
    assert_eq!(second.terminate().status.code(), Some(0));
}

#[test]
fn the_second_ends_after_a_time_and_names_the_first() {
    let lab = lab();
    let node = lab.node(1);
    let mut first = node.twilld(&[MASQ]);
    first.wait_ready();
    let (rules, record) = (handles(&node), lab.records());
    let mut second = node.twilld(&[MASQ, "--takeover-timeout=1s"]);
    assert_eq!(second.wait_exit(PATIENCE).status.code(), Some(1));
    let log = second.log();
    let last = log.lines().last().unwrap();
    for word in ["ERROR", "another twilld", "flannel.1", &format!("pid {}", first.pid()), "--takeover-timeout"] {
        assert!(last.contains(word), "{word}: {last}");
    }
    assert_eq!((handles(&node), lab.records()), (rules, record), "the second has written something");
    assert!(first.runs());
    assert!(node.subnet_file().exists() && !node.run_dir().join("subnet.env.status").exists());
    let (mut logs, told) = (first.log(), "restored");
    assert!(!logs.contains(told), "{logs}");
    // A killed one has let go as well.
    first.kill();
    let mut third = node.twilld(&[MASQ, "--takeover-timeout=1s"]);
    third.wait_ready();
    logs = third.log();
    assert!(!logs.contains("another twilld"), "{logs}");
}

#[test]
fn a_second_one_that_is_told_to_stop_while_it_waits_stops() {
    let lab = lab();
    let mut first = lab.node(1).twilld(&[]);
    first.wait_ready();
    let mut second = lab.node(1).twilld(&[]);
    second.wait_log(&["another twilld"], PATIENCE);
    for signal in [nix::sys::signal::Signal::SIGHUP, nix::sys::signal::Signal::SIGUSR1] {
        second.signal(signal);
    }
    second.wait_log(&["SIGUSR1", &format!("pid {}", first.pid())], PATIENCE);
    assert_eq!(second.terminate().status.code(), Some(0));
    assert!(first.runs());
}

#[test]
fn daemons_of_two_networks_share_a_node() {
    let lab = lab();
    lab.put("/other/config", r#"{"Network":"10.7.0.0/16","Backend":{"Type":"vxlan","VNI":2,"Port":8473}}"#);
    let node = lab.node(1);
    let mut first = node.twilld(&[]);
    first.wait_ready();
    let other = format!("--subnet-file={}", node.run_dir().join("other.env").display());
    let mut second = node.twilld(&["--etcd-prefix=/other", &other]);
    second.wait_ready();
    assert!(first.runs() && node.exec("ip link show flannel.2").is_ok());
}

#[test]
fn a_first_one_in_another_pid_namespace_says_who_it_is() {
    let lab = lab();
    let node = lab.node(1);
    let mut first = node.twilld(&[]);
    first.wait_ready();
    // As in a container of its own: it doesn't see the other's pid.
    let mut second =
        node.twilld_under(&["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"], &["--takeover-timeout=1s"]);
    assert_eq!(second.wait_exit(PATIENCE).status.code(), Some(1), "{}", second.log());
    let said = format!("a process of another pid namespace (twilld {}", env!("CARGO_PKG_VERSION"));
    let own = format!("pid {} where it runs", first.pid());
    assert!(second.log().contains(&said) && second.log().contains(&own), "{}", second.log());
}

#[test]
fn who_cannot_change_the_device_cannot_keep_it() {
    let lab = lab();
    let node = lab.node(1);
    let name = SocketAddr::from_abstract_name("twilld.flannel.1").unwrap();
    // Root without CAP_NET_ADMIN, as in a container that shares the node's network; another user, also one that
    // keeps its backlog full so that nobody can ask who it is; one that does not listen.
    let script = "socket(S, AF_UNIX, SOCK_STREAM, 0) && bind(S, pack_sockaddr_un(\"\\0twilld.flannel.1\")) or die $!; \
                  listen(S, 5) if $ARGV[0] eq 'listen'; \
                  if ($ARGV[0] eq 'full') { listen(S, 0); socket(C, AF_UNIX, SOCK_STREAM, 0); connect(C, getsockname(S)) or die $! } \
                  $| = 1; print \"there\\n\"; sleep 1000";
    for (wrapper, how) in [
        (&["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"][..], "listen"),
        (&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"], "listen"),
        (&["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"], "full"),
        (&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"], "full"),
        (&["env"], "deaf"),
    ] {
        let mut command: Command = node.netns().command(wrapper[0]).unwrap();
        let command = command
            .args(&wrapper[1..])
            .args(["perl", "-MSocket", "-e", script, how])
            .stdout(std::process::Stdio::piped());
        let mut stranger = command.spawn().unwrap();
        let mut said = [0; 6];
        stranger.stdout.take().unwrap().read_exact(&mut said).unwrap();
        let mut daemon = node.twilld(&[]);
        daemon.wait_ready();
        daemon.wait_log(&["cannot be a twilld", "without the lock"], PATIENCE);
        assert!(daemon.terminate().status.success());
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
    // Without a stranger the name is free: nothing is left of it.
    wait_until("the name is free", Duration::from_secs(5), || {
        node.netns().enter(|| UnixListener::bind_addr(&name).map(drop)).unwrap().map_err(|e| e.to_string())
    });
}
