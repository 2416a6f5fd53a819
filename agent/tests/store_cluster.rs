//! The store on three members with TLS and roles: what the loss, the silence and the return of members does to it.
//!
//! Each test writes while the fault is on and compares what was heard with what etcd has: all of it, once, in order, with
//! one `Down` and one `Up` for an outage at the most and without a second complete read.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its tests do")]
#![allow(dead_code, reason = "the server's helpers are shared with other tests")]

mod etcd_server;

use std::collections::BTreeSet;
use std::time::Duration;

use etcd_server::cluster::{Cluster, MEMBERS, OVER};
use etcd_server::mirror::{Mirror, Outage};
use etcd_server::{Etcd, Release, on_each_etcd};
use nix::sys::signal::Signal;
use twill_agent::store::Store;
use twill_agent::store::etcd::EtcdStore;

/// A node's view of a cluster, and what was written.
struct Network {
    cluster: Cluster,
    mirror: Mirror,
    written: BTreeSet<String>,
}

impl Network {
    async fn start(release: Release) -> Self {
        let cluster = Cluster::start(release);
        let mirror = Mirror::new(cluster.store().follow()).await;
        Self { cluster, mirror, written: BTreeSet::new() }
    }

    /// Writes a record through these members, which must be alive.
    fn write(&mut self, members: &[usize]) {
        let key = format!("10.5.{}.0-24", self.written.len());
        let end = std::time::Instant::now() + OVER;
        while let Err(error) = self.cluster.ctl_at(members, &["put", &Etcd::key(&key), "x"]) {
            assert!(std::time::Instant::now() < end, "put {key}: {error}");
        }
        self.written.insert(key);
    }

    /// Waits until all that was written has been heard, and the store works.
    async fn hear_all(&mut self) {
        let written = &self.written;
        let all = |mirror: &Mirror| mirror.is_up() && mirror.table.keys().eq(written.iter());
        self.mirror.until("all that was written", OVER, all).await;
        assert_eq!(self.mirror.listings, 1, "nothing was read a second time");
    }

    /// The member that this process talks to.
    fn connected(&self) -> usize {
        (0..MEMBERS).find(|member| self.cluster.is_connected(*member)).unwrap()
    }

    fn others(member: usize) -> Vec<usize> {
        (0..MEMBERS).filter(|other| *other != member).collect()
    }

    /// How often the store was said to be down.
    fn downs(&self) -> usize {
        self.mirror.outages.iter().filter(|outage| matches!(outage, Outage::Down(_))).count()
    }
}

async fn the_role_is_enough_and_exactly_that(release: Release) {
    let cluster = Cluster::start(release);
    // Once more does no harm.
    cluster.script(&["--user", "node", "--certificate"]);
    let role = cluster.ctl(&["role", "get", "twill-node"]);
    let lines: Vec<_> = role.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let range = "[/coreos.com/network/subnets/, /coreos.com/network/subnets0) (prefix /coreos.com/network/subnets/)";
    assert_eq!(lines, ["Role twill-node", "KV Read:", "/coreos.com/network/config", range, "KV Write:", range]);
    let store = cluster.store();
    assert_eq!(store.config().await.unwrap(), None);
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    store.create("10.5.1.0-24", b"x", Some(lease)).await.unwrap();
    assert!(store.keep_alive(lease).await.unwrap().is_some());
    assert!(store.in_the_way("10.5.1.0-24&fc00::-64").await.unwrap().is_some());
    store.revoke(lease).await.unwrap();
    assert_eq!(store.record("10.5.1.0-24").await.unwrap(), None);
    let options = cluster.options(&[0, 1, 2]);
    let other = twill_agent::store::etcd::EtcdOptions { prefix: "/coreos.com/network2".to_owned(), ..options };
    let error = EtcdStore::connect(other).unwrap().create("10.5.1.0-24", b"x", None).await.unwrap_err();
    let needed = "the user needs a role with readwrite permission on /coreos.com/network2/subnets/10.5.1.0-24";
    assert!(error.to_string().ends_with(needed), "{error}");
}

async fn a_lost_leader_loses_no_event(release: Release) {
    let mut network = Network::start(release).await;
    for _ in 0..2 {
        let leader = network.cluster.leader(network.connected());
        network.write(&[leader]);
        network.cluster.kill(leader);
        for _ in 0..3 {
            network.write(&Network::others(leader));
        }
        network.hear_all().await;
        network.cluster.restart(leader);
        network.cluster.wait_healthy();
        network.write(&[leader]);
        network.hear_all().await;
    }
    assert!(network.downs() <= 2, "{:?}", network.mirror.outages);
}

async fn a_rolling_restart_loses_no_event(release: Release) {
    let mut network = Network::start(release).await;
    for member in 0..MEMBERS {
        network.cluster.kill(member);
        network.write(&Network::others(member));
        network.cluster.restart(member);
        network.cluster.wait_healthy();
        network.write(&[member]);
    }
    network.hear_all().await;
    assert!(network.downs() <= MEMBERS, "{:?}", network.mirror.outages);
}

async fn a_restart_of_all_members_is_one_outage(release: Release) {
    let mut network = Network::start(release).await;
    network.write(&[0]);
    network.hear_all().await;
    (0..MEMBERS).for_each(|member| network.cluster.kill(member));
    network.mirror.until("the outage", OVER, |mirror| !mirror.is_up()).await;
    (0..MEMBERS).for_each(|member| network.cluster.restart(member));
    network.write(&[0, 1, 2]);
    network.hear_all().await;
    network.mirror.settle(Duration::from_secs(2)).await;
    assert_eq!(network.mirror.outages.len(), 2, "{:?}", network.mirror.outages);
}

async fn a_lost_quorum_is_no_silence(release: Release) {
    let mut network = Network::start(release).await;
    let connected = network.connected();
    // The one that stays has the connection: nothing is seen of the loss but what etcd says.
    for member in Network::others(connected) {
        network.cluster.kill(member);
    }
    network.mirror.until("the outage", OVER, |mirror| !mirror.is_up()).await;
    for member in Network::others(connected) {
        network.cluster.restart(member);
    }
    network.write(&[0, 1, 2]);
    network.hear_all().await;
    assert_eq!(network.downs(), 1, "{:?}", network.mirror.outages);
}

async fn a_hung_member_is_left(release: Release) {
    let mut network = Network::start(release).await;
    let hung = network.connected();
    network.cluster.signal(hung, Signal::SIGSTOP);
    network.write(&Network::others(hung));
    network.hear_all().await;
    assert_eq!(network.downs(), 1, "{:?}", network.mirror.outages);
    assert_ne!(network.connected(), hung);
    network.cluster.signal(hung, Signal::SIGCONT);
    network.write(&[hung]);
    network.hear_all().await;
    assert_eq!(network.downs(), 1, "{:?}", network.mirror.outages);
}

async fn a_cut_connection_is_made_again(release: Release) {
    let mut network = Network::start(release).await;
    for n in 1..=3 {
        let connected = network.connected();
        network.cluster.cut(connected);
        network.mirror.until("the cut", OVER, |mirror| mirror.outages.len() >= 2 * n - 1).await;
        network.write(&[0, 1, 2]);
        network.hear_all().await;
        assert_eq!(network.downs(), n, "{:?}", network.mirror.outages);
    }
}

async fn one_dead_endpoint_of_three_fails_nothing(release: Release) {
    let mut cluster = Cluster::start(release);
    cluster.kill(1);
    cluster.ctl(&["put", "/coreos.com/network/config", "{}"]);
    // The first endpoint is chosen at random.
    for n in 0..12 {
        let store = cluster.store();
        let lease = store.grant(Duration::from_secs(60)).await.unwrap();
        store.create(&format!("10.5.{n}.0-24"), b"x", Some(lease)).await.unwrap();
        assert!(store.config().await.unwrap().is_some());
        let mirror = Mirror::new(store.follow()).await;
        assert_eq!(mirror.table.len(), n + 1);
        assert_eq!(mirror.outages, [], "a dead endpoint is no outage");
    }
}

on_each_etcd!(
    the_role_is_enough_and_exactly_that,
    a_lost_leader_loses_no_event,
    a_rolling_restart_loses_no_event,
    a_restart_of_all_members_is_one_outage,
    a_lost_quorum_is_no_silence,
    a_hung_member_is_left,
    a_cut_connection_is_made_again,
    one_dead_endpoint_of_three_fails_nothing,
);
