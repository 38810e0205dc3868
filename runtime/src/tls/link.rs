//! The certificates of the link.

use std::sync::Arc;

use connector::link::tls::{LinkCredentials, LinkTls};
use rustls::pki_types::ServerName;

use super::expiries::CertificateExpiry;
use super::files::{Pair, TlsFile, TlsFileError};
use super::watched_files::WatchedFiles;

/// The files of the link's TLS, and whom it allows.
#[derive(Clone, Debug)]
pub(crate) struct LinkFiles {
    /// `link.tls_cert_file` and `link.tls_key_file`.
    pub(crate) pair: Pair,
    /// `link.tls_ca_file`.
    pub(crate) authorities: TlsFile,
    /// `link.tls_allowed_names`.
    pub(crate) allowed_names: Vec<ServerName<'static>>,
}

impl LinkFiles {
    fn all(&self) -> Vec<TlsFile> {
        vec![self.pair.certificate.clone(), self.pair.key.clone(), self.authorities.clone()]
    }

    fn credentials(&self, contents: &[Vec<u8>]) -> Result<LinkCredentials, TlsFileError> {
        Ok(LinkCredentials {
            certificate: self.pair.certified_key(&contents[0], &contents[1])?,
            authorities: self.authorities.authorities(&contents[2])?,
            allowed_names: self.allowed_names.clone(),
        })
    }
}

/// Reads the files. `expiry` gets the end of each own certificate that is in use.
///
/// # Errors
/// A file cannot be used.
pub(crate) fn open(
    files: LinkFiles,
    expiry: CertificateExpiry,
) -> anyhow::Result<(Arc<LinkTls>, WatchedFiles)> {
    let all = files.all();
    let (first, contents) = WatchedFiles::read(&all)?;
    let credentials = files.credentials(&contents)?;
    let tls = Arc::new(LinkTls::new(&credentials)?);
    expiry.set(&credentials.certificate);
    let current = Arc::clone(&tls);
    let renew = move |contents: &[Vec<u8>]| {
        let credentials = files.credentials(contents)?;
        current.renew(&credentials)?;
        expiry.set(&credentials.certificate);
        Ok(())
    };
    Ok((tls, WatchedFiles::new("the certificates of the link", all, first, renew)))
}
