//! The store behind TLS: what opens etcd's door, and what is said where it stays shut.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its tests do")]
#![allow(dead_code, reason = "the server's helpers are shared with other tests")]

mod etcd_server;

use etcd_server::pki::{Pki, copy};
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

on_each_etcd!(
    the_authority_alone_opens_and_problems_are_named,
    a_client_certificate_opens_and_is_read_again_when_it_changes,
);
