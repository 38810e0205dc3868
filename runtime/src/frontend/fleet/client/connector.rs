//! Makes connections to nodes, and remembers which of them have served a request.

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
use tower_service::Service;

use super::lookups::Lookups;

/// Maximum time for a connection to a node.
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
pub(super) struct NodeConnector(HttpConnector<Lookups>);

impl NodeConnector {
    pub(super) fn new() -> Self {
        let mut connector = HttpConnector::new_with_resolver(Lookups::default());
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        connector.set_keepalive(Some(UNANSWERED / 2));
        connector.set_keepalive_interval(Some(UNANSWERED / 4));
        connector.set_keepalive_retries(Some(2));
        Self(connector)
    }
}

impl Service<Uri> for NodeConnector {
    type Response = NodeStream;
    type Error = <HttpConnector<Lookups> as Service<Uri>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<NodeStream, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.0.call(uri);
        Box::pin(async { Ok(NodeStream { stream: connecting.await?, used: Used::default() }) })
    }
}

/// A connection.
pub(super) struct NodeStream {
    stream: TokioIo<TcpStream>,
    used: Used,
}

impl Connection for NodeStream {
    fn connected(&self) -> Connected {
        self.stream.inner().connected().extra(self.used.clone())
    }
}

impl Read for NodeStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl Write for NodeStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, from)
    }
}
