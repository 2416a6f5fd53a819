//! A socket that listens: what the kernel announces, one message at a time, and the news that some were lost.

use std::io;

use libc::sock_filter;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::netlink::{BUFFER, Netlink};
use crate::nexthop::RTNLGRP_NEXTHOP;
use crate::wire::{Message, Messages};
use crate::{Error, sys};

/// What a listening socket has to say.
pub(crate) enum Event<'a> {
    Message(Message<'a>),
    /// The receive buffer was full and messages were lost (`ENOBUFS`). Those in the buffer can still be read.
    Overrun,
}

#[derive(Debug)]
pub(crate) struct Listener {
    socket: AsyncFd<Netlink>,
    buffer: Vec<u8>,
    /// The part of `buffer` that holds messages not yet handed out.
    unread: std::ops::Range<usize>,
}

impl Listener {
    /// The filter comes before the groups, so that nothing gets past it. Needs a tokio runtime with I/O.
    pub(crate) fn open(groups: &[u32], filter: &[sock_filter], receive_buffer: usize) -> Result<Self, Error> {
        let socket = Netlink::open()?;
        socket.set_receive_buffer(receive_buffer)?;
        sys::attach_filter(&socket, filter).map_err(Error::socket("attach socket filter"))?;
        for group in groups {
            match socket.join(*group) {
                // Linux before 5.3 has no next hop objects, and so no changes of them.
                Err(Error::Socket { source, .. })
                    if *group == RTNLGRP_NEXTHOP && source.raw_os_error() == Some(libc::EINVAL) => {}
                joined => joined?,
            }
        }
        let socket = sys::register(socket).map_err(Error::socket("register with the runtime"))?;
        Ok(Self { socket, buffer: vec![0; BUFFER], unread: 0..0 })
    }

    /// Waits until there is something to read. May wake without.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        if self.unread.is_empty() {
            self.socket.ready(Interest::READABLE | Interest::ERROR).await?.retain_ready();
        }
        Ok(())
    }

    /// The next event, `None` if there is none now.
    pub(crate) fn next(&mut self, step: &'static str) -> Result<Option<Event<'_>>, Error> {
        if self.unread.is_empty() {
            match self.receive() {
                Ok(length) => self.unread = 0..length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Some(Event::Overrun)),
                Err(error) => return Err(Error::Socket { step, source: error }),
            }
        }
        let mut messages = Messages::new(&self.buffer[self.unread.clone()]);
        let message = messages.next().transpose();
        self.unread.start = self.unread.end - messages.remaining();
        Ok(message?.map(Event::Message))
    }

    /// Reads, and when there is nothing clears the readiness in such a way that no later arrival can be overlooked.
    fn receive(&mut self) -> io::Result<usize> {
        let Self { socket, buffer, .. } = self;
        let mut asked = false;
        // One interest at a time: tokio 1.54 takes the readiness of a combined one for none (`Interest::mask`), and
        // would never clear it. An error alone comes when the kernel had no memory for a message.
        for interest in [Interest::READABLE, Interest::ERROR] {
            let result = socket.try_io(interest, |socket| {
                asked = true;
                socket.receive(buffer)
            });
            match result {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                result => return result,
            }
        }
        // When the runtime has not noticed anything yet, there may be something all the same.
        if asked { Err(io::ErrorKind::WouldBlock.into()) } else { socket.get_ref().receive(buffer) }
    }
}
