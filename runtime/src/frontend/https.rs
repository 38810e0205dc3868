//! The HTTPS server of a port. It does what [`HttpServer`](actix_web::HttpServer) does, and logs handshakes that fail, of which that one says nothing.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix_http::error::DispatchError;
use actix_http::{HttpService, Protocol, Request, Response};
use actix_service::{ServiceFactoryExt as _, map_config};
use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, Server, ServiceFactory, fn_service};
use actix_web::rt::net::TcpStream;
use rustls::{AlertDescription, Error, InvalidMessage};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::connection::Connection;
use super::limits::Limits;
use crate::tls::HttpTls;

/// Maximum time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(3);

/// Minimum time between two warnings about handshakes.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// How a port is served, with or without TLS.
#[derive(Clone, Copy)]
pub(super) struct ServerShape {
    /// Threads.
    pub(super) workers: usize,
    /// The limits for clients.
    pub(super) limits: Limits,
    /// Maximum time for live requests after the server was stopped, in whole seconds.
    pub(super) drain_seconds: u64,
}

/// Serves `app` with TLS.
///
/// # Errors
/// The system refuses to listen.
pub(super) fn serve<F, I, S, B>(
    listener: TcpListener,
    tls: &HttpTls,
    shape: ServerShape,
    app: F,
) -> io::Result<Server>
where
    F: Fn() -> I + Send + Clone + 'static,
    I: actix_service::IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig> + 'static,
    S::Error: Into<actix_web::Error> + 'static,
    S::InitError: std::fmt::Debug,
    S::Response: Into<Response<B>> + 'static,
    B: MessageBody + 'static,
{
    let ServerShape { workers, limits, drain_seconds } = shape;
    let address = listener.local_addr()?;
    let mut config = tls.server().map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let failures = Arc::new(HandshakeFailures::default());
    let builder = Server::build();
    let ended = builder.graceful_shutdown_signal();
    let service = move || {
        let ended = ended.clone();
        let http = HttpService::build()
            .graceful_shutdown_signal(move || {
                let ended = ended.clone();
                async move { ended.notified().await }
            })
            .keep_alive(limits.idle)
            .client_request_timeout(limits.head)
            .client_disconnect_timeout(Duration::from_secs(1))
            .h1_allow_half_closed(false)
            .local_addr(address);
        let accept = Connection::accept(limits);
        let http = http.on_connect_ext(move |socket: &TlsStream<TcpStream>, data| accept(socket, data));
        let app = app().into_factory().map_err(|error| error.into().error_response());
        // Handlers make no URLs of their own address, for which the configuration would be.
        let app = map_config(app, |()| AppConfig::default());
        let (acceptor, failures) = (acceptor.clone(), Arc::clone(&failures));
        let handshake =
            fn_service(move |tcp: TcpStream| shake_hands(acceptor.clone(), Arc::clone(&failures), tcp));
        handshake.and_then(http.finish(app))
    };
    let server = builder
        .workers(workers)
        .disable_signals()
        .max_concurrent_connections(limits.connections.div_ceil(workers))
        .shutdown_timeout(drain_seconds);
    Ok(server.listen("https", listener, service)?.run())
}

/// A connection whose handshake is over, as actix-http takes it.
type Accepted = (TlsStream<TcpStream>, Protocol, Option<SocketAddr>);

async fn shake_hands(
    acceptor: TlsAcceptor,
    failures: Arc<HandshakeFailures>,
    tcp: TcpStream,
) -> Result<Accepted, DispatchError> {
    let peer = tcp.peer_addr().ok();
    let mut has_begun = false;
    let shaken = timeout(HANDSHAKE, async {
        has_begun = tcp.peek(&mut [0]).await? > 0;
        if has_begun { acceptor.accept(tcp).await } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    });
    let error = match shaken.await {
        Ok(Ok(tls)) => return Ok((TlsStream::from(tls), Protocol::Http1, peer)),
        Ok(Err(error)) => error,
        Err(_) => io::Error::new(io::ErrorKind::TimedOut, format!("no answer for {HANDSHAKE:?}")),
    };
    // A program that only checks whether the port is open sends nothing.
    if has_begun {
        failures.log(peer, &error);
    }
    Err(error.into())
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
