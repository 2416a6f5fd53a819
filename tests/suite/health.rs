//! `/healthz`, `/readyz` and what systemd is told.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use twill_lab::{Lab, NODE_CONFIG, Namespace, Node, wait_until};

use crate::PATIENCE;

const PORT: &str = "--healthz-port=10250";

/// Asks the node's daemon for a path; the status code and the body.
fn get(node: &Node, path: &str) -> Result<(u16, String), String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect("127.0.0.1:10250")?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = node.netns().enter(ask).map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no body")?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or("no status")?;
    Ok((code, body.to_owned()))
}

/// Waits until `/readyz` answers with this code and a body with `words`.
#[track_caller]
fn await_ready(node: &Node, code: u16, words: &str) {
    wait_until(&format!("/readyz is {code} and says {words}"), PATIENCE, || match get(node, "/readyz") {
        Ok((found, body)) if found == code && body.contains(words) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn ready_follows_lease_etcd_and_files() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let mut daemon = node.twilld(&[PORT, "--ip-masq"]);
    await_ready(&node, 503, "lease: none yet, waiting for a usable network config: the key /coreos.com/network/config");
    assert_eq!(get(&node, "/healthz").unwrap(), (200, "ok\n".to_owned()));
    lab.put_config(NODE_CONFIG);
    await_ready(&node, 200, "ready");

    lab.etcd().kill();
    await_ready(&node, 503, "etcd: ");
    assert_eq!(get(&node, "/healthz").unwrap().0, 200);
    lab.etcd().start();
    await_ready(&node, 200, "ready");

    let file = node.subnet_file();
    let before = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    wait_until("subnet.env is there again", PATIENCE, || fs::read_to_string(&file).is_ok_and(|now| now == before));
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    await_ready(&node, 503, "subnet.env: ");
    fs::remove_dir(&file).unwrap();
    await_ready(&node, 200, "ready");
    assert!(daemon.terminate().status.success());
}

#[test]
fn metrics_tell_what_the_daemon_did() {
    let lab = Lab::with_nodes(2);
    lab.put_config(NODE_CONFIG);
    let _daemons = lab.start_all(&[PORT]);
    let (node, pod) = (lab.node(1), lab.node(1).pod(1));
    let await_lines = |lines: &[&str]| {
        wait_until(&format!("/metrics has {lines:?}"), PATIENCE, || {
            let (code, body) = get(&node, "/metrics")?;
            let is_there = |line: &&str| body.lines().any(|there| there == *line);
            if code == 200 && body.ends_with("# EOF\n") && lines.iter().all(is_there) { Ok(()) } else { Err(body) }
        });
    };
    await_lines(&["twill_ready 1", "twill_etcd_up 1", "twill_peers{device=\"flannel.1\",state=\"absent\"} 1"]);
    pod.ping(lab.node(2).pod(1).addr()).unwrap();
    await_lines(&[
        "twill_misses_total{device=\"flannel.1\",kind=\"l3\",result=\"answered\"} 1",
        "twill_peers{device=\"flannel.1\",state=\"in_kernel\"} 1",
        "twill_in_step{device=\"flannel.1\"} 1",
    ]);
    lab.etcd().kill();
    await_lines(&["twill_ready 0", "twill_missing{part=\"etcd\"} 1", "twill_etcd_outages_total 1"]);
}

#[test]
fn not_ready_while_the_kernel_refuses() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    let mut daemon = node.twilld(&[PORT, "--iptables-resync=1"]);
    await_ready(&node, 200, "ready");
    // A device of another kind in its place: not ours to delete.
    let take = ["link del flannel.1", "link add flannel.1 type bridge"];
    wait_until("the name is taken", PATIENCE, || node.netns().ip_batch(take));
    await_ready(&node, 503, "kernel: flannel.1");
    daemon.wait_log(&["not ready"], PATIENCE);
    node.exec("ip link del flannel.1").unwrap();
    await_ready(&node, 200, "ready");
}

#[test]
fn a_port_that_is_taken_is_said_and_waited_for() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    let other = node.netns().enter(|| TcpListener::bind("127.0.0.1:10250")).unwrap().unwrap();
    let mut daemon = node.twilld(&[PORT]);
    daemon.wait_ready();
    daemon.wait_log(&["health", "127.0.0.1:10250", "--healthz-port", "in use"], PATIENCE);
    drop(other);
    await_ready(&node, 200, "ready");
}

#[test]
fn it_listens_on_loopback_unless_told_otherwise() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    let from_afar = || {
        let address = (node.addr(), 10250).into();
        lab.fabric().enter(|| TcpStream::connect_timeout(&address, PATIENCE).map(drop)).unwrap()
    };
    let mut daemon = node.twilld(&[PORT]);
    await_ready(&node, 200, "ready");
    assert_eq!(from_afar().unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert!(daemon.terminate().status.success());
    let _daemon = node.twilld(&[PORT, "--healthz-ip=0.0.0.0"]);
    await_ready(&node, 200, "ready");
    from_afar().unwrap();
}

/// How many descriptors a process has, and its resident memory in KiB.
fn costs(pid: u32) -> (usize, usize) {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    (descriptors, resident.trim().trim_end_matches(" kB").parse().unwrap())
}

/// Opens so many connections from a namespace, each with the beginning of a request.
fn begin(from: &Namespace, to: SocketAddr, count: usize, beginning: &[u8]) -> Vec<TcpStream> {
    from.enter(|| {
        let mut open = Vec::new();
        for _ in 0..count {
            // One that was closed in the meantime is as good.
            let Ok(mut stream) = TcpStream::connect_timeout(&to, PATIENCE) else { continue };
            let _ = stream.write_all(beginning);
            open.push(stream);
        }
        open
    })
    .unwrap()
}

#[test]
fn whoever_takes_all_connections_takes_nothing_else() {
    let lab = Lab::with_nodes(2);
    lab.put_config(NODE_CONFIG);
    let (node, elsewhere) = (lab.node(1), lab.node(2));
    // The lowest limit that a supervisor may set; without one more for its own work the daemon would need all of it.
    let mut daemon = node.twilld_under(&["prlimit", "--nofile=100:100"], &[PORT, "--healthz-ip=0.0.0.0"]);
    await_ready(&node, 200, "ready");
    let pid = daemon.pid();
    let before = costs(pid);
    let far = SocketAddr::from((node.addr(), 10250));
    let near = SocketAddr::from(([127, 0, 0, 1], 10250));
    let half: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: ";
    // Idle ones, half requests and endless ones, from another node and from this one.
    let long = [half, &[b'x'; 20_000]].concat();
    let mut open = Vec::new();
    for (from, to) in [(elsewhere.netns(), far), (node.netns(), near), (node.netns(), far)] {
        for beginning in [&b""[..], half, &long] {
            open.extend(begin(from, to, 300, beginning));
            assert_eq!(get(&node, "/healthz").unwrap(), (200, "ok\n".to_owned()), "a probe from the node");
        }
    }
    let during = costs(pid);
    assert!(during.0 < before.0 + 40, "descriptors: {before:?}, {during:?}");
    assert!(during.1 < before.1 + 4096, "memory: {before:?}, {during:?}");
    // The daemon's own work goes on: device, file and etcd are all to be had.
    node.exec("ip link del flannel.1").unwrap();
    wait_until("the device is back with its address", PATIENCE, || {
        node.exec("ip -4 addr show dev flannel.1").is_ok_and(|shown| shown.contains("inet "))
    });
    fs::remove_file(node.subnet_file()).unwrap();
    wait_until("subnet.env is back", PATIENCE, || node.subnet_file().exists());
    lab.etcd().kill();
    await_ready(&node, 503, "etcd: ");
    lab.etcd().start();
    await_ready(&node, 200, "ready");
    drop(open);
    assert!(daemon.terminate().status.success());
}

#[test]
fn a_connection_is_closed_after_some_seconds() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let _daemon = node.twilld(&[PORT]);
    wait_until("it answers", PATIENCE, || get(&node, "/healthz"));
    for beginning in ["", "GET /healthz HT", "GET /healthz HTTP/1.1\r\nHost: x\r\n", "\r\n"] {
        let [mut stream] =
            begin(node.netns(), ([127, 0, 0, 1], 10250).into(), 1, beginning.as_bytes()).try_into().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // Its end, or a reset.
        let end = stream.read(&mut [0; 1024]);
        assert!(!end.as_ref().is_err_and(|e| e.kind() == ErrorKind::WouldBlock), "{beginning:?}: {end:?}");
    }
}

#[test]
fn other_requests_have_their_answers() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let _daemon = node.twilld(&[PORT]);
    wait_until("it answers", PATIENCE, || get(&node, "/healthz"));
    let ask = |request: &str| {
        let [mut stream] =
            begin(node.netns(), ([127, 0, 0, 1], 10250).into(), 1, request.as_bytes()).try_into().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    for (request, status) in [
        ("GET /healthz HTTP/1.0\r\n\r\n", "200"),
        ("HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "200"),
        ("GET /healthz?verbose HTTP/1.1\r\nHost: x\r\n\r\n", "200"),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        ("POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nxx", "405"),
        ("GET /healthz HTTP/1.1\r\nHost: x\r\nno header\r\n\r\n", "400"),
        (&format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(9000)), "431"),
    ] {
        let answer = ask(request);
        assert!(answer.split(' ').nth(1) == Some(status), "{request:.60}: {answer}");
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        assert_eq!(
            body.is_empty(),
            request.starts_with("HEAD") || status.starts_with("43") || status == "400",
            "{answer}"
        );
    }
}

#[test]
fn the_limit_of_descriptors_is_raised() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let mut daemon = lab.node(1).twilld_under(&["prlimit", "--nofile=256:700"], &[]);
    daemon.wait_ready();
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["700", "700"], "{files}");
}

#[test]
fn systemd_is_told_all_it_can_be_told() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let path = lab.node(1).run_dir().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let variable = format!("NOTIFY_SOCKET={}", path.display());
    let _daemon = lab.node(1).twilld_under(&["env", &variable, "WATCHDOG_USEC=200000"], &[]);
    let mut told = String::new();
    wait_until("READY, STATUS and WATCHDOG", PATIENCE, || {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).map_err(|e| e.to_string())?;
        told += &String::from_utf8_lossy(&buffer[..length]);
        told.push('\n');
        let all = ["READY=1", "STATUS=ready; 0 peers", "WATCHDOG=1"].iter().all(|word| told.contains(word));
        if all { Ok(()) } else { Err(told.clone()) }
    });
}
