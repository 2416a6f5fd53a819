//! `/healthz` and `/readyz` over HTTP.
//!
//! Owns the listener, the connections and the two answers; what readiness is made of it is told. Runs on the event loop's
//! thread: an answer is a look at one value and takes microseconds.
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
/// How often it is said that listening fails.
const REMIND: Duration = Duration::from_secs(60);

/// What is missing before this node is ready; nothing is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Each missing thing in words.
    pub missing: Vec<String>,
}

impl Readiness {
    /// At the start, before there is anything.
    pub fn starting() -> Self {
        Self { missing: vec!["lease: none yet".to_owned()] }
    }

    /// The same while something has to come first.
    pub fn waiting(what: &str) -> Self {
        Self { missing: vec![format!("lease: none yet, waiting for {what}")] }
    }

    /// The same while the start cannot go on, for this reason.
    pub fn hindered(why: &str) -> Self {
        Self { missing: vec![format!("lease: none yet; this node cannot {why}")] }
    }
}

/// Answers until the process ends, which may have so many descriptors.
///
/// An address that is in use or not there yet is waited for: health only informs, and a daemon that is about to stop may
/// still have the port.
pub async fn serve(address: SocketAddr, readiness: watch::Receiver<Readiness>, descriptors: u64) {
    let listener = listen(address).await;
    info!(%address, "health: /healthz and /readyz");
    let mut places = Places::new(descriptors);
    let mut failing = false;
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                failing = false;
                let is_near = stream.local_addr().is_ok_and(|to| is_near(from, to));
                places.admit(is_near, || tokio::spawn(connection(stream, readiness.clone())));
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
                warn!(%address, %error, "health: cannot listen (--healthz-ip, --healthz-port), trying until it works; /healthz and /readyz are not served");
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
async fn connection(stream: TcpStream, readiness: watch::Receiver<Readiness>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(request.method(), request.uri().path(), &readiness);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut http = http1::Builder::new();
    let http = http.keep_alive(false).max_buf_size(REQUEST).serve_connection(TokioIo::new(stream), service);
    // Whether it was too slow, not HTTP or has gone: nobody needs to know.
    let _ = timeout(LIFE, http).await;
}

fn answer(method: &Method, path: &str, readiness: &watch::Receiver<Readiness>) -> Response<String> {
    let (status, body) = match path {
        "/healthz" | "/readyz" if method != Method::GET && method != Method::HEAD => {
            (StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned())
        }
        "/healthz" => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => match readiness.borrow().missing.as_slice() {
            [] => (StatusCode::OK, "ready\n".to_owned()),
            missing => {
                (StatusCode::SERVICE_UNAVAILABLE, missing.iter().map(|what| format!("{what}\n")).collect::<String>())
            }
        },
        _ => (StatusCode::NOT_FOUND, "there are /healthz and /readyz\n".to_owned()),
    };
    let mut answer = Response::new(body);
    if status == StatusCode::METHOD_NOT_ALLOWED {
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    *answer.status_mut() = status;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_and_method_has_its_answer() {
        let (told, readiness) = watch::channel(Readiness::starting());
        let ask = |method: &str, path: &str| {
            let answer = answer(&method.parse().unwrap(), path, &readiness);
            (answer.status().as_u16(), answer.into_body())
        };
        assert_eq!(ask("GET", "/healthz"), (200, "ok\n".to_owned()));
        assert_eq!(ask("GET", "/readyz"), (503, "lease: none yet\n".to_owned()));
        told.send_replace(Readiness { missing: Vec::new() });
        assert_eq!(ask("HEAD", "/readyz"), (200, "ready\n".to_owned()));
        assert_eq!(ask("POST", "/readyz").0, 405);
        assert_eq!(ask("BREW", "/healthz").0, 405);
        for path in ["/", "*", "", "/healthz/", "/metrics"] {
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
