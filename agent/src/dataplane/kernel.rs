//! The real kernel: the VXLAN device through rtnetlink, everything of which there are many through netlink-ext.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use netlink_ext::change::{Change, ChangeScope, ChangeSocket};
use netlink_ext::dump::{Query, Row as Dumped, Step, TRIES};
use netlink_ext::link::{Difference, Link, VxlanSpec};
use netlink_ext::{
    BatchSocket, Dumper, Family, Miss as KernelMiss, MissSocket, Request, addr::Address, neightbl::Params,
    pending_misses, route,
};
use tracing::{debug, info, warn};

use super::{Dataplane, Device, Error, Event, Made, Refused, convert, underlay};
use crate::overlay::MacAddr;
use crate::overlay::iface::Interface;
use crate::overlay::kernel::{Miss, Observed, Op, PROTOCOL, Row};
use crate::overlay::reconcile::Seen;

/// How long rtnetlink may take over one request. It waits for ever for an answer that got lost.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Room for some 10,000 misses: the kernel doubles it and charges some 830 bytes for each.
const MISS_BUFFER: usize = 8 << 20;
/// Room for as many changes by others between two turns of the event loop.
const CHANGE_BUFFER: usize = 8 << 20;
/// Changes that concern nobody here are looked at in one go up to this many.
const CHANGES: usize = 64;
/// Questions to user space per unresolved address, a second apart; nobody else is asked.
const APP_PROBES: u32 = 3;

/// The kernel of the network namespace that it was opened in.
pub struct Kernel {
    links: rtnetlink::LinkHandle,
    batch: BatchSocket,
    /// For the tables of the device, a step at a time.
    dumper: Dumper,
    /// For links and addresses, which are looked at while such a dump is under way.
    looker: Dumper,
    requests: Vec<Request>,
    live: Option<Live>,
    /// Addresses that wait for an answer, found after events were lost.
    waiting: VecDeque<IpAddr>,
    dump: Option<Dump>,
    /// `--iface-can-reach`: which interface leads there is part of the answer of [`Dataplane::interfaces`].
    pub reach: Option<IpAddr>,
    /// We put routes on other devices too, or such that drop: dumps show them. The first one always does, since an
    /// earlier daemon may have.
    pub elsewhere: bool,
    /// A dump was completed.
    dumped: bool,
}

/// The device as it was made, and what listens to it.
struct Live {
    ifindex: u32,
    family: Family,
    spec: VxlanSpec,
    address: IpNetwork,
    underlay_name: String,
    tolerated: Vec<Difference>,
    misses: MissSocket,
    changes: ChangeSocket,
}

/// A dump under way: which of its queries runs.
struct Dump {
    queries: Vec<Query>,
    tries: u32,
}

impl Kernel {
    /// Opens the sockets, in the network namespace of this thread. To be called within a tokio runtime.
    pub fn open() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let (batch, dumper, looker) = (BatchSocket::open()?, Dumper::open()?, Dumper::open()?);
        let links = handle.link();
        Ok(Self {
            links,
            batch,
            dumper,
            looker,
            requests: Vec::new(),
            live: None,
            waiting: VecDeque::new(),
            dump: None,
            reach: None,
            elsewhere: false,
            dumped: false,
        })
    }

    /// The MAC of the VXLAN device of this name, if there is one.
    pub fn mac_of(&mut self, name: &str) -> Result<Option<MacAddr>, Error> {
        let link = self.looker.link_named(name)?.filter(|link| link.vxlan.is_some());
        Ok(link.and_then(|link| link.mac).map(MacAddr))
    }

    /// Brings the link to what is wanted; what it came to, and the link's index.
    async fn link(&mut self, spec: &VxlanSpec) -> Result<(Made, Link), Error> {
        let mut reasons = Vec::new();
        if let Some(renamed) = self.renamed(spec)? {
            // It holds our VNI and port, so nothing could be made beside it.
            reasons.push(format!("renamed to {}", renamed.name));
            self.request("delete", spec, self.links.del(renamed.index).execute()).await?;
        } else if let Some(link) = self.looker.link_named(&spec.name)? {
            let differences = spec.differences(&link);
            if let Some(Difference::NotVxlan { seen }) = differences.first() {
                let kind = seen.clone().unwrap_or_else(|| "physical".to_owned());
                return Err(Error::Foreign { name: spec.name.clone(), kind });
            }
            let tolerated = self.live.as_ref().map_or(&[][..], |live| &live.tolerated);
            let mend: Vec<_> = differences.into_iter().filter(|d| !is_tolerable(d) && !tolerated.contains(d)).collect();
            if mend.is_empty() {
                return Ok((Made::AsWanted, link));
            }
            reasons = mend.iter().map(Difference::to_string).collect();
            if mend.iter().all(Difference::live_change) {
                match self.change(spec, link.index, &mend).await {
                    Ok(()) => return Ok((Made::Changed(reasons), self.look(spec)?)),
                    Err(error) => info!(device = %spec.name, %error, "cannot change the living device, making it anew"),
                }
            }
            self.request("delete", spec, self.links.del(link.index).execute()).await?;
        }
        let created = self.request("create", spec, self.links.add(spec.message()).execute()).await;
        if let Err(error) = created {
            return Err(self.holder_of(spec)?.unwrap_or(error));
        }
        Ok((Made::Created(reasons), self.look(spec)?))
    }

    /// Our device under another name: the index that we made, still with our MAC and VNI.
    fn renamed(&mut self, spec: &VxlanSpec) -> Result<Option<Link>, Error> {
        let Some(ifindex) = self.live.as_ref().map(|live| live.ifindex) else { return Ok(None) };
        let is_ours = |link: &Link| {
            let vni = link.vxlan.as_ref().map(|vxlan| vxlan.vni);
            link.index == ifindex && link.name != spec.name && link.mac == Some(spec.mac) && vni == Some(spec.vni)
        };
        Ok(self.looker.links()?.into_iter().find(is_ours))
    }

    /// The other device that has the VNI and port that ours is to have. The kernel says no more than that something exists.
    fn holder_of(&mut self, spec: &VxlanSpec) -> Result<Option<Error>, Error> {
        let (vni, port) = (spec.vni, spec.port);
        // The two devices of a dual-stack node have one VNI and port, which the kernel allows.
        let holds = |link: &Link| {
            let vxlan = link.vxlan.as_ref().filter(|vxlan| (vxlan.vni, vxlan.port) == (vni, port));
            vxlan.is_some_and(|vxlan| vxlan.local.is_none_or(|local| local.is_ipv4() == spec.local.is_ipv4()))
        };
        let holder = self.looker.links()?.into_iter().find(|link| link.name != spec.name && holds(link));
        Ok(holder.map(|link| Error::Taken { name: spec.name.clone(), holder: link.name, vni, port }))
    }

    async fn change(&self, spec: &VxlanSpec, ifindex: u32, differences: &[Difference]) -> Result<(), Error> {
        for message in spec.change_messages(ifindex, differences) {
            self.request("change", spec, self.links.change(message).execute()).await?;
        }
        Ok(())
    }

    async fn request(
        &self,
        step: &'static str,
        spec: &VxlanSpec,
        request: impl Future<Output = Result<(), rtnetlink::Error>>,
    ) -> Result<(), Error> {
        let name = spec.name.clone();
        match tokio::time::timeout(ANSWER_WITHIN, request).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(Error::Link { step, name, source }),
            Err(_) => Err(Error::Silent { step, name }),
        }
    }

    fn look(&mut self, spec: &VxlanSpec) -> Result<Link, Error> {
        self.looker.link_named(&spec.name)?.ok_or_else(|| Error::Vanished { name: spec.name.clone() })
    }

    /// Opens what listens to the device, where nothing does yet.
    fn listen(
        &mut self,
        ifindex: u32,
        device: &Device,
        spec: VxlanSpec,
        tolerated: Vec<Difference>,
    ) -> Result<(), Error> {
        let (family, address) = (Family::from(device.address.ip()), device.address);
        if let Some(live) = self.live.as_mut().filter(|live| live.ifindex == ifindex) {
            (live.spec, live.address, live.tolerated) = (spec, address, tolerated);
            live.underlay_name.clone_from(&device.underlay_name);
            return Ok(());
        }
        let misses = MissSocket::open(ifindex, MISS_BUFFER)?;
        let scope = ChangeScope { ifindex, ignore_ports: vec![self.batch.port()], receive_buffer: CHANGE_BUFFER };
        let changes = ChangeSocket::open(&scope)?;
        let underlay_name = device.underlay_name.clone();
        self.live = Some(Live { ifindex, family, spec, address, underlay_name, tolerated, misses, changes });
        Ok(())
    }

    /// The device's address and how its neighbours are resolved; other addresses of the family go.
    fn furnish(&mut self, ifindex: u32, device: &Device) -> Result<bool, Error> {
        let family = Family::from(device.address.ip());
        let there = self.looker.addresses(Some(ifindex))?;
        let of_family = there.iter().filter(|a| Family::from(a.address.ip()) == family && !is_link_local(a.address));
        let others = of_family.filter(|a| a.address != device.address);
        let mut requests: Vec<Request> = others.map(|other| Request::DelAddress(*other)).collect();
        if !there.iter().any(|a| a.address == device.address) {
            requests.push(Request::PutAddress(Address { ifindex, address: device.address }));
        }
        let changed = !requests.is_empty();
        let probes = Params { ifindex, family, app_probes: APP_PROBES, ucast_probes: 0, mcast_probes: 0 };
        requests.push(Request::SetNeighParams(probes));
        let failures = self.batch.send(&requests)?;
        match failures.into_iter().next() {
            None => Ok(changed),
            Some(failure) => Err(netlink_ext::Error::Refused {
                step: "set address and neighbour parameters",
                refusal: failure.refusal,
            }
            .into()),
        }
    }
}

/// Whether a device may stay as it is although it differs: one that flannel made has no `l2miss`, and the kernel cannot
/// switch that on. A lost FDB row is then seen by its notification and by the comparison, not by the packet.
fn is_tolerable(difference: &Difference) -> bool {
    matches!(difference, Difference::L2Miss { .. })
}

fn is_link_local(address: IpNetwork) -> bool {
    matches!(address, IpNetwork::V6(net) if net.ip().is_unicast_link_local())
}

fn spec(device: &Device) -> VxlanSpec {
    VxlanSpec {
        name: device.name.clone(),
        vni: device.vni,
        port: device.port,
        local: device.local,
        underlay: device.underlay,
        mac: device.mac.0,
        mtu: device.mtu,
        learning: device.learning,
        gbp: device.gbp,
        l2miss: true,
    }
}

impl Dataplane for Kernel {
    async fn make(&mut self, device: &Device) -> Result<Made, Error> {
        let spec = spec(device);
        let (mut made, link) = self.link(&spec).await?;
        let tolerated: Vec<Difference> =
            spec.differences(&link).into_iter().filter(|difference| *difference != Difference::Down).collect();
        if made != Made::AsWanted {
            for difference in &tolerated {
                warn!(device = %device.name, %difference, "the kernel does not make the device as wanted, going on with it");
            }
        }
        // Misses are heard from before the device can have any: its parameters come after, and it is up last.
        self.listen(link.index, device, spec.clone(), tolerated)?;
        let furnished = self.furnish(link.index, device)?;
        if !link.up {
            let up = netlink_ext::link::up_message(link.index);
            self.request("set up", &spec, self.links.change(up).execute()).await?;
        }
        if furnished && made == Made::AsWanted {
            made = Made::Changed(vec![format!("address, not {}", device.address)]);
        }
        self.dump = None;
        debug!(device = %device.name, ifindex = link.index, ?made, "device");
        Ok(made)
    }

    fn interfaces(&mut self) -> Result<Vec<Interface>, Error> {
        underlay::interfaces(&mut self.looker, self.reach)
    }

    fn is_direct(&mut self, host: IpAddr) -> Result<bool, Error> {
        let route = self.looker.route_to(host)?;
        Ok(route.is_some_and(|route| route.kind == route::Kind::Unicast && route.gateway.is_none()))
    }

    fn apply(&mut self, ops: &[Op]) -> Result<Vec<Refused>, Error> {
        let ifindex = self.live.as_ref().map_or(0, |live| live.ifindex);
        self.requests.clear();
        self.requests.extend(ops.iter().map(|op| convert::request(ifindex, op)));
        let mut failures = self.batch.send(&self.requests)?;
        // What is to be deleted and not there is deleted.
        failures.retain(|failure| !(failure.refusal.is_gone() && matches!(ops[failure.index], Op::Delete(_))));
        Ok(failures.into_iter().map(|f| Refused { index: f.index, reason: f.refusal.to_string() }).collect())
    }

    fn observe(&mut self) -> Result<(Observed, bool), Error> {
        let Some(live) = &self.live else { return Ok((Observed::default(), true)) };
        let (ifindex, family) = (live.ifindex, live.family);
        let dump = match &mut self.dump {
            Some(dump) => dump,
            none => {
                let dump = none.insert(Dump::new(ifindex, family, self.elsewhere || !self.dumped));
                dump.start(&mut self.dumper)?;
                dump
            }
        };
        let step = dump.step(&mut self.dumper, ifindex);
        let is_last = step.as_ref().is_ok_and(|(_, is_last)| *is_last);
        self.dumped |= is_last;
        if is_last || step.is_err() {
            self.dump = None;
        }
        step
    }

    fn next_event(&mut self) -> Result<Option<Event>, Error> {
        let Some(live) = &mut self.live else { return Ok(None) };
        if let Some(miss) = live.misses.try_next()? {
            return Ok(Some(match miss {
                KernelMiss::L3 { address, .. } => Event::Miss(Miss::Address(address)),
                KernelMiss::L2 { mac, .. } => Event::Miss(Miss::Mac(MacAddr(mac))),
                KernelMiss::Overrun => {
                    self.waiting.extend(pending_misses(&mut self.looker, live.ifindex)?);
                    Event::Overrun
                }
            }));
        }
        if let Some(address) = self.waiting.pop_front() {
            return Ok(Some(Event::Miss(Miss::Address(address))));
        }
        // Bounded, since routes of others may come by the hundred thousand and misses go before them.
        for _ in 0..CHANGES {
            let Some(change) = live.changes.try_next()? else { return Ok(None) };
            if let Some(event) = live.event(change) {
                return Ok(Some(event));
            }
        }
        Ok(Some(Event::Nothing))
    }

    async fn readable(&self) {
        match &self.live {
            Some(live) => tokio::select! {
                biased;
                _ = live.misses.readable() => {}
                _ = live.changes.readable() => {}
            },
            None => std::future::pending().await,
        }
    }
}

impl Live {
    /// What a change means for us, if anything.
    fn event(&self, change: Change) -> Option<Event> {
        match change {
            Change::Link(link) if link.index == self.ifindex => {
                let differs = self.spec.differences(&link).iter().any(|d| !self.tolerated.contains(d));
                (differs || link.name != self.spec.name).then_some(Event::Device)
            }
            Change::LinkGone { ifindex, .. } if ifindex == self.ifindex => Some(Event::Device),
            Change::Address { address, gone } if address.ifindex == self.ifindex => {
                (gone == (address.address == self.address) && !is_link_local(address.address)).then_some(Event::Device)
            }
            // By name as well: an underlay that was made again has another index.
            Change::Link(Link { index, name, .. }) | Change::LinkGone { ifindex: index, name } => {
                (index == self.spec.underlay || name == self.underlay_name).then_some(Event::Underlay)
            }
            Change::Address { address, .. } => {
                let concerns = address.ifindex == self.spec.underlay || address.address.ip() == self.spec.local;
                concerns.then_some(Event::Underlay)
            }
            Change::Route { route, gone } => self.route_event(&route, gone),
            Change::Neigh { entry, gone: true } => Some(Event::Row(Seen::Gone(Row::Neigh(entry.address)))),
            Change::Neigh { entry, gone: false } => Some(Event::Row(Seen::Neigh(convert::seen_neigh(&entry)))),
            Change::Fdb { row, gone } => {
                let seen = convert::seen_fdb(&row)?;
                Some(Event::Row(if gone { Seen::Gone(Row::Fdb(seen.row)) } else { Seen::Fdb(seen) }))
            }
            Change::Overrun => Some(Event::Overrun),
        }
    }

    fn route_event(&self, route: &route::Route, gone: bool) -> Option<Event> {
        if route.destination.prefix() == 0 && route.table == route::TABLE_MAIN {
            return Some(Event::Underlay);
        }
        let seen = convert::seen_route(self.ifindex, route)?;
        Some(Event::Row(if gone { Seen::Gone(Row::Route(seen)) } else { Seen::Route(seen) }))
    }
}

impl Dump {
    fn new(ifindex: u32, family: Family, elsewhere: bool) -> Self {
        let routes = |ifindex: Option<u32>, kind| {
            let protocol = ifindex.is_none().then_some(PROTOCOL).filter(|_| kind != Some(route::Kind::Unicast));
            Query::Routes { family, ifindex, protocol, kind }
        };
        // Taken from the end.
        let mut queries = vec![routes(None, Some(route::Kind::Unreachable))];
        if elsewhere {
            queries.extend([routes(None, Some(route::Kind::Blackhole)), routes(None, Some(route::Kind::Unicast))]);
        } else {
            queries.push(routes(Some(ifindex), None));
        }
        queries.extend([Query::Neigh { ifindex, family }, Query::Fdb { ifindex }]);
        Self { queries, tries: 0 }
    }

    fn start(&self, dumper: &mut Dumper) -> Result<(), Error> {
        if let Some(query) = self.queries.last() {
            dumper.start(query.clone())?;
        }
        Ok(())
    }

    /// Reads one datagram: what it shows, and whether it was the last one of the last query.
    fn step(&mut self, dumper: &mut Dumper, ifindex: u32) -> Result<(Observed, bool), Error> {
        let mut observed = Observed::default();
        let step = dumper.step(&mut |row| match row {
            Dumped::Fdb(seen) => observed.fdb.extend(convert::seen_fdb(&seen)),
            Dumped::Neigh(seen) => observed.neighbours.push(convert::seen_neigh(&seen)),
            Dumped::Route(seen) => observed.routes.extend(convert::seen_route(ifindex, &seen)),
            Dumped::Link(_) | Dumped::Address(_) | Dumped::NeighParams(_) => {}
        })?;
        match step {
            Step::More => return Ok((observed, false)),
            Step::Done => {
                self.queries.pop();
            }
            // A row seen twice does no harm, one that was missed would: this query again.
            Step::Interrupted if self.tries < TRIES => self.tries += 1,
            Step::Interrupted => return Err(netlink_ext::Error::DumpInterrupted { tries: TRIES }.into()),
        }
        self.start(dumper)?;
        Ok((observed, self.queries.is_empty()))
    }
}
