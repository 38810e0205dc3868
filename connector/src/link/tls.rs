//! TLS of the link: both ends show a certificate and check the one of the peer.
//!
//! The certificates come from the caller, which may replace them while sessions live ([`LinkTls::renew`]): each new connection uses those of its
//! beginning, and a session keeps its own. TLS 1.3 only, because both ends are builds of Baton. No session is resumed, so each connection
//! checks the peer's certificate against the authorities and names of that moment. A thread of its own computes the handshakes.
//!
//! A process without TLS sends its Challenge as soon as a dialer connects, and a dialer without TLS waits for it. So an end with TLS can tell that
//! its peer has none: its first byte is no TLS record, or there is none. Frames begin with the upper byte of a length of at most 1 MiB, which is 0
//! and never the type of a TLS record, so an end without TLS can tell too.

mod handshake_thread;
mod stream;
mod verify;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::{HANDSHAKE, LinkError};
use handshake_thread::{HandshakeThread, moved_here};
use verify::PeerVerifier;

pub use super::tls_error::{LinkTlsError, presented_names};
pub(super) use stream::LinkStream;

/// Time after which a dialer that has sent nothing counts as one without TLS. A dialer with TLS sends at once.
const FIRST_RECORD: Duration = Duration::from_secs(3);

/// Type of a TLS record: alert.
const ALERT: u8 = 21;
/// Type of a TLS record: handshake. A connection with TLS begins with it.
const HANDSHAKE_RECORD: u8 = 22;

/// A whole TLS record: the fatal alert `handshake_failure`. It tells a dialer without TLS that this end has TLS.
const REFUSAL: [u8; 7] = [ALERT, 3, 3, 0, 2, 2, 40];

/// What an end of the link shows and whom it trusts.
#[derive(Clone, Debug)]
pub struct LinkCredentials {
    /// The certificate chain of this process and its key.
    pub certificate: Arc<CertifiedKey>,
    /// The authorities that sign the certificates of peers.
    pub authorities: Arc<RootCertStore>,
    /// The names of which a peer's certificate must have one. Empty: a dialer expects the host that it dials, and a listener accepts every
    /// certificate of the authorities.
    pub allowed_names: Vec<ServerName<'static>>,
}

/// The TLS configurations of both directions.
struct Ends {
    dialer: Arc<ClientConfig>,
    listener: Arc<ServerConfig>,
    /// The name that a dialer sends if no certificate can be for the host that it dials; `None` without allowed names.
    allowed: Option<ServerName<'static>>,
}

/// TLS for the connections of one process.
pub struct LinkTls {
    ends: RwLock<Ends>,
    thread: HandshakeThread,
}

impl LinkTls {
    /// TLS with these credentials.
    ///
    /// # Errors
    /// There is no authority, or the system starts no thread for the handshakes.
    pub fn new(credentials: &LinkCredentials) -> Result<Self, LinkTlsError> {
        let ends = RwLock::new(Ends::new(credentials)?);
        let thread = HandshakeThread::start().map_err(|error| LinkTlsError::Thread(error.to_string()))?;
        Ok(Self { ends, thread })
    }

    /// Uses these credentials for all connections that begin from now on.
    ///
    /// # Errors
    /// There is no authority; the old credentials stay in use.
    pub fn renew(&self, credentials: &LinkCredentials) -> Result<(), LinkTlsError> {
        let ends = Ends::new(credentials)?;
        *self.ends.write().unwrap_or_else(PoisonError::into_inner) = ends;
        Ok(())
    }

    /// The dialer's side of the TLS handshake. `address` is what was dialled, `host:port`.
    pub(super) async fn connect(&self, tcp: TcpStream, address: &str) -> Result<LinkStream, LinkError> {
        let (config, name) = {
            let ends = self.ends.read().unwrap_or_else(PoisonError::into_inner);
            (Arc::clone(&ends.dialer), server_name(address, ends.allowed.as_ref())?)
        };
        let shake = |tcp| async {
            let shaken = timeout(HANDSHAKE, TlsConnector::from(config).connect(name, tcp)).await;
            Ok(shaken.map_err(|_| LinkError::Silent(HANDSHAKE))??)
        };
        carried_here(TlsStream::Client(self.thread.run(tcp, shake).await?))
    }

    /// The listener's side of the TLS handshake.
    pub(super) async fn accept(&self, tcp: TcpStream) -> Result<LinkStream, LinkError> {
        let config = Arc::clone(&self.ends.read().unwrap_or_else(PoisonError::into_inner).listener);
        let shake = |tcp| async {
            let tcp = beginning_with_tls(tcp).await?;
            let shaken = timeout(HANDSHAKE, TlsAcceptor::from(config).accept(tcp)).await;
            Ok(shaken.map_err(|_| LinkError::Silent(HANDSHAKE))??)
        };
        carried_here(TlsStream::Server(self.thread.run(tcp, shake).await?))
    }
}

/// A stream whose handshake is over, for the runtime of the caller.
fn carried_here(mut tls: TlsStream<TcpStream>) -> Result<LinkStream, LinkError> {
    let tcp = tls.get_mut().0;
    *tcp = moved_here(tcp)?;
    Ok(LinkStream::Tls(Box::new(tls)))
}

/// Waits for the first byte of a dialer. If it does not begin TLS, the dialer is told that this end does.
async fn beginning_with_tls(mut tcp: TcpStream) -> Result<TcpStream, LinkError> {
    let mut first = [0];
    match timeout(FIRST_RECORD, tcp.peek(&mut first)).await {
        Ok(Ok(0)) => Err(LinkError::Closed),
        Ok(Ok(_)) if first[0] == HANDSHAKE_RECORD => Ok(tcp),
        Ok(Err(error)) => Err(error.into()),
        Ok(Ok(_)) | Err(_) => {
            // If the peer is gone, it needs no answer.
            let _ = tcp.write_all(&REFUSAL).await;
            let _ = tcp.shutdown().await;
            Err(LinkTlsError::PeerIsPlain.into())
        }
    }
}

/// The name that the dialer of `address` expects. With allowed names it is only sent, and the certificate needs one of those.
fn server_name(
    address: &str,
    allowed: Option<&ServerName<'static>>,
) -> Result<ServerName<'static>, LinkTlsError> {
    let of_host = ServerName::try_from(host(address).to_owned()).ok();
    of_host.or_else(|| allowed.cloned()).ok_or_else(|| LinkTlsError::Address(address.to_owned()))
}

impl Ends {
    fn new(credentials: &LinkCredentials) -> Result<Self, LinkTlsError> {
        let LinkCredentials { certificate, authorities, allowed_names } = credentials;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let own = Arc::new(SingleCertAndKey::from(Arc::clone(certificate)));
        let verifier = PeerVerifier::of_listeners(authorities, &provider, allowed_names)?;
        let mut dialer = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(LinkTlsError::Protocol)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::clone(&own) as _);
        dialer.resumption = Resumption::disabled();
        let verifier = PeerVerifier::of_dialers(authorities, &provider, allowed_names)?;
        let mut listener = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(LinkTlsError::Protocol)?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(own);
        listener.session_storage = Arc::new(NoServerSessionStorage {});
        listener.send_tls13_tickets = 0;
        let allowed = allowed_names.first().cloned();
        Ok(Self { dialer: Arc::new(dialer), listener: Arc::new(listener), allowed })
    }
}

/// The error of a connection without TLS whose peer sent these bytes in place of a frame; `None` if they are no TLS record either.
pub(super) fn peer_speaks_tls(bytes: &[u8]) -> Option<LinkTlsError> {
    matches!(bytes, [ALERT | HANDSHAKE_RECORD, 3, ..]).then_some(LinkTlsError::PeerSpeaksTls)
}

/// The host of `host:port`, without the brackets of an IPv6 address.
fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests;
