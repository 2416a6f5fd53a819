//! What the operator reads: the log, and the tables of `twill`, on a network in which somebody has put things into etcd.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::fs;
use std::time::Duration;

use serde_json::Value;
use twill_lab::{Lab, NODE_CONFIG, Peer, wait_until};

#[path = "operator_twill.rs"]
mod twill;
#[path = "operator_words.rs"]
mod words;

/// For states that take milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often one record is written: each time costs etcd a sync of its disk.
const WRITES: usize = 400;
/// Ends a line, begins another one and clears a terminal.
const FORGED: &str = "x\n2026-01-01T00:00:00.000000Z ERROR all is lost\u{1b}[2J\u{9b}2J\u{202e}";

/// A log whose lines are all the daemon's own: each has its time and its level, and nothing in it moves a cursor.
#[track_caller]
fn assert_clean(log: &str) {
    for line in log.lines() {
        let begins = line.len() > 34 && line.starts_with("20") && line.as_bytes()[26] == b'Z';
        let level = line.get(28..33).unwrap_or_default();
        assert!(begins && ["ERROR", " WARN", " INFO", "DEBUG", "TRACE"].contains(&level), "{line:?}");
        assert!(line.len() < 4_000, "{} bytes: {}", line.len(), &line[..200]);
    }
    let bad = |c: char| c.is_control() && c != '\n' || ('\u{202a}'..='\u{202e}').contains(&c);
    assert!(!log.contains(bad), "{log:?}");
    assert!(!log.lines().any(|line| line.contains("Z ERROR all is lost") && !line.contains("x\\n2026")), "{log}");
}

/// Records that are no peers, each with something that would spoil a log.
fn junk() -> Vec<(Vec<u8>, Vec<u8>)> {
    let quoted = serde_json::to_string(FORGED).unwrap();
    let value = |text: &str| text.as_bytes().to_vec();
    let data = r#""BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:c8"}"#;
    vec![
        (value(FORGED), value("{}")),
        (b"10.5.8.0-24\xff\xfe\x1b[2J".to_vec(), value("{}")),
        (value("10.5.201.0-24"), value(&format!(r#"{{"PublicIP":"10.99.1.1","BackendType":{quoted}}}"#))),
        (value("10.5.202.0-24"), value(&format!(r#"{{"PublicIP":{quoted},{data}}}"#))),
        (value("10.5.203.0-24"), value(&format!(r#"{{"PublicIP":"127.0.0.1",{data},"NodeID":{quoted}}}"#))),
        (value("10.5.204.0-24"), value(FORGED)),
        (value("10.5.205.0-24"), value(&quoted)),
        (value("10.5.206.0-24"), value(&format!(r#"{{"PublicIP":"10.99.1.1","NodeID":{quoted}}}"#))),
        (
            value("10.5.207.0-24"),
            value(&format!(r#"{{"PublicIP":"10.99.1.1","BackendType":"{}"}}"#, "b".repeat(1_000_000))),
        ),
    ]
}

#[test]
fn what_somebody_writes_to_etcd_forges_no_line_and_makes_none_endless() {
    let (lab, mut daemons, _pods) = Lab::running(1, NODE_CONFIG, &["--healthz-port=10250"]);
    for (key, value) in junk() {
        lab.put_raw(&key, &value);
    }
    let words = [
        ["x\\n2026", "is not a subnet"],
        ["\\xff\\xfe\\u{1b}[2J", "is not a subnet"],
        ["10.5.201.0-24", "of the backend"],
        ["10.5.202.0-24", "is not an IPv4 address"],
        ["10.5.203.0-24", "127.0.0.1"],
        ["10.5.204.0-24", "not a JSON object"],
        ["10.5.205.0-24", "not a JSON object"],
        ["10.5.206.0-24", "reserved for"],
        ["10.5.207.0-24", "... (1,000,000 bytes)"],
    ];
    words.iter().for_each(|words| daemons[0].wait_log(words, PATIENCE));
    let large =
        format!(r#"{{"Network":"10.6.0.0/16","x":"{}{}"}}"#, "\\u001b\u{202e}".repeat(1_000), "y".repeat(1_300_000));
    lab.put_large_config(&large);
    daemons[0].wait_log(&["the network config was changed", "10.6.0.0/16", "bytes)"], PATIENCE);
    lab.put_large_config(&large[..1_000_000]);
    daemons[0].wait_log(&["the network config was changed and is not usable", "bytes)"], PATIENCE);
    // A newer one of our own record, with a member that is written again.
    let own = lab.node(1).as_peer();
    let record = lab.get(&own.key()).unwrap().value;
    assert_clean(&daemons[0].log());
    assert!(daemons[0].runs() && record.contains("10.99.0.11"));

    // The same when they are there before the daemon, and what waits says why in one line.
    assert!(daemons[0].terminate().status.success());
    daemons[0] = lab.node(1).twilld(&[]);
    daemons[0].wait_log(&["the network config /coreos.com/network/config is not usable"], PATIENCE);
    let status = fs::read_to_string(lab.node(1).subnet_file().with_extension("env.status")).unwrap();
    assert!(status.lines().count() == 1 && status.len() < 2_000, "{} bytes: {}", status.len(), &status[..200]);
    lab.put_large_config(NODE_CONFIG);
    daemons[0].wait_ready();
    words[..3].iter().for_each(|words| daemons[0].wait_log(words, PATIENCE));
    assert_clean(&daemons[0].log());
}

#[test]
fn thousands_of_junk_keys_are_a_few_lines_and_their_number() {
    let (lab, mut daemons, _pods) = Lab::running(1, NODE_CONFIG, &[]);
    let many = |name: &'static str| (0..3_000).map(move |at| (format!("{name}{at}").into_bytes(), b"{}".to_vec()));
    let before = daemons[0].log().len();
    lab.put_all_raw(&many("junk").collect::<Vec<_>>());
    daemons[0].wait_log(&["more records ignored", "whose key names no subnet"], PATIENCE);
    let counted = || {
        let log = daemons[0].log();
        let named = log.lines().filter(|line| line.contains("record ignored key=junk")).count();
        let more = log.lines().filter(|line| line.contains("more records ignored count="));
        let number = |line: &str| line.split("count=").nth(1)?.split(' ').next()?.parse::<usize>().ok();
        (named + more.filter_map(number).sum::<usize>() == 3_000).then_some(())
    };
    wait_until("each is said or counted", PATIENCE, counted);
    let said = daemons[0].log().len() - before;
    assert!(said < 8_000, "{said} bytes");

    assert!(daemons[0].terminate().status.success());
    daemons[0] = lab.node(1).twilld(&[]);
    daemons[0].wait_log(&["ignored records in total", "3000 whose key names no subnet"], PATIENCE);
    daemons[0].wait_ready();
    assert!(daemons[0].log().len() < 8_000, "{}", daemons[0].log());
}

#[test]
fn a_record_that_is_written_again_and_again_is_counted() {
    let (lab, mut daemons, _pods) = Lab::running(1, NODE_CONFIG, &["--peer-mode=all"]);
    let before = daemons[0].log().len();
    let peer = |number: usize| {
        Peer::new("10.5.200.0/24", "10.99.1.200", &format!("02:00:00:00:{:02x}:{:02x}", number >> 8, number & 255))
    };
    // A peer that has another MAC each time, and one that is bad for another reason each time.
    lab.put_in_turn("10.5.200.0-24", (1..WRITES).map(|number| peer(number).record()));
    lab.put_in_turn("10.5.201.0-24", (1..WRITES).map(|number| format!(r#"{{"PublicIP":"x{number}"}}"#)));
    daemons[0].wait_log(&["more peers joined, left or changed", "changed="], PATIENCE);
    daemons[0].wait_log(&["more records ignored", "whose value can't be read"], PATIENCE);
    let last = Peer::new("10.5.202.0/24", "10.99.1.202", "02:00:00:01:00:ca");
    lab.put_raw(b"10.5.202.0-24", last.record().as_bytes());
    let node = lab.node(1);
    wait_until("what came after it is in the kernel", PATIENCE, || node.holds(&last));
    let said = daemons[0].log().len() - before;
    assert!(said < 12_000, "{said} bytes:\n{}", daemons[0].log());
    assert!(daemons[0].runs());
}

#[test]
fn our_own_record_is_put_back_again_and_again_with_few_lines() {
    let (lab, mut daemons, _pods) = Lab::running(1, NODE_CONFIG, &[]);
    let (key, before) = (lab.node(1).as_peer().key(), daemons[0].log().len());
    let (own, name) = (lab.get(&key).unwrap(), key.rsplit('/').next().unwrap().to_owned());
    let spoilt = |number: usize| own.value.replacen('}', &format!(r#","X":{number}}}"#), 1);
    lab.put_in_turn(&name, (1..WRITES).map(spoilt));
    wait_until("the record is as it was", PATIENCE, || (lab.get(&key).unwrap().value == own.value).then_some(()));
    let said = daemons[0].log().len() - before;
    assert!(said < 12_000, "{said} bytes:\n{}", daemons[0].log());
    assert!(daemons[0].runs());
}

#[test]
fn the_log_says_which_peers_were_programmed_and_why() {
    let (lab, mut daemons, pods) = Lab::running(2, NODE_CONFIG, &[]);
    pods[0].ping(pods[1].addr()).unwrap();
    let subnet = lab.node(2).as_peer().subnet.to_string();
    daemons[0]
        .wait_log(&["info peer programmed", &format!("subnet={subnet}"), "why=\"a packet asked for it\""], PATIENCE);
    let peer =
        |n: usize| Peer::new(&format!("10.5.{}.0/24", 200 + n), "10.99.1.200", &format!("02:00:00:00:01:{n:02x}"));
    let peers: Vec<Peer> = (0..30).map(peer).collect();
    let key = |peer: &Peer| peer.key().rsplit('/').next().unwrap().as_bytes().to_vec();
    lab.put_all_raw(&peers.iter().map(|peer| (key(peer), peer.record().into_bytes())).collect::<Vec<_>>());
    daemons[0].wait_log(&["peers joined, left or changed joined=30"], PATIENCE);
    for n in 0..30 {
        let mut ping = lab.node(1).netns().command("ping").unwrap();
        ping.args(["-n", "-c1", "-W0.01", &format!("10.5.{}.7", 200 + n)]).output().unwrap();
    }
    let counted = || {
        let log = daemons[0].log();
        let named = log.lines().filter(|line| line.contains("INFO peer programmed")).count();
        let more =
            log.lines().filter_map(|line| line.split("more peers programmed peers=").nth(1)?.parse::<usize>().ok());
        assert!(named <= 10, "{log}");
        (named + more.sum::<usize>() == 31).then_some(())
    };
    wait_until("each peer is said or counted", PATIENCE, counted);
    // A restart writes nothing into the kernel, and says nothing of the kind.
    assert!(daemons[0].terminate().status.success());
    daemons[0] = lab.node(1).twilld(&[]);
    daemons[0].wait_log(&["info ready", "peers=31", "programmed=31"], PATIENCE);
    assert!(!daemons[0].log().contains("peer programmed"), "{}", daemons[0].log());
    // With every peer at once they are there by their records.
    assert!(daemons[1].terminate().status.success());
    daemons[1] = lab.node(2).twilld(&["--peer-mode=all", "--program-all-on-exit=false"]);
    daemons[1].wait_ready();
    lab.put_peer(&Peer::new("10.5.250.0/24", "10.99.1.250", "02:00:00:00:02:01"));
    daemons[1].wait_log(&["info peer programmed", "10.5.250.0/24", "its record is in etcd"], PATIENCE);
}

#[test]
fn json_has_an_object_in_each_line() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let mut daemon = lab.node(1).twilld(&["--log-format=json", "-v=6"]);
    daemon.wait_log(&[r#""message":"ready""#], PATIENCE);
    for (key, value) in junk() {
        lab.put_raw(&key, &value);
    }
    daemon.wait_log(&["record ignored", "10.5.207.0-24"], PATIENCE);
    assert!(daemon.terminate().status.success());
    let mut messages = Vec::new();
    for line in daemon.log().lines() {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        assert!(value["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
        assert!(["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].contains(&value["level"].as_str().unwrap()), "{line}");
        messages.push((value["message"].as_str().unwrap().to_owned(), value));
    }
    let ready = &messages.iter().find(|(message, _)| message == "ready").unwrap().1;
    assert_eq!((&ready["peers"], &ready["level"]), (&0.into(), &"INFO".into()), "numbers are numbers");
}

#[test]
fn the_journal_has_priorities() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let journal = r#"JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec "$0" "$@""#;
    let mut daemon = lab.node(1).twilld_under(&["sh", "-c", journal], &["-v=1"]);
    daemon.wait_log(&["<6>ready peers=0"], PATIENCE);
    lab.put_raw(b"junk", b"{}");
    daemon.wait_log(&["<4>record ignored key=junk"], PATIENCE);
    daemon.wait_log(&["<7>"], PATIENCE);
    let log = daemon.log();
    assert!(log.lines().all(|line| line.starts_with('<') && line.as_bytes()[2] == b'>'), "{log}");
    assert!(daemon.terminate().status.success());
    // Where systemd's socket is not what standard error is, there is nobody who reads priorities.
    let mut daemon = lab.node(1).twilld_under(&["env", "JOURNAL_STREAM=8:1"], &[]);
    daemon.wait_ready();
    assert_clean(&daemon.log());
}
