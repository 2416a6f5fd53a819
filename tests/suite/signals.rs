//! Every signal that would end a process, and what the daemon makes of it.

use nix::sys::signal::Signal;
use twill_lab::{Lab, NODE_CONFIG, Peer, Twilld, wait_until};

use crate::PATIENCE;

/// Those by which an operator ends it, and those that say that it is at fault.
const ENDING: [&str; 11] = ["TERM", "INT", "QUIT", "KILL", "ABRT", "BUS", "FPE", "ILL", "SEGV", "SYS", "TRAP"];
/// Those whose default is to stop a process, which a terminal does, or to do nothing.
const OTHERS: [&str; 8] = ["STOP", "TSTP", "TTIN", "TTOU", "CONT", "CHLD", "URG", "WINCH"];

/// Every other signal of Linux by its number, signal(7).
fn harmless() -> impl Iterator<Item = u32> {
    let named: Vec<i32> = Signal::iterator()
        .filter(|signal| {
            let name = signal.as_str().trim_start_matches("SIG");
            !ENDING.contains(&name) && !OTHERS.contains(&name)
        })
        .map(|signal| signal as i32)
        .collect();
    // 32 and 33 are the C library's own.
    named.into_iter().map(i32::cast_unsigned).chain(34..=64)
}

#[track_caller]
fn send(daemon: &Twilld, signal: u32) {
    daemon.node().exec(&format!("kill -{signal} {}", daemon.pid())).unwrap();
}

#[test]
fn no_other_signal_ends_it() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let mut daemon = lab.node(1).twilld(&[]);
    daemon.wait_ready();
    for signal in harmless() {
        send(&daemon, signal);
    }
    daemon.wait_log(&["SIGHUP"], PATIENCE);
    daemon.wait_log(&["SIGUSR1"], PATIENCE);
    daemon.wait_log(&["SIGUSR2"], PATIENCE);
    assert!(daemon.runs(), "{}", daemon.log());
    assert_eq!(daemon.terminate().status.code(), Some(0));
}

#[test]
fn each_way_to_stop_it_is_a_clean_stop() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let lab = Lab::with_nodes(1);
        lab.put_config(NODE_CONFIG);
        let peer = Peer::new("10.5.7.0/24", "10.99.1.1", "02:00:00:00:00:01");
        lab.put_peer(&peer);
        let node = lab.node(1);
        let mut daemon = node.twilld(&[]);
        daemon.wait_ready();
        // Again and again while it stops: they change nothing.
        daemon.signal(signal);
        while daemon.runs() {
            for again in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1] {
                let _ = node.exec(&format!("kill -{} {}", again as i32, daemon.pid()));
            }
        }
        assert_eq!(daemon.wait_exit(PATIENCE).status.code(), Some(0), "{signal}");
        node.holds(&peer).unwrap();
        // By itself, since of several at once any may be the one that is answered.
        let mut daemon = node.twilld(&[]);
        daemon.wait_ready();
        daemon.signal(signal);
        assert_eq!(daemon.wait_exit(PATIENCE).status.code(), Some(0), "{signal}");
        daemon.wait_log(&["stopping", signal.as_str()], PATIENCE);
    }
}

#[test]
fn a_hangup_compares_at_once_and_says_what_it_found() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let peer = Peer::new("10.5.7.0/24", "10.99.1.1", "02:00:00:00:00:01");
    lab.put_peer(&peer);
    let node = lab.node(1);
    let mut daemon = node.twilld(&["--peer-mode=all"]);
    daemon.wait_ready();
    wait_until("the peer is there", PATIENCE, || node.holds(&peer));
    daemon.signal(Signal::SIGHUP);
    daemon.wait_log(&["SIGHUP", "comparing"], PATIENCE);
    daemon.wait_log(&["compared the kernel with the records", "flannel.1", "right=1", "due=0"], PATIENCE);
    daemon.signal(Signal::SIGUSR1);
    daemon.wait_log(&["SIGUSR1", "ready=true", &node.leased()[0].replace('/', "-")], PATIENCE);
    daemon.wait_log(&["flannel.1", "peers=1", "programmed=1"], PATIENCE);
}

#[test]
fn a_start_that_waits_answers_them_too() {
    type Prepare = fn(&Lab);
    let waits: [(&str, Prepare); 3] = [
        ("/coreos.com/network/config", |_| ()),
        ("does not answer", |lab| lab.etcd().kill()),
        ("no free subnet", |lab| {
            lab.put_config(r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.1.0"}"#);
            lab.put_peer(&Peer::new("10.5.1.0/24", "10.99.1.1", "02:00:00:00:00:01"));
        }),
    ];
    for (words, prepare) in waits {
        let lab = Lab::with_nodes(1);
        prepare(&lab);
        let mut daemon = lab.node(1).twilld(&[]);
        daemon.wait_log(&[words], PATIENCE);
        for signal in harmless() {
            send(&daemon, signal);
        }
        daemon.wait_log(&["SIGHUP", "starting"], PATIENCE);
        daemon.wait_log(&["SIGUSR2", "starting"], PATIENCE);
        assert!(daemon.runs(), "{}", daemon.log());
        assert_eq!(daemon.terminate().status.code(), Some(0), "{}", daemon.log());
    }
}
