//! A look at an endpoint whose connection ended without a reason: who listens there, and what its TLS says.
//!
//! With TLS 1.3 our side takes a handshake for done before the server has looked at our certificate; the server's alert
//! comes later, and mostly behind the end of the connection, where etcd's client does not read it. A handshake by
//! itself, and reading after it, shows the alert, and whether a certificate was asked for at all.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::ResolvesClientCert;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, SignatureScheme};

use super::reason::{self, Look};
use super::{Tls, tls};

/// The longest that a look may take.
const MOST: Duration = Duration::from_secs(2);
/// The longest that each step of it waits for the other side.
const STEP: Duration = Duration::from_secs(1);
/// What is read of an answer.
const ANSWER: usize = 1024;
/// How an HTTP/2 client begins: its preface, and settings that set nothing (RFC 9113, 3.4).
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Looks at an endpoint, with these files where it is one of TLS.
pub(super) async fn look(endpoint: &str, files: Option<&Tls>) -> Look {
    let Some((host, port)) = place(endpoint) else { return Look::Nothing };
    let found = async {
        match files.filter(|_| endpoint.starts_with("https://")) {
            Some(files) => secure(&host, port, files).await,
            None => match plain(&host, port, false).await {
                // etcd's TLS port ends a plain request without a word.
                Look::Nothing | Look::Silent | Look::Failed(_) if speaks_tls(&host, port).await => Look::SpeaksTls,
                found => found,
            },
        }
    };
    // The connections that it waits for have a shorter time each.
    timeout(MOST, found).await.unwrap_or(Look::Silent)
}

/// Connects. Where that takes too long it fails with the text of etcd's client, for which [`reason`] has an operator's words.
async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, "tcp connect error: deadline has elapsed");
    timeout(STEP, TcpStream::connect((host, port))).await.unwrap_or_else(|_| Err(late()))
}

/// Whether an endpoint names its host by a name and not by an address.
pub(super) fn has_name(endpoint: &str) -> bool {
    place(endpoint).is_some_and(|(host, _)| host.parse::<IpAddr>().is_err())
}

/// Host and port of an endpoint.
fn place(endpoint: &str) -> Option<(String, u16)> {
    let (scheme, rest) = endpoint.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let authority = authority.rsplit('@').next()?;
    let usual = if scheme == "https" { 443 } else { 80 };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
        _ => (authority, usual),
    };
    Some((host.trim_matches(['[', ']']).to_owned(), port))
}

/// Says a plain HTTP request and listens to the answer.
async fn plain(host: &str, port: u16, https: bool) -> Look {
    let mut answer = Vec::new();
    let asked = async {
        let mut stream = connect(host, port).await?;
        let request = format!("GET /version HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        // Whoever answers may leave the connection open all the same.
        let read = timeout(STEP, stream.take(ANSWER as u64).read_to_end(&mut answer)).await;
        Ok(read.map(|read| read.err()))
    };
    match asked.await {
        Err(error) => failed(&error),
        Ok(Err(_)) if answer.is_empty() => Look::Silent,
        // It may have said something before it ended the connection.
        Ok(Ok(Some(error))) if answer.is_empty() => failed(&error),
        Ok(_) => reason::server(&answer, https),
    }
}

/// Whether a server answers a handshake. It is not trusted and is sent nothing.
async fn speaks_tls(host: &str, port: u16) -> bool {
    let (Some((connector, name)), Ok(stream)) =
        (connector(host, RootCertStore::empty(), None), connect(host, port).await)
    else {
        return false;
    };
    let handshake = connector.connect(name, stream).await.err().map(|error| error.to_string());
    handshake.is_some_and(|said| said.contains("peer certificate") || said.contains("fatal alert"))
}

/// What makes handshakes with a host.
fn connector(host: &str, trusted: RootCertStore, own: Option<Arc<Own>>) -> Option<(TlsConnector, ServerName<'static>)> {
    let builder = ClientConfig::builder_with_provider(Arc::new(tls::provider()));
    let builder = builder.with_safe_default_protocol_versions().ok()?.with_root_certificates(trusted);
    let mut config = match own {
        Some(own) => builder.with_client_cert_resolver(own),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Some((TlsConnector::from(Arc::new(config)), ServerName::try_from(host.to_owned()).ok()?))
}

/// Makes a handshake and reads what comes after it.
async fn secure(host: &str, port: u16, files: &Tls) -> Look {
    let Ok((trusted, own)) = tls::trust_and_identity(files) else { return Look::Nothing };
    let own = Arc::new(Own { certificate: own.map(Arc::new), asked: AtomicBool::new(false) });
    let Some((connector, name)) = connector(host, trusted, Some(own.clone())) else { return Look::Nothing };
    let stream = match connect(host, port).await {
        Ok(stream) => stream,
        Err(error) => return failed(&error),
    };
    let spoken = async {
        let mut stream = connector.connect(name, stream).await?;
        let mut answer = [0; ANSWER];
        stream.write_all(HTTP2).await?;
        stream.flush().await?;
        // TLS 1.3: only now the server has looked at our certificate.
        stream.read(&mut answer).await
    };
    let ended = match timeout(STEP, spoken).await {
        Ok(Ok(1..)) => return Look::Answers,
        Ok(Ok(0)) => io::Error::from(io::ErrorKind::UnexpectedEof),
        Ok(Err(error)) => error,
        Err(_) => return Look::Silent,
    };
    let said = ended.to_string();
    if said.contains("fatal alert") || said.contains("invalid peer certificate") {
        return Look::Failed(said);
    }
    match (own.asked.load(Ordering::Relaxed), own.certificate.is_some()) {
        (true, true) => Look::CertificateRefused,
        (true, false) => Look::CertificateWanted,
        // Perhaps it does not speak TLS at all.
        (false, _) => match plain(host, port, true).await {
            Look::Nothing | Look::Failed(_) => Look::NoHandshake,
            found => found,
        },
    }
}

fn failed(error: &io::Error) -> Look {
    Look::Failed(error.to_string())
}

/// Our certificate, and whether the server has asked for one.
#[derive(Debug)]
struct Own {
    certificate: Option<Arc<CertifiedKey>>,
    asked: AtomicBool,
}

impl ResolvesClientCert for Own {
    fn resolve(&self, _authorities: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        self.certificate.clone()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_a_place() {
        for (endpoint, host, port) in [
            ("http://10.0.0.5:2379", "10.0.0.5", 2379),
            ("https://[fd99::1]:2379/", "fd99::1", 2379),
            ("https://etcd.example/path", "etcd.example", 443),
            ("http://[fd99::1]", "fd99::1", 80),
        ] {
            assert_eq!(place(endpoint), Some((host.to_owned(), port)), "{endpoint}");
            assert_eq!(has_name(endpoint), host == "etcd.example", "{endpoint}");
        }
        assert_eq!((place("http://a:b"), place("nonsense")), (None, None));
    }
}
