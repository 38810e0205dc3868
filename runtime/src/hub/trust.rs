//! The certificate authorities that are trusted: those of the system, or those in `SSL_CERT_FILE`.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use super::error::HubError;

/// The TLS configuration of a client. Without a file, the authorities of the system are trusted; a system may have none, as long as no URL
/// begins with `https`.
///
/// # Errors
/// The file cannot be read, or has no certificate.
pub(super) fn config(file: Option<&Path>) -> Result<ClientConfig, HubError> {
    let certificates = match file {
        Some(file) => from_file(file)?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    let mut roots = RootCertStore::empty();
    // Some systems have certificates that the library does not read.
    roots.add_parsable_certificates(certificates);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| {
            HubError::Settings(format!("TLS cannot be used: {error}; report this as a fault of Baton"))
        })?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn from_file(file: &Path) -> Result<Vec<CertificateDer<'static>>, HubError> {
    let wrong = |reason: String| {
        HubError::Settings(format!(
            "SSL_CERT_FILE is {}, {reason}; set it to a PEM file with certificates",
            file.display()
        ))
    };
    let pem = std::fs::read(file).map_err(|error| wrong(format!("which cannot be read ({error})")))?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| wrong(format!("which is no PEM file ({error})")))?;
    if found.is_empty() { Err(wrong("which has no certificate".to_owned())) } else { Ok(found) }
}
