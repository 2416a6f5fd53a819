//! `twill` as the operator and a script use it: tables, exit codes, keys of any bytes, an etcd that is not there.

use std::process::Command;

use twill_lab::{Lab, NODE_CONFIG, Peer};

use super::{FORGED, junk};

/// What a command came to.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    complaint: String,
}

fn run(mut command: Command) -> Said {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap_or_else(|| panic!("{}", output.status));
    Said { code, out: text(output.stdout), complaint: text(output.stderr) }
}

/// Runs `twill` in the namespace of etcd.
fn twill(lab: &Lab, args: &[&str]) -> Said {
    let mut command = lab.fabric().command(twill_lab::program("twill").unwrap()).unwrap();
    command.arg(format!("--etcd-endpoints={}", lab.etcd().url())).args(args);
    run(command)
}

#[track_caller]
fn assert_clean(text: &str) {
    let bad = |c: char| c.is_control() && c != '\n' || ('\u{202a}'..='\u{202e}').contains(&c);
    assert!(!text.contains(bad), "{text:?}");
    assert!(text.lines().all(|line| line.len() < 1_000), "{text}");
}

#[test]
fn the_table_is_for_people_and_scripts() {
    let (lab, _daemons, _pods) = Lab::running(2, NODE_CONFIG, &[]);
    let said = twill(&lab, &["leases"]);
    assert_eq!((said.code, said.complaint.as_str()), (0, ""), "{said:?}");
    let rows: Vec<Vec<&str>> = said.out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["SUBNET", "PUBLIC-IP", "BACKEND", "VTEP-MAC", "NODE", "LEFT", "STATE"]);
    let mut expected: Vec<_> =
        lab.nodes().iter().map(|node| (node.as_peer(), format!("node{}", node.index()))).collect();
    expected.sort_by_key(|(peer, _)| peer.key());
    assert_eq!(rows.len(), 3);
    for (row, (peer, node)) in rows[1..].iter().zip(&expected) {
        let (subnet, ip) = (peer.subnet.to_string(), peer.public_ip.to_string());
        assert_eq!((row[0], row[1], row[2]), (&*subnet, &*ip, "vxlan"));
        assert_eq!((row[3], row[4], row[6]), (&*peer.mac, &**node, "ok"));
        assert!(row[5].starts_with("23h5") && row[5].ends_with('m'), "{row:?}");
    }

    // What stands in the table is what `release` takes.
    let subnet = expected[0].0.subnet.to_string();
    let refused = twill(&lab, &["release", &subnet]);
    assert!(
        refused.code == 1 && refused.complaint.contains(&format!("twill: {subnet} is not reserved")),
        "{refused:?}"
    );
    let reserved = twill(&lab, &["reserve", "10.5.200.0/24", "--node=rack-7"]);
    assert_eq!((reserved.code, reserved.out.as_str()), (0, "10.5.200.0/24 is reserved for node rack-7\n"));
    let said = twill(&lab, &["leases"]);
    let line = said.out.lines().find(|line| line.starts_with("10.5.200.0/24")).unwrap();
    let cells: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(
        (said.code, cells.join(" ").as_str()),
        (0, "10.5.200.0/24 - - - rack-7 reservation reserved, not used yet")
    );
    assert_eq!(twill(&lab, &["release", "10.5.200.0/24"]).code, 0);
}

#[test]
fn bad_records_have_their_reason_and_an_exit_code() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    lab.put_peer(&Peer::new("10.5.7.0/24", "10.99.1.7", "02:00:00:00:00:07"));
    lab.put_peer(&Peer::new("10.5.8.0/24", "127.0.0.1", "02:00:00:00:00:08"));
    lab.put_all_raw(&junk());
    let said = twill(&lab, &["leases"]);
    assert_eq!(said.code, 3, "{said:?}");
    assert_clean(&said.out);
    assert_clean(&said.complaint);
    let line =
        |start: &str| said.out.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{}", said.out));
    for (start, end) in [
        ("10.5.7.0/24", "reservation  ok"),
        ("10.5.8.0/24", "no-lease     ignored: the public IP 127.0.0.1 is not a host's address"),
        ("10.5.202.0/24", "is not an IPv4 address"),
        ("10.5.207.0/24", "... (1,000,000 bytes)\", not \"vxlan\""),
    ] {
        assert!(line(start).ends_with(end), "{}", line(start));
    }
    // Keys that are no subnets stand apart, and as few columns.
    let (subnets, apart) = said.out.split_once("\n\nKeys that name no subnet").unwrap();
    assert!(!subnets.contains("is not a subnet") && apart.lines().count() == 4, "{}", said.out);
    assert!(said.complaint.contains("2 whose key names no subnet"), "{}", said.complaint);
}

#[test]
fn a_key_of_any_bytes_can_be_deleted() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let keys: [&[u8]; 6] =
        [b"junk", FORGED.as_bytes(), b"10.5.8.0-24\xff\xfe\x1b[2J", b"a\\xffb", b"10.5.7.0-024", &[b'z'; 3_000]];
    lab.put_all_raw(&keys.map(|key| (key.to_vec(), b"{}".to_vec())));
    let shown = || -> Vec<String> {
        let said = twill(&lab, &["leases"]);
        let apart = said.out.split_once("KEY ").map(|(_, apart)| apart.to_owned()).unwrap_or_default();
        apart.lines().skip(1).map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    };
    let all = shown();
    assert_eq!(all.len(), keys.len(), "{all:?}");
    for (at, key) in all.iter().enumerate() {
        let refused = twill(&lab, &["release", key]);
        assert!(refused.code == 1 && refused.complaint.contains("--force"), "{refused:?}");
        let said = twill(&lab, &["release", "--force", key]);
        assert_eq!(said.code, 0, "{key}: {said:?}");
        assert_clean(&said.out);
        assert_eq!(shown(), all[at + 1..], "the others stay");
    }
    assert!(lab.etcdctl(&["get", "--prefix", "--keys-only", "/coreos.com/network/subnets/"]).unwrap().is_empty());
    let nothing = twill(&lab, &["release", "--force", "junk"]);
    assert!(nothing.code == 1 && nothing.complaint.contains("\"junk\" is not a subnet"), "{nothing:?}");
}

#[test]
fn a_missing_or_bad_network_config_is_an_error_that_names_its_key() {
    let lab = Lab::with_nodes(1);
    let key = "/coreos.com/network/config";
    for args in [&["leases"][..], &["reserve", "10.5.7.0/24", "--node=a"]] {
        let said = twill(&lab, args);
        assert_eq!((said.code, said.out.as_str()), (1, ""), "{said:?}");
        assert!(
            said.complaint.contains(&format!("there is no network config: the key {key} does not exist")),
            "{said:?}"
        );
    }
    // The records are shown all the same.
    lab.put_peer(&Peer::new("10.5.7.0/24", "10.99.1.7", "02:00:00:00:00:07"));
    let said = twill(&lab, &["leases"]);
    assert!(said.code == 1 && said.out.contains("10.5.7.0/24") && said.complaint.contains(key), "{said:?}");
    lab.put_config("{");
    let said = twill(&lab, &["leases"]);
    assert!(
        said.code == 1 && said.complaint.contains(&format!("the network config {key} is not usable: ")),
        "{said:?}"
    );
}

#[test]
fn an_etcd_that_is_not_there_is_said_and_waited_for_so_long_only() {
    let lab = Lab::with_nodes(1);
    let url = lab.etcd().url().to_owned();
    lab.etcd().pause();
    for args in [&["leases"][..], &["reserve", "10.5.7.0/24", "--node=a"], &["release", "10.5.7.0/24"]] {
        let said = twill(&lab, &[args, &["--timeout=3s"]].concat());
        let lines: Vec<&str> = said.complaint.lines().collect();
        assert_eq!((said.code, said.out.as_str(), lines.len()), (1, "", 2), "{said:?}");
        assert!(lines[0].starts_with(&format!("twill: etcd at {url} does not answer yet")), "{said:?}");
        assert!(lines[0].ends_with("trying for 3s in all"), "{said:?}");
        assert!(lines[1].starts_with(&format!("twill: no answer from etcd at {url} within 3s")), "{said:?}");
    }
    lab.etcd().resume();
    lab.etcd().kill();
    let said = twill(&lab, &["leases", "--timeout=2s"]);
    assert!(
        said.code == 1 && said.complaint.lines().last().unwrap().contains("refused"),
        "it names the reason: {said:?}"
    );
    let said = twill(&lab, &["leases", "--timeout=soon"]);
    assert!(said.code == 2 && said.complaint.contains("--timeout"), "{said:?}");
}
