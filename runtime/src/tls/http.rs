//! The certificate of the HTTP ports. Its renewal holds for the next connection and does not touch live ones.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::expiries::CertificateExpiry;
use super::files::{Pair, TlsFileError};
use super::watched_files::WatchedFiles;

/// TLS of `http.port` and `frontend.port`. Clones share the certificate.
#[derive(Clone, Debug)]
pub struct HttpTls(Arc<CurrentCertificate>);

/// The certificate that the next connection gets.
#[derive(Debug)]
struct CurrentCertificate(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl HttpTls {
    /// Reads the files. `expiry` gets the end of each certificate that is in use.
    ///
    /// # Errors
    /// A file cannot be used.
    pub(crate) fn open(pair: Pair, expiry: CertificateExpiry) -> Result<(Self, WatchedFiles), TlsFileError> {
        let files = vec![pair.certificate.clone(), pair.key.clone()];
        let read = move |contents: &[Vec<u8>]| pair.certified_key(&contents[0], &contents[1]);
        let (first, contents) = WatchedFiles::read(&files)?;
        let certified = read(&contents)?;
        expiry.set(&certified);
        let this = Self(Arc::new(CurrentCertificate(RwLock::new(certified))));
        let current = Arc::clone(&this.0);
        let renew = move |contents: &[Vec<u8>]| {
            let certified = read(contents)?;
            expiry.set(&certified);
            *current.0.write().unwrap_or_else(PoisonError::into_inner) = certified;
            Ok(())
        };
        Ok((this, WatchedFiles::new("the certificate of the HTTP ports", files, first, renew)))
    }

    /// The configuration of a server. The server adds its protocols for ALPN.
    ///
    /// # Errors
    /// None, as the provider supports the protocol versions.
    pub(crate) fn server(&self) -> Result<ServerConfig, rustls::Error> {
        let builder =
            ServerConfig::builder_with_provider(super::provider()).with_safe_default_protocol_versions()?;
        Ok(builder.with_no_client_auth().with_cert_resolver(Arc::clone(&self.0) as _))
    }
}
