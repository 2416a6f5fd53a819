//! On demand: addresses that nobody has leased, peers that nobody uses any more, and operations that fail on the way.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::time::Duration;

use twill_lab::{Lab, NODE_CONFIG, Node, Peer, wait_until};

/// For states that take milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A block that no node of the lab leases by itself: they take one of the first hundred.
const FREE: &str = "10.5.200";

/// The blocks that are refused.
fn refused(node: &Node) -> Vec<String> {
    let routes = node.routes().into_iter();
    let ours = routes.filter(|route| route.kind.as_deref() == Some("unreachable") && route.protocol == "116");
    ours.map(|route| route.dst).collect()
}

/// The unresolved neighbours on the device.
fn unresolved(node: &Node) -> usize {
    node.exec("ip -4 neigh show dev flannel.1 nud incomplete").unwrap().lines().count()
}

/// A peer that is only a record.
fn recorded(n: u8) -> Peer {
    Peer::new(&format!("10.5.{n}.0/24"), &format!("10.99.1.{n}"), &format!("02:00:00:00:01:{n:02x}"))
}

#[test]
fn an_unleased_address_is_an_error_at_once() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let _daemons = lab.start_all(&[]);
    let pod = lab.node(1).pod(1);
    // Without an answer from anybody this would be silence until -W.
    let error = pod.exec(&format!("ping -n -c1 -W10 {FREE}.5")).unwrap_err().to_string();
    assert!(error.contains("Host Unreachable"), "{error}");
    assert_eq!(refused(&lab.node(1)), [format!("{FREE}.0/24")]);
    wait_until("nothing waits", PATIENCE, || unresolved(&lab.node(1)) == 0);
    // The next one meets the route and asks nobody.
    let to = std::net::SocketAddr::new(format!("{FREE}.6").parse().unwrap(), 9);
    let refusal = pod.netns().enter(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap().unwrap_err();
    assert_eq!(refusal.kind(), std::io::ErrorKind::HostUnreachable);
    assert_eq!(unresolved(&lab.node(1)), 0);
}

#[test]
fn a_refused_block_works_as_soon_as_it_is_leased() {
    let lab = Lab::with_nodes(2);
    lab.put_config(NODE_CONFIG);
    let (one, two) = (lab.node(1), lab.node(2));
    let mut first = one.twilld(&[]);
    first.wait_ready();
    let pod = one.pod(1);
    assert!(pod.exec(&format!("ping -n -c1 -W5 {FREE}.2")).is_err());
    wait_until("the block is refused", PATIENCE, || refused(&one) == [format!("{FREE}.0/24")]);

    // The second node asks for the subnet that it had before.
    let file =
        format!("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET={FREE}.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n");
    std::fs::write(two.subnet_file(), file).unwrap();
    let mut second = two.twilld(&[]);
    second.wait_ready();
    let there = two.pod(1);
    assert_eq!(there.addr().to_string(), format!("{FREE}.2"));
    first.wait_log(&["peer joined", FREE], PATIENCE);
    wait_until("the refusal is gone", PATIENCE, || refused(&one).is_empty());
    pod.ping(there.addr()).unwrap();
}

#[test]
fn a_pod_that_asks_for_everything_disturbs_nobody() {
    const PACKETS: usize = 50_000;
    // The table of unresolved neighbours is the whole machine's, with 1,024 places, and other tests need some: this one
    // does not send faster than what it asked for is cleared. Speed is the bench's.
    const AT_ONCE: usize = 200;
    const UNRESOLVED: usize = 256;
    let lab = Lab::with_nodes(2);
    lab.put_config(NODE_CONFIG);
    let _daemons = lab.start_all(&[]);
    let node = lab.node(1);
    let (bad, good, far) = (node.pod(1), node.pod(2), lab.node(2).pod(1));
    good.ping(far.addr()).unwrap();
    let ping = good.ping_running(far.addr(), 10);
    ping.wait_received(10);
    let leased = lab.nodes().iter().map(|node| node.as_peer().subnet).collect::<Vec<_>>();
    let all = (u32::from(Ipv4Addr::new(10, 5, 1, 0))..).map(Ipv4Addr::from);
    let unleased = all.filter(|address| !leased.iter().any(|subnet| subnet.contains(*address)));
    let unleased: Vec<Ipv4Addr> = unleased.take(PACKETS).collect();
    let socket = bad.netns().enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    let mut most = 0;
    for addresses in unleased.chunks(AT_ONCE) {
        // What comes back is none of this test's business.
        addresses.iter().for_each(|address| drop(socket.send_to(b"x", (*address, 9))));
        most = most.max(unresolved(&node));
        wait_until("little waits", PATIENCE, || unresolved(&node) < UNRESOLVED - AT_ONCE);
    }
    println!("at most {most} unresolved, {} blocks refused", refused(&node).len());
    assert!(most < UNRESOLVED, "{most} unresolved");
    assert!(refused(&node).len() > 100, "{:?}", refused(&node));
    ping.wait_received(10);
    assert_eq!(ping.stop().lost, 0);
    // A peer that was not used before is found all the same.
    let peer = recorded(201);
    lab.put_peer(&peer);
    wait_until("a new peer is programmed", PATIENCE, || {
        good.send(Ipv4Addr::new(10, 5, 201, 5));
        node.holds(&peer)
    });
}

#[test]
fn an_idle_peer_leaves_and_comes_back() {
    let lab = Lab::with_nodes(2);
    lab.put_config(NODE_CONFIG);
    let _daemons = lab.start_all(&["--peer-idle-timeout=2s"]);
    let (node, peer) = (lab.node(1), lab.node(2).as_peer());
    let pods = [node.pod(1), lab.node(2).pod(1)];
    // Three times as long as it may be idle, a packet each half of a second: it stays.
    let ping = pods[0].ping_running(pods[1].addr(), 500);
    ping.wait_received(12);
    node.holds_exactly(std::slice::from_ref(&peer)).unwrap();
    assert_eq!(ping.stop().lost, 0);
    wait_until("the idle peer has left", PATIENCE, || node.holds_exactly(&[]));
    pods[0].ping(pods[1].addr()).unwrap();
    wait_until("it is back", PATIENCE, || node.holds_exactly(std::slice::from_ref(&peer)));
}

/// Starts a daemon of which system calls fail, changes records meanwhile, and waits for all to be right.
///
/// Not each tenth of a thread's calls: to read and write one nftables table takes as many, and it would fail each time.
fn mends_what_failed(inject: &str) {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    let trace = node.run_dir().join("strace");
    let trace = trace.to_str().unwrap();
    // -D: the daemon is our child, the tracer is its own affair and goes with it.
    let wrapper =
        ["strace", "-D", "-f", "-qq", "-e", "signal=none", "-e", "trace=sendto,sendmsg", "-e", inject, "-o", trace];
    let mut daemon = node.twilld_under(&wrapper, &["--peer-mode=all"]);
    daemon.wait_ready();
    let peers: Vec<Peer> = (110..=169).map(recorded).collect();
    peers.iter().for_each(|peer| lab.put_peer(peer));
    peers[..20].iter().for_each(|peer| lab.delete(&peer.key()));
    wait_until("all is programmed in the end", PATIENCE, || node.holds_exactly(&peers[20..]));
    let failed = std::fs::read_to_string(trace).unwrap().matches("(INJECTED)").count();
    println!("{inject}: {failed} calls failed");
    assert!(failed > 3, "only {failed} calls failed");
    // Killed, not stopped: the runtime tells itself of a signal by a sendto of its own, which may be one that fails.
    daemon.kill();
}

#[test]
fn requests_that_the_kernel_has_no_memory_for_are_made_again() {
    mends_what_failed("inject=sendto:error=ENOBUFS:when=30+19");
}

#[test]
fn requests_that_fail_in_another_way_are_made_again() {
    mends_what_failed("inject=sendto:error=EIO:when=31+23");
}
