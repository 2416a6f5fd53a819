//! The event loop between a store and a kernel in memory, on a clock that the test moves.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use twill_agent::dataplane::fake::FakeKernel;
use twill_agent::dataplane::{Dataplane, Device, Error, KernelEvent, Made, Refused};
use twill_agent::eventloop::{Ended, EventLoop, FamilyPlane, Feeds, OwnRecord, Parts, Signals};
use twill_agent::lease::{self, Keeper};
use twill_agent::masquerade::RulesState;
use twill_agent::overlay::alloc::SubnetRequest;
use twill_agent::overlay::iface::{Interface, Wish};
use twill_agent::overlay::kernel::{Miss, NeighState, Observed, Op, OtherDevice, Via};
use twill_agent::overlay::plane::{PeerMode, Plane, Setup};
use twill_agent::overlay::records::Records;
use twill_agent::overlay::rules::{DeadEnd, Rule, Way};
use twill_agent::overlay::{MacAddr, NetworkConfig, Record};
use twill_agent::site::{self, Site};
use twill_agent::snapshot::{Publisher, Snapshot};
use twill_agent::store::Store;
use twill_agent::store::fake::{FakeStore, Op as StoreOp};

#[path = "../../src/eventloop/lines.rs"]
mod lines;
mod said;
mod snapshot;
mod underlay;

/// A kernel that the test and the loop share.
#[derive(Clone, Default)]
struct Shared {
    kernel: Arc<Mutex<FakeKernel>>,
    told: Arc<Notify>,
    /// How many more times the device cannot be made.
    unmakeable: Arc<Mutex<u32>>,
}

impl Shared {
    fn kernel(&self) -> MutexGuard<'_, FakeKernel> {
        self.kernel.lock().unwrap()
    }

    fn tell(&self, event: KernelEvent) {
        self.kernel().events.push_back(event);
        self.told.notify_one();
    }

    fn peers(&self) -> usize {
        self.kernel().routes.values().filter(|(via, _)| matches!(via, Via::Gateway(_))).count()
    }
}

impl Dataplane for Shared {
    async fn make(&mut self, device: &Device) -> Result<Made, Error> {
        let mut left = self.unmakeable.lock().unwrap();
        if *left > 0 {
            *left -= 1;
            return Err(Error::Foreign { name: device.name.clone(), kind: "bridge".to_owned() });
        }
        let there = self.kernel().device.replace(device.clone());
        Ok(if there.as_ref() == Some(device) { Made::AsWanted } else { Made::Created(Vec::new()) })
    }

    fn interfaces(&mut self) -> Result<Vec<Interface>, Error> {
        self.kernel().interfaces()
    }

    fn is_direct(&mut self, host: IpAddr) -> Result<bool, Error> {
        self.kernel().is_direct(host)
    }

    fn devices(&mut self) -> Result<BTreeMap<u32, OtherDevice>, Error> {
        self.kernel().devices()
    }

    fn rules(&mut self) -> Result<Vec<Rule>, Error> {
        self.kernel().rules()
    }

    fn way_to(&mut self, address: IpAddr) -> Result<Way, Error> {
        self.kernel().way_to(address)
    }

    fn dead_ends(&mut self, table: u32) -> Result<Vec<DeadEnd>, Error> {
        self.kernel().dead_ends(table)
    }

    fn apply(&mut self, ops: &[Op]) -> Result<Vec<Refused>, Error> {
        self.kernel().apply(ops)
    }

    fn observe(&mut self) -> Result<(Observed, bool), Error> {
        self.kernel().observe()
    }

    fn next_event(&mut self) -> Result<Option<KernelEvent>, Error> {
        self.kernel().next_event()
    }

    async fn readable(&self) {
        self.told.notified().await;
    }
}

/// A node whose loop runs for as long as its script does.
struct Node {
    store: FakeStore,
    kernel: Shared,
    key: String,
    subnet_file: PathBuf,
    snapshot: watch::Receiver<Snapshot>,
    _folder: tempfile::TempDir,
}

fn eth0(address: &str, mtu: u32) -> Interface {
    let addresses = vec![address.parse().unwrap()];
    Interface { index: 2, name: "eth0".into(), mtu, addresses, default_v4: Some(0.into()), ..Interface::default() }
}

fn peer(index: u8) -> (String, Vec<u8>) {
    let mut record = Record::vxlan(format!("10.99.1.{index}").parse().unwrap());
    let endpoint = twill_agent::overlay::record::VtepData { vni: Some(1), mac: MacAddr([2, 0, 0, 0, 0, index]) };
    record.ipv4 = Some(endpoint.into());
    (format!("10.5.{index}.0-24"), record.to_json())
}

impl Node {
    /// Starts a node on this kernel, with these records in the store, and runs the script beside its loop.
    async fn run<F: AsyncFnOnce(&Node)>(mode: PeerMode, kernel: Shared, peers: &[u8], script: F) -> Option<Ended> {
        let store = FakeStore::new();
        let text = br#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.200.0"}"#;
        store.set_config(Some(text));
        peers.iter().map(|index| peer(*index)).for_each(|(key, value)| {
            store.put(&key, &value, 1);
        });
        kernel.kernel().interfaces = vec![eth0("10.99.0.10/16", 1500)];
        let folder = tempfile::tempdir().unwrap();
        let subnet_file = folder.path().join("subnet.env");
        let wish = Wish::default();
        let config = NetworkConfig::parse(text).unwrap();
        let site = Site {
            config,
            config_text: text.to_vec(),
            wish,
            subnet_file: subnet_file.clone(),
            ip_masq: false,
            on_demand: false,
        };
        let ends = site.ends(&kernel.kernel().interfaces).unwrap();
        let record = site.record(&ends, |_| Some(MacAddr([2, 0, 0, 0, 0, 0xaa])));
        let wanted = SubnetRequest::of(&site.config, &record);
        let known = lease::Known::of(&wanted, store.records().values());
        let held = lease::acquire(&store, &wanted, &known, &record, lease::TTL).await.unwrap();
        let mut dataplane = kernel.clone();
        let device = site.device(&ends[0], &held.key, Some(MacAddr([2, 0, 0, 0, 0, 0xaa]))).unwrap();
        dataplane.make(&device).await.unwrap();
        let subnet = site::own_subnet(&held.key, &ends[0]).unwrap();
        let setup =
            Setup { net: ends[0].net, subnet, ways: site.config.backend.ways(), mode, idle: Duration::from_secs(600) };
        let family = FamilyPlane::new(Plane::new(setup), dataplane, device, tokio::time::Instant::now().into_std());
        let of_peers = Records::new(site.config.backend, vec![site::own(&held.key, &held.record, &ends[0]).unwrap()]);
        let key = held.key.to_string();
        let margin = Duration::from_secs(3600);
        let (own_key, own_record, lease_id) = (held.key, held.record.clone(), held.lease);
        let (keeper, lease) = Keeper::spawn(store.clone(), site.config.clone(), held, lease::TTL, margin);
        let feeds = Feeds { store: store.follow(), lease };
        let (publisher, snapshot) = Publisher::new();
        let (_rules, rules) = watch::channel(RulesState::default());
        let again = store.clone();
        let turn = EventLoop::new(Parts {
            site,
            families: vec![family],
            records: of_peers,
            own: OwnRecord::new(own_key, own_record, keeper, lease_id),
            program_all_on_exit: true,
            read_again: Box::new(move || again.follow()),
            rules,
            publisher,
        });
        let node = Node { store, kernel, key, subnet_file, snapshot, _folder: folder };
        tokio::select! {
            ended = turn.run(Signals::new().unwrap(), feeds) => Some(ended),
            () = script(&node) => None,
        }
    }

    /// Lets the loop go on until this holds; the clock moves by itself when there is nothing to do.
    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..2_000 {
            if holds(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never: {what}: {:#?}", self.kernel.kernel());
    }
}

#[tokio::test(start_paused = true)]
async fn records_come_change_and_go() {
    Node::run(PeerMode::All, Shared::default(), &[1, 2, 3], async |node| {
        node.until("three peers", |node| node.kernel.peers() == 3).await;
        let (key, value) = peer(4);
        node.store.put(&key, &value, 1);
        node.until("four peers", |node| node.kernel.peers() == 4).await;
        node.store.put(&key, &peer(9).1, 1);
        node.until("the new remote", |node| node.kernel.kernel().fdb.contains_key(&MacAddr([2, 0, 0, 0, 0, 9]))).await;
        node.until("no old row", |node| !node.kernel.kernel().fdb.contains_key(&MacAddr([2, 0, 0, 0, 0, 4]))).await;
        node.store.put(&key, b"junk", 1);
        node.until("the bad record's peer gone", |node| node.kernel.peers() == 3).await;
        node.store.remove(&peer(1).0);
        node.until("two peers", |node| node.kernel.peers() == 2).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn after_a_compaction_what_the_read_does_not_name_is_gone() {
    Node::run(PeerMode::All, Shared::default(), &[1, 2, 3], async |node| {
        node.until("three peers", |node| node.kernel.peers() == 3).await;
        node.store.down();
        node.store.remove(&peer(2).0);
        node.store.compact();
        node.store.up();
        node.until("two peers", |node| node.kernel.peers() == 2).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_where_all_is_right() {
    let kernel = Shared::default();
    Node::run(PeerMode::All, kernel.clone(), &[1, 2, 3], async |node| {
        node.until("three peers", |node| node.kernel.peers() == 3).await;
    })
    .await;
    let before = kernel.kernel().applied;
    Node::run(PeerMode::All, kernel.clone(), &[1, 2, 3], async |_| {
        tokio::time::sleep(Duration::from_secs(200)).await;
    })
    .await;
    assert_eq!(kernel.kernel().applied, before);
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_in_silence_comes_back_within_a_minute() {
    Node::run(PeerMode::All, Shared::default(), &[1, 2], async |node| {
        node.until("two peers", |node| node.kernel.peers() == 2).await;
        node.kernel.kernel().routes.clear();
        node.kernel.kernel().fdb.clear();
        tokio::time::sleep(Duration::from_secs(61)).await;
        node.until("two peers again", |node| node.kernel.peers() == 2 && node.kernel.kernel().fdb.len() == 2).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_device_that_cannot_be_made_is_tried_until_it_can() {
    Node::run(PeerMode::All, Shared::default(), &[1, 2], async |node| {
        node.until("two peers", |node| node.kernel.peers() == 2).await;
        *node.kernel.unmakeable.lock().unwrap() = 3;
        {
            let mut kernel = node.kernel.kernel();
            (kernel.device, kernel.fdb) = (None, Default::default());
            kernel.neighbours.clear();
            kernel.routes.clear();
        }
        node.kernel.tell(KernelEvent::Device);
        node.until("all again", |node| node.kernel.peers() == 2 && node.kernel.kernel().device.is_some()).await;
        assert_eq!(*node.kernel.unmakeable.lock().unwrap(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_operation_is_tried_again() {
    let kernel = Shared::default();
    kernel.kernel().fail_at = Some(4);
    Node::run(PeerMode::All, kernel, &[1, 2, 3], async |node| {
        node.until("three peers", |node| node.kernel.peers() == 3 && node.kernel.kernel().neighbours.len() == 3).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_miss_is_answered_and_an_overrun_loses_none() {
    Node::run(PeerMode::OnDemand, Shared::default(), &[1, 2, 3], async |node| {
        node.until("the base route", |node| node.kernel.kernel().routes.len() == 1).await;
        node.kernel.tell(KernelEvent::Miss(Miss::Address("10.5.1.7".parse().unwrap())));
        node.until("the peer", |node| node.kernel.peers() == 1).await;
        let waiting: IpAddr = "10.5.2.7".parse().unwrap();
        node.kernel.kernel().neighbours.insert(waiting, (None, NeighState::Incomplete, 0));
        node.kernel.tell(KernelEvent::Overrun);
        node.until("the other", |node| node.kernel.peers() == 2).await;
        node.until("its guest is gone", |node| !node.kernel.kernel().neighbours.contains_key(&waiting)).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_misses_is_answered_whole() {
    // Many times what one turn hears.
    const MISSES: usize = 5_000;
    Node::run(PeerMode::OnDemand, Shared::default(), &[1, 2, 3], async |node| {
        node.until("the base route", |node| node.kernel.kernel().routes.len() == 1).await;
        {
            let mut kernel = node.kernel.kernel();
            let address = |n: usize| IpAddr::from([10, 5, (n % 3 + 1) as u8, (n / 3 % 250 + 1) as u8]);
            kernel.events.extend((0..MISSES).map(|n| KernelEvent::Miss(Miss::Address(address(n)))));
        }
        node.kernel.told.notify_one();
        let (key, value) = peer(4);
        node.store.put(&key, &value, 1);
        node.kernel.tell(KernelEvent::Miss(Miss::Address("10.5.4.7".parse().unwrap())));
        node.until("all peers", |node| node.kernel.peers() == 4 && node.kernel.kernel().events.is_empty()).await;
        node.until("only gateways", |node| node.kernel.kernel().neighbours.len() == 4).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_loop_does_not_outlive_its_reader() {
    let ended = Node::run(PeerMode::All, Shared::default(), &[1], async |node| {
        node.until("the peer", |node| node.kernel.peers() == 1).await;
        node.store.hang_up();
        tokio::time::sleep(Duration::from_secs(3600)).await;
    })
    .await;
    assert_eq!(
        ended,
        Some(Ended::Broken { part: "the reader of etcd has ended unexpectedly: this is a bug of twilld".to_owned() })
    );
}

#[tokio::test(start_paused = true)]
async fn what_shows_nothing_of_the_lease_ends_no_trouble_with_it() {
    Node::run(PeerMode::All, Shared::default(), &[1], async |node| {
        let missing = |node: &Node| node.snapshot.borrow().missing.clone();
        node.until("ready", |node| missing(node).is_empty()).await;
        let value = node.store.records()[&node.key].value.clone();
        let text = String::from_utf8(value.clone()).unwrap();
        // Another node asks whether we are here, and no answer can be written.
        node.store.fail_next(StoreOp::Update, 1_000_000);
        let asked = text.replacen('}', "},\"ClaimedBy\":\"other\"", 1);
        node.store.put(&node.key, asked.as_bytes(), node.store.records()[&node.key].lease);
        let in_trouble = |node: &Node| {
            missing(node).iter().any(|what| what.to_string().starts_with("record: etcd refuses or fails: "))
        };
        node.until("in trouble", in_trouble).await;
        node.store.put(&node.key, asked.replace("other", "third").as_bytes(), node.store.records()[&node.key].lease);
        node.store.put(&node.key, asked.as_bytes(), 0);
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(in_trouble(node), "{:?}", missing(node));
        }
        node.store.fail_next(StoreOp::Update, 0);
        node.until("ready again", |node| missing(node).is_empty()).await;
        assert_eq!(node.store.records()[&node.key].value, value);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn our_record_comes_back_and_a_taken_subnet_ends_the_loop() {
    let ended = Node::run(PeerMode::All, Shared::default(), &[1], async |node| {
        node.store.remove(&node.key);
        node.until("our record again", |node| node.store.records().contains_key(&node.key)).await;
        node.store.remove(&node.key);
        node.store.put(&node.key, &peer(66).1, 7);
        tokio::time::sleep(Duration::from_secs(3600)).await;
    })
    .await;
    match ended {
        Some(Ended::LeaseLost { holder }) => assert!(holder.contains("10.99.1.66"), "{holder}"),
        other => panic!("{other:?}"),
    }
}
