//! The store behind TLS: what opens etcd's door, and what is said where it stays shut.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its tests do")]
#![allow(dead_code, reason = "the server's helpers are shared with other tests")]

mod etcd_server;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use etcd_server::{Etcd, LIMIT};
use twill_agent::store::Store;
use twill_agent::store::etcd::{EtcdStore, Tls};

/// An authority and what it signed, as files.
struct Pki {
    dir: tempfile::TempDir,
}

impl Pki {
    fn new() -> Self {
        let pki = Self { dir: tempfile::tempdir().unwrap() };
        pki.openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.crt");
        pki
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A certificate for this name or address, valid for so many days from now on.
    fn sign(&self, name: &str, subject: &str, days: i32) {
        std::fs::write(self.path("ext"), format!("subjectAltName={subject}")).unwrap();
        self.openssl(&format!("req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days {days} -extfile ext -out {name}.crt"
        ));
    }

    fn openssl(&self, arguments: &str) {
        let mut command = Command::new("openssl");
        command.args(arguments.split(' ')).current_dir(self.dir.path()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().unwrap().success(), "openssl {arguments}");
    }

    /// An etcd with the certificate `name`, which asks for a client's if `auth`.
    fn etcd(&self, name: &str, auth: bool) -> Etcd {
        let file = |name: String| self.path(&name).display().to_string();
        let mut tls = vec![
            "--cert-file".to_owned(),
            file(format!("{name}.crt")),
            "--key-file".to_owned(),
            file(format!("{name}.key")),
        ];
        if auth {
            tls.extend(["--client-cert-auth".to_owned(), "--trusted-ca-file".to_owned(), file("ca.crt".to_owned())]);
        }
        Etcd::start_with(tls)
    }

    fn files(&self, client: Option<&str>) -> Tls {
        Tls {
            ca_file: Some(self.path("ca.crt")),
            cert_file: client.map(|name| self.path(&format!("{name}.crt"))),
            key_file: client.map(|name| self.path(&format!("{name}.key"))),
        }
    }
}

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

fn copy(from: &Path, to: &Path) {
    std::fs::copy(from, to).unwrap();
}

#[tokio::test]
async fn the_authority_alone_opens_and_problems_are_named() {
    let (pki, stranger) = (Pki::new(), Pki::new());
    pki.sign("server", "IP:127.0.0.1", 2);
    pki.sign("misnamed", "DNS:elsewhere.example", 2);
    pki.sign("expired", "IP:127.0.0.1", -1);
    let etcd = pki.etcd("server", false);
    assert_eq!(store(&etcd, pki.files(None)).config().await.unwrap(), None);
    let unknown = refusal(&etcd, stranger.files(None)).await;
    assert!(unknown.contains("UnknownIssuer") || unknown.contains("BadSignature"), "{unknown}");
    let misnamed = refusal(&pki.etcd("misnamed", false), pki.files(None)).await;
    assert!(misnamed.contains("not valid for name"), "{misnamed}");
    let expired = refusal(&pki.etcd("expired", false), pki.files(None)).await;
    assert!(expired.contains("Expired"), "{expired}");
}

#[tokio::test]
async fn a_client_certificate_opens_and_is_read_again_when_it_changes() {
    let (pki, stranger) = (Pki::new(), Pki::new());
    pki.sign("server", "IP:127.0.0.1", 2);
    pki.sign("node", "DNS:node", 2);
    stranger.sign("node", "DNS:node", 2);
    let etcd = pki.etcd("server", true);
    refusal(&etcd, pki.files(None)).await;

    // A certificate that this etcd doesn't trust, mended on disk while we run.
    for end in ["crt", "key"] {
        copy(&stranger.path(&format!("node.{end}")), &pki.path(&format!("mine.{end}")));
    }
    let store = store(&etcd, pki.files(Some("mine")));
    store.config().await.unwrap_err();
    for end in ["crt", "key"] {
        copy(&pki.path(&format!("node.{end}")), &pki.path(&format!("mine.{end}")));
    }
    assert_eq!(store.config().await.unwrap(), None);
}
