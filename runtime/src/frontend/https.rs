//! TLS handshakes with clients. actix-web's server says nothing of handshakes that fail; they are logged here.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix_web::rt::net::TcpStream;
use rustls::{AlertDescription, Error, InvalidMessage};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::client_stream::ClientSocket;
use crate::tls::HttpTls;

/// Maximum time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(3);

/// Minimum time between two warnings about handshakes.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Shakes hands with clients.
#[derive(Clone)]
pub(super) struct Handshakes {
    acceptor: TlsAcceptor,
    failures: Arc<HandshakeFailures>,
}

impl Handshakes {
    /// Uses this certificate.
    ///
    /// # Errors
    /// The certificate cannot be used.
    pub(super) fn new(tls: &HttpTls) -> io::Result<Self> {
        let mut config = tls.server().map_err(io::Error::other)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), failures: Arc::default() })
    }

    /// Shakes hands with the client at `peer`.
    ///
    /// # Errors
    /// The handshake has failed, and the log says why.
    pub(super) async fn shake(
        self,
        tcp: TcpStream,
        peer: Option<SocketAddr>,
    ) -> io::Result<TlsStream<ClientSocket>> {
        let mut has_begun = false;
        let shaken = timeout(HANDSHAKE, async {
            has_begun = tcp.peek(&mut [0]).await? > 0;
            if has_begun {
                self.acceptor.accept(ClientSocket::new(tcp)).await
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
        });
        let error = match shaken.await {
            Ok(Ok(tls)) => return Ok(tls),
            Ok(Err(error)) => error,
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, format!("no answer for {HANDSHAKE:?}")),
        };
        // A program that only checks whether the port is open sends nothing.
        if has_begun {
            self.failures.log(peer, &error);
        }
        Err(error)
    }
}

/// Handshakes that have failed since the last warning.
#[derive(Debug, Default)]
struct HandshakeFailures(Mutex<FailureCount>);

/// When to warn of failures.
#[derive(Debug, Default)]
struct FailureCount {
    warned: Option<Instant>,
    /// Failures since then.
    failed: u64,
}

impl FailureCount {
    /// A handshake has failed. Returns how many have since the last warning, if there is to be one.
    fn one_more(&mut self, now: Instant) -> Option<u64> {
        self.failed += 1;
        let is_due = self.warned.is_none_or(|at| now.duration_since(at) >= WARN_EVERY);
        is_due.then(|| {
            self.warned = Some(now);
            std::mem::take(&mut self.failed)
        })
    }
}

impl HandshakeFailures {
    fn log(&self, peer: Option<SocketAddr>, error: &io::Error) {
        let peer = peer.map_or_else(|| "unknown".to_owned(), |peer| peer.to_string());
        let reason = explained(error);
        tracing::debug!(peer, reason, "a TLS handshake failed");
        let due = self.0.lock().unwrap_or_else(PoisonError::into_inner).one_more(Instant::now());
        if let Some(failed) = due {
            tracing::warn!(
                peer,
                reason,
                failed,
                "TLS handshakes of clients fail; at the log level debug there is a line for each"
            );
        }
    }
}

/// Why a handshake has failed.
fn explained(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            "the client speaks without TLS; give it the scheme https".to_owned()
        }
        Some(Error::AlertReceived(alert)) => {
            let remedy = match alert {
                AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                    "; give it the authority of the certificate"
                }
                AlertDescription::BadCertificate => "; it has to use a name or address that the certificate has",
                _ => "",
            };
            format!("the client refuses the certificate in tls.cert_file ({alert:?}){remedy}")
        }
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the client left, as one does that does not trust the certificate in tls.cert_file; give it the authority of the certificate"
                .to_owned()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_failures_give_one_warning_per_minute_with_their_number() {
        let (mut count, start) = (FailureCount::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(count.one_more(start), Some(1));
        for seconds in 0..59 {
            assert_eq!(count.one_more(at(seconds)), None);
        }
        assert_eq!(count.one_more(at(60)), Some(60));
        assert_eq!(count.one_more(at(61)), None);
    }
}
