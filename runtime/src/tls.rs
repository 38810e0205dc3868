//! TLS: the certificates and keys of this process, and how it connects to nodes.
//!
//! - [`HttpTls`]: the certificate of `http.port` and `frontend.port`;
//! - [`NodesTls`]: the connections of a proxy to nodes;
//! - `open_link`: the certificates of the link;
//! - `watch`: reads the files of all of them again when they change.
//!
//! The provider of the cryptography is ring. It is named wherever a configuration is made, so no default of the process matters.

mod authorities;
mod expiries;
mod files;
mod http;
mod link;
mod nodes;
mod watched_files;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub(crate) use authorities::{for_ureq, of_system};
pub use expiries::CertificateExpiries;
pub(crate) use expiries::CertificateExpiry;
pub use files::TlsFileError;
pub(crate) use files::{Pair, TlsFile, expiry};
pub use http::HttpTls;
pub(crate) use link::{LinkFiles, open as open_link};
pub use nodes::NodesTls;
pub(crate) use watched_files::watch;

/// The cryptography of all connections.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[cfg(test)]
mod tests;
