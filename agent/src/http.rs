//! `/healthz` and `/readyz` over HTTP.
//!
//! Owns the listener and the two answers; what readiness is made of it is told. Runs on the event loop's thread: an answer
//! is a look at one value and takes microseconds. Every answer closes its connection, so that idle clients hold nothing.

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

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
}

/// Opens the listener.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Answers until the process ends.
pub async fn serve(listener: TcpListener, readiness: watch::Receiver<Readiness>) -> io::Result<()> {
    let router = Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz)).with_state(readiness);
    axum::serve(listener, router).await
}

async fn healthz() -> impl IntoResponse {
    ([(header::CONNECTION, "close")], "ok\n")
}

async fn readyz(State(readiness): State<watch::Receiver<Readiness>>) -> impl IntoResponse {
    let missing: String = readiness.borrow().missing.iter().map(|what| format!("{what}\n")).collect();
    let (status, body) = match missing.as_str() {
        "" => (StatusCode::OK, "ready\n".to_owned()),
        _ => (StatusCode::SERVICE_UNAVAILABLE, missing),
    };
    (status, [(header::CONNECTION, "close")], body)
}
