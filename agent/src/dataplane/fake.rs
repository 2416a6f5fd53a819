//! A kernel in memory: holds rows as the real one does, and fails when it is told to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::{Dataplane, Device, Error, KernelEvent, Made, Refused};
use crate::overlay::MacAddr;
use crate::overlay::iface::Interface;
use crate::overlay::kernel::{
    Fdb, NeighState, Observed, Op, OtherDevice, PROTOCOL, Route, Row, SeenFdb, SeenNeigh, SeenRoute, Via,
};
use crate::overlay::rules::{DeadEnd, Rule, Way};

/// A model of the tables that Twill writes to.
#[derive(Debug, Default)]
pub struct FakeKernel {
    /// The device, once made.
    pub device: Option<Device>,
    /// FDB rows, with the time since their last use.
    pub fdb: BTreeMap<MacAddr, (IpAddr, Duration)>,
    /// Neighbours: MAC, state and protocol.
    pub neighbours: BTreeMap<IpAddr, (Option<MacAddr>, NeighState, u8)>,
    /// Routes by prefix and metric: where they lead, and their protocol.
    pub routes: BTreeMap<(IpNetwork, u32), (Via, u8)>,
    /// The host's interfaces.
    pub interfaces: Vec<Interface>,
    /// Addresses that are reached without a gateway.
    pub direct: BTreeSet<IpAddr>,
    /// Policy rules.
    pub rules: Vec<Rule>,
    /// Which way the kernel sends what goes to an address, where that is not as the main table says.
    pub ways: BTreeMap<IpAddr, Way>,
    /// The routes of other tables than the main one that send a packet nowhere.
    pub dead_ends: BTreeMap<u32, Vec<DeadEnd>>,
    /// Events to hand out.
    pub events: VecDeque<KernelEvent>,
    /// How many operations were applied, failed ones too.
    pub applied: usize,
    /// The operation of this number (counted like `applied`, from 0) fails.
    pub fail_at: Option<usize>,
    /// How many tables the dump under way has shown.
    table: u8,
}

impl FakeKernel {
    fn one(&mut self, op: &Op) -> Result<(), String> {
        let number = self.applied;
        self.applied += 1;
        if self.fail_at == Some(number) {
            return Err("told to fail".to_owned());
        }
        match *op {
            Op::PutFdb(Fdb { mac, remote }) => {
                self.fdb.insert(mac, (remote, Duration::ZERO));
            }
            Op::PutNeigh(neigh) => {
                self.neighbours.insert(neigh.address, (Some(neigh.mac), NeighState::Permanent, PROTOCOL));
            }
            Op::PutRoute(Route { destination, via, metric, protocol }) => {
                self.routes.insert((destination, metric), (via, protocol));
            }
            Op::Delete(Row::Fdb(Fdb { mac, remote })) => {
                if self.fdb.get(&mac).is_some_and(|(there, _)| *there == remote) {
                    self.fdb.remove(&mac);
                }
            }
            Op::Delete(Row::Neigh(address)) => {
                self.neighbours.remove(&address);
            }
            // Like the kernel: the protocol has to be the same, and metric 0 stands for any.
            Op::Delete(Row::Route(Route { destination, via, metric, protocol })) => {
                let fits = |((to, its_metric), there): &(&(IpNetwork, u32), &(Via, u8))| {
                    *to == destination && **there == (via, protocol) && (metric == 0 || *its_metric == metric)
                };
                if let Some(key) = self.routes.iter().find(fits).map(|(key, _)| *key) {
                    self.routes.remove(&key);
                }
            }
        }
        Ok(())
    }

    /// What a dump shows now.
    pub fn dump(&self) -> Observed {
        let fdb = self.fdb.iter().map(|(mac, (remote, idle))| {
            let row = Fdb { mac: *mac, remote: *remote };
            SeenFdb { row, idle: *idle, ages: false }
        });
        let neighbours = self.neighbours.iter().map(|(address, (mac, state, protocol))| SeenNeigh {
            address: *address,
            mac: *mac,
            state: *state,
            protocol: *protocol,
        });
        let routes = self.routes.iter().map(|((destination, metric), (via, protocol))| Route {
            destination: *destination,
            via: *via,
            metric: *metric,
            protocol: *protocol,
        });
        let routes = routes.map(SeenRoute::from);
        Observed { fdb: fdb.collect(), neighbours: neighbours.collect(), routes: routes.collect() }
    }
}

impl Dataplane for FakeKernel {
    async fn make(&mut self, device: &Device) -> Result<Made, Error> {
        let there = self.device.replace(device.clone());
        Ok(if there.as_ref() == Some(device) { Made::AsWanted } else { Made::Created(Vec::new()) })
    }

    fn interfaces(&mut self) -> Result<Vec<Interface>, Error> {
        Ok(self.interfaces.clone())
    }

    fn is_direct(&mut self, host: IpAddr) -> Result<bool, Error> {
        Ok(self.direct.contains(&host))
    }

    fn devices(&mut self) -> Result<BTreeMap<u32, OtherDevice>, Error> {
        let one = |Interface { index, name, .. }: &Interface| {
            (*index, OtherDevice { name: name.clone(), may_be_pods_bridge: false })
        };
        Ok(self.interfaces.iter().map(one).collect())
    }

    fn rules(&mut self) -> Result<Vec<Rule>, Error> {
        Ok(self.rules.clone())
    }

    fn way_to(&mut self, address: IpAddr) -> Result<Way, Error> {
        Ok(self.ways.get(&address).copied().unwrap_or(Way::Ours))
    }

    fn dead_ends(&mut self, table: u32) -> Result<Vec<DeadEnd>, Error> {
        Ok(self.dead_ends.get(&table).cloned().unwrap_or_default())
    }

    fn apply(&mut self, ops: &[Op]) -> Result<Vec<Refused>, Error> {
        let results = ops.iter().enumerate().map(|(index, op)| (index, self.one(op)));
        let refused = results.filter_map(|(index, result)| Some(Refused { index, reason: result.err()? }));
        Ok(refused.collect())
    }

    fn observe(&mut self) -> Result<(Observed, bool), Error> {
        // A table after the other, as the kernel does it.
        let Observed { fdb, neighbours, routes } = self.dump();
        self.table = (self.table + 1) % 3;
        Ok(match self.table {
            1 => (Observed { fdb, ..Observed::default() }, false),
            2 => (Observed { neighbours, ..Observed::default() }, false),
            _ => (Observed { routes, ..Observed::default() }, true),
        })
    }

    fn next_event(&mut self) -> Result<Option<KernelEvent>, Error> {
        Ok(self.events.pop_front())
    }

    async fn readable(&self) {
        if self.events.is_empty() {
            std::future::pending::<()>().await;
        }
    }
}
