//! TLS files, from the flags to the client's options. Errors name the flag and the path.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use etcd_client::{Certificate, Identity, TlsOptions};

use super::Tls;
use crate::files;
use crate::store::Error;

/// Where distributions keep the authorities that everybody trusts, as Go's `crypto/x509` looks for them on Linux.
const SYSTEM_CAS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Reads the files as they are now.
pub(super) fn options(tls: &Tls) -> Result<TlsOptions, Error> {
    let mut options = TlsOptions::new();
    options = match &tls.ca_file {
        Some(path) => options.ca_certificate(Certificate::from_pem(read("--etcd-cafile", path, "CERTIFICATE")?)),
        None => system_cas().map_or(options.clone(), |pem| options.ca_certificate(Certificate::from_pem(pem))),
    };
    match (&tls.cert_file, &tls.key_file) {
        (Some(cert), Some(key)) => {
            let cert = read("--etcd-certfile", cert, "CERTIFICATE")?;
            let key = read("--etcd-keyfile", key, "PRIVATE KEY")?;
            Ok(options.identity(Identity::from_pem(cert, key)))
        }
        (None, None) => Ok(options),
        (Some(path), None) => Err(alone("--etcd-certfile", path, "--etcd-keyfile")),
        (None, Some(path)) => Err(alone("--etcd-keyfile", path, "--etcd-certfile")),
    }
}

/// Which files these are at this moment: device, inode, size and time of change of each. A Secret's volume replaces all
/// its files at once, by a symbolic link; others write a file anew or rename one into place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stamp(Vec<Option<FileStamp>>);

type FileStamp = (u64, u64, u64, i64, i64);

impl Stamp {
    pub(super) fn of(tls: &Tls) -> Self {
        let stamp = |path: &PathBuf| {
            let file = std::fs::metadata(path).ok()?;
            Some((file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
        };
        Self([&tls.ca_file, &tls.cert_file, &tls.key_file].into_iter().flatten().map(stamp).collect())
    }
}

fn read(flag: &str, path: &Path, holds: &str) -> Result<Vec<u8>, Error> {
    let step = || format!("{flag} {}", path.display());
    let pem = files::read(path, files::CERTIFICATES).map_err(|error| refused(step(), error.to_string()))?;
    // The library's own words for a file of the wrong kind name neither.
    if String::from_utf8_lossy(&pem).contains(&format!("{holds}-----")) {
        Ok(pem)
    } else {
        Err(refused(step(), format!("there is no {} in it (PEM)", holds.to_lowercase())))
    }
}

fn system_cas() -> Option<Vec<u8>> {
    SYSTEM_CAS.iter().find_map(|path| files::read(Path::new(path), files::CERTIFICATES).ok())
}

fn alone(flag: &str, path: &Path, other: &str) -> Error {
    refused(format!("{flag} {}", path.display()), format!("needs {other} as well"))
}

fn refused(step: String, reason: String) -> Error {
    Error { step, reason, transient: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_flag_and_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pem");
        let error = |tls: &Tls| options(tls).unwrap_err().to_string();
        let ca = Tls { ca_file: Some(path.clone()), ..Tls::default() };
        let shown = path.display();
        assert_eq!(error(&ca), format!("--etcd-cafile {shown}: No such file or directory (os error 2)"));
        std::fs::write(&path, "-----BEGIN PRIVATE KEY-----").unwrap();
        assert_eq!(error(&ca), format!("--etcd-cafile {shown}: there is no certificate in it (PEM)"));
        let half = Tls { key_file: Some(path.clone()), ..Tls::default() };
        assert_eq!(error(&half), format!("--etcd-keyfile {shown}: needs --etcd-certfile as well"));
    }
}
