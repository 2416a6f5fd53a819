//! An authority and what it signed, as files.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use twill_agent::store::etcd::Tls;

/// An authority of one test's own.
pub(crate) struct Pki {
    dir: tempfile::TempDir,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let pki = Self { dir: tempfile::tempdir().unwrap() };
        pki.openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.crt");
        pki
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same as text.
    pub(crate) fn file(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A certificate for this name or address, valid for so many days from now on.
    pub(crate) fn sign(&self, name: &str, subject: &str, days: i32) {
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

    /// etcd's arguments for the certificate `name`, asking for a client's if `auth`.
    pub(crate) fn server(&self, name: &str, auth: bool) -> Vec<String> {
        let file = |end: &str| self.file(&format!("{name}.{end}"));
        let mut tls = vec!["--cert-file".to_owned(), file("crt"), "--key-file".to_owned(), file("key")];
        if auth {
            tls.extend(["--client-cert-auth".to_owned(), "--trusted-ca-file".to_owned(), self.file("ca.crt")]);
        }
        tls
    }

    /// A client's options, with a certificate of its own or without.
    pub(crate) fn client(&self, name: Option<&str>) -> Tls {
        let file = |end: &str| name.map(|name| self.path(&format!("{name}.{end}")));
        Tls { ca_file: Some(self.path("ca.crt")), cert_file: file("crt"), key_file: file("key") }
    }
}

pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::copy(from, to).unwrap();
}
