//! Requests about links, by rtnetlink: each has a connection of its own, and nothing is open between two of them.
//!
//! rtnetlink's connection ends for good when a system call on its socket fails, an interrupted one included
//! (`NetlinkFramed::poll_next`, netlink-proto 0.14.1). It also ends without an error for whoever waits: the request then
//! looks acknowledged. So the connection is polled here together with its request, and not in a task of its own, and a
//! request counts as done only while its connection stands.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BufMut;
use netlink_ext::Refusal;
use netlink_sys::{AsyncSocket, Socket, SocketAddr, TokioSocket};
use rtnetlink::LinkHandle;
use rtnetlink::packet_route::link::LinkMessage;
use tracing::debug;

use super::Error;

/// How long the kernel may take over one request. Its answer lies in the queue when the request is sent.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How often a request is made while its socket fails or the kernel is short of something, each time on a new connection.
const TRIES: u32 = 5;
/// The same for one that gets no answer: each try has waited for long.
const TRIES_UNANSWERED: u32 = 2;

/// A request about a link. Each may be made twice, since its answer may get lost.
#[derive(Debug, Clone)]
pub(super) enum LinkRequest {
    /// Creates it; `EEXIST` if one has the name. Where it was made twice, one that exists counts as created: whoever asks
    /// has to look at it.
    Create(LinkMessage),
    /// Changes the link whose ifindex the message holds.
    Change(LinkMessage),
    /// Deletes the link with this ifindex. One that is gone is deleted.
    Delete(u32),
}

impl LinkRequest {
    /// Whether a refusal says that the request is done already.
    fn is_done(&self, refusal: &Refusal, tries: u32) -> bool {
        match self {
            Self::Create(_) => tries > 1 && refusal.is_exists(),
            Self::Change(_) => false,
            Self::Delete(_) => refusal.is_gone(),
        }
    }

    async fn execute(self, links: LinkHandle) -> Result<(), rtnetlink::Error> {
        match self {
            Self::Create(message) => links.add(message).execute().await,
            Self::Change(message) => links.change(message).execute().await,
            Self::Delete(ifindex) => links.del(ifindex).execute().await,
        }
    }
}

/// Has a request about the link of this name carried out; `step` is its verb, as in `create`.
///
/// # Errors
/// [`Error::Link`] if the kernel refuses it, [`Error::Netlink`] if no connection came to an answer.
pub(super) async fn send(step: &'static str, name: &str, request: LinkRequest) -> Result<(), Error> {
    send_over::<TokioSocket>(step, name, request).await
}

async fn send_over<S: AsyncSocket>(step: &'static str, name: &str, request: LinkRequest) -> Result<(), Error> {
    let mut tries = 0;
    loop {
        tries += 1;
        match exchange::<S>(step, name, request.clone()).await {
            Err(Error::Link { source, .. }) if request.is_done(&source, tries) => return Ok(()),
            Err(error) if tries < most_tries(&error) => {
                debug!(device = name, %error, "cannot {step} the device, trying again on a new connection");
            }
            result => return result,
        }
    }
}

fn most_tries(error: &Error) -> u32 {
    match error {
        Error::Netlink(netlink_ext::Error::Timeout { .. }) => TRIES_UNANSWERED,
        error if error.is_passing() || error.is_of_socket() => TRIES,
        _ => 1,
    }
}

/// One request on a connection of its own.
async fn exchange<S: AsyncSocket>(step: &'static str, name: &str, request: LinkRequest) -> Result<(), Error> {
    let opened = rtnetlink::new_connection_with_socket::<LinkSocket<S>>();
    let (mut connection, handle, _) = opened.map_err(|source| failed("open netlink socket", source))?;
    let mut answer = pin!(request.execute(handle.link()));
    let answered = poll_fn(|cx| {
        let has_ended = Pin::new(&mut connection).poll(cx).is_ready();
        match answer.as_mut().poll(cx) {
            // The connection still holds the request, so that an answer that came before the end counts.
            Poll::Pending if has_ended => Poll::Ready(None),
            answer => answer.map(Some),
        }
    });
    match tokio::time::timeout(ANSWER_WITHIN, answered).await {
        Ok(Some(Ok(()))) => Ok(()),
        Ok(Some(Err(rtnetlink::Error::NetlinkError(refused)))) => {
            let source = Refusal::from_answer(refused.raw_code(), &refused.header);
            Err(Error::Link { step, name: name.to_owned(), source })
        }
        Ok(Some(Err(error))) => Err(failed("read answer to link request", io::Error::other(error.to_string()))),
        Ok(None) => Err(connection.socket_mut().failure.take().unwrap_or_else(|| {
            failed("read answer to link request", io::Error::other("what came is no netlink message"))
        })),
        Err(_) => Err(netlink_ext::Error::Timeout { step: "read answer to link request" }.into()),
    }
}

fn failed(step: &'static str, source: io::Error) -> Error {
    netlink_ext::Error::Socket { step, source }.into()
}

/// The socket of one connection, which keeps the error that ends it: rtnetlink drops it.
struct LinkSocket<S> {
    socket: S,
    failure: Cell<Option<Error>>,
}

impl<S> LinkSocket<S> {
    /// Keeps an error. What rtnetlink sees of it has no number: it would read on after `ENOBUFS`, although the answer is
    /// what was lost.
    fn kept<T>(&self, step: &'static str, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        polled.map_err(|error| {
            let kind = error.kind();
            self.failure.set(Some(failed(step, error)));
            kind.into()
        })
    }
}

impl<S: AsyncSocket> AsyncSocket for LinkSocket<S> {
    fn socket_ref(&self) -> &Socket {
        self.socket.socket_ref()
    }

    fn socket_mut(&mut self) -> &mut Socket {
        self.socket.socket_mut()
    }

    /// Opens it, with the kernel's explanations right behind the header of the request.
    fn new(protocol: isize) -> io::Result<Self> {
        let socket = S::new(protocol)?;
        socket.socket_ref().set_ext_ack(true)?;
        socket.socket_ref().set_cap_ack(true)?;
        Ok(Self { socket, failure: Cell::new(None) })
    }

    fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.kept("send link request", self.socket.poll_send(cx, bytes))
    }

    fn poll_send_to(&self, cx: &mut Context<'_>, bytes: &[u8], to: &SocketAddr) -> Poll<io::Result<usize>> {
        self.kept("send link request", self.socket.poll_send_to(cx, bytes, to))
    }

    fn poll_recv<B: BufMut>(&self, cx: &mut Context<'_>, buffer: &mut B) -> Poll<io::Result<()>> {
        self.kept("read answer to link request", self.socket.poll_recv(cx, buffer))
    }

    fn poll_recv_from<B: BufMut>(&self, cx: &mut Context<'_>, buffer: &mut B) -> Poll<io::Result<SocketAddr>> {
        self.kept("read answer to link request", self.socket.poll_recv_from(cx, buffer))
    }

    fn poll_recv_from_full(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Vec<u8>, SocketAddr)>> {
        self.kept("read answer to link request", self.socket.poll_recv_from_full(cx))
    }
}

#[cfg(test)]
mod tests;
