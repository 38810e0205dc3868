//! The certificate authorities that the client of the hub trusts.

use std::path::Path;

use rustls::{ClientConfig, RootCertStore};

use super::error::HubError;
use crate::tls;

/// The TLS configuration of a client. Without a file, the authorities of the system are trusted; a system may have none, as long as no URL
/// begins with `https`.
///
/// # Errors
/// The file cannot be read, or has no certificate.
pub(super) fn config(file: Option<&Path>) -> Result<ClientConfig, HubError> {
    let certificates = tls::of_system(file).map_err(HubError::Settings)?;
    let mut roots = RootCertStore::empty();
    // Some systems have certificates that the library does not read.
    roots.add_parsable_certificates(certificates);
    let builder = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| {
            HubError::Settings(format!("TLS cannot be used: {error}; report this as a fault of Baton"))
        })?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
