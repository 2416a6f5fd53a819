//! What the loop says in its log of what others do again and again.

use std::fs;
use std::time::Duration;

use super::lines::Lines;
use super::*;

fn is_ready(node: &Node) -> bool {
    node.snapshot.borrow().missing.is_empty()
}

#[tokio::test(start_paused = true)]
async fn a_config_that_is_changed_back_is_the_one_that_the_daemon_runs_on() {
    let log = Lines::begin();
    Node::run(PeerMode::All, Shared::default(), &[1], async |node| {
        node.until("ready", is_ready).await;
        let theirs = br#"{"Network":"10.6.0.0/16"}"#;
        let ours = br#"{ "Network": "10.5.0.0/16", "SubnetMin": "10.5.200.0" }"#;
        for round in 1..=3 {
            node.store.set_config(Some(theirs));
            node.until("changed", |_| log.with("the network config was changed;").len() == round).await;
            // Written in another way, it is the same.
            node.store.set_config(Some(ours));
            node.until("back", |_| log.with("is again the one that this daemon runs on").len() == round).await;
        }
        node.store.set_config(None);
        node.until("deleted", |_| log.with("the network config was deleted").len() == 1).await;
        node.store.set_config(Some(ours));
        node.until("back", |_| log.with("is again the one that this daemon runs on").len() == 4).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_count_of_a_config_s_changes_says_what_stands_in_the_end() {
    let log = Lines::begin();
    Node::run(PeerMode::All, Shared::default(), &[1], async |node| {
        node.until("ready", is_ready).await;
        let ours = br#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.200.0"}"#;
        for _ in 0..10 {
            node.store.set_config(Some(br#"{"Network":"10.6.0.0/16"}"#));
            node.store.set_config(Some(ours));
        }
        node.until("counted", |_| !log.with("was changed again and again").is_empty()).await;
        let counted = log.with("was changed again and again");
        assert!(
            counted.len() == 1 && counted[0].contains("times=10 now=\"the one that this daemon runs on\""),
            "{counted:?}"
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_changes_subnet_env_again_and_again_is_counted_once_a_minute() {
    let log = Lines::begin();
    Node::run(PeerMode::All, Shared::default(), &[1], async |node| {
        node.until("ready", is_ready).await;
        let text = fs::read_to_string(&node.subnet_file).unwrap();
        for _ in 0..20 {
            fs::write(&node.subnet_file, "FLANNEL_MTU=9000\n").unwrap();
            node.until("written again", |node| fs::read_to_string(&node.subnet_file).unwrap() == text).await;
        }
        let times = |line: &String| {
            let number = line.split("times=").nth(1).unwrap();
            number.split_whitespace().next().unwrap().parse::<usize>().unwrap()
        };
        tokio::time::sleep(Duration::from_secs(130)).await;
        let counted: Vec<usize> = log.with("another program keeps changing subnet.env").iter().map(times).collect();
        // The daemon's own first line is one of those that are said.
        assert_eq!((log.with("subnet.env written").len(), counted.iter().sum()), (3, 18));
        assert!(counted.len() < 5, "{counted:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_deletes_the_device_again_and_again_is_counted_once_a_minute() {
    let log = Lines::begin();
    Node::run(PeerMode::All, Shared::default(), &[1], async |node| {
        node.until("ready", is_ready).await;
        for _ in 0..30 {
            node.kernel.kernel().device = None;
            node.kernel.tell(KernelEvent::Device);
            node.until("made again", |node| node.kernel.kernel().device.is_some()).await;
        }
        assert_eq!(log.with("the daemon restored it").len(), 10);
        tokio::time::sleep(Duration::from_secs(130)).await;
        let counted = log.with("the daemon restores it at most once a second");
        assert!(counted.len() == 1 && counted[0].contains("times=20"), "{counted:?}");
    })
    .await;
}
