//! The HTTP server of a port, with TLS or without. It is [`HttpServer`](actix_web::HttpServer) with another socket: the watcher of a connection shares it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use actix_http::error::DispatchError;
use actix_http::{HttpService, Protocol, Request, Response};
use actix_service::{IntoServiceFactory, ServiceFactoryExt as _, map_config};
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, Server, ServiceFactory, fn_service};
use actix_web::rt::net::TcpStream;

use super::client_stream::{ClientSocket, ClientStream};
use super::connection::Connection;
use super::https::Handshakes;
use super::limits::Limits;
use crate::tls::HttpTls;

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

/// Serves `app`, with TLS if there is a certificate.
///
/// # Errors
/// The system refuses to listen, or the certificate cannot be used.
pub(super) fn serve<F, I, S, B>(
    listener: TcpListener,
    tls: Option<&HttpTls>,
    shape: ServerShape,
    app: F,
) -> io::Result<Server>
where
    F: Fn() -> I + Send + Clone + 'static,
    I: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig> + 'static,
    S::Error: Into<actix_web::Error> + 'static,
    S::InitError: std::fmt::Debug,
    S::Response: Into<Response<B>> + 'static,
    B: MessageBody + 'static,
{
    let ServerShape { workers, limits, drain_seconds } = shape;
    let address = listener.local_addr()?;
    let handshakes = tls.map(Handshakes::new).transpose()?;
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
            // A client that half-closes counts as gone: its request is aborted.
            .h1_allow_half_closed(false)
            .local_addr(address)
            .on_connect_ext(Connection::accept(limits));
        let app = app().into_factory().map_err(|error| error.into().error_response());
        // No handler uses the server's configuration.
        let app = map_config(app, |()| AppConfig::default());
        let handshakes = handshakes.clone();
        fn_service(move |tcp| open(handshakes.clone(), tcp)).and_then(http.finish(app))
    };
    let server = builder
        .workers(workers)
        .disable_signals()
        .max_concurrent_connections(limits.connections.div_ceil(workers))
        .shutdown_timeout(drain_seconds);
    Ok(server.listen("http", listener, service)?.run())
}

/// A connection that is ready for HTTP, and the address of its client, as actix-http takes them.
type Opened = (ClientStream, Protocol, Option<SocketAddr>);

async fn open(handshakes: Option<Handshakes>, tcp: TcpStream) -> Result<Opened, DispatchError> {
    let peer = tcp.peer_addr().ok();
    let stream = match handshakes {
        // The future of a handshake is large, and most ports have none.
        Some(handshakes) => ClientStream::Tls(Box::new(Box::pin(handshakes.shake(tcp, peer)).await?)),
        None => ClientStream::Plain(ClientSocket::new(tcp)),
    };
    Ok((stream, Protocol::Http1, peer))
}
