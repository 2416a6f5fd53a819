//! TLS files, from the flags to the client's options. Errors name the flag and the path.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use etcd_client::{Certificate, Identity, TlsOptions};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, CertificateError, RootCertStore};

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

/// The library names bytes, not words.
const NO_PEM: &str = "a PEM section is garbled or cut short";

/// Reads the files as they are now.
pub(super) fn options(tls: &Tls) -> Result<TlsOptions, Error> {
    let mut options = TlsOptions::new();
    options = match &tls.ca_file {
        Some(path) => {
            let (pem, _) = authorities(path)?;
            options.ca_certificate(Certificate::from_pem(pem))
        }
        None => system_cas().map_or(options.clone(), |pem| options.ca_certificate(Certificate::from_pem(pem))),
    };
    match (&tls.cert_file, &tls.key_file) {
        (Some(cert), Some(key)) => {
            let (cert, key, _) = identity(cert, key)?;
            Ok(options.identity(Identity::from_pem(cert, key)))
        }
        (None, None) => Ok(options),
        (Some(path), None) => Err(alone("--etcd-certfile", path, "--etcd-keyfile")),
        (None, Some(path)) => Err(alone("--etcd-keyfile", path, "--etcd-certfile")),
    }
}

/// What is trusted, and what we are: the same files, for a handshake of our own.
pub(super) fn trust_and_identity(tls: &Tls) -> Result<(RootCertStore, Option<CertifiedKey>), Error> {
    let mut trusted = RootCertStore::empty();
    match &tls.ca_file {
        Some(path) => trusted = authorities(path)?.1,
        None => {
            let pem = system_cas().unwrap_or_default();
            trusted.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
        }
    }
    let own = match (&tls.cert_file, &tls.key_file) {
        (Some(cert), Some(key)) => Some(identity(cert, key)?.2),
        _ => None,
    };
    Ok((trusted, own))
}

/// What is wrong with our certificate, as far as we can tell: etcd may trust other authorities than we do.
pub(super) fn fault(tls: &Tls) -> Option<&'static str> {
    let (trusted, own) = trust_and_identity(tls).ok()?;
    let own = own?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(trusted), Arc::new(provider())).build().ok()?;
    let (leaf, between) = own.cert.split_first()?;
    match verifier.verify_client_cert(leaf, between, UnixTime::now()) {
        Err(rustls::Error::InvalidCertificate(error)) => match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Some("it has expired"),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Some("it is not valid yet, or this host's clock is wrong")
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Some("it is not for a client")
            }
            _ => None,
        },
        _ => None,
    }
}

/// The cryptography, which etcd's client uses too.
pub(super) fn provider() -> CryptoProvider {
    ring::default_provider()
}

/// The authorities in a file, as text and as what they are. One of them that can't be read is passed over.
fn authorities(path: &Path) -> Result<(Vec<u8>, RootCertStore), Error> {
    const FLAG: &str = "--etcd-cafile";
    let pem = read(FLAG, path, "CERTIFICATE")?;
    let mut trusted = RootCertStore::empty();
    let mut last = None;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let added = certificate
            .map_err(|_| NO_PEM.to_owned())
            .and_then(|certificate| trusted.add(certificate).map_err(|error| error.to_string()));
        last = added.err().or(last);
    }
    if trusted.is_empty() {
        let why = last.map(|why| format!(" ({why})")).unwrap_or_default();
        return Err(refused(named(FLAG, path), format!("no certificate in it can be read{why}")));
    }
    Ok((pem, trusted))
}

/// Our certificate and its key, as text and as what they are.
fn identity(cert: &Path, key: &Path) -> Result<(Vec<u8>, Vec<u8>, CertifiedKey), Error> {
    const CERT: &str = "--etcd-certfile";
    const KEY: &str = "--etcd-keyfile";
    let cert_pem = read(CERT, cert, "CERTIFICATE")?;
    let key_pem = read(KEY, key, "PRIVATE KEY")?;
    let of_key = |reason: String| refused(named(KEY, key), reason);
    if String::from_utf8_lossy(&key_pem).contains("ENCRYPTED") {
        return Err(of_key("the key in it is encrypted: expected one without a passphrase".to_owned()));
    }
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&cert_pem).collect();
    let of_cert = |why: String| refused(named(CERT, cert), format!("the certificate in it can't be read ({why})"));
    let chain = chain.map_err(|_| of_cert(NO_PEM.to_owned()))?;
    let unreadable = |why: String| of_key(format!("the key in it can't be read ({why})"));
    let private = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|_| unreadable(NO_PEM.to_owned()))?;
    let signing = provider().key_provider.load_private_key(private).map_err(|error| unreadable(error.to_string()))?;
    let own = CertifiedKey::new(chain, signing);
    match own.keys_match() {
        // A key that can't tell its public half is not compared.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            return Err(of_key(format!("the key in it is not that of the certificate of {}", named(CERT, cert))));
        }
        Err(error) => return Err(of_cert(error.to_string())),
    }
    Ok((cert_pem, key_pem, own))
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
    let step = || named(flag, path);
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

fn named(flag: &str, path: &Path) -> String {
    format!("{flag} {}", path.display())
}

fn alone(flag: &str, path: &Path, other: &str) -> Error {
    refused(named(flag, path), format!("needs {other} as well"))
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
