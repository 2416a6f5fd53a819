//! Why etcd can't be used, in an operator's words: real servers of every wrong kind, and a real etcd in every bad state.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its tests do")]
#![allow(dead_code, reason = "the server's helpers are shared with other tests")]

mod etcd_server;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::path::PathBuf;

use etcd_server::cluster::Cluster;
use etcd_server::pki::Pki;
use etcd_server::{Etcd, LIMIT, PREFIX, Release, free_port, on_each_etcd};
use twill_agent::store::etcd::{EtcdOptions, EtcdStore, Tls};
use twill_agent::store::{Store, StoreEvent};

fn options(url: &str, tls: Option<Tls>) -> EtcdOptions {
    EtcdOptions { endpoints: vec![url.to_owned()], prefix: PREFIX.to_owned(), tls, ..EtcdOptions::default() }
}

/// An error has all of `words`.
#[track_caller]
fn says(said: &str, words: &[&str]) {
    for words in words {
        assert!(said.contains(words), "no {words}: {said}");
    }
}

/// Each of some reads fails, and says all of `words`. Several, since what a failing connection says depends on who is
/// quicker.
async fn fails(options: EtcdOptions, words: &[&str]) {
    let store = EtcdStore::connect(options).unwrap();
    for _ in 0..5 {
        let error = tokio::time::timeout(LIMIT, store.config()).await.unwrap().unwrap_err().to_string();
        says(&error, words);
        assert!(error.ends_with(')'), "the original words are in parentheses: {error}");
    }
}

/// A server that answers each connection with these bytes, at once or after it has heard something.
fn server(answer: &'static [u8], at_once: bool) -> String {
    serve(answer, at_once, false)
}

/// The same; the connection stays open.
fn open_server(answer: &'static [u8], at_once: bool) -> String {
    serve(answer, at_once, true)
}

fn serve(answer: &'static [u8], at_once: bool, stays_open: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut heard = [0; 1024];
            if !at_once {
                let _ = stream.read(&mut heard);
            }
            let _ = stream.write_all(answer);
            if stays_open {
                open.push(stream);
                continue;
            }
            // Closed in order: what was written is not lost to a reset.
            let _ = stream.shutdown(Shutdown::Write);
            while stream.read(&mut heard).is_ok_and(|length| length > 0) {}
        }
    });
    address.to_string()
}

#[tokio::test]
async fn what_is_no_etcd_is_called_what_it_is() {
    let pki = Pki::new();
    fails(options("http://127.0.0.1:1", None), &["nothing listens at http://127.0.0.1:1", "Connection refused"]).await;
    let unknown = "the resolver does not know the name in http://nosuch.invalid:2379";
    fails(options("http://nosuch.invalid:2379", None), &[unknown]).await;
    const SSH: &[u8] = b"SSH-2.0-OpenSSH_9.2\r\n";
    const HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\nServer: nginx\x1b[2J/1.22\r\nContent-Length: 3\r\n\r\nbad";
    for (bytes, at_once, words) in
        [(SSH, true, "an SSH server listens at"), (HTTP, false, "an HTTP server (nginx[2J/1.22) listens at")]
    {
        let address = server(bytes, at_once);
        fails(options(&format!("http://{address}"), None), &[words, &address]).await;
        fails(options(&format!("https://{address}"), Some(pki.client(None))), &[words, &address]).await;
    }
    // Two that answer and leave the connection open: one in HTTP/1, one in nothing at all.
    let (http, junk) = (open_server(HTTP, false), open_server(&[7; 200], true));
    fails(options(&format!("http://{http}"), None), &["an HTTP server (nginx[2J/1.22) listens at", &http]).await;
    fails(options(&format!("http://{junk}"), None), &[&format!("what listens at http://{junk} is no etcd")]).await;
    let silent = server(b"", false);
    let cannot_tell = ["ends the connection and does not say why", "look into etcd's log"];
    fails(options(&format!("http://{silent}"), None), &cannot_tell).await;
    let words = ["ends the TLS handshake without a word: it is no etcd, or does not speak TLS"];
    fails(options(&format!("https://{silent}"), Some(pki.client(None))), &words).await;
}

#[tokio::test]
async fn a_server_that_hangs_is_said_to_accept_and_not_to_answer() {
    let pki = Pki::new();
    // It accepts (the kernel does) and never says a word.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for scheme in ["http", "https"] {
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let tls = (scheme == "https").then(|| pki.client(None));
        let store = EtcdStore::connect(options(&url, tls)).unwrap();
        let error = tokio::time::timeout(LIMIT, store.config()).await.unwrap().unwrap_err().to_string();
        says(&error, &[&format!("{url} accepts connections and does not answer: it hangs"), " s)"]);
    }
}

/// The connection of a running client is cut, and what listens then takes connections and hangs.
#[tokio::test]
async fn a_server_that_hangs_after_a_cut_is_said_to_accept_and_not_to_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut first, _) = listener.accept().unwrap();
        let _ = first.read(&mut [0; 1024]);
        drop(first);
        // No more is accepted here; the kernel's queue takes them.
        std::thread::sleep(LIMIT);
    });
    let store = EtcdStore::connect(options(&url, None)).unwrap();
    let mut events = store.follow();
    let Some(StoreEvent::Down { reason }) = tokio::time::timeout(LIMIT, events.recv()).await.unwrap() else { panic!() };
    says(&reason, &[&format!("{url} accepts connections and does not answer")]);
}

async fn a_scheme_that_is_not_etcd_s_is_told(release: Release) {
    let pki = Pki::new();
    pki.sign("server", "IP:127.0.0.1", 2);
    let plain = Etcd::start(release);
    let words = ["does not speak TLS: write http:// in --etcd-endpoints"];
    fails(options(&plain.url().replace("http:", "https:"), Some(pki.client(None))), &words).await;
    for asks in [false, true] {
        let secure = Etcd::start_with(release, pki.server("server", asks));
        let words = ["speaks TLS: write https:// in --etcd-endpoints"];
        fails(options(&secure.url().replace("https:", "http:"), None), &words).await;
    }
}

async fn etcd_s_port_for_metrics_is_no_etcd(release: Release) {
    let metrics = format!("http://127.0.0.1:{}", free_port());
    let more = ["--listen-metrics-urls".to_owned(), metrics.clone()];
    let _etcd = Etcd::start_plain_with(release, more.to_vec());
    fails(options(&metrics, None), &[&format!("an HTTP server listens at {metrics}, and no etcd")]).await;
}

async fn a_server_that_is_not_trusted_is_told_with_the_reason(release: Release) {
    let (pki, stranger) = (Pki::new(), Pki::new());
    pki.sign("server", "IP:127.0.0.1", 2);
    pki.sign("misnamed", "DNS:elsewhere.example", 2);
    pki.sign("expired", "IP:127.0.0.1", -1);
    let etcd = Etcd::start_with(release, pki.server("server", false));
    let untrusted = format!("the server at {} is not trusted: ", etcd.url());
    let by_file = format!("{untrusted}no authority in --etcd-cafile signed its certificate");
    fails(options(&etcd.url(), Some(stranger.client(None))), &[&by_file]).await;
    let by_system = format!("{untrusted}no authority that this system knows signed its certificate");
    fails(options(&etcd.url(), None), &[&by_system, "name its authority with --etcd-cafile"]).await;
    for (name, words) in
        [("misnamed", "its certificate is for another name"), ("expired", "its certificate has expired")]
    {
        let etcd = Etcd::start_with(release, pki.server(name, false));
        fails(options(&etcd.url(), Some(pki.client(None))), &["is not trusted: ", words]).await;
    }
}

async fn a_client_certificate_that_is_wanted_or_refused_is_told(release: Release) {
    let (pki, stranger) = (Pki::new(), Pki::new());
    pki.sign("server", "IP:127.0.0.1", 2);
    pki.sign("old", "DNS:node", -1);
    stranger.sign("node", "DNS:node", 2);
    let etcd = Etcd::start_with(release, pki.server("server", true));
    let wanted = format!("etcd at {} asks for a client certificate and is given none", etcd.url());
    let flags = "name one with --etcd-certfile and --etcd-keyfile";
    fails(options(&etcd.url(), Some(pki.client(None))), &[&wanted, flags]).await;

    let refused = format!("etcd at {} refuses the certificate of --etcd-certfile: ", etcd.url());
    let unknown = Tls { ca_file: Some(pki.path("ca.crt")), ..stranger.client(Some("node")) };
    fails(options(&etcd.url(), Some(unknown)), &[&refused, "is not in etcd's --trusted-ca-file"]).await;
    fails(options(&etcd.url(), Some(pki.client(Some("old")))), &[&format!("{refused}it has expired (")]).await;
}

#[test]
fn files_that_can_t_be_used_are_named_with_their_flag() {
    let pki = Pki::new();
    pki.sign("node", "DNS:node", 2);
    pki.sign("other", "DNS:other", 2);
    let written = |name: &str, text: &str| {
        std::fs::write(pki.path(name), text).unwrap();
        pki.path(name)
    };
    let whole = pki.client(Some("node"));
    let refusal = |tls: Tls| {
        let error = EtcdStore::connect(options("https://127.0.0.1:1", Some(tls))).err().unwrap();
        assert!(!error.is_transient());
        error.to_string()
    };
    let certificate = written("bad.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let cut = written("cut.crt", "-----BEGIN CERTIFICATE-----\nMIIB");
    let key = written("bad.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    let locked =
        written("locked.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
    let with_ca = |path: &PathBuf| Tls { ca_file: Some(path.clone()), ..whole.clone() };
    let with_cert = |path: &PathBuf| Tls { cert_file: Some(path.clone()), ..whole.clone() };
    let with_key = |path: &PathBuf| Tls { key_file: Some(path.clone()), ..whole.clone() };
    for (tls, flag, path, words) in [
        (with_ca(&certificate), "--etcd-cafile", &certificate, "no certificate in it can be read"),
        (with_ca(&cut), "--etcd-cafile", &cut, "a PEM section is garbled or cut short"),
        (with_cert(&certificate), "--etcd-certfile", &certificate, "the certificate in it can't be read"),
        (with_cert(&cut), "--etcd-certfile", &cut, "a PEM section is garbled or cut short"),
        (with_key(&key), "--etcd-keyfile", &key, "the key in it can't be read"),
        (with_key(&locked), "--etcd-keyfile", &locked, "the key in it is encrypted"),
        (
            with_key(&pki.path("other.key")),
            "--etcd-keyfile",
            &pki.path("other.key"),
            "is not that of the certificate of --etcd-certfile",
        ),
        (with_key(&pki.path("nosuch")), "--etcd-keyfile", &pki.path("nosuch"), "No such file"),
    ] {
        says(&refusal(tls), &[&format!("{flag} {}: ", path.display()), words]);
    }
    assert!(EtcdStore::connect(options("https://127.0.0.1:1", Some(whole))).is_ok());
}

async fn an_outage_that_cuts_the_watch_says_what_is_left(release: Release) {
    let mut etcd = Etcd::start(release);
    let mut events = etcd.store().follow();
    loop {
        if let StoreEvent::Listed { .. } = tokio::time::timeout(LIMIT, events.recv()).await.unwrap().unwrap() {
            break;
        }
    }
    etcd.kill();
    let reason = loop {
        if let StoreEvent::Down { reason } = tokio::time::timeout(LIMIT, events.recv()).await.unwrap().unwrap() {
            break reason;
        }
    };
    says(&reason, &[&format!("nothing listens at {} (", etcd.url())]);
}

async fn an_outage_whose_reason_changes_says_so(release: Release) {
    let mut etcd = Etcd::start(release);
    let options = etcd.options();
    etcd.kill();
    let mut events = EtcdStore::connect(options).unwrap().follow();
    let mut reason = async || loop {
        if let StoreEvent::Down { reason } = tokio::time::timeout(4 * LIMIT, events.recv()).await.unwrap().unwrap() {
            break reason;
        }
    };
    says(&reason().await, &["nothing listens at"]);
    etcd.restart();
    for words in ["user add root:secret", "user grant-role root root", "auth enable"] {
        etcd.ctl(&words.split(' ').collect::<Vec<_>>());
    }
    says(&reason().await, &["etcd asks who we are"]);
}

async fn a_user_that_is_missing_or_wrong_is_told(release: Release) {
    let etcd = Etcd::start(release);
    for words in ["user add root:secret", "user grant-role root root", "auth enable"] {
        etcd.ctl(&words.split(' ').collect::<Vec<_>>());
    }
    let nobody = EtcdStore::connect(etcd.options()).unwrap().config().await.unwrap_err().to_string();
    says(&nobody, &["etcd asks who we are: give --etcd-username and --etcd-password (", "user name is empty"]);
    let mut wrong = etcd.options();
    (wrong.username, wrong.password) = (Some("root".to_owned()), Some("wrong".to_owned()));
    let wrong = EtcdStore::connect(wrong).unwrap().config().await.unwrap_err().to_string();
    says(&wrong, &["etcd does not take --etcd-username with --etcd-password (", "invalid user ID or password"]);
}

async fn a_full_quota_is_told(release: Release) {
    let quota = ["--quota-backend-bytes".to_owned(), (64 << 10).to_string()];
    let etcd = Etcd::start_plain_with(release, quota.to_vec());
    let store = etcd.store();
    let value = vec![b'x'; 32 << 10];
    let refusal = async {
        for n in 0.. {
            if let Err(error) = store.create(&format!("10.5.{n}.0-24"), &value, None).await {
                return error.to_string();
            }
        }
        unreachable!("the loop has no end")
    };
    let refusal = tokio::time::timeout(LIMIT, refusal).await.unwrap();
    says(&refusal, &["space quota is used up (alarm NOSPACE)", "etcdctl alarm disarm", "database space exceeded"]);
}

async fn a_lost_majority_is_told(release: Release) {
    let mut cluster = Cluster::start(release);
    cluster.kill(1);
    cluster.kill(2);
    let store = EtcdStore::connect(cluster.options(&[0])).unwrap();
    let refusal = async {
        loop {
            let error = store.config().await.unwrap_err().to_string();
            if error.contains("etcd has no leader: a majority of its members is not up") {
                return error;
            }
            // Until it has noticed.
            assert!(error.contains("timed out") || error.contains("no answer") || error.contains("leader"), "{error}");
        }
    };
    tokio::time::timeout(4 * LIMIT, refusal).await.unwrap();
}

on_each_etcd!(
    a_scheme_that_is_not_etcd_s_is_told,
    etcd_s_port_for_metrics_is_no_etcd,
    a_server_that_is_not_trusted_is_told_with_the_reason,
    a_client_certificate_that_is_wanted_or_refused_is_told,
    an_outage_that_cuts_the_watch_says_what_is_left,
    an_outage_whose_reason_changes_says_so,
    a_user_that_is_missing_or_wrong_is_told,
    a_full_quota_is_told,
    a_lost_majority_is_told,
);
