//! Certificates and keys in PEM files. Each error is one sentence that names the key of the configuration, the file and the remedy.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, Error, RootCertStore};

/// A file and the key of the configuration that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFile {
    /// The key of the configuration.
    pub(crate) key: &'static str,
    /// The file.
    pub(crate) path: PathBuf,
}

/// The files of a certificate chain and of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    /// The certificate of this process, and after it those of the authorities between it and a root.
    pub(crate) certificate: TlsFile,
    /// The key of the first certificate.
    pub(crate) key: TlsFile,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsFileError {
    /// The file cannot be read.
    #[error("{key} is {path}, which cannot be read ({error}); set it to a PEM file that this user may read")]
    Unreadable {
        /// The key of the configuration.
        key: &'static str,
        /// The file.
        path: String,
        /// The error of the system.
        error: io::Error,
    },
    /// The file has none of what it should have, or a damaged one.
    #[error("{key} is {path}, which has {found}; set it to {expected}")]
    Contents {
        /// The key of the configuration.
        key: &'static str,
        /// The file.
        path: String,
        /// What it has.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The key belongs to another certificate.
    #[error(
        "the private key in {key_path} ({key}) does not belong to the certificate in {path} ({certificate}); set both to the files of \
         one pair, with the own certificate in front of its chain"
    )]
    Mismatch {
        /// The key of the configuration for the private key.
        key: &'static str,
        /// The file of the private key.
        key_path: String,
        /// The key of the configuration for the certificate.
        certificate: &'static str,
        /// The file of the certificate.
        path: String,
    },
    /// The certificate is no longer valid.
    #[error("the certificate in {path} ({key}) expired on {date}; renew it")]
    Expired {
        /// The key of the configuration.
        key: &'static str,
        /// The file.
        path: String,
        /// The end of its validity.
        date: String,
    },
    /// The certificate is not valid yet.
    #[error(
        "the certificate in {path} ({key}) is not valid before {date}; set the clock of this machine, or use a certificate that is valid"
    )]
    NotValidYet {
        /// The key of the configuration.
        key: &'static str,
        /// The file.
        path: String,
        /// The beginning of its validity.
        date: String,
    },
}

impl TlsFileError {
    /// One word for metrics, logs and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "unreadable",
            Self::Contents { .. } => "contents",
            Self::Mismatch { .. } => "mismatch",
            Self::Expired { .. } => "expired",
            Self::NotValidYet { .. } => "not_valid_yet",
        }
    }
}

/// What a file of certificates should be.
const CERTIFICATES: &str = "a PEM file with certificates (BEGIN CERTIFICATE)";

/// What a file of authorities should be.
const AUTHORITIES: &str = "a PEM file with certificates of authorities (X.509 version 3 with basicConstraints CA:TRUE), or with one of version 3 that signs itself";

/// What a file of a key should be.
const KEY: &str = "a PEM file with an unencrypted private key (BEGIN PRIVATE KEY)";

impl TlsFile {
    /// The contents.
    pub(crate) fn read(&self) -> Result<Vec<u8>, TlsFileError> {
        fs::read(&self.path).map_err(|error| TlsFileError::Unreadable {
            key: self.key,
            path: self.path.display().to_string(),
            error,
        })
    }

    fn wrong(&self, found: impl Into<String>, expected: &'static str) -> TlsFileError {
        let path = self.path.display().to_string();
        TlsFileError::Contents { key: self.key, path, found: found.into(), expected }
    }

    /// The certificates in the contents; at least one.
    pub(crate) fn certificates(&self, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
        let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        let found = found.map_err(|error| self.wrong(format!("damaged PEM text ({error})"), CERTIFICATES))?;
        if found.is_empty() { Err(self.wrong("no certificate", CERTIFICATES)) } else { Ok(found) }
    }

    /// The certificates in the contents as authorities. Each may sign others by its own words, or signs itself: the owner of another one, such as a
    /// node, could make certificates for peers if it counted as an authority.
    pub(crate) fn authorities(&self, pem: &[u8]) -> Result<Arc<RootCertStore>, TlsFileError> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates(pem)? {
            if !may_sign(&certificate) {
                return Err(self.wrong("a certificate that is no authority", AUTHORITIES));
            }
            let added = roots.add(certificate);
            added.map_err(|error| self.wrong(format!("a damaged certificate ({error})"), CERTIFICATES))?;
        }
        Ok(Arc::new(roots))
    }

    fn private_key(&self, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsFileError> {
        PrivateKeyDer::from_pem_slice(pem).map_err(|error| {
            let is_encrypted = pem.windows(9).any(|part| part == b"ENCRYPTED");
            let found = match error {
                pem::Error::NoItemsFound if is_encrypted => "an encrypted private key".to_owned(),
                pem::Error::NoItemsFound => "no private key".to_owned(),
                // The error does not show the contents.
                _ => "damaged PEM text".to_owned(),
            };
            self.wrong(found, KEY)
        })
    }
}

impl Pair {
    /// The pair with these contents of the two files, if it can be used at this moment.
    pub(crate) fn certified_key(
        &self,
        certificate: &[u8],
        key: &[u8],
    ) -> Result<Arc<CertifiedKey>, TlsFileError> {
        let chain = self.certificate.certificates(certificate)?;
        let key = self.key.private_key(key)?;
        let certified = CertifiedKey::from_der(chain, key, &super::provider());
        let certified = certified.map_err(|error| match error {
            Error::InconsistentKeys(_) => TlsFileError::Mismatch {
                key: self.key.key,
                key_path: self.key.path.display().to_string(),
                certificate: self.certificate.key,
                path: self.certificate.path.display().to_string(),
            },
            Error::InvalidCertificate(_) => self.certificate.wrong("a damaged certificate", CERTIFICATES),
            _ => self.key.wrong("a private key of an unknown kind", KEY),
        })?;
        self.check_time(&certified.cert, UnixTime::now())?;
        Ok(Arc::new(certified))
    }

    /// Checks that the first certificate is valid at this time.
    fn check_time(&self, chain: &[CertificateDer<'static>], now: UnixTime) -> Result<(), TlsFileError> {
        let (key, path) = (self.certificate.key, self.certificate.path.display().to_string());
        match verdict(chain, now) {
            Some(CertificateError::ExpiredContext { not_after, .. }) => {
                Err(TlsFileError::Expired { key, path, date: date(not_after) })
            }
            Some(CertificateError::NotValidYetContext { not_before, .. }) => {
                Err(TlsFileError::NotValidYet { key, path, date: date(not_before) })
            }
            // Another fault, such as a name, is for the clients to judge.
            _ => Ok(()),
        }
    }
}

/// The end of the validity of the first certificate, and how it is written; `None` if the certificate is damaged.
pub(crate) fn expiry(chain: &[CertificateDer<'static>]) -> Option<(UnixTime, String)> {
    /// Later than the end of every certificate: 31 December 9999.
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    match verdict(chain, UnixTime::since_unix_epoch(LAST + Duration::from_secs(1))) {
        Some(CertificateError::ExpiredContext { not_after, .. }) => Some((not_after, date(not_after))),
        _ => None,
    }
}

/// Whether a certificate signs itself or may sign others. webpki does not check this for the certificates that it trusts. A damaged one counts as one
/// that may, so that the error is about the damage. One of version 1 cannot say that it may.
fn may_sign(certificate: &CertificateDer<'static>) -> bool {
    let own = match webpki::EndEntityCert::try_from(certificate) {
        Ok(own) => own,
        Err(error) => return error != webpki::Error::UnsupportedCertVersion,
    };
    if own.issuer() == own.subject() {
        return true;
    }
    let Ok(itself) = webpki::anchor_from_trusted_cert(certificate).map(|anchor| [anchor]) else {
        return true;
    };
    // The time is checked first, and then whether the certificate is that of an authority.
    let Some((end, _)) = expiry(std::slice::from_ref(certificate)) else { return true };
    let algorithms = super::provider().signature_verification_algorithms.all;
    let usage = webpki::KeyUsage::server_auth();
    let verified = own.verify_for_usage(algorithms, &itself, &[], end, usage, None, None);
    matches!(verified, Err(webpki::Error::CaUsedAsEndEntity))
}

/// What webpki says about the first certificate at a time. It checks the time first, so the authority, which is the certificate itself, does not
/// matter for it. `None`: the certificate is good.
fn verdict(chain: &[CertificateDer<'static>], now: UnixTime) -> Option<CertificateError> {
    let (own, others) = chain.split_first()?;
    let mut roots = RootCertStore::empty();
    roots.add(own.clone()).ok()?;
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), super::provider()).build().ok()?;
    let name = ServerName::try_from("any.invalid").ok()?;
    match verifier.verify_server_cert(own, others, &name, &[], now) {
        Err(Error::InvalidCertificate(reason)) => Some(reason),
        _ => None,
    }
}

fn date(time: UnixTime) -> String {
    let timestamp =
        i64::try_from(time.as_secs()).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    timestamp.map_or_else(|| "an unknown date".to_owned(), |at| at.strftime("%Y-%m-%d %H:%M UTC").to_string())
}
