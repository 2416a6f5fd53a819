//! An authority and what it signed, as files.

use std::os::unix::fs::symlink;
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

    /// A certificate for the user `name` that ends so many seconds from now.
    pub(crate) fn sign_for(&self, name: &str, seconds: u64) {
        let config = "[ca]\ndefault_ca=x\n[x]\ndatabase=index\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\n\
                      policy=p\nunique_subject=no\n[p]\ncommonName=supplied\n";
        let dir = self.dir.path();
        std::fs::write(dir.join("ca.cnf"), config).unwrap();
        std::fs::write(dir.join("index"), "").unwrap();
        std::fs::write(dir.join("ext"), format!("subjectAltName=DNS:{name}")).unwrap();
        self.openssl(&format!("req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"));
        let at = |seconds: i64| {
            let date =
                Command::new("date").args(["-u", "-d", &format!("{seconds} seconds"), "+%Y%m%d%H%M%SZ"]).output();
            String::from_utf8(date.unwrap().stdout).unwrap().trim().to_owned()
        };
        let (start, end) = (at(-60), at(i64::try_from(seconds).unwrap()));
        self.openssl(&format!(
            "ca -batch -config ca.cnf -create_serial -cert ca.crt -keyfile ca.key -startdate {start} -enddate {end} \
             -extfile ext -in {name}.csr -out {name}.crt -notext"
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

/// A folder as the kubelet makes it of a Secret: the files are links into `..data`, itself a link to a folder with one
/// version of them all, which is replaced in one step.
pub(crate) struct Secret {
    dir: tempfile::TempDir,
}

impl Secret {
    /// With the certificate `name`, as ca.crt, tls.crt and tls.key.
    pub(crate) fn new(pki: &Pki, name: &str) -> Self {
        let secret = Self { dir: tempfile::tempdir().unwrap() };
        secret.update(pki, name);
        for file in ["ca.crt", "tls.crt", "tls.key"] {
            symlink(format!("..data/{file}"), secret.dir.path().join(file)).unwrap();
        }
        secret
    }

    /// Replaces the files by those of another certificate.
    pub(crate) fn update(&self, pki: &Pki, name: &str) {
        let version = self.dir.path().join(format!("..{name}"));
        std::fs::create_dir(&version).unwrap();
        for (from, to) in
            [("ca.crt", "ca.crt"), (&*format!("{name}.crt"), "tls.crt"), (&*format!("{name}.key"), "tls.key")]
        {
            copy(&pki.path(from), &version.join(to));
        }
        let link = self.dir.path().join("..data_tmp");
        symlink(&version, &link).unwrap();
        std::fs::rename(&link, self.dir.path().join("..data")).unwrap();
    }

    pub(crate) fn client(&self) -> Tls {
        let file = |name: &str| Some(self.dir.path().join(name));
        Tls { ca_file: file("ca.crt"), cert_file: file("tls.crt"), key_file: file("tls.key") }
    }
}
