//! Changes: what others do to links, addresses, routes, policy rules, neighbours and FDB rows.

use std::io;

use crate::link::Link;
use crate::listen::{Event, Listener};
use crate::wire::Message;
use crate::{Error, addr, fdb, filter, neigh, nexthop, route, rule};

const GROUPS: [u32; 9] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_RULE,
    nexthop::RTNLGRP_NEXTHOP,
];

/// Something changed. `gone` tells a removal from an addition or a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A link is new or changed.
    Link(Link),
    /// A link is gone.
    LinkGone {
        /// The index that it had, which the kernel may give to another.
        ifindex: u32,
        /// Its name.
        name: String,
    },
    /// An address of any device.
    Address {
        /// The address.
        address: addr::Seen,
        /// Removed.
        gone: bool,
    },
    /// A route in any table. A device that goes takes its IPv4 routes with it without a word.
    Route {
        /// The route.
        route: route::Route,
        /// Removed.
        gone: bool,
    },
    /// A next hop object is new, changed or gone. Of routes that name one, the kernel may say nothing.
    Nexthop {
        /// Its id.
        id: u32,
    },
    /// A policy rule is new or gone.
    Rule {
        /// Of this family.
        family: crate::Family,
    },
    /// A neighbour of the device in the scope.
    Neigh {
        /// The entry.
        entry: neigh::Seen,
        /// Removed.
        gone: bool,
    },
    /// An FDB row of the device in the scope, our own writes included.
    Fdb {
        /// The row.
        row: fdb::Seen,
        /// Removed.
        gone: bool,
    },
    /// Changes were lost because the receive buffer was full: look at everything anew.
    Overrun,
}

impl Change {
    /// `None` for what the types above can't say: a broadcast route, the state of a bridge port.
    fn parse(message: &Message<'_>) -> Option<Self> {
        match message.kind {
            libc::RTM_NEWLINK => Link::parse(message).map(Self::Link),
            libc::RTM_DELLINK => {
                let Link { index, name, .. } = Link::parse(message)?;
                Some(Self::LinkGone { ifindex: index, name })
            }
            libc::RTM_NEWADDR | libc::RTM_DELADDR => {
                let address = addr::Seen::parse(message)?;
                Some(Self::Address { address, gone: message.kind == libc::RTM_DELADDR })
            }
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
                let route = route::Route::parse(message)?;
                Some(Self::Route { route, gone: message.kind == libc::RTM_DELROUTE })
            }
            libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => {
                let gone = message.kind == libc::RTM_DELNEIGH;
                fdb::Seen::parse(message)
                    .map(|row| Self::Fdb { row, gone })
                    .or_else(|| neigh::Seen::parse(message).map(|entry| Self::Neigh { entry, gone }))
            }
            libc::RTM_NEWRULE | libc::RTM_DELRULE => rule::family(message).map(|family| Self::Rule { family }),
            nexthop::RTM_NEWNEXTHOP | nexthop::RTM_DELNEXTHOP => {
                nexthop::Object::parse(message).map(|object| Self::Nexthop { id: object.id })
            }
            _ => None,
        }
    }
}

/// What a [`ChangeSocket`] shall hear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeScope {
    /// Neighbours and FDB rows of this device only. A new socket is due when the device is made anew.
    pub ifindex: u32,
    /// Not what the requests of these ports caused; see [`crate::BatchSocket::port`]. The VXLAN driver does not tell
    /// who wrote an FDB row, so our own come all the same.
    pub ignore_ports: Vec<u32>,
    /// In bytes; see [`crate::MissSocket::open`].
    pub receive_buffer: usize,
}

/// A socket that receives changes. Misses never come here.
#[derive(Debug)]
pub struct ChangeSocket(Listener);

impl ChangeSocket {
    /// Opens a socket in the network namespace of the calling thread, which has to be in a tokio runtime with I/O.
    pub fn open(scope: &ChangeScope) -> Result<Self, Error> {
        let filter = filter::changes(scope.ifindex, &scope.ignore_ports);
        Listener::open(&GROUPS, &filter, scope.receive_buffer).map(Self)
    }

    /// Waits until [`ChangeSocket::try_next`] may have something. Cancel-safe.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable().await
    }

    /// The next change, `None` if there is none now.
    pub fn try_next(&mut self) -> Result<Option<Change>, Error> {
        loop {
            match self.0.next("read change")? {
                None => return Ok(None),
                Some(Event::Overrun) => return Ok(Some(Change::Overrun)),
                Some(Event::Message(message)) => {
                    if let Some(change) = Change::parse(&message) {
                        return Ok(Some(change));
                    }
                }
            }
        }
    }
}
