//! Dumps that can be read a datagram at a time, that the kernel filters, and that notice when they were interrupted.
//!
//! The kernel marks a dump with `NLM_F_DUMP_INTR` when its table changed meanwhile, and then it has to be made again.
//! It does so for links and addresses only (measured on Linux 6.18). Routes need no mark: a dump goes on behind the
//! last prefix shown, so what is there all the while is shown once.
//!
//! **A dump of FDB rows during which rows are deleted misses others, and nothing tells.** It shows the newest row first
//! and goes on by counting from there, so each deletion of a row that was shown hides one that was not, and each new
//! row shows another twice (a test holds the first). Neighbours are counted within a hash bucket, so hardly any are
//! hidden. Don't delete between the steps of one's own dump, and take "not shown" for "perhaps gone": putting such a
//! row again is harmless, forgetting it is not. The counting also makes the dump quadratic: 10,000 rows take 4 ms and
//! 100,000 some 400 ms, where neighbours and routes take 40.

use crate::netlink::{BUFFER, Netlink, refusal_of_done, refusal_of_error};
use crate::wire::{Body, Datagram, Message, Messages};
use crate::{Error, Family, addr, fdb, ifi, link, ndm, neigh, neightbl, nexthop, route, rule};

/// How often [`Dumper::collect`] makes a dump that changes interrupt, or during which the socket fails.
pub const TRIES: u32 = 10;

const STEP: &str = "dump";

/// What to dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// The FDB rows of one VXLAN device.
    Fdb {
        /// The device.
        ifindex: u32,
    },
    /// The neighbours of one device.
    Neigh {
        /// The device.
        ifindex: u32,
        /// Which table.
        family: Family,
    },
    /// Routes of all tables that fit each filter that is given.
    Routes {
        /// Which tables.
        family: Family,
        /// Of this device.
        ifindex: Option<u32>,
        /// Written by this protocol.
        protocol: Option<u8>,
        /// Of this kind.
        kind: Option<route::Kind>,
    },
    /// All routes of the main table.
    MainTable {
        /// Of this family.
        family: Family,
    },
    /// The route that the kernel takes to one address, as `ip route get` asks for it. It refuses with ENETUNREACH and
    /// the like if there is none.
    RouteTo {
        /// The address.
        target: std::net::IpAddr,
        /// An address of this host that is sent from, where that matters.
        source: Option<std::net::IpAddr>,
    },
    /// Default routes that send, of all tables.
    DefaultRoutes {
        /// Which tables.
        family: Family,
    },
    /// The policy rules. The kernel refuses with EOPNOTSUPP or EAFNOSUPPORT where it has none.
    Rules {
        /// Of this family.
        family: Family,
    },
    /// The next hop objects. The kernel refuses with EOPNOTSUPP where it has none (Linux before 5.3).
    Nexthops,
    /// All links.
    Links,
    /// One link. The kernel refuses with ENODEV if there is none.
    LinkNamed {
        /// Its name.
        name: String,
    },
    /// Addresses of both families.
    Addresses {
        /// Of this device.
        ifindex: Option<u32>,
    },
    /// The parameters of a neighbour table for each device.
    NeighParams {
        /// Which table.
        family: Family,
    },
}

/// One row of a dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// Of [`Query::Fdb`].
    Fdb(fdb::Seen),
    /// Of [`Query::Neigh`].
    Neigh(neigh::Seen),
    /// Of [`Query::Routes`], [`Query::MainTable`] and [`Query::RouteTo`].
    Route(route::Route),
    /// Of [`Query::DefaultRoutes`].
    DefaultRoute(nexthop::DefaultRoute),
    /// Of [`Query::Rules`].
    Rule(rule::Rule),
    /// Of [`Query::Nexthops`].
    Nexthop(nexthop::Object),
    /// Of [`Query::Links`] and [`Query::LinkNamed`].
    Link(Box<link::Link>),
    /// Of [`Query::Addresses`].
    Address(addr::Seen),
    /// Of [`Query::NeighParams`].
    NeighParams(neightbl::Params),
}

/// How a dump stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// There are more rows.
    More,
    /// That was all.
    Done,
    /// The table changed: forget the rows and start again.
    Interrupted,
}

impl Query {
    fn write(&self, datagram: &mut Datagram, sequence: u32) {
        let kind = match self {
            Self::Fdb { .. } | Self::Neigh { .. } => libc::RTM_GETNEIGH,
            Self::Routes { .. } | Self::MainTable { .. } | Self::RouteTo { .. } | Self::DefaultRoutes { .. } => {
                libc::RTM_GETROUTE
            }
            Self::Rules { .. } => libc::RTM_GETRULE,
            Self::Nexthops => nexthop::RTM_GETNEXTHOP,
            Self::Links | Self::LinkNamed { .. } => libc::RTM_GETLINK,
            Self::Addresses { .. } => libc::RTM_GETADDR,
            Self::NeighParams { .. } => libc::RTM_GETNEIGHTBL,
        };
        // One link or route is no dump: its end is an acknowledgement.
        let one = matches!(self, Self::LinkNamed { .. } | Self::RouteTo { .. });
        let how = if one { libc::NLM_F_ACK } else { libc::NLM_F_DUMP };
        datagram.message(kind, (libc::NLM_F_REQUEST | how) as u16, sequence, |body| self.encode(body));
    }

    /// Where the kernel wants a filter differs from message to message; with strict checking it refuses one in the
    /// wrong place and ignores none.
    fn encode(&self, body: &mut Body<'_>) {
        match self {
            Self::Fdb { ifindex } => body.header(&ndm::header(libc::AF_BRIDGE as u8, *ifindex, 0, 0)),
            Self::Neigh { ifindex, family } => {
                body.header(&ndm::header(family.number(), 0, 0, 0));
                body.u32(ndm::NDA_IFINDEX, *ifindex);
            }
            Self::Routes { family, ifindex, protocol, kind } => {
                let kind = kind.map_or(0, route::Kind::number);
                body.header(&route::query_header(*family, 0, protocol.unwrap_or(0), kind));
                if let Some(ifindex) = ifindex {
                    body.u32(route::RTA_OIF, *ifindex);
                }
            }
            Self::MainTable { family } => {
                body.header(&route::query_header(*family, libc::RT_TABLE_MAIN, 0, 0));
            }
            Self::RouteTo { target, source } => route::encode_lookup(body, *target, *source),
            Self::DefaultRoutes { family } => {
                body.header(&route::query_header(*family, 0, 0, route::Kind::Unicast.number()));
            }
            Self::Rules { family } => body.header(&rule::query_header(*family)),
            Self::Nexthops => body.header(&nexthop::Object::query_header()),
            Self::Links => {
                body.header(&ifi::header(0));
                body.u32(link::IFLA_EXT_MASK, link::RTEXT_FILTER_SKIP_STATS);
            }
            Self::LinkNamed { name } => {
                body.header(&ifi::header(0));
                body.u32(link::IFLA_EXT_MASK, link::RTEXT_FILTER_SKIP_STATS);
                body.string(link::IFLA_IFNAME, name);
            }
            // Not filtered by the kernel: a dump of one device's addresses is never marked as interrupted. Measured on
            // Linux 6.18, where the same change between two steps marks the dump of all devices.
            Self::Addresses { .. } => body.header(&addr::header(None, 0, 0)),
            Self::NeighParams { family } => body.header(&neightbl::header(*family)),
        }
    }

    /// The row in a message, if it is one that was asked for, whatever the kernel filtered.
    fn read(&self, message: &Message<'_>) -> Option<Row> {
        match self {
            Self::Fdb { ifindex } => {
                let seen = fdb::Seen::parse(message)?;
                (seen.row.ifindex == *ifindex).then_some(Row::Fdb(seen))
            }
            Self::Neigh { ifindex, .. } => {
                let seen = neigh::Seen::parse(message)?;
                (seen.ifindex == *ifindex).then_some(Row::Neigh(seen))
            }
            Self::Routes { ifindex, protocol, kind, .. } => {
                let route = route::Route::parse(message)?;
                let fits = protocol.is_none_or(|protocol| protocol == route.protocol)
                    && kind.is_none_or(|kind| kind == route.kind)
                    && ifindex.is_none_or(|ifindex| route.ifindex == Some(ifindex));
                fits.then_some(Row::Route(route))
            }
            Self::MainTable { .. } => {
                let route = route::Route::parse(message)?;
                (route.table == route::TABLE_MAIN).then_some(Row::Route(route))
            }
            Self::RouteTo { .. } => route::Route::parse_answer(message).map(Row::Route),
            Self::DefaultRoutes { .. } => nexthop::DefaultRoute::parse(message).map(Row::DefaultRoute),
            Self::Rules { .. } => rule::Rule::parse(message).map(Row::Rule),
            Self::Nexthops => nexthop::Object::parse(message).map(Row::Nexthop),
            Self::Links | Self::LinkNamed { .. } => Some(Row::Link(Box::new(link::Link::parse(message)?))),
            Self::Addresses { ifindex } => {
                let seen = addr::Seen::parse(message)?;
                ifindex.is_none_or(|ifindex| ifindex == seen.address.ifindex).then_some(Row::Address(seen))
            }
            Self::NeighParams { .. } => neightbl::Params::parse(message).map(Row::NeighParams),
        }
    }
}

/// A socket for dumps, one at a time.
#[derive(Debug)]
pub struct Dumper {
    socket: Netlink,
    datagram: Datagram,
    buffer: Vec<u8>,
    sequence: u32,
    running: Option<Query>,
    /// The socket failed: the next dump goes through a new one.
    failed: bool,
}

impl Dumper {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open() -> Result<Self, Error> {
        let (socket, datagram, buffer) = (Netlink::open()?, Datagram::default(), vec![0; BUFFER]);
        Ok(Self { socket, datagram, buffer, sequence: 0, running: None, failed: false })
    }

    /// Begins a dump. One that is under way is read to its end first, since the kernel allows one on a socket. After a
    /// failure of the socket the dump goes through a new one, in the network namespace of the calling thread.
    pub fn start(&mut self, query: Query) -> Result<(), Error> {
        while self.running.is_some() {
            self.step_through(&mut |_, _| ())?;
        }
        if self.failed {
            self.socket.reopen()?;
            self.failed = false;
        }
        self.sequence = self.sequence.wrapping_add(1);
        self.datagram.clear();
        query.write(&mut self.datagram, self.sequence);
        let sent = self.socket.send(self.datagram.bytes()).map_err(Error::socket(STEP));
        self.failed = sent.is_err();
        sent?;
        self.running = Some(query);
        Ok(())
    }

    /// Reads one datagram of at most 32 KiB, some 480 rows of an FDB, and hands its rows to `sink`. Without a dump
    /// under way it is [`Step::Done`].
    ///
    /// # Errors
    /// A refusal by the kernel and a failure of the socket end the dump.
    pub fn step(&mut self, sink: &mut impl FnMut(Row)) -> Result<Step, Error> {
        self.step_through(&mut |query, message| {
            if let Some(row) = query.read(message) {
                sink(row);
            }
        })
    }

    fn step_through(&mut self, sink: &mut impl FnMut(&Query, &Message<'_>)) -> Result<Step, Error> {
        let step = self.read_datagram(sink);
        self.failed |= step.as_ref().is_err_and(Error::is_of_socket);
        step
    }

    fn read_datagram(&mut self, sink: &mut impl FnMut(&Query, &Message<'_>)) -> Result<Step, Error> {
        let Some(query) = self.running.take() else { return Ok(Step::Done) };
        let length = self.socket.receive_answer(&mut self.buffer, STEP)?;
        let mut interrupted = false;
        for message in Messages::new(&self.buffer[..length]) {
            let message = message?;
            if message.sequence != self.sequence {
                continue; // the rest of a dump that ended in an error
            }
            interrupted |= message.flags & libc::NLM_F_DUMP_INTR as u16 != 0;
            let refusal = match i32::from(message.kind) {
                libc::NLMSG_DONE => refusal_of_done(message.flags, message.body),
                libc::NLMSG_ERROR => refusal_of_error(message.flags, message.body),
                _ => {
                    sink(&query, &message);
                    continue;
                }
            };
            return match refusal {
                // The kernel makes IPv4's main table with its first route.
                Some(refusal) if refusal.errno == libc::ENOENT && matches!(query, Query::MainTable { .. }) => {
                    Ok(Step::Done)
                }
                Some(refusal) => Err(Error::Refused { step: STEP, refusal }),
                None if interrupted => Ok(Step::Interrupted),
                None => Ok(Step::Done),
            };
        }
        self.running = Some(query);
        Ok(if interrupted { Step::Interrupted } else { Step::More })
    }

    /// A whole dump, made again up to [`TRIES`] times when it was interrupted or the socket failed.
    ///
    /// # Errors
    /// [`Error::DumpInterrupted`] if no try was left in peace; the last failure if there was one.
    pub fn collect(&mut self, query: &Query) -> Result<Vec<Row>, Error> {
        self.gather(query, Some)
    }

    fn gather<T>(&mut self, query: &Query, pick: impl Fn(Row) -> Option<T>) -> Result<Vec<T>, Error> {
        let mut rows = Vec::new();
        let mut last = Error::DumpInterrupted { tries: TRIES };
        for _ in 0..TRIES {
            rows.clear();
            match self.whole(query, &mut |row| rows.extend(pick(row))) {
                Ok(true) => return Ok(rows),
                Ok(false) => (),
                // A timeout has waited long enough already.
                Err(error @ Error::Timeout { .. }) => return Err(error),
                Err(error) if error.is_passing() || error.is_of_socket() => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// One dump from its start to its end; `false` if changes interrupted it.
    fn whole(&mut self, query: &Query, sink: &mut impl FnMut(Row)) -> Result<bool, Error> {
        self.start(query.clone())?;
        loop {
            match self.step(sink)? {
                Step::More => (),
                Step::Done => return Ok(true),
                Step::Interrupted => return Ok(false),
            }
        }
    }

    /// The FDB rows of a VXLAN device.
    pub fn fdb(&mut self, ifindex: u32) -> Result<Vec<fdb::Seen>, Error> {
        self.gather(&Query::Fdb { ifindex }, |row| if let Row::Fdb(seen) = row { Some(seen) } else { None })
    }

    /// The neighbours of a device in one family.
    pub fn neighbours(&mut self, ifindex: u32, family: Family) -> Result<Vec<neigh::Seen>, Error> {
        let query = Query::Neigh { ifindex, family };
        self.gather(&query, |row| if let Row::Neigh(seen) = row { Some(seen) } else { None })
    }

    /// Routes of all tables; each filter that is given has to fit.
    pub fn routes(
        &mut self,
        family: Family,
        ifindex: Option<u32>,
        protocol: Option<u8>,
        kind: Option<route::Kind>,
    ) -> Result<Vec<route::Route>, Error> {
        let query = Query::Routes { family, ifindex, protocol, kind };
        self.gather(&query, |row| if let Row::Route(route) = row { Some(route) } else { None })
    }

    /// The route that the kernel would take to an address now, from a source where one is given; `None` where there is none, or none that a
    /// [`route::Route`] can say (to an address of this host).
    pub fn route_to(
        &mut self,
        target: std::net::IpAddr,
        source: Option<std::net::IpAddr>,
    ) -> Result<Option<route::Route>, Error> {
        let query = Query::RouteTo { target, source };
        match self.gather(&query, |row| if let Row::Route(route) = row { Some(route) } else { None }) {
            Ok(routes) => Ok(routes.into_iter().next()),
            // What a route that drops answers, or the lack of any: unreachable, prohibit, blackhole, throw.
            Err(Error::Refused { refusal, .. })
                if [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL].contains(&refusal.errno) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The default routes of all tables, with the ways that next hop objects tell.
    ///
    /// The rows of other routes are passed by as they come: there may be a full table of the Internet's.
    pub fn default_routes(&mut self, family: Family) -> Result<Vec<nexthop::DefaultRoute>, Error> {
        let pick = |row| if let Row::DefaultRoute(route) = row { Some(route) } else { None };
        let mut routes = self.gather(&Query::DefaultRoutes { family }, pick)?;
        if routes.iter().any(|route| !route.objects.is_empty()) {
            let objects = self.nexthops()?;
            routes.iter_mut().for_each(|route| route.resolve(&objects));
        }
        Ok(routes)
    }

    /// The next hop objects.
    pub fn nexthops(&mut self) -> Result<Vec<nexthop::Object>, Error> {
        self.gather(&Query::Nexthops, |row| if let Row::Nexthop(object) = row { Some(object) } else { None })
    }

    /// The policy rules of a family that can be said, in the order in which the kernel follows them; none where the kernel
    /// has no policy routing.
    pub fn rules(&mut self, family: Family) -> Result<Vec<rule::Rule>, Error> {
        let pick = |row| if let Row::Rule(rule) = row { Some(rule) } else { None };
        match self.gather(&Query::Rules { family }, pick) {
            Err(Error::Refused { refusal, .. }) if [libc::EOPNOTSUPP, libc::EAFNOSUPPORT].contains(&refusal.errno) => {
                Ok(Vec::new())
            }
            rules => rules,
        }
    }

    /// All links.
    pub fn links(&mut self) -> Result<Vec<link::Link>, Error> {
        self.gather(&Query::Links, |row| if let Row::Link(link) = row { Some(*link) } else { None })
    }

    /// The link of a name, `None` if there is none.
    pub fn link_named(&mut self, name: &str) -> Result<Option<link::Link>, Error> {
        let query = Query::LinkNamed { name: name.to_owned() };
        match self.gather(&query, |row| if let Row::Link(link) = row { Some(*link) } else { None }) {
            Ok(links) => Ok(links.into_iter().next()),
            Err(Error::Refused { refusal, .. }) if refusal.is_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The addresses of one device, or of all.
    pub fn addresses(&mut self, ifindex: Option<u32>) -> Result<Vec<addr::Seen>, Error> {
        let query = Query::Addresses { ifindex };
        self.gather(&query, |row| if let Row::Address(address) = row { Some(address) } else { None })
    }

    /// The parameters of a neighbour table on one device, `None` if the device has none in this family (no such device, IPv6
    /// switched off).
    pub fn neigh_params(&mut self, ifindex: u32, family: Family) -> Result<Option<neightbl::Params>, Error> {
        let of_device =
            |row| if let Row::NeighParams(params) = row { Some(params).filter(|p| p.ifindex == ifindex) } else { None };
        Ok(self.gather(&Query::NeighParams { family }, of_device)?.into_iter().next())
    }
}
