//! The real kernel, through netlink-ext: its sockets, its tables, what it tells. `device` makes the VXLAN device, through
//! rtnetlink.
//!
//! Each socket may fail. Then all of them are closed and opened again at the next [`Dataplane::make`], which has to be
//! followed by a comparison: what the kernel told meanwhile is lost.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use netlink_ext::change::{ChangeScope, ChangeSocket};
use netlink_ext::link::{Difference, VxlanSpec};
use netlink_ext::{BatchSocket, Dumper, Family, Miss as KernelMiss, MissSocket, Request, pending_misses, route};
use tracing::debug;

use super::dump::Dump;
use super::live::{Live, LiveLink};
use super::{Dataplane, Device, Error, KernelEvent, Made, Refused, convert, underlay};
use crate::overlay::MacAddr;
use crate::overlay::iface::Interface;
use crate::overlay::kernel::{Miss, Observed, Op, OtherDevice};
use crate::overlay::rules::{DeadEnd, Rule, Way};

/// Room for some 10,000 misses: the kernel doubles it and charges some 830 bytes for each.
const MISS_BUFFER: usize = 8 << 20;
/// Room for as many changes by others between two turns of the event loop.
const CHANGE_BUFFER: usize = 8 << 20;
/// Changes that concern nobody here are looked at in one go up to this many.
const CHANGES: usize = 64;

/// The kernel of the network namespace that it was opened in.
pub struct Kernel {
    pub(super) batch: BatchSocket,
    /// For the tables of the device, a step at a time.
    dumper: Dumper,
    /// For links and addresses, which are looked at while such a dump is under way.
    pub(super) looker: Dumper,
    requests: Vec<Request>,
    live: Option<Live>,
    /// Addresses that wait for an answer, found after events were lost.
    waiting: VecDeque<IpAddr>,
    pub(super) dump: Option<Dump>,
    /// What the last look at the interfaces rested on.
    watched: underlay::Watched,
    /// The look at the interfaces under way.
    look: Option<underlay::Look>,
    /// For looks at the interfaces, while none is under way. Only one of a host's planes looks.
    look_dumper: Option<Dumper>,
    /// `--iface-can-reach`: which interface leads there is part of the answer of [`Dataplane::interfaces`].
    pub reach: Option<IpAddr>,
    /// A socket has failed: those for requests are opened anew before the next one.
    stale: bool,
    /// A socket has failed: what listens to the device is opened anew when the device is made.
    deaf: bool,
    /// The device that this process has created last.
    pub(super) created: Option<u32>,
    /// Which parameters of the device could not be set, so that it is said once.
    pub(super) unset: Vec<String>,
    pub(super) holders: super::holder::Holders,
}

impl Kernel {
    /// Opens the sockets, in the network namespace of this thread. To be called within a tokio runtime.
    pub fn open() -> Result<Self, Error> {
        let (batch, dumper, looker) = (BatchSocket::open()?, Dumper::open()?, Dumper::open()?);
        Ok(Self {
            batch,
            dumper,
            looker,
            requests: Vec::new(),
            live: None,
            waiting: VecDeque::new(),
            dump: None,
            watched: underlay::Watched::default(),
            look: None,
            look_dumper: None,
            reach: None,
            stale: false,
            deaf: false,
            created: None,
            unset: Vec::new(),
            holders: super::holder::Holders::default(),
        })
    }

    /// The MAC of the VXLAN device of this name, if there is one.
    pub fn mac_of(&mut self, name: &str) -> Result<Option<MacAddr>, Error> {
        self.refresh()?;
        let link = self.looker.link_named(name).map_err(Error::from);
        let link = self.noted(link)?.filter(|link| link.vxlan.is_some());
        Ok(link.and_then(|link| link.mac).map(MacAddr))
    }

    /// The names of all VXLAN devices.
    pub fn vxlan_devices(&mut self) -> Result<Vec<String>, Error> {
        self.refresh()?;
        let links = self.looker.links().map_err(Error::from);
        let links = self.noted(links)?.into_iter().filter(|link| link.vxlan.is_some());
        Ok(links.map(|link| link.name).collect())
    }

    /// The index of the device as it was last made.
    pub(super) fn ifindex(&self) -> Option<u32> {
        self.live.as_ref().and_then(Live::ifindex)
    }

    /// How the device may stay although it is not as wanted.
    pub(super) fn tolerated(&self) -> Vec<Difference> {
        let link = self.live.as_ref().and_then(|live| live.link.as_ref());
        link.map_or_else(Vec::new, |link| link.tolerated.clone())
    }

    /// Opens the sockets for requests anew if one has failed.
    pub(super) fn refresh(&mut self) -> Result<(), Error> {
        if !self.stale {
            return Ok(());
        }
        (self.batch, self.dumper, self.looker) = (BatchSocket::open()?, Dumper::open()?, Dumper::open()?);
        (self.dump, self.look, self.look_dumper, self.stale) = (None, None, None, false);
        debug!("the netlink sockets are open again");
        Ok(())
    }

    /// Remembers that a socket has failed: none is used again, and what listens to the device is opened anew with them.
    pub(super) fn noted<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        if result.as_ref().is_err_and(Error::is_of_socket) {
            (self.stale, self.deaf) = (true, true);
        }
        result
    }

    /// Opens the sockets that tell of changes and, with a device, of its misses. Sockets that are open stay.
    pub(super) fn listen(
        &mut self,
        link: Option<(u32, VxlanSpec, Vec<Difference>)>,
        device: &Device,
    ) -> Result<(), Error> {
        let ifindex = link.as_ref().map(|(ifindex, ..)| *ifindex);
        if let Some(live) = self.live.as_mut().filter(|live| live.ifindex() == ifindex && !self.deaf) {
            live.device.clone_from(device);
            if let (Some(there), Some((_, spec, tolerated))) = (&mut live.link, link) {
                (there.spec, there.tolerated) = (spec, tolerated);
            }
            return Ok(());
        }
        let link = match link {
            Some((ifindex, spec, tolerated)) => {
                Some(LiveLink { ifindex, spec, tolerated, misses: MissSocket::open(ifindex, MISS_BUFFER)? })
            }
            None => None,
        };
        let (ignore_ports, receive_buffer) = (vec![self.batch.port()], CHANGE_BUFFER);
        // No device has the index 0.
        let scope = ChangeScope { ifindex: ifindex.unwrap_or(0), ignore_ports, receive_buffer };
        let changes = ChangeSocket::open(&scope)?;
        let family = Family::from(device.address.ip());
        self.live = Some(Live { link, device: device.clone(), family, changes });
        // What waited then is found again by the comparison that follows.
        self.waiting.clear();
        self.deaf = false;
        Ok(())
    }
}

impl Kernel {
    fn observe_now(&mut self) -> Result<(Observed, bool), Error> {
        let Some(live) = &self.live else { return Ok((Observed::default(), true)) };
        let (ifindex, family) = (live.ifindex(), live.family);
        let dump = match &mut self.dump {
            Some(dump) => dump,
            none => none.insert(Dump::start(&mut self.dumper, ifindex, family)?),
        };
        dump.step(&mut self.dumper, ifindex)
    }

    /// Does the next step of a look at the interfaces, which is forgotten if that fails.
    fn look_on(&mut self) -> Result<Option<(Vec<Interface>, underlay::Watched)>, netlink_ext::Error> {
        let mut look = match self.look.take() {
            Some(look) => look,
            None => {
                self.watched.forget_addresses();
                let dumper = self.look_dumper.take().map_or_else(Dumper::open, Ok)?;
                underlay::Look::begin(dumper)?
            }
        };
        if look.step()? {
            let (interfaces, watched, dumper) = look.finish(self.reach)?;
            self.look_dumper = Some(dumper);
            return Ok(Some((interfaces, watched)));
        }
        self.look = Some(look);
        Ok(None)
    }

    fn next_event_now(&mut self) -> Result<Option<KernelEvent>, Error> {
        let Some(live) = self.live.as_mut().filter(|_| !self.deaf) else { return Ok(None) };
        if let Some(link) = &mut live.link
            && let Some(miss) = link.misses.try_next()?
        {
            return Ok(Some(match miss {
                KernelMiss::L3 { address, .. } => KernelEvent::Miss(Miss::Address(address)),
                KernelMiss::L2 { mac, .. } => KernelEvent::Miss(Miss::Mac(MacAddr(mac))),
                KernelMiss::Overrun => {
                    self.waiting.extend(pending_misses(&mut self.looker, link.ifindex)?);
                    KernelEvent::Overrun
                }
            }));
        }
        if let Some(address) = self.waiting.pop_front() {
            return Ok(Some(KernelEvent::Miss(Miss::Address(address))));
        }
        // Bounded, since routes of others may come by the hundred thousand and misses go before them.
        for _ in 0..CHANGES {
            let Some(change) = live.changes.try_next()? else { return Ok(None) };
            if let Some(event) = live.event(change, &self.watched) {
                return Ok(Some(event));
            }
        }
        Ok(Some(KernelEvent::Nothing))
    }
}

impl Dataplane for Kernel {
    async fn make(&mut self, device: &Device) -> Result<Made, Error> {
        let made = match self.refresh() {
            Ok(()) => self.make_now(device).await,
            Err(error) => Err(error),
        };
        self.noted(made)
    }

    fn interfaces(&mut self) -> Result<Vec<Interface>, Error> {
        self.look = None;
        loop {
            if let Some(interfaces) = self.look()? {
                return Ok(interfaces);
            }
        }
    }

    fn look(&mut self) -> Result<Option<Vec<Interface>>, Error> {
        self.refresh()?;
        let step = self.look_on().map_err(Error::from);
        let Some((interfaces, watched)) = self.noted(step)? else { return Ok(None) };
        self.watched = watched;
        Ok(Some(interfaces))
    }

    fn rules(&mut self) -> Result<Vec<Rule>, Error> {
        self.refresh()?;
        let Some(family) = self.live.as_ref().map(|live| live.family) else { return Ok(Vec::new()) };
        let rules = self.looker.rules(family).map_err(Error::from);
        Ok(self.noted(rules)?.into_iter().map(convert::seen_rule).collect())
    }

    fn way_to(&mut self, address: IpAddr) -> Result<Way, Error> {
        self.refresh()?;
        let Some(live) = &self.live else { return Ok(Way::Ours) };
        // The kernel answers for an address that this host has.
        let own = if live.link.is_some() { live.device.address.ip() } else { live.device.local };
        let ifindex = live.ifindex();
        let route = self.looker.route_to(address, Some(own)).map_err(Error::from);
        Ok(match self.noted(route)? {
            None => Way::Refused,
            Some(route) if route.table == route::TABLE_MAIN || ifindex.is_some() && route.ifindex == ifindex => {
                Way::Ours
            }
            Some(route) => Way::Table(route.table, route.gateway),
        })
    }

    fn dead_ends(&mut self, table: u32) -> Result<Vec<DeadEnd>, Error> {
        self.refresh()?;
        let Some(family) = self.live.as_ref().map(|live| live.family) else { return Ok(Vec::new()) };
        let mut dead_ends = Vec::new();
        for kind in convert::DEAD_ENDS {
            let routes = self.looker.table_routes(family, table, kind).map_err(Error::from);
            dead_ends.extend(self.noted(routes)?.iter().map(convert::dead_end));
        }
        Ok(dead_ends)
    }

    fn is_direct(&mut self, host: IpAddr) -> Result<bool, Error> {
        self.refresh()?;
        // A route through a link-local host would have to name its link.
        if convert::is_link_local(host.into()) {
            return Ok(false);
        }
        let route = self.looker.route_to(host, None).map_err(Error::from);
        let route = self.noted(route)?;
        Ok(route.is_some_and(|route| route.kind == route::Kind::Unicast && route.gateway.is_none()))
    }

    fn devices(&mut self) -> Result<BTreeMap<u32, OtherDevice>, Error> {
        self.refresh()?;
        let links = self.looker.links().map_err(Error::from);
        Ok(convert::devices(self.noted(links)?))
    }

    fn apply(&mut self, ops: &[Op]) -> Result<Vec<Refused>, Error> {
        let ifindex = self.ifindex().unwrap_or(0);
        self.requests.clear();
        self.requests.extend(ops.iter().map(|op| convert::request(ifindex, op)));
        let sent = self.batch.send(&self.requests).map_err(Error::from);
        let mut failures = self.noted(sent)?;
        // What is to be deleted and not there is deleted.
        failures.retain(|failure| !(failure.refusal.is_gone() && matches!(ops[failure.index], Op::Delete(_))));
        Ok(failures.into_iter().map(|f| Refused { index: f.index, reason: f.refusal.to_string() }).collect())
    }

    fn observe(&mut self) -> Result<(Observed, bool), Error> {
        let step = self.observe_now();
        let is_last = step.as_ref().is_ok_and(|(_, is_last)| *is_last);
        if is_last || step.is_err() {
            self.dump = None;
        }
        self.noted(step)
    }

    fn next_event(&mut self) -> Result<Option<KernelEvent>, Error> {
        let event = self.next_event_now();
        if event.is_err() { self.noted(event) } else { event }
    }

    async fn readable(&self) {
        match self.live.as_ref().filter(|_| !self.deaf) {
            Some(Live { link: Some(link), changes, .. }) => tokio::select! {
                biased;
                _ = link.misses.readable() => {}
                _ = changes.readable() => {}
            },
            Some(live) => drop(live.changes.readable().await),
            None => std::future::pending().await,
        }
    }
}
