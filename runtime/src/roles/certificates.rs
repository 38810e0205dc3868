//! The certificates that a process uses: which files they are in, and the thread that reads them again.

use std::path::Path;
use std::sync::Arc;

use connector::link::tls::LinkTls;
use rustls::pki_types::ServerName;

use crate::config::{Config, Role};
use crate::tls::{CertificateExpiries, HttpTls, LinkFiles, NodesTls, Pair, TlsFile, open_link, watch};

/// TLS of a process. `None`: without TLS.
#[derive(Default)]
pub(crate) struct Certificates {
    /// For the HTTP ports.
    pub(crate) http: Option<HttpTls>,
    /// For the link.
    pub(crate) link: Option<Arc<LinkTls>>,
    /// For the connections of a proxy to nodes.
    pub(crate) nodes: Option<NodesTls>,
    /// When the certificates end.
    pub(crate) expiries: CertificateExpiries,
}

impl Certificates {
    /// Reads all files that a process of `role` uses.
    ///
    /// # Errors
    /// A file cannot be used. The text is one sentence that names it.
    pub(crate) fn open(role: Role, config: &Config) -> anyhow::Result<Self> {
        let (mut this, mut watched) = (Self::default(), Vec::new());
        if let Some(pair) = http(config) {
            let (tls, files) = HttpTls::open(pair, this.expiries.http.clone())?;
            (this.http, watched) = (Some(tls), vec![files]);
        }
        if let Some(files) = link(role, config) {
            let (tls, files) = open_link(files, this.expiries.link.clone())?;
            this.link = Some(tls);
            watched.push(files);
        }
        if let Some((authorities, name)) = nodes(role, config) {
            let (tls, files) = NodesTls::open(authorities, name)?;
            this.nodes = Some(tls);
            watched.push(files);
        }
        watch(watched)?;
        Ok(this)
    }
}

fn file(key: &'static str, path: &Path) -> TlsFile {
    TlsFile { key, path: path.to_owned() }
}

/// The files of the HTTP ports.
pub(crate) fn http(config: &Config) -> Option<Pair> {
    Some(Pair {
        certificate: file("tls.cert_file", config.tls.cert_file.as_deref()?),
        key: file("tls.key_file", config.tls.key_file.as_deref()?),
    })
}

/// The files of the link.
pub(crate) fn link(role: Role, config: &Config) -> Option<LinkFiles> {
    let link = &config.link;
    let has_link = role.accepts_peers() || role.dials_peers();
    let certificate = link.tls_cert_file.as_deref().filter(|_| has_link)?;
    let names = link.tls_allowed_names.iter().cloned();
    Some(LinkFiles {
        pair: Pair {
            certificate: file("link.tls_cert_file", certificate),
            key: file("link.tls_key_file", link.tls_key_file.as_deref()?),
        },
        authorities: file("link.tls_ca_file", link.tls_ca_file.as_deref()?),
        allowed_names: names.filter_map(|name| ServerName::try_from(name).ok()).collect(),
    })
}

/// The file with the authorities of the nodes, and the name in the nodes' certificates.
pub(crate) fn nodes(role: Role, config: &Config) -> Option<(TlsFile, Option<ServerName<'static>>)> {
    let authorities = config.fleet.nodes_ca_file.as_deref().filter(|_| role == Role::Proxy)?;
    let name = config.fleet.nodes_tls_name.clone().and_then(|name| ServerName::try_from(name).ok());
    Some((file("fleet.nodes_ca_file", authorities), name))
}
