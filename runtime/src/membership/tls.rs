//! The connections to etcd: plain TCP or TLS.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::EtcdSettings;

/// Maximum time for a connection.
const CONNECT: Duration = Duration::from_secs(2);

/// Time after which an idle connection is probed, and the time between probes.
const PROBE: Duration = Duration::from_secs(5);

/// What connects to the endpoints.
///
/// # Errors
/// A file cannot be read, or is no PEM file with what it should have.
pub(super) fn connector(settings: &EtcdSettings) -> anyhow::Result<HttpsConnector<HttpConnector>> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(PROBE));
    tcp.set_keepalive_interval(Some(PROBE));
    tcp.set_keepalive_retries(Some(2));
    let mut roots = RootCertStore::empty();
    if let Some(path) = &settings.ca_file {
        for certificate in certificates("fleet.etcd_ca_file", path)? {
            roots.add(certificate).with_context(|| format!("fleet.etcd_ca_file: {}", path.display()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let tls = match &settings.certificate {
        None => tls.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates("fleet.etcd_cert_file", certificate)?;
            let key = PrivateKeyDer::from_pem_file(key)
                .with_context(|| format!("fleet.etcd_key_file: {} has no private key", key.display()))?;
            tls.with_client_auth_cert(chain, key)
                .context("fleet.etcd_key_file does not fit fleet.etcd_cert_file")?
        }
    };
    Ok(HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp))
}

fn certificates(key: &str, path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let found =
        read().with_context(|| format!("{key}: cannot read the certificates in {}", path.display()))?;
    anyhow::ensure!(!found.is_empty(), "{key}: {} has no certificate", path.display());
    Ok(found)
}
