//! The interface under the tunnel changes: what follows it, what is said of it, and whether this node is ready meanwhile.

use super::lines::Lines;
use super::*;
use twill_agent::overlay::iface::DefaultHop;

#[tokio::test(start_paused = true)]
async fn device_record_and_subnet_env_follow_the_underlay() {
    Node::run(PeerMode::All, Shared::default(), &[1], async |node| {
        node.until("the peer", |node| node.kernel.peers() == 1).await;
        node.kernel.kernel().interfaces = vec![eth0("10.99.0.77/16", 9000)];
        node.kernel.tell(KernelEvent::Underlay);
        node.until("the MTU", |node| node.kernel.kernel().device.as_ref().is_some_and(|d| d.mtu == 8950)).await;
        let local: IpAddr = "10.99.0.77".parse().unwrap();
        assert_eq!(node.kernel.kernel().device.as_ref().map(|d| d.local), Some(local));
        node.until("the record", |node| {
            let record = node.store.records().remove(&node.key);
            record.is_some_and(|raw| String::from_utf8_lossy(&raw.value).contains("10.99.0.77"))
        })
        .await;
        let env = std::fs::read_to_string(&node.subnet_file).unwrap();
        assert!(env.contains("FLANNEL_MTU=8950"), "{env}");
        node.kernel.kernel().interfaces.clear();
        node.kernel.tell(KernelEvent::Underlay);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(node.kernel.kernel().device.as_ref().map(|d| d.local), Some(local), "what was chosen stays");
    })
    .await;
}

/// One of two interfaces over which the default route leads.
fn leg(name: &str, (index, place): (u32, usize), address: &str, up: bool) -> Interface {
    Interface {
        index,
        name: name.to_owned(),
        default_v4: up.then_some(DefaultHop { metric: 0, linkdown: false, place, of: 2 }),
        down: (!up).then_some("is down"),
        ..eth0(address, 1500)
    }
}

/// Both of them, and whether each is up.
fn both([first, second]: [bool; 2]) -> Vec<Interface> {
    vec![leg("eth0", (2, 1), "10.99.0.10/16", first), leg("eth1", (3, 2), "10.99.8.8/16", second)]
}

impl Node {
    fn show(&self, interfaces: Vec<Interface>) {
        self.kernel.kernel().interfaces = interfaces;
        self.kernel.tell(KernelEvent::Underlay);
    }

    fn device(&self) -> Device {
        self.kernel.kernel().device.clone().unwrap()
    }

    fn missing(&self) -> String {
        self.snapshot.borrow().missing.iter().map(ToString::to_string).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_that_is_down_keeps_the_node_from_being_ready_until_another_one_has_taken_its_place() {
    Node::run(PeerMode::All, Shared::default(), &[1], async |node| {
        node.show(both([true; 2]));
        node.until("ready", |node| node.missing().is_empty()).await;
        node.show(both([false, true]));
        node.until("its link is down", |node| node.missing() == "underlay: eth0 is down").await;
        assert_eq!(node.device().underlay_name, "eth0", "it may come back at once");
        node.until("the other one", |node| node.device().underlay_name == "eth1").await;
        node.until("ready", |node| node.missing().is_empty()).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_link_that_is_up_again_makes_the_node_ready_also_while_an_equal_one_may_take_its_place() {
    Node::run(PeerMode::All, Shared::default(), &[1], async |node| {
        node.show(both([false, true]));
        node.until("over eth1", |node| node.device().underlay_name == "eth1" && node.missing().is_empty()).await;
        node.show(both([false; 2]));
        node.until("both are down", |node| node.missing().starts_with("underlay: eth1 is down")).await;
        node.show(both([true; 2]));
        node.until("ready", |node| node.missing().is_empty()).await;
        assert_eq!(node.device().underlay_name, "eth1", "the first one has to stay for some seconds");
        node.until("the first one", |node| node.device().underlay_name == "eth0").await;
        assert_eq!(node.missing(), "");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_underlay_that_keeps_changing_has_ten_lines_a_minute_and_then_their_number() {
    let log = Lines::begin();
    Node::run(PeerMode::All, Shared::default(), &[1], async |node| {
        node.until("ready", |node| node.missing().is_empty()).await;
        for round in 0..15 {
            for mtu in [1400, 1500] {
                node.show(vec![eth0("10.99.0.10/16", mtu)]);
                node.until(&format!("MTU {mtu} in round {round}"), |node| node.device().mtu == mtu - 50).await;
            }
        }
        let (changed, counted) = ("the underlay changed", "the underlay keeps changing times=20");
        assert_eq!((log.with(changed).len(), log.with(counted).len()), (10, 0));
        tokio::time::sleep(Duration::from_secs(60)).await;
        node.until("counted", |_| log.with(counted).len() == 1).await;
        // After a whole minute without a change each has its line again.
        tokio::time::sleep(Duration::from_secs(70)).await;
        node.show(vec![eth0("10.99.0.10/16", 1400)]);
        node.until("said", |_| log.with(changed).len() == 11).await;
        assert_eq!(log.with("the underlay keeps changing").len(), 1);
    })
    .await;
}
