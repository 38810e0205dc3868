//! The certificate authorities that programs of this machine trust: those of the system, or those in `SSL_CERT_FILE`.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// The authorities. A system may have none.
///
/// # Errors
/// The file cannot be read, or has no certificate. The text is one sentence.
pub(crate) fn of_system(file: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, String> {
    match file {
        Some(file) => from_file(file),
        None => Ok(rustls_native_certs::load_native_certs().certs),
    }
}

/// How clients of `ureq` check servers: with the authorities of the system, or with those of `file` (`SSL_CERT_FILE`).
pub(crate) fn for_ureq(file: Option<&Path>) -> Result<TlsConfig, String> {
    let found = of_system(file)?;
    let roots: Vec<Certificate<'static>> =
        found.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
    let tls = TlsConfig::builder().root_certs(RootCerts::from(roots.into_iter()));
    Ok(tls.unversioned_rustls_crypto_provider(super::provider()).build())
}

fn from_file(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |reason: String| {
        format!("SSL_CERT_FILE is {}, {reason}; set it to a PEM file with certificates", file.display())
    };
    let pem = std::fs::read(file).map_err(|error| wrong(format!("which cannot be read ({error})")))?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| wrong(format!("which is no PEM file ({error})")))?;
    if found.is_empty() { Err(wrong("which has no certificate".to_owned())) } else { Ok(found) }
}
