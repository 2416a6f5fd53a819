//! `/healthz`, `/readyz` and what systemd is told.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use twill_lab::{Lab, NODE_CONFIG, Node, wait_until};

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
fn a_port_that_is_taken_ends_it() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let _first = lab.node(1).twilld(&[PORT]);
    wait_until("the first one answers", PATIENCE, || get(&lab.node(1), "/healthz"));
    let mut second = lab.node(1).twilld(&[PORT]);
    assert_eq!(second.wait_exit(PATIENCE).status.code(), Some(1));
    assert!(second.log().contains("--healthz-port"), "{}", second.log());
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
