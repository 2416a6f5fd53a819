//! Another tool that undoes what the daemon does, again and again: mended each time, and said a few times.

use std::fs;

use twill_lab::{Lab, NODE_CONFIG, wait_until};

use crate::PATIENCE;

/// How many lines of a log have these words.
fn count(log: &str, words: &str) -> usize {
    log.lines().filter(|line| line.contains(words)).count()
}

#[test]
fn a_device_that_is_deleted_again_and_again() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    let mut daemon = node.twilld(&[]);
    daemon.wait_ready();
    for round in 0..15 {
        node.exec("ip link del flannel.1").unwrap();
        wait_until(&format!("the device is back, time {round}"), PATIENCE, || {
            node.exec("ip -4 addr show dev flannel.1").is_ok_and(|shown| shown.contains("inet "))
        });
    }
    let log = daemon.log();
    assert!((1..=10).contains(&count(&log, "the daemon restored it")), "{log}");
    assert!(count(&log, "ready") <= 21, "{log}");
    assert!(daemon.terminate().status.success());
}

#[test]
fn a_subnet_env_that_is_overwritten_again_and_again() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    // The file is looked at with every sign of life to a watchdog.
    let notify = format!("NOTIFY_SOCKET={}", node.run_dir().join("nobody").display());
    let mut daemon = node.twilld_under(&["env", &notify, "WATCHDOG_USEC=100000"], &[]);
    daemon.wait_ready();
    let file = node.subnet_file();
    let before = fs::read_to_string(&file).unwrap();
    for round in 0..10 {
        fs::write(&file, "FLANNEL_SUBNET=10.9.9.1/24\n").unwrap();
        wait_until(&format!("the file is right again, time {round}"), PATIENCE, || {
            fs::read_to_string(&file).is_ok_and(|now| now == before)
        });
    }
    let log = daemon.log();
    assert!((1..=3).contains(&count(&log, "subnet.env written")), "{log}");
    assert_eq!(count(&log, "cannot tell systemd"), 1, "{log}");
}
