//! Another tool that undoes what the daemon does, again and again: mended each time, and said a few times.

use std::fs;
use std::time::Duration;

use twill_lab::{Forged, Lab, NODE_CONFIG, Twilld, wait_until};

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

/// Each look may find the device and the tables right, and yet the tunnel carries next to nothing.
#[test]
fn a_node_whose_device_or_tables_another_program_keeps_changing_is_not_ready_until_it_is_calm() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    let mut daemon = node.twilld(&["--ip-masq"]);
    daemon.wait_ready();
    for (line, why) in [
        (
            "ip link set flannel.1 address 02:00:00:00:00:01",
            "kernel: another program keeps changing the device flannel.1",
        ),
        ("nft flush ruleset", "nftables: another program keeps changing the tables"),
    ] {
        wait_until(why, LONG, || {
            node.exec(line).unwrap();
            !daemon.lines(&["WARN not ready", why]).is_empty()
        });
        wait_until("it is ready again", LONG, || {
            daemon.lines(&["ready"]).last().is_some_and(|line| line.contains("INFO ready"))
        });
        assert_eq!(daemon.lines(&["not ready", why]).len(), 1, "{}", daemon.log());
    }
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

/// The pause between two of fifty writes a second.
const FIFTIETH: Duration = Duration::from_millis(20);
/// Longer than the pauses between the first lines of a fight, and than a node is not ready after one.
const LONG: Duration = Duration::from_secs(60);

/// Two nodes that know each other, and a lease of the forger's.
fn attacked() -> (Lab, Vec<Twilld>, i64) {
    let lab = Lab::with_nodes(2);
    lab.put_config(NODE_CONFIG);
    let daemons = lab.start_all(&["--peer-mode=all"]);
    let granted = lab.etcdctl(&["lease", "grant", "3600"]).unwrap();
    let lease = i64::from_str_radix(granted.split_whitespace().nth(1).unwrap(), 16).unwrap();
    (lab, daemons, lease)
}

/// The sum of this field over these lines.
fn sum(lines: &[String], field: &str) -> usize {
    let of = |line: &String| {
        let (_, rest) = line.split_once(&format!(" {field}="))?;
        rest.split(' ').next()?.parse::<usize>().ok()
    };
    lines.iter().map(|line| of(line).unwrap()).sum()
}

/// Waits until the lines of a fight with these words have counted so many writes under our key, deletions, and writes under
/// another key. Of two that come while the daemon writes, only the later one may be seen: some may be missing.
fn wait_counted(daemon: &Twilld, words: &str, expected: [usize; 3]) -> Vec<String> {
    wait_until(&format!("{expected:?} writes are counted"), LONG, || {
        let lines = daemon.lines(&[words, "within="]);
        let counted = ["overwritten", "deleted", "under_another_key"].map(|field| sum(&lines, field));
        let is_right = counted.iter().zip(expected).all(|(found, all)| *found <= all && found * 10 >= all * 9);
        if is_right { Ok(lines) } else { Err(format!("{counted:?}")) }
    })
}

/// Waits until the daemon is ready again; it said once that it is not.
fn wait_ready_again(daemon: &Twilld) {
    // Long before the minute is over after which the log calls the fight over.
    wait_until("it is ready again", LONG, || {
        daemon.lines(&["INFO ready"]).len() > daemon.lines(&["WARN not ready"]).len()
    });
    assert_eq!(daemon.lines(&["nobody has touched our record"]), [] as [String; 0]);
}

#[test]
fn a_record_that_is_forged_fifty_times_a_second_is_back_and_each_way_is_named_and_counted() {
    let (lab, mut daemons, lease) = attacked();
    let victim = lab.node(2).as_peer();
    let (key, ours) = (victim.key(), lab.get(&victim.key()).unwrap().value);
    let forged = |n: usize| {
        let value = ours.replace("10.99.0.12", if n < 60 { "10.99.1.76" } else { "10.99.1.77" });
        Forged { key: key.clone(), value: (n % 100 != 70).then_some(value), lease }
    };
    lab.forge(FIFTIETH, (0..250).map(forged));
    wait_until("the other node follows it again", LONG, || lab.node(1).holds(&victim));
    let called = "somebody overwrites our record again and again";
    let lines = wait_counted(&daemons[1], called, [248, 2, 0]);
    assert!(lines.last().unwrap().contains("10.99.1.77"), "{lines:?}");
    let new = daemons[1].lines(&["WARN somebody", " now"]);
    assert!(new.len() == 2, "{new:?}");
    assert!(
        new[0].contains("overwrites our record with something else now") && new[0].contains("10.99.1.77"),
        "{new:?}"
    );
    assert!(new[1].contains("deletes our record now as well"), "{new:?}");
    wait_ready_again(&daemons[1]);
    let warnings = daemons[1].lines(&["WARN"]);
    assert!(warnings.len() <= 10, "{warnings:#?}");
    assert_eq!(daemons[1].lines(&["not ready", called]).len(), 1);
    assert!(daemons.iter_mut().all(Twilld::runs));
}

#[test]
fn a_record_in_our_name_that_is_forged_fifty_times_a_second_is_named_by_its_key() {
    let (lab, daemons, lease) = attacked();
    let victim = lab.node(2).as_peer();
    let value = lab.get(&victim.key()).unwrap().value;
    let key = "/coreos.com/network/subnets/10.5.222.0-24".to_owned();
    lab.forge(FIFTIETH, (0..200).map(|_| Forged { key: key.clone(), value: Some(value.clone()), lease }));
    wait_until("the other node follows it again", LONG, || lab.node(1).holds(&victim));
    wait_counted(&daemons[1], "somebody writes the record 10.5.222.0-24 in our name again and again", [0, 0, 200]);
    assert_eq!(daemons[1].lines(&["overwrites our record"]), [] as [String; 0]);
    wait_until("it is ready again", LONG, || {
        daemons[1].lines(&["ready"]).last().is_some_and(|line| line.contains("INFO ready"))
    });
    assert_eq!(daemons[1].lines(&["nobody has touched our record"]), [] as [String; 0]);
    let warnings = daemons[1].lines(&["WARN"]);
    assert!(warnings.len() <= 20, "{warnings:#?}");
}

/// The other nodes find this one as before.
#[test]
fn a_member_that_no_node_reads_is_taken_out_again_and_the_node_stays_ready() {
    let (lab, daemons, lease) = attacked();
    let before = lab.get(&lab.node(2).as_peer().key()).unwrap();
    let value = Some(before.value.replacen('{', r#"{"Comment":"x","#, 1));
    lab.forge(FIFTIETH, (0..100).map(|_| Forged { key: before.key.clone(), value: value.clone(), lease }));
    wait_counted(&daemons[1], "somebody overwrites our record again and again", [100, 0, 0]);
    wait_until("it is as it was", LONG, || lab.get(&before.key).is_some_and(|now| now.value == before.value));
    assert_eq!(daemons[1].lines(&["not ready"]), [] as [String; 0]);
}
