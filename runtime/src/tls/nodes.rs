//! The connections of a proxy to the HTTP ports of nodes.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use connector::link::tls::presented_names;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig, Error, InvalidMessage, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::files::TlsFile;
use super::watched_files::WatchedFiles;

/// TLS to nodes. Clones share the authorities.
#[derive(Clone)]
pub struct NodesTls {
    config: Arc<RwLock<Arc<ClientConfig>>>,
    /// How often the authorities were replaced.
    renewals: Arc<AtomicU64>,
    /// The name in the certificates of all nodes; `None` for the host of each node's address.
    name: Option<ServerName<'static>>,
}

impl NodesTls {
    /// Reads the file of authorities.
    ///
    /// # Errors
    /// The file cannot be used.
    pub(crate) fn open(
        authorities: TlsFile,
        name: Option<ServerName<'static>>,
    ) -> anyhow::Result<(Self, WatchedFiles)> {
        let files = vec![authorities.clone()];
        let (first, contents) = WatchedFiles::read(&files)?;
        let config = Arc::new(RwLock::new(config(authorities.authorities(&contents[0])?)?));
        let renewals = Arc::<AtomicU64>::default();
        let (current, counted) = (Arc::clone(&config), Arc::clone(&renewals));
        let renew = move |contents: &[Vec<u8>]| -> anyhow::Result<()> {
            let renewed = self::config(authorities.authorities(&contents[0])?)?;
            *current.write().unwrap_or_else(PoisonError::into_inner) = renewed;
            // A reader of the new number finds the new authorities.
            counted.fetch_add(1, Ordering::Release);
            Ok(())
        };
        let this = Self { config, renewals, name };
        Ok((this, WatchedFiles::new("the authorities of the nodes", files, first, renew)))
    }

    /// How often the authorities were replaced. A connection that was made before may be to a node that they do not sign.
    pub(crate) fn renewals(&self) -> u64 {
        self.renewals.load(Ordering::Acquire)
    }

    /// Shakes hands with the node at `host`.
    ///
    /// # Errors
    /// The handshake fails. The text is one sentence with the remedy, if the certificate is at fault.
    pub(crate) async fn connect(&self, host: &str, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => {
                let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let text = format!("no certificate can be for the host {host}; set fleet.nodes_tls_name");
                ServerName::try_from(host).map_err(|_| io::Error::other(text))?
            }
        };
        let config = Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner));
        TlsConnector::from(config).connect(name, tcp).await.map_err(|error| match explained(&error) {
            Some(text) => io::Error::new(error.kind(), text),
            None => error,
        })
    }
}

fn config(roots: Arc<RootCertStore>) -> Result<Arc<ClientConfig>, Error> {
    let builder =
        ClientConfig::builder_with_provider(super::provider()).with_safe_default_protocol_versions()?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A session that is resumed checks no certificate.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The error of a handshake in the words of the settings; `None` for an error of the connection.
fn explained(error: &io::Error) -> Option<String> {
    let error: &Error = error.get_ref()?.downcast_ref()?;
    Some(match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "the node's certificate is signed by no authority in fleet.nodes_ca_file; set it to the authorities of the nodes' certificates"
                .to_owned()
        }
        Error::InvalidCertificate(CertificateError::ExpiredContext { .. } | CertificateError::Expired) => {
            "the node's certificate has expired; renew tls.cert_file of the node".to_owned()
        }
        Error::InvalidCertificate(CertificateError::NotValidForNameContext { expected, presented }) => format!(
            "the node's certificate is for {}, but this proxy expects {}; set fleet.nodes_tls_name to a name in the certificates of the \
             nodes, or give the node a certificate for its address",
            presented_names(presented),
            expected.to_str()
        ),
        Error::InvalidCertificate(reason) => {
            format!("the node's certificate cannot be used ({reason}); give the node another tls.cert_file")
        }
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the node answers without TLS; set tls.cert_file and tls.key_file of the node, or unset fleet.nodes_ca_file".to_owned()
        }
        error => format!("the TLS handshake with the node failed: {error}"),
    })
}
