//! The store behind TLS: what opens etcd's door, and what is said where it stays shut.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its tests do")]
#![allow(dead_code, reason = "the server's helpers are shared with other tests")]

mod etcd_server;

use std::time::{Duration, Instant};

use etcd_server::pki::{Pki, Secret, copy};
use etcd_server::{Etcd, LIMIT, Release, on_each_etcd};
use twill_agent::store::Store;
use twill_agent::store::etcd::{EtcdStore, Tls};

fn store(etcd: &Etcd, tls: Tls) -> EtcdStore {
    let mut options = etcd.options();
    options.tls = Some(tls);
    EtcdStore::connect(options).unwrap()
}

async fn refusal(etcd: &Etcd, tls: Tls) -> String {
    let error = tokio::time::timeout(LIMIT, store(etcd, tls).config()).await.unwrap().unwrap_err();
    assert!(error.is_transient(), "the certificates may be mended while we run");
    error.to_string()
}

async fn the_authority_alone_opens_and_problems_are_named(release: Release) {
    let (pki, stranger) = (Pki::new(), Pki::new());
    pki.sign("server", "IP:127.0.0.1", 2);
    pki.sign("misnamed", "DNS:elsewhere.example", 2);
    pki.sign("expired", "IP:127.0.0.1", -1);
    let etcd = Etcd::start_with(release, pki.server("server", false));
    assert_eq!(store(&etcd, pki.client(None)).config().await.unwrap(), None);
    let unknown = refusal(&etcd, stranger.client(None)).await;
    assert!(unknown.contains("UnknownIssuer") || unknown.contains("BadSignature"), "{unknown}");
    let misnamed = refusal(&Etcd::start_with(release, pki.server("misnamed", false)), pki.client(None)).await;
    assert!(misnamed.contains("not valid for name"), "{misnamed}");
    let expired = refusal(&Etcd::start_with(release, pki.server("expired", false)), pki.client(None)).await;
    assert!(expired.contains("Expired"), "{expired}");
}

async fn a_client_certificate_opens_and_is_read_again_when_it_changes(release: Release) {
    let (pki, stranger) = (Pki::new(), Pki::new());
    pki.sign("server", "IP:127.0.0.1", 2);
    pki.sign("node", "DNS:node", 2);
    stranger.sign("node", "DNS:node", 2);
    let etcd = Etcd::start_with(release, pki.server("server", true));
    refusal(&etcd, pki.client(None)).await;

    // A certificate that this etcd doesn't trust, mended on disk while we run.
    for end in ["crt", "key"] {
        copy(&stranger.path(&format!("node.{end}")), &pki.path(&format!("mine.{end}")));
    }
    let store = store(&etcd, pki.client(Some("mine")));
    store.config().await.unwrap_err();
    for end in ["crt", "key"] {
        copy(&pki.path(&format!("node.{end}")), &pki.path(&format!("mine.{end}")));
    }
    assert_eq!(store.config().await.unwrap(), None);
}

/// etcd's users are named by the certificate: what a request may do shows which one it came with.
async fn a_new_certificate_in_a_secret_is_taken_up_while_the_connection_lives(release: Release) {
    let pki = Pki::new();
    pki.sign("server", "IP:127.0.0.1", 2);
    for user in ["root", "old", "new"] {
        pki.sign(user, &format!("DNS:{user}"), 2);
    }
    let etcd = Etcd::start_with(release, pki.server("server", true));
    let root = pki.client(Some("root"));
    let files = [("--cacert", root.ca_file), ("--cert", root.cert_file), ("--key", root.key_file)];
    let files: Vec<String> =
        files.iter().map(|(flag, file)| format!("{flag}={}", file.as_ref().unwrap().display())).collect();
    let ctl = |words: &str| {
        let words: Vec<&str> = files.iter().map(String::as_str).chain(words.split(' ')).collect();
        etcd.ctl(&words)
    };
    for words in ["user add root --no-password", "role add root", "user grant-role root root", "role add reader"] {
        ctl(words);
    }
    ctl(&format!("role grant-permission reader --prefix=true read {}", etcd_server::PREFIX));
    for words in
        ["user add old --no-password", "user add new --no-password", "user grant-role new reader", "auth enable"]
    {
        ctl(words);
    }

    let secret = Secret::new(&pki, "old");
    let store = store(&etcd, secret.client());
    let denied = store.config().await.unwrap_err().to_string();
    assert!(denied.contains("permission denied"), "{denied}");
    secret.update(&pki, "new");
    assert_eq!(store.config().await.unwrap(), None);

    // One that etcd does not take: what serves goes on serving.
    let stranger = Pki::new();
    stranger.sign("stranger", "DNS:stranger", 2);
    copy(&pki.path("ca.crt"), &stranger.path("ca.crt"));
    secret.update(&stranger, "stranger");
    assert_eq!(store.config().await.unwrap(), None);
}

async fn a_certificate_that_has_ended_is_replaced_with_no_restart(release: Release) {
    /// Longer than it takes to sign, to start etcd and to ask it once.
    const LIFE: Duration = Duration::from_secs(15);
    let pki = Pki::new();
    pki.sign("server", "IP:127.0.0.1", 2);
    pki.sign("second", "DNS:node", 2);
    let mut etcd = Etcd::start_with(release, pki.server("server", true));
    pki.sign_for("first", LIFE.as_secs());
    let end = Instant::now() + LIFE;
    let secret = Secret::new(&pki, "first");
    let store = store(&etcd, secret.client());
    assert_eq!(store.config().await.unwrap(), None);
    tokio::time::sleep_until((end + Duration::from_secs(2)).into()).await;
    assert_eq!(store.config().await.unwrap(), None, "a connection outlives its certificate");
    etcd.kill();
    etcd.restart();
    store.config().await.unwrap_err();
    secret.update(&pki, "second");
    assert_eq!(store.config().await.unwrap(), None);
}

on_each_etcd!(
    a_new_certificate_in_a_secret_is_taken_up_while_the_connection_lives,
    a_certificate_that_has_ended_is_replaced_with_no_restart,
    the_authority_alone_opens_and_problems_are_named,
    a_client_certificate_opens_and_is_read_again_when_it_changes,
);
