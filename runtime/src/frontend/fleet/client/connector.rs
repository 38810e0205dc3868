//! Makes connections to nodes, and remembers which of them have served a request.

use std::error::Error as StdError;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper::http::Extensions;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::lookups::Lookups;
use crate::tls::NodesTls;

/// Maximum time for a connection to a node, and for its TLS handshake.
const CONNECT: Duration = Duration::from_secs(1);

/// Time after which an unanswered connection ends: the address is gone, although nothing has closed the connection.
const UNANSWERED: Duration = Duration::from_secs(10);

/// Whether a connection has served a request. It is part of the connection's extras.
#[derive(Clone, Default)]
struct Used(Arc<AtomicBool>);

/// Notes that the connection with these extras has served a request.
pub(super) fn mark_used(extras: &Extensions) {
    if let Some(Used(used)) = extras.get() {
        used.store(true, Ordering::Relaxed);
    }
}

/// Whether the connection with these extras has served a request.
pub(super) fn is_used(extras: &Extensions) -> bool {
    extras.get().is_some_and(|Used(used)| used.load(Ordering::Relaxed))
}

/// Makes connections.
#[derive(Clone)]
pub(super) struct NodeConnector {
    tcp: HttpConnector<Lookups>,
    tls: Option<NodesTls>,
}

impl NodeConnector {
    pub(super) fn new(tls: Option<NodesTls>) -> Self {
        let mut connector = HttpConnector::new_with_resolver(Lookups::default());
        connector.set_connect_timeout(Some(CONNECT));
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_keepalive(Some(UNANSWERED / 2));
        connector.set_keepalive_interval(Some(UNANSWERED / 4));
        connector.set_keepalive_retries(Some(2));
        Self { tcp: connector, tls }
    }
}

impl Service<Uri> for NodeConnector {
    type Response = NodeStream;
    type Error = Box<dyn StdError + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<NodeStream, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let host = uri.host().unwrap_or_default().to_owned();
        let (connecting, tls) = (self.tcp.call(uri), self.tls.clone());
        Box::pin(async move {
            let tcp = connecting.await?;
            let stream = match tls {
                None => MaybeTls::Plain(tcp),
                Some(tls) => {
                    let late = |_| format!("the TLS handshake has no answer after {CONNECT:?}");
                    let shaken = timeout(CONNECT, tls.connect(&host, tcp.into_inner())).await;
                    MaybeTls::Tls(TokioIo::new(Box::new(shaken.map_err(late)??)))
                }
            };
            Ok(NodeStream { stream, used: Used::default() })
        })
    }
}

/// A connection.
pub(super) struct NodeStream {
    stream: MaybeTls,
    used: Used,
}

/// The bytes of a connection.
enum MaybeTls {
    Plain(TokioIo<TcpStream>),
    Tls(TokioIo<Box<TlsStream<TcpStream>>>),
}

/// Calls a method of the stream that is pinned in `self`.
macro_rules! each {
    ($self:expr, $stream:ident => $call:expr) => {
        match &mut $self.stream {
            MaybeTls::Plain(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            MaybeTls::Tls(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
        }
    };
}

impl Connection for NodeStream {
    fn connected(&self) -> Connected {
        let tcp = match &self.stream {
            MaybeTls::Plain(tcp) => tcp.inner(),
            MaybeTls::Tls(tls) => tls.inner().get_ref().0,
        };
        tcp.connected().extra(self.used.clone())
    }
}

impl Read for NodeStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_read(cx, into))
    }
}

impl Write for NodeStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => stream.poll_write(cx, from))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_shutdown(cx))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            MaybeTls::Plain(stream) => stream.is_write_vectored(),
            MaybeTls::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => stream.poll_write_vectored(cx, from))
    }
}
