//! The socket of a client, with TLS or without, as actix-http takes it.

use std::cell::RefCell;
use std::io::{self, ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

use actix_web::rt::net::TcpStream;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

/// A connection to a client.
pub(super) enum ClientStream {
    /// HTTP.
    Plain(ClientSocket),
    /// HTTPS. The state of TLS is large, and most ports have none.
    Tls(Box<TlsStream<ClientSocket>>),
}

impl ClientStream {
    /// The socket below TLS.
    pub(super) fn socket(&self) -> &ClientSocket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }
}

/// A socket that actix-http owns and that the watcher of the connection can look at, with one file descriptor for both. It is closed when
/// actix-http drops it. All users run on the thread of one HTTP worker, and none holds the borrow across an await.
pub(super) struct ClientSocket(Rc<RefCell<TcpStream>>);

impl ClientSocket {
    pub(super) fn new(socket: TcpStream) -> Self {
        Self(Rc::new(RefCell::new(socket)))
    }

    /// The watcher's view of the socket.
    pub(super) fn watched(&self) -> WatchedSocket {
        WatchedSocket(Rc::downgrade(&self.0))
    }

    fn poll<T>(&self, poll: impl FnOnce(Pin<&mut TcpStream>) -> T) -> T {
        poll(Pin::new(&mut self.0.borrow_mut()))
    }
}

/// A [`ClientSocket`] that does not keep the socket open.
pub(super) struct WatchedSocket(Weak<RefCell<TcpStream>>);

impl WatchedSocket {
    /// Whether the socket has unread bytes or the end of the stream. actix-http reads them soon, unless it has stopped reading.
    pub(super) fn has_unread(&self) -> bool {
        // Does not block, because tokio's sockets are non-blocking.
        let peek =
            |socket: &RefCell<TcpStream>| SockRef::from(&*socket.borrow()).peek(&mut [MaybeUninit::uninit()]);
        let peeked = self.0.upgrade().map(|socket| peek(&socket));
        peeked.is_some_and(|peeked| !matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock))
    }

    /// Ends the connection in both directions, below TLS.
    pub(super) fn shut_down(&self) {
        if let Some(socket) = self.0.upgrade() {
            // An error means that the client has already ended it.
            let _ = SockRef::from(&*socket.borrow()).shutdown(Shutdown::Both);
        }
    }
}

impl AsyncRead for ClientSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll(|socket| socket.poll_read(cx, into))
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(|socket| socket.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll(|socket| socket.poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|socket| socket.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|socket| socket.poll_shutdown(cx))
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, into),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
