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
use crate::wire::{Datagram, Message, Messages};
use crate::{Error, Family, addr, fdb, link, neigh, neightbl, nexthop, route, rule};

mod query;

pub use query::{Query, Row};

/// How often [`Dumper::collect`] makes a dump that changes interrupt, or during which the socket fails.
pub const TRIES: u32 = 10;

const STEP: &str = "dump";

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
                // The kernel makes a table with its first route.
                Some(refusal) if refusal.errno == libc::ENOENT && query.is_of_one_table() => Ok(Step::Done),
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

    /// The routes of one table and kind; none where there is no such table.
    pub fn table_routes(&mut self, family: Family, table: u32, kind: route::Kind) -> Result<Vec<route::Route>, Error> {
        let query = Query::TableRoutes { family, table, kind };
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

    /// The default routes of the main table, with the ways that next hop objects tell.
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
