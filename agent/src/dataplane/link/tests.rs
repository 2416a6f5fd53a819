//! Link requests to the real kernel through sockets that fail.

use std::collections::VecDeque;

use netlink_ext::Dumper;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo};

use super::*;

const NAME: &str = "test0";
/// Instead of an error number: the answer never comes.
const NOTHING: i32 = 0;

thread_local! {
    /// What the coming receives of this thread's sockets fail with. The answer is lost with the socket.
    static FAILURES: Cell<VecDeque<i32>> = const { Cell::new(VecDeque::new()) };
    /// How many sockets this thread has opened.
    static OPENED: Cell<u32> = const { Cell::new(0) };
    /// How many of them it has closed.
    static CLOSED: Cell<u32> = const { Cell::new(0) };
}

/// A socket that fails as told.
struct Lossy(TokioSocket);

impl Drop for Lossy {
    fn drop(&mut self) {
        CLOSED.set(CLOSED.get() + 1);
    }
}

impl AsyncSocket for Lossy {
    fn socket_ref(&self) -> &Socket {
        self.0.socket_ref()
    }

    fn socket_mut(&mut self) -> &mut Socket {
        self.0.socket_mut()
    }

    fn new(protocol: isize) -> io::Result<Self> {
        OPENED.set(OPENED.get() + 1);
        TokioSocket::new(protocol).map(Self)
    }

    fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_send(cx, bytes)
    }

    fn poll_send_to(&self, cx: &mut Context<'_>, bytes: &[u8], to: &SocketAddr) -> Poll<io::Result<usize>> {
        self.0.poll_send_to(cx, bytes, to)
    }

    fn poll_recv<B: BufMut>(&self, cx: &mut Context<'_>, buffer: &mut B) -> Poll<io::Result<()>> {
        self.0.poll_recv(cx, buffer)
    }

    /// Fails once there is an answer, so that the request is carried out.
    fn poll_recv_from<B: BufMut>(&self, cx: &mut Context<'_>, buffer: &mut B) -> Poll<io::Result<SocketAddr>> {
        let mut failures = FAILURES.take();
        let polled = match failures.front() {
            Some(_) => self.0.poll_recv_from(cx, &mut Vec::with_capacity(4096)),
            None => self.0.poll_recv_from(cx, buffer),
        };
        let failure = if polled.is_ready() { failures.pop_front() } else { None };
        FAILURES.set(failures);
        match failure {
            None => polled,
            Some(NOTHING) => Poll::Pending,
            Some(errno) => Poll::Ready(Err(io::Error::from_raw_os_error(errno))),
        }
    }

    fn poll_recv_from_full(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Vec<u8>, SocketAddr)>> {
        self.0.poll_recv_from_full(cx)
    }
}

/// A request whose sockets fail so; how many were opened for it. None of them is left open.
async fn lossy(step: &'static str, request: LinkRequest, failures: &[i32]) -> (Result<(), Error>, u32) {
    FAILURES.set(failures.iter().copied().collect());
    OPENED.set(0);
    CLOSED.set(0);
    let result = send_over::<Lossy>(step, NAME, request).await;
    assert_eq!(CLOSED.get(), OPENED.get(), "a connection was left open");
    (result, OPENED.get())
}

fn link_of_kind(kind: InfoKind) -> LinkMessage {
    let mut message = LinkMessage::default();
    let kind = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]);
    message.attributes = vec![LinkAttribute::IfName(NAME.to_owned()), kind];
    message
}

fn bridge() -> LinkMessage {
    link_of_kind(InfoKind::Bridge)
}

/// Runs a test in a network namespace of its own.
fn in_namespace<F: AsyncFnOnce(Dumper) + Send + 'static>(test: F) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace needs root");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { test(Dumper::open().unwrap()).await });
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn a_request_whose_answer_is_lost_is_made_again_on_a_new_connection() {
    for errno in [libc::EINTR, libc::ENOBUFS, libc::ENOMEM, libc::EBADF] {
        in_namespace(async move |mut dumper| {
            let (created, opened) = lossy("create", LinkRequest::Create(bridge()), &[errno]).await;
            assert_eq!((created.unwrap(), opened), ((), 2), "errno {errno}");
            let ifindex = dumper.link_named(NAME).unwrap().unwrap().index;
            let up = netlink_ext::link::up_message(ifindex);
            let (changed, opened) = lossy("set up", LinkRequest::Change(up), &[errno; 4]).await;
            assert_eq!((changed.unwrap(), opened), ((), 5), "errno {errno}");
            assert!(dumper.link_named(NAME).unwrap().unwrap().up);
            let (deleted, opened) = lossy("delete", LinkRequest::Delete(ifindex), &[errno]).await;
            assert_eq!((deleted.unwrap(), opened), ((), 2), "errno {errno}");
            assert_eq!(dumper.link_named(NAME).unwrap(), None);
        });
    }
}

#[test]
fn a_request_that_gets_no_answer_again_and_again_says_why() {
    in_namespace(async |_| {
        let (result, opened) = lossy("delete", LinkRequest::Delete(9), &[libc::EINTR; 10]).await;
        let error = result.unwrap_err();
        assert_eq!(opened, TRIES);
        assert!(error.is_passing() && error.is_of_socket(), "{error}");
        assert_eq!(error.to_string(), "read answer to link request: Interrupted system call (os error 4)");
    });
}

#[test]
fn a_refusal_has_the_kernel_s_words_and_is_not_tried_again() {
    in_namespace(async |_| {
        let message = link_of_kind(InfoKind::Other("nothing".to_owned()));
        let (result, opened) = lossy("create", LinkRequest::Create(message), &[]).await;
        assert_eq!(opened, 1);
        let error = result.unwrap_err();
        assert!(!error.is_passing() && !error.is_of_socket(), "{error}");
        assert_eq!(error.to_string(), "create test0: Operation not supported (os error 95): Unknown device type");
        let (created, _) = lossy("create", LinkRequest::Create(bridge()), &[]).await;
        created.unwrap();
        let (again, opened) = lossy("create", LinkRequest::Create(bridge()), &[]).await;
        assert!(matches!(again.unwrap_err(), Error::Link { source, .. } if source.is_exists()));
        assert_eq!(opened, 1);
    });
}

#[test]
fn a_request_without_an_answer_is_made_twice() {
    in_namespace(async |_| {
        tokio::time::pause();
        let (result, opened) = lossy("delete", LinkRequest::Delete(9), &[NOTHING; 10]).await;
        let error = result.unwrap_err();
        assert_eq!(opened, TRIES_UNANSWERED);
        assert!(error.is_passing() && error.is_of_socket(), "{error}");
        assert_eq!(error.to_string(), "read answer to link request: no answer from the kernel");
    });
}

#[test]
fn what_is_gone_is_deleted() {
    in_namespace(async |_| {
        let (deleted, opened) = lossy("delete", LinkRequest::Delete(9), &[]).await;
        assert_eq!((deleted.unwrap(), opened), ((), 1));
    });
}
