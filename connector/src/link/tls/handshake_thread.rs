//! The thread that computes TLS handshakes.
//!
//! A handshake with an RSA key of 4096 bits takes milliseconds, and strangers can begin many. The frames and heartbeats of sessions are carried by
//! another thread, which therefore never computes one: it moves a socket here and gets it back with the handshake done.

use std::io;
use std::os::fd::AsFd;
use std::thread;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::link::LinkError;

/// The thread. It ends when this value is dropped; handshakes that still run end with it.
pub(super) struct HandshakeThread {
    runtime: Handle,
    _stop: oneshot::Sender<()>,
}

impl HandshakeThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system starts no thread, or has no file descriptor for its runtime.
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let run = move || {
            // The error says that the sender was dropped.
            let _ = runtime.block_on(stopped);
        };
        thread::Builder::new().name("baton-handshake".to_owned()).spawn(run)?;
        Ok(Self { runtime: handle, _stop: stop })
    }

    /// Runs `handshake` on the thread. It gets `tcp` as a socket of that thread. The caller bounds the number of handshakes at once, and the
    /// handshake bounds its time.
    ///
    /// # Errors
    /// That of the handshake; [`LinkError::Closed`] if the thread has ended.
    pub(super) async fn run<T, F>(
        &self,
        tcp: TcpStream,
        handshake: impl FnOnce(TcpStream) -> F + Send + 'static,
    ) -> Result<T, LinkError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, LinkError>> + Send + 'static,
    {
        let tcp = tcp.into_std()?;
        let task = self.runtime.spawn(async move { handshake(TcpStream::from_std(tcp)?).await });
        task.await.map_err(|_| LinkError::Closed)?
    }
}

/// The same socket, which wakes tasks of the current runtime in place of those of the runtime of `tcp`.
pub(super) fn moved_here(tcp: &TcpStream) -> io::Result<TcpStream> {
    TcpStream::from_std(tcp.as_fd().try_clone_to_owned()?.into())
}
