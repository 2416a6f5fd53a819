//! System calls that fail, by strace: what may pass is waited for or made again, and what does not pass ends the daemon.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use twill_lab::{Lab, NODE_CONFIG, Node, Peer, Twilld, wait_until};

/// For states that take seconds at the most on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn recorded(n: u8) -> Peer {
    Peer::new(&format!("10.5.{n}.0/24"), &format!("10.99.1.{n}"), &format!("02:00:00:00:01:{n:02x}"))
}

/// strace at a running daemon: from now on its calls fail; it is let go with this value.
struct Injection {
    strace: Child,
    trace: PathBuf,
}

impl Injection {
    fn new(daemon: &Twilld, inject: &str) -> Self {
        let node = daemon.node();
        let trace = node.run_dir().join("injected");
        let mut command = node.netns().command("strace").unwrap();
        command.args(["-f", "-qq", "-e", "signal=none", "-e", &format!("inject={inject}"), "-o"]);
        command.arg(&trace).args(["-p", &daemon.pid().to_string()]);
        let strace = command.stderr(Stdio::null()).spawn().unwrap();
        Self { strace, trace }
    }

    /// Waits until calls fail.
    fn wait_attached(&self, daemon: &Twilld) {
        let status = format!("/proc/{}/status", daemon.pid());
        wait_until("strace is attached", PATIENCE, || {
            fs::read_to_string(&status)
                .unwrap()
                .lines()
                .any(|line| line.strip_prefix("TracerPid:").is_some_and(|tracer| tracer.trim() != "0"))
        });
    }

    /// How many sockets like those for links failed to open so far.
    fn route_sockets(&self) -> usize {
        fs::read_to_string(&self.trace).unwrap_or_default().matches("NETLINK_ROUTE").count()
    }

    /// How many calls have failed so far.
    fn count(&self) -> usize {
        fs::read_to_string(&self.trace).unwrap_or_default().matches("(INJECTED)").count()
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        // strace lets its process go on a signal that it can catch.
        let pid = Pid::from_raw(i32::try_from(self.strace.id()).unwrap_or_default());
        let _ = kill(pid, Signal::SIGTERM);
        let _ = self.strace.wait();
    }
}

/// A ready node with the records of some peers, all in its kernel.
fn running() -> (Lab, Node, Twilld, Vec<Peer>) {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let peers: Vec<Peer> = (110..130).map(recorded).collect();
    peers.iter().for_each(|peer| lab.put_peer(peer));
    let node = lab.node(1);
    let mut daemon = node.twilld(&["--peer-mode=all", "--healthz-port=8080"]);
    daemon.wait_ready();
    node.holds_exactly(&peers).unwrap();
    (lab, node, daemon, peers)
}

/// Every such call fails while somebody deletes the device; when they work again, all is put right soon and for good.
fn comes_back(inject: &str) {
    let (lab, node, mut daemon, mut peers) = running();
    let injection = Injection::new(&daemon, inject);
    wait_until("calls fail", PATIENCE, || {
        // Something for the daemon to do each time.
        node.exec("ip link del flannel.1").ok();
        injection.count() > 0 && node.link("flannel.1").is_err()
    });
    daemon.wait_log(&["a netlink socket failed"], PATIENCE);
    drop(injection);
    wait_until("the device is there again", PATIENCE, || node.link("flannel.1"));
    wait_until("all is there again", PATIENCE, || node.holds_exactly(&peers));
    // What it listens to is heard again: a row that somebody deletes, and a record.
    node.exec(&format!("ip route del {} dev flannel.1", peers[0].subnet)).unwrap();
    wait_until("a deleted route is put back", PATIENCE, || node.holds_exactly(&peers));
    peers.push(recorded(130));
    lab.put_peer(&peers[20]);
    wait_until("a new peer is programmed", PATIENCE, || node.holds_exactly(&peers));
    daemon.wait_log(&["the netlink sockets work again"], PATIENCE);
    // The thread of the nftables rules has sockets of its own.
    node.exec("nft flush ruleset").unwrap();
    wait_until("the nftables rules are put back", PATIENCE, || node.exec("nft list table ip twill.1"));
    assert!(daemon.terminate().status.success());
}

#[test]
fn sockets_that_are_interrupted_without_end_are_opened_anew() {
    comes_back("recvfrom:error=EINTR");
}

#[test]
fn sockets_that_cannot_be_read_are_opened_anew() {
    comes_back("recvfrom:error=EBADF");
}

#[test]
fn sockets_that_overrun_without_end_are_opened_anew() {
    comes_back("recvfrom:error=ENOBUFS");
}

#[test]
fn a_device_that_is_as_wanted_needs_no_connection() {
    let (_lab, node, daemon, peers) = running();
    let injection = Injection::new(&daemon, "socket:error=EMFILE");
    injection.wait_attached(&daemon);
    // The device is looked at, and the address deleted.
    node.exec("ip addr add 10.9.9.9/32 dev flannel.1").unwrap();
    wait_until("a strange address is deleted", PATIENCE, || {
        !node.exec("ip addr show dev flannel.1").unwrap().contains("10.9.9.9")
    });
    assert_eq!(injection.route_sockets(), 0);
    // The device is changed, which takes a connection.
    node.exec("ip link set flannel.1 mtu 1300").unwrap();
    wait_until("a connection for links fails to open", PATIENCE, || injection.route_sockets() > 0);
    drop(injection);
    wait_until("the MTU is set right", PATIENCE, || node.link("flannel.1").unwrap().mtu != 1300);
    wait_until("all is there again", PATIENCE, || node.holds_exactly(&peers));
}

#[test]
fn sockets_that_have_no_memory_are_opened_anew() {
    comes_back("sendto,recvfrom:error=ENOMEM");
}

#[test]
fn sockets_that_break_and_cannot_be_opened_are_opened_later() {
    comes_back("sendto,socket:error=EMFILE");
}

#[test]
fn sockets_that_never_work_again_end_the_daemon_for_its_supervisor() {
    let (_lab, node, mut daemon, _) = running();
    let injection = Injection::new(&daemon, "recvfrom:error=EBADF");
    wait_until("calls fail", PATIENCE, || {
        node.exec("ip link del flannel.1").ok();
        injection.count() > 0 && node.link("flannel.1").is_err()
    });
    let exit = daemon.wait_exit(PATIENCE);
    assert_eq!(exit.status.code(), Some(1), "{}", daemon.log());
    let log = daemon.log();
    assert!(log.contains("the netlink sockets failed 15 times in a row"), "{log}");
    drop(injection);
    let mut daemon = node.twilld(&["--peer-mode=all"]);
    daemon.wait_ready();
}

/// Calls of the start, by what they are for: sockets, their options, requests, answers, the wait for them.
const CALLS: [&str; 7] = ["socket", "bind", "setsockopt", "getsockname", "sendto", "recvfrom", "epoll_ctl"];

/// Starts a daemon with each such call failing once, early or late, and waits for it to be ready.
fn starts_in_spite_of(errno: &str) {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    for call in CALLS {
        // The client of etcd opens the fifth socket, and tries again without a word; the eighth is one for the device.
        let late = if call == "socket" { 8 } else { 5 };
        // The first two of epoll_ctl make the runtime, without which nothing can wait for anything.
        for when in [3, late] {
            node.exec("ip link del flannel.1").ok();
            fs::remove_file(node.subnet_file()).ok();
            let inject = format!("inject={call}:error={errno}:when={when}");
            let wrapper = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "signal=none", "-e", &inject];
            let mut daemon = node.twilld_under(&wrapper, &["--peer-mode=all"]);
            daemon.wait_ready();
            let log = daemon.log();
            let said = log.contains("trying until it works");
            assert!(said || !["socket", "bind", "getsockname"].contains(&call), "{inject}: {log}");
            daemon.kill();
        }
    }
}

#[test]
fn a_start_waits_until_there_is_memory() {
    starts_in_spite_of("ENOMEM");
}

#[test]
fn a_start_waits_until_there_is_buffer_space() {
    starts_in_spite_of("ENOBUFS");
}

#[test]
fn a_start_goes_on_after_an_interruption() {
    starts_in_spite_of("EINTR");
}

/// A daemon of which some calls that start a thread fail from its start on.
struct Threadless {
    daemon: Twilld,
    trace: PathBuf,
}

impl Threadless {
    /// Starts the node of this lab with this fault, after what `prepare` runs.
    fn new(lab: &Lab, when: &str, prepare: &[&str], args: &[&str]) -> Self {
        let node = lab.node(1);
        let trace = node.run_dir().join("injected");
        // Of an earlier daemon.
        fs::remove_file(&trace).ok();
        let fault = format!("inject=clone3:error=EAGAIN{when}");
        let file = trace.to_str().unwrap();
        let strace = ["strace", "-D", "-f", "-qq", "-o", file, "-e", "signal=none", "-e", "trace=clone3", "-e", &fault];
        let daemon = node.twilld_under(&[prepare, &strace].concat(), args);
        Self { daemon, trace }
    }

    /// The same with an etcd that has a name: then there are threads that look it up.
    fn by_name(lab: &Lab, when: &str) -> Self {
        let hosts = lab.node(1).run_dir().join("hosts");
        let (_, etcd) = lab.etcd().url().split_once("://").unwrap();
        let (address, port) = etcd.split_once(':').unwrap();
        fs::write(&hosts, format!("{address} etcd.example\n")).unwrap();
        let line = format!("mount --bind {} /etc/hosts && exec \"$0\" \"$@\"", hosts.display());
        let endpoint = format!("--etcd-endpoints=http://etcd.example:{port}");
        Self::new(lab, when, &["unshare", "-m", "sh", "-c", &line], &[&endpoint])
    }

    /// How many threads could not be started so far.
    fn count(&self) -> usize {
        fs::read_to_string(&self.trace).unwrap_or_default().matches("(INJECTED)").count()
    }

    #[track_caller]
    fn check_no_fault(&self) {
        assert!(self.count() > 0, "each thread was started: {}", fs::read_to_string(&self.trace).unwrap_or_default());
        assert!(!self.daemon.log().contains("a fault in the program"), "{}", self.daemon.log());
    }
}

#[test]
fn a_thread_that_cannot_be_started_is_no_fault_and_is_started_later() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    // The log's, those that look up names, that of the rules. How many look up names depends on whether one is idle.
    let injected = (1..).take_while(|when| {
        let mut started = Threadless::by_name(&lab, &format!(":when={when}"));
        started.daemon.wait_ready();
        let is_injected = started.count() > 0;
        if is_injected {
            started.check_no_fault();
        }
        started.daemon.kill();
        is_injected
    });
    let injected = injected.count();
    assert!(injected >= 3, "of the threads of a start only {injected} could be kept from being started");
    // With an address there are just two threads.
    let mut started = Threadless::new(&lab, ":when=2", &[], &[]);
    started
        .daemon
        .wait_log(&["start the thread that keeps the nftables rules: Resource temporarily unavailable"], PATIENCE);
    started.daemon.wait_ready();
    started.check_no_fault();
}

#[test]
fn a_daemon_with_no_thread_at_all_waits_and_says_for_what() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let mut started = Threadless::by_name(&lab, "");
    started.daemon.wait_log(&["no thread to look up the name in http://etcd.example:", "os error 11"], PATIENCE);
    started.check_no_fault();
    assert!(started.daemon.runs());
}

#[test]
fn what_does_not_pass_ends_the_start() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let wrapper = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "inject=socket:error=EPERM:when=1"];
    let mut daemon = lab.node(1).twilld_under(&wrapper, &[]);
    assert_eq!(daemon.wait_exit(PATIENCE).status.code(), Some(1));
    assert!(daemon.log().contains("open netlink socket: Operation not permitted"), "{}", daemon.log());
}

fn says_ready(daemon: &Twilld) -> bool {
    daemon.log().contains("ready peers=")
}

/// A daemon whose run directory is a small file system of its own, in this state; `mend` is run in its mount namespace
/// once the daemon has said that it can't write, and then it is ready.
fn waits_for_run(state: &str, reason: &str, mend: &str) {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    let run = node.run_dir().display().to_string();
    let line = "mount -t tmpfs -o size=16k run RUN && STATE && exec \"$0\" \"$@\""
        .replace("STATE", state)
        .replace("RUN", &run);
    let mut daemon = node.twilld_under(&["unshare", "-m", "sh", "-c", &line], &[]);
    daemon.wait_log(&["cannot write subnet.env", reason], PATIENCE);
    let pid = daemon.pid().to_string();
    assert!(!says_ready(&daemon), "ready without subnet.env: {}", daemon.log());
    assert!(node.link("flannel.1").unwrap().flags.iter().any(|flag| flag == "UP"), "the data plane waits for a file");
    node.netns().run(&["nsenter", "-t", &pid, "-m", "sh", "-c", &mend.replace("RUN", &run)]).unwrap();
    wait_until("ready", PATIENCE, || says_ready(&daemon));
    let file = format!("/proc/{pid}/root{}", node.subnet_file().display());
    assert!(fs::read_to_string(file).unwrap().contains("FLANNEL_SUBNET="));
}

#[test]
fn a_start_with_a_full_run_goes_on_and_writes_when_there_is_room() {
    let fill = "{ dd if=/dev/zero of=RUN/filler bs=4k 2>/dev/null; true; }";
    waits_for_run(fill, "no space left on device", "rm RUN/filler");
}

#[test]
fn a_start_with_a_read_only_run_goes_on_and_writes_when_it_may() {
    waits_for_run("mount -o remount,ro RUN", "read-only file system", "mount -o remount,rw RUN");
}
