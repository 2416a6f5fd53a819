//! Nodes without a kernel: each reads, gets a subnet, keeps it and follows the others, as twilld does, as a task. A checker
//! that knows what all of them believe watches over them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use twill_agent::lease::{self, AcquireError, Held, Keeper, Known, LeaseEvent};
use twill_agent::overlay::NetworkConfig;
use twill_agent::overlay::alloc::SubnetRequest;
use twill_agent::overlay::record::{Record, VtepData};
use twill_agent::store::etcd::{EtcdOptions, EtcdStore};
use twill_agent::store::{Change, RawRecord, Store, StoreEvent};

use super::mirror::Mirror;

/// Who holds what, as the agents themselves believe.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    held: Mutex<BTreeMap<String, usize>>,
    /// Two living agents that believed in one subnet.
    pub(crate) doubled: Mutex<Vec<String>>,
    pub(crate) counts: Mutex<BTreeMap<&'static str, usize>>,
}

impl Checker {
    pub(crate) fn count(&self, what: &'static str) {
        *self.counts.lock().unwrap().entry(what).or_default() += 1;
    }

    pub(crate) fn held(&self) -> BTreeMap<String, usize> {
        self.held.lock().unwrap().clone()
    }

    fn takes(&self, agent: usize, key: &str) {
        self.count("subnets got");
        if let Some(other) = self.held.lock().unwrap().insert(key.to_owned(), agent) {
            self.doubled.lock().unwrap().push(format!("{key} is held by agents {other} and {agent}"));
        }
    }

    fn lets_go(&self, agent: usize, key: &str) {
        let mut held = self.held.lock().unwrap();
        if held.get(key) == Some(&agent) {
            held.remove(key);
        }
    }
}

/// The belief of one life of an agent; it ends with that life, whatever ends it.
struct Belief {
    checker: Arc<Checker>,
    agent: usize,
    key: String,
}

impl Drop for Belief {
    fn drop(&mut self) {
        self.checker.lets_go(self.agent, &self.key);
    }
}

/// What an agent is made of.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) options: EtcdOptions,
    pub(crate) config: NetworkConfig,
    pub(crate) checker: Arc<Checker>,
}

/// A living agent.
pub(crate) struct Agent {
    pub(crate) number: usize,
    task: JoinHandle<()>,
    /// All records, as it last heard.
    pub(crate) table: Arc<Mutex<BTreeMap<String, RawRecord>>>,
}

impl Agent {
    /// A node on this runtime.
    pub(crate) fn spawn(runtime: &tokio::runtime::Handle, plan: &Plan, number: usize) -> Self {
        let table = Arc::<Mutex<BTreeMap<String, RawRecord>>>::default();
        let task = runtime.spawn(live(plan.clone(), number, Arc::clone(&table)));
        Self { number, task, table }
    }

    /// Ends it as kill -9 does: nothing is given back.
    pub(crate) async fn kill(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    pub(crate) fn is_alive(&self) -> bool {
        !self.task.is_finished()
    }
}

/// The record of a node without a kernel.
pub(crate) fn record(number: usize) -> Record {
    let vtep = VtepData { vni: Some(1), mac: format!("02:00:00:00:00:{number:02x}").parse().unwrap() };
    let ip = Ipv4Addr::new(10, 99, 0, u8::try_from(number).unwrap());
    Record { ipv4: Some(vtep.into()), node: Some(format!("node-{number}")), ..Record::vxlan(ip) }
}

/// Reads all and gets a subnet.
pub(crate) async fn join(
    store: &EtcdStore,
    config: &NetworkConfig,
    record: &Record,
) -> (Mirror, Result<Held, AcquireError>) {
    let mirror = Mirror::new(store.follow()).await;
    let wanted = SubnetRequest::of(config, record);
    let known = Known::of(&wanted, mirror.table.values());
    let held = lease::acquire(store, &wanted, &known, record, lease::TTL).await;
    (mirror, held)
}

/// One life: until its end from outside, or the loss of its subnet.
async fn live(plan: Plan, number: usize, table: Arc<Mutex<BTreeMap<String, RawRecord>>>) {
    let checker = plan.checker;
    checker.count("lives");
    let store = EtcdStore::connect(plan.options).unwrap();
    let (mut mirror, held) = loop {
        match join(&store, &plan.config, &record(number)).await {
            (mirror, Ok(held)) => break (mirror, held),
            (_, Err(error @ (AcquireError::Doubled { .. } | AcquireError::Cloned { .. }))) => {
                panic!("agent {number}: {error}")
            }
            (_, Err(AcquireError::NoFreeSubnet { .. })) => {
                checker.count("waits for a free subnet");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    };
    let key = held.key.to_string();
    checker.takes(number, &key);
    let _belief = Belief { checker: Arc::clone(&checker), agent: number, key: key.clone() };
    let (keeper, mut lease) = Keeper::spawn(store, plan.config.clone(), held, lease::TTL, Duration::from_secs(3_600));
    loop {
        *table.lock().unwrap() = mirror.table.clone();
        tokio::select! {
            event = mirror.next() => {
                match event {
                    StoreEvent::Listing => checker.count("complete reads beyond the first"),
                    StoreEvent::Down { .. } => checker.count("outages"),
                    StoreEvent::Up => checker.count("ends of outages"),
                    _ => {}
                }
                let before = mirror.table.get(&key).cloned();
                let listed = mirror.take_and_tell(event);
                if listed {
                    keeper.check();
                }
                match mirror.table.get(&key) {
                    Some(now) if before.as_ref() != Some(now) || listed => keeper.seen(Change::Put(now.clone())),
                    None if before.is_some() && !mirror.is_listing() || listed => {
                        keeper.seen(Change::Deleted { key: key.clone(), revision: mirror.revision() });
                    }
                    _ => {}
                }
            }
            event = lease.recv() => match event {
                Some(LeaseEvent::Lost { holder }) => {
                    eprintln!("agent {number} lost {key} to {holder}");
                    checker.count("subnets lost");
                    return;
                }
                Some(LeaseEvent::Recreated { .. }) => checker.count("records made again"),
                Some(_) => {}
                None => panic!("the keeper of agent {number} ended"),
            },
        }
    }
}
