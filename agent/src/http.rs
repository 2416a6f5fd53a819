//! `/healthz`, `/readyz` and `/metrics` over HTTP.
//!
//! Owns the listener, the connections and the answers, which it makes of the last [`Snapshot`]. Runs on the event loop's
//! thread: an answer is a look at one value, and some 30 lines of text for `/metrics`.
//!
//! Whoever reaches the port may open connections and leave them. So there are few, each one lives for some seconds, and a new
//! one takes the place of the oldest. Those from this node have places of their own: a probe from the node gets through,
//! whatever comes from elsewhere.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::metrics;
use crate::snapshot::Snapshot;

/// How many connections from this node there are at the most.
const NEAR: u64 = 8;
/// How many there are from elsewhere.
const FAR: u64 = 24;
/// So many descriptors are the daemon's own: some 30 in a network of both families.
const OWN_DESCRIPTORS: u64 = 64;
/// How long a connection lives: for its request to come and its answer to go.
const LIFE: Duration = Duration::from_secs(5);
/// The largest request head, in bytes, and so the memory of a connection. It is hyper's least.
const REQUEST: usize = 8192;
/// Between two tries to listen, or to take a connection where that failed.
const TRY_EVERY: Duration = Duration::from_millis(100);
/// The content type of an answer for people.
const TEXT: &str = "text/plain; charset=utf-8";
/// How often it is said that listening fails.
const REMIND: Duration = Duration::from_secs(60);

/// Answers until the process ends, which may have so many descriptors.
///
/// An address that is in use or not there yet is waited for: health only informs, and a daemon that is about to stop may
/// still have the port.
pub async fn serve(address: SocketAddr, snapshot: watch::Receiver<Snapshot>, descriptors: u64) {
    let listener = listen(address).await;
    info!(%address, "health: /healthz, /readyz and /metrics");
    let mut places = Places::new(descriptors);
    let mut failing = false;
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                failing = false;
                let is_near = stream.local_addr().is_ok_and(|to| is_near(from, to));
                places.admit(is_near, || tokio::spawn(connection(stream, snapshot.clone())));
                // Whoever connects in a loop must not keep the event loop from its turns.
                tokio::task::yield_now().await;
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    warn!(%error, "health: cannot take a connection, trying again");
                }
                sleep(TRY_EVERY).await;
            }
        }
    }
}

/// Tries until it listens. The log has a line at the first failure and then every minute.
async fn listen(address: SocketAddr) -> TcpListener {
    let mut said: Option<Instant> = None;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if said.is_none_or(|said| said.elapsed() >= REMIND) => {
                warn!(%address, %error, "health: cannot listen (--healthz-ip, --healthz-port), trying until it works; /healthz, /readyz and /metrics are not served");
                said = Some(Instant::now());
            }
            Err(_) => {}
        }
        sleep(TRY_EVERY).await;
    }
}

/// Whether a connection begins and ends on this node.
fn is_near(from: SocketAddr, to: SocketAddr) -> bool {
    let (from, to) = (from.ip().to_canonical(), to.ip().to_canonical());
    from.is_loopback() || from == to
}

/// The connections, the oldest first.
struct Places {
    near: VecDeque<JoinHandle<()>>,
    far: VecDeque<JoinHandle<()>>,
    most_near: usize,
    most_far: usize,
}

impl Places {
    /// As many as there are descriptors for.
    fn new(descriptors: u64) -> Self {
        let room = descriptors.saturating_sub(OWN_DESCRIPTORS);
        let (most_near, most_far) = ((room / 2).clamp(1, NEAR), (room / 2).clamp(1, FAR));
        Self { near: VecDeque::new(), far: VecDeque::new(), most_near: most_near as usize, most_far: most_far as usize }
    }

    /// Gives a new connection a place, if need be that of the oldest one.
    fn admit(&mut self, is_near: bool, start: impl FnOnce() -> JoinHandle<()>) {
        let (all, most) = if is_near { (&mut self.near, self.most_near) } else { (&mut self.far, self.most_far) };
        all.retain(|connection| !connection.is_finished());
        while all.len() >= most {
            if let Some(oldest) = all.pop_front() {
                oldest.abort();
            }
        }
        all.push_back(start());
    }
}

/// One request and its answer.
async fn connection(stream: TcpStream, snapshot: watch::Receiver<Snapshot>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(request.method(), request.uri().path(), &snapshot);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut http = http1::Builder::new();
    let http = http.keep_alive(false).max_buf_size(REQUEST).serve_connection(TokioIo::new(stream), service);
    // Whether it was too slow, not HTTP or has gone: nobody needs to know.
    let _ = timeout(LIFE, http).await;
}

fn answer(method: &Method, path: &str, snapshot: &watch::Receiver<Snapshot>) -> Response<String> {
    let (status, kind, body) = match path {
        "/healthz" | "/readyz" | "/metrics" if method != Method::GET && method != Method::HEAD => {
            (StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".to_owned())
        }
        "/healthz" => (StatusCode::OK, TEXT, "ok\n".to_owned()),
        "/readyz" => match snapshot.borrow().missing.as_slice() {
            [] => (StatusCode::OK, TEXT, "ready\n".to_owned()),
            missing => {
                let lines = missing.iter().map(|what| format!("{what}\n")).collect();
                (StatusCode::SERVICE_UNAVAILABLE, TEXT, lines)
            }
        },
        "/metrics" => (StatusCode::OK, metrics::CONTENT_TYPE, metrics::text(&snapshot.borrow())),
        _ => (StatusCode::NOT_FOUND, TEXT, "there are /healthz, /readyz and /metrics\n".to_owned()),
    };
    let mut answer = Response::new(body);
    if status == StatusCode::METHOD_NOT_ALLOWED {
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    *answer.status_mut() = status;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Publisher;

    #[test]
    fn each_path_and_method_has_its_answer() {
        let (publisher, snapshot) = Publisher::new();
        let ask = |method: &str, path: &str| {
            let answer = answer(&method.parse().unwrap(), path, &snapshot);
            (answer.status().as_u16(), answer.into_body())
        };
        assert_eq!(ask("GET", "/healthz"), (200, "ok\n".to_owned()));
        assert_eq!(ask("GET", "/readyz"), (503, "lease: none yet\n".to_owned()));
        assert!(ask("GET", "/metrics").1.contains("\ntwill_ready 0\n"));
        publisher.publish(|snapshot| snapshot.missing.clear());
        assert!(ask("GET", "/metrics").1.contains("\ntwill_ready 1\n"));
        assert_eq!(ask("HEAD", "/readyz"), (200, "ready\n".to_owned()));
        assert_eq!(ask("POST", "/readyz").0, 405);
        assert_eq!(ask("BREW", "/healthz").0, 405);
        assert_eq!(ask("POST", "/metrics").0, 405);
        for path in ["/", "*", "", "/healthz/", "/metrics/"] {
            assert_eq!(ask("GET", path).0, 404, "{path}");
        }
    }

    #[test]
    fn from_this_node_is_from_loopback_or_from_the_very_address() {
        let near = |from: &str, to: &str| is_near(from.parse().unwrap(), to.parse().unwrap());
        assert!(near("127.0.0.1:5", "127.0.0.1:80") && near("[::1]:5", "[::1]:80"));
        assert!(near("10.0.0.5:5", "10.0.0.5:80") && near("[::ffff:127.0.0.1]:5", "[::ffff:127.0.0.1]:80"));
        assert!(!near("10.0.0.6:5", "10.0.0.5:80") && !near("10.0.0.6:5", "127.0.0.1:80"));
    }

    #[tokio::test]
    async fn a_new_connection_takes_the_place_of_the_oldest() {
        for (descriptors, near, far) in [(1 << 20, 8, 24), (100, 8, 18), (64, 1, 1), (0, 1, 1)] {
            let mut places = Places::new(descriptors);
            let mut aborted = Vec::new();
            for n in 0..100 {
                let task = tokio::spawn(std::future::pending());
                aborted.push(task.abort_handle());
                places.admit(n % 2 == 0, || task);
            }
            // The runtime gets to all of them within some turns.
            while aborted.iter().filter(|task| !task.is_finished()).count() > near + far {
                tokio::task::yield_now().await;
            }
            assert_eq!((places.near.len(), places.far.len()), (near, far), "{descriptors}");
            assert!(!aborted[98].is_finished() && !aborted[99].is_finished(), "the newest have a place");
        }
    }
}
