//! The connections to etcd: plain TCP or TLS. The certificates and the key are read again when their files change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::{EtcdSettings, Outage};

/// Maximum time for a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// Time after which an idle connection is probed, and the time between probes.
const PROBE: Duration = Duration::from_secs(5);

/// What connects to the endpoints.
pub(super) type Connector = HttpsConnector<HttpConnector>;

/// The files for TLS, and their contents at the time of the last connector.
pub(super) struct Credentials {
    paths: Paths,
    used: Files,
    outage: Outage,
}

struct Paths {
    ca: Option<PathBuf>,
    certificate: Option<(PathBuf, PathBuf)>,
}

/// The contents of the files.
#[derive(PartialEq, Eq)]
struct Files {
    ca: Option<Vec<u8>>,
    certificate: Option<(Vec<u8>, Vec<u8>)>,
}

impl Credentials {
    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be read, or is no PEM file with what it should have.
    pub(super) fn new(settings: &EtcdSettings) -> anyhow::Result<(Self, Connector)> {
        let paths = Paths { ca: settings.ca_file.clone(), certificate: settings.certificate.clone() };
        let used = Files::read(&paths)?;
        let connector = used.connector(&paths)?;
        Ok((Self { paths, used, outage: Outage::default() }, connector))
    }

    /// A connector with the contents that the files have now; `None` if they have not changed, or cannot be used. The files are small and read as a
    /// whole, because neither the time nor the size of a file always changes with its contents.
    pub(super) fn renewed(&mut self) -> Option<Connector> {
        const ARE_READ: &str = "the certificates for etcd were read again";
        let renewed = Files::read(&self.paths).and_then(|files| {
            let connector = (files != self.used).then(|| files.connector(&self.paths)).transpose()?;
            Ok(connector.map(|connector| (files, connector)))
        });
        match renewed {
            Ok(Some((files, connector))) => {
                (self.used, self.outage) = (files, Outage::default());
                tracing::info!("{ARE_READ}");
                Some(connector)
            }
            Ok(None) => {
                self.outage.works(ARE_READ);
                None
            }
            Err(error) => {
                let what = "the certificates for etcd cannot be read; those read before stay in use";
                self.outage.failed(what, &format!("{error:#}"));
                None
            }
        }
    }
}

impl Files {
    fn read(paths: &Paths) -> anyhow::Result<Self> {
        let read = |key: &str, path: &Path| {
            std::fs::read(path).with_context(|| format!("{key}: cannot read {}", path.display()))
        };
        let ca = paths.ca.as_ref().map(|path| read("fleet.etcd_ca_file", path)).transpose()?;
        let certificate = match &paths.certificate {
            None => None,
            Some((certificate, key)) => {
                Some((read("fleet.etcd_cert_file", certificate)?, read("fleet.etcd_key_file", key)?))
            }
        };
        Ok(Self { ca, certificate })
    }

    fn connector(&self, paths: &Paths) -> anyhow::Result<Connector> {
        let mut roots = RootCertStore::empty();
        if let (Some(path), Some(pem)) = (&paths.ca, &self.ca) {
            for certificate in certificates("fleet.etcd_ca_file", path, pem)? {
                roots.add(certificate).with_context(|| format!("fleet.etcd_ca_file: {}", path.display()))?;
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let tls = match (&paths.certificate, &self.certificate) {
            (Some((path, key_path)), Some((certificate, key))) => {
                let chain = certificates("fleet.etcd_cert_file", path, certificate)?;
                let key = PrivateKeyDer::from_pem_slice(key).with_context(|| {
                    format!("fleet.etcd_key_file: {} has no private key", key_path.display())
                })?;
                tls.with_client_auth_cert(chain, key)
                    .context("fleet.etcd_key_file does not fit fleet.etcd_cert_file")?
            }
            _ => tls.with_no_client_auth(),
        };
        Ok(HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp()))
    }
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(PROBE));
    tcp.set_keepalive_interval(Some(PROBE));
    tcp.set_keepalive_retries(Some(2));
    tcp
}

fn certificates(key: &str, path: &Path, pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("{key}: cannot read the certificates in {}", path.display()))?;
    anyhow::ensure!(!found.is_empty(), "{key}: {} has no certificate", path.display());
    Ok(found)
}
