//! The TCP connections of the link: tasks that listen, dial and carry frames, and report to the peer link.
//!
//! All tasks run on the peer link's arbiter. The peer link makes the decisions. Each connection has a [`ConnectionId`], and all
//! communication with the peer link is by messages of the table in [`effect`](crate::effect).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use connector::frame::{self, Capabilities, Frame, Hello, Incarnation, KvShape, Versions};
use connector::link::tls::LinkTls;
use connector::link::{Link, LinkError, Prover};
use connector::process::Pidfd;
use connector::transport::Descriptor;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::effect::{ToPeerLink, ToSockets};
use crate::messages::{
    Carry, Challenged, ConnectionId, Dial, DialDue, DialFailed, FrameCame, HelloCame, LinkEnd, LinkEnded,
    ProcessWatched, ReceiverId, Refuse, SayHello, SayWelcome, SenderSession, SessionId, Welcomed, WriteFrame,
};

/// Upper bound of concurrent handshakes, so that unauthenticated connections cannot accumulate.
const HANDSHAKES: usize = 16;
/// Pause after a failed accept, for example when the process has no free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Upper bound of the frames that wait for a session's socket. The grants and announcements of a ring and the frames of all
/// admitted requests fit. A peer that reads so few frames that more would wait is treated as dead.
const FRAMES_WAITING: usize = 4096;

/// The identity and settings of this process on the link. It contains the secret, so it does not implement `Debug`.
#[derive(Clone)]
pub struct Identity {
    /// This process.
    pub incarnation: Incarnation,
    /// The versions of the protocol that it supports.
    pub versions: Versions,
    /// The model and the KV layout that this process serves.
    pub shape: KvShape,
    /// The value of `link.secret`.
    pub secret: Option<String>,
    /// TLS of the link; `None` for bytes in clear.
    pub tls: Option<Arc<LinkTls>>,
    /// Upper bound of the credits outstanding in an incoming session.
    pub ring_pages: u32,
    /// Whether this process can prefill and decode.
    pub capabilities: Capabilities,
    /// This process's HTTP address as `host:port`; empty if it serves no HTTP.
    pub http: String,
}

/// A connection that waits for the peer link, or that carries a session's frames.
enum Connection {
    /// The receiver's challenge has arrived. The connection waits for [`SayHello`] or [`HangUp`](crate::messages::HangUp).
    Challenged(Box<Link>),
    /// The handshake succeeded. The connection waits for [`SayWelcome`], [`Refuse`], [`Carry`] or
    /// [`HangUp`](crate::messages::HangUp).
    Established {
        link: Box<Link>,
        /// The process that dialled, if the kernel says that it runs on this host.
        process: Option<Pidfd>,
    },
    /// A task carries frames.
    Carried {
        /// The queue of frames that the task writes. When the queue is closed, the task sends a goodbye.
        frames: mpsc::Sender<Frame>,
        /// Ends the task at once, without a goodbye.
        cut: oneshot::Sender<()>,
    },
}

/// The receiving ends of a carrying task's channels; see [`Connection::Carried`].
struct Orders {
    frames: mpsc::Receiver<Frame>,
    cut: oneshot::Receiver<()>,
}

struct Shared {
    identity: Identity,
    link: Recipient<ToPeerLink>,
    connections: RefCell<HashMap<ConnectionId, Connection>>,
    next: Cell<u64>,
}

/// All link connections of this process. Cheap to clone; clones share the connections. It lives on the peer link's arbiter.
#[derive(Clone)]
pub struct Sockets {
    shared: Rc<Shared>,
}

impl Sockets {
    /// An empty set of connections that reports to `link`.
    pub fn new(identity: Identity, link: Recipient<ToPeerLink>) -> Self {
        let (connections, next) = (RefCell::default(), Cell::new(0));
        Self { shared: Rc::new(Shared { identity, link, connections, next }) }
    }

    /// Executes a command of the peer link.
    pub fn deliver(&self, message: ToSockets) {
        match message {
            ToSockets::WakeDialler(wake) => {
                let sockets = self.clone();
                actix::spawn(async move {
                    tokio::time::sleep(wake.pause).await;
                    sockets.tell(DialDue { receiver: wake.receiver });
                });
            }
            ToSockets::Dial(dial) => {
                actix::spawn(self.clone().dial(dial));
            }
            ToSockets::SayHello(hello) => {
                if let Some(Connection::Challenged(link)) = self.take(hello.connection) {
                    actix::spawn(self.clone().say_hello(hello, *link));
                }
            }
            ToSockets::Refuse(Refuse { connection, reason }) => {
                if let Some(Connection::Established { mut link, .. }) = self.take(connection) {
                    actix::spawn(async move {
                        // If the peer has disconnected, the refusal is dropped.
                        let _ = link.put_off(reason).await;
                    });
                }
            }
            ToSockets::SayWelcome(SayWelcome { connection, session, descriptor }) => {
                if let Some((link, orders)) = self.begin_to_carry(connection) {
                    actix::spawn(self.clone().welcome(link, orders, session, descriptor));
                }
            }
            ToSockets::Carry(Carry { connection, session }) => {
                if let Some((link, orders)) = self.begin_to_carry(connection) {
                    actix::spawn(self.clone().carry(link, orders, session));
                }
            }
            ToSockets::WriteFrame(write) => self.write(write),
            // Dropping the queue of a carried connection makes its task send a goodbye.
            ToSockets::HangUp(hang_up) => drop(self.take(hang_up.connection)),
            ToSockets::WatchProcess(watch) => {
                if let Some(Connection::Established { process, .. }) =
                    self.shared.connections.borrow_mut().get_mut(&watch.connection)
                    && let Some(process) = process.take()
                {
                    actix::spawn(self.clone().watch(watch.incarnation, process));
                }
            }
        }
    }

    /// Accepts connections of peers that prefill until the process ends.
    pub async fn listen(self, listener: TcpListener) {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        loop {
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection on the link port");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // A connection beyond the bound is closed at once. It does not wait, so silent connections cannot block senders for
            // long.
            let Ok(permit) = handshakes.clone().try_acquire_owned() else { continue };
            let sockets = self.clone();
            actix::spawn(async move {
                let Identity { incarnation, versions, shape, secret, tls, .. } = &sockets.shared.identity;
                let (secret, tls) = (secret.as_deref(), tls.as_deref());
                match Link::accept(stream, *versions, *incarnation, shape, secret, tls).await {
                    Ok((link, hello)) => sockets.report_hello(link, &hello),
                    // A peer that finds itself, or a process that it is connected with, closes the connection.
                    Err(LinkError::Closed) => {
                        tracing::debug!(%address, "link connection closed before its Hello")
                    }
                    Err(LinkError::Incompatible(reason)) if reason.is_question() => {
                        tracing::info!(%address, "a process asked whether sessions are accepted: they are");
                    }
                    Err(error) => tracing::warn!(%address, reason = %error, "link connection refused"),
                }
                drop(permit);
            });
        }
    }

    fn report_hello(&self, mut link: Link, hello: &Hello) {
        let process = link.take_dialer();
        let is_watched = process.is_some();
        let (address, seed) = (link.peer().to_string(), link.nonces().session_seed());
        let version = link.version();
        self.tell(HelloCame {
            connection: self.keep(Connection::Established { link: link.into(), process }),
            address,
            http: hello.http.clone(),
            sender: SenderSession { incarnation: hello.incarnation, number: hello.session, is_watched },
            previous: hello.previous,
            drained: hello.previous_drained,
            version,
            seed,
        });
    }

    async fn dial(self, Dial { receiver, address }: Dial) {
        let Identity { versions, tls, .. } = &self.shared.identity;
        match Link::dial(&address, *versions, tls.as_deref()).await {
            Ok((link, challenge)) => {
                let incarnation = challenge.incarnation;
                let connection = self.keep(Connection::Challenged(Box::new(link)));
                self.tell(Challenged { receiver, connection, incarnation });
            }
            Err(error) => self.report_dial_failed(receiver, &error),
        }
    }

    async fn say_hello(self, hello: SayHello, mut link: Link) {
        let SayHello { receiver, connection, attempt } = hello;
        let Identity { incarnation, versions, shape, secret, capabilities, http, .. } = &self.shared.identity;
        let hello = Hello {
            versions: *versions,
            version: link.version(),
            incarnation: *incarnation,
            capabilities: *capabilities,
            http: http.clone(),
            session: attempt.session,
            previous: attempt.previous,
            previous_drained: attempt.previous_drained,
            shape: shape.clone(),
            nonce: link.nonces().dialer,
            proof: None,
        };
        match link.hello(hello, secret.as_deref()).await {
            Ok(welcome) => {
                let (address, seed) = (link.peer().to_string(), link.nonces().session_seed());
                let version = link.version();
                let frame::Welcome { incarnation, descriptor, ring_pages, .. } = *welcome;
                let established = Connection::Established { link: link.into(), process: None };
                self.shared.connections.borrow_mut().insert(connection, established);
                self.tell(Welcomed {
                    receiver,
                    connection,
                    address,
                    incarnation,
                    descriptor,
                    ring_pages,
                    version,
                    seed,
                });
            }
            Err(error) => self.report_dial_failed(receiver, &error),
        }
    }

    fn report_dial_failed(&self, receiver: ReceiverId, error: &LinkError) {
        let (reason, permanent) = (error.to_string(), error.is_permanent());
        self.tell(DialFailed { receiver, reason, permanent });
    }

    async fn welcome(self, mut link: Link, orders: Orders, session: SessionId, descriptor: Descriptor) {
        let identity = &self.shared.identity;
        let welcome = frame::Welcome {
            incarnation: identity.incarnation,
            shape: identity.shape.clone(),
            descriptor,
            ring_pages: identity.ring_pages,
            proof: link.nonces().prove(identity.secret.as_deref(), Prover::Listener),
        };
        match link.welcome(welcome).await {
            Ok(()) => self.carry(link, orders, session).await,
            Err(error) => self.report_ended(session, &error),
        }
    }

    /// Carries a session's frames until either side ends the session, and then reports its end.
    async fn carry(self, link: Link, orders: Orders, session: SessionId) {
        let Orders { frames, mut cut } = orders;
        let (writer, mut reader) = link.split();
        let reading = async {
            loop {
                match reader.next().await {
                    // The task waits for the handler, so that at most one frame of a session is in the mailbox.
                    Ok(frame) => {
                        let came = FrameCame { session, frame };
                        if self.shared.link.send(came.into()).await.is_err() {
                            return LinkError::Closed;
                        }
                    }
                    Err(error) => return error,
                }
            }
        };
        let error = tokio::select! {
            // `cut` comes first, because the frame queue is closed too, which would end the session with a goodbye.
            biased;
            // The peer link already got the reason.
            Ok(()) = &mut cut => return,
            error = reading => error,
            result = writer.run(frames) => result.err().unwrap_or(LinkError::Closed),
        };
        self.report_ended(session, &error);
    }

    fn write(&self, write: WriteFrame) {
        let WriteFrame { session, connection, frame } = write;
        let is_full = match self.shared.connections.borrow().get(&connection) {
            Some(Connection::Carried { frames, .. }) => {
                matches!(frames.try_send(frame), Err(mpsc::error::TrySendError::Full(_)))
            }
            _ => false,
        };
        // This frame is lost, so the peer must get no later frame.
        if is_full && let Some(Connection::Carried { cut, .. }) = self.take(connection) {
            let _ = cut.send(());
            let reason = format!("peer reads too slowly: {FRAMES_WAITING} frames wait for it");
            self.tell(LinkEnded { session, end: LinkEnd::Broken(reason) });
        }
    }

    /// Waits until a peer's process has ended, and reports it to the peer link.
    async fn watch(self, incarnation: Incarnation, process: Pidfd) {
        let gone = process.gone().await.is_ok();
        self.tell(ProcessWatched { incarnation, gone });
    }

    /// Stores a connection under a new id.
    fn keep(&self, new: Connection) -> ConnectionId {
        let connection = ConnectionId(self.shared.next.get());
        self.shared.next.set(connection.0 + 1);
        self.shared.connections.borrow_mut().insert(connection, new);
        connection
    }

    fn take(&self, connection: ConnectionId) -> Option<Connection> {
        self.shared.connections.borrow_mut().remove(&connection)
    }

    /// Prepares a connection to carry frames. Returns the parts that the carrying task needs; `None` if the connection is not
    /// established.
    fn begin_to_carry(&self, connection: ConnectionId) -> Option<(Link, Orders)> {
        let Some(Connection::Established { link, .. }) = self.take(connection) else { return None };
        let (frames, written) = mpsc::channel(FRAMES_WAITING);
        let (cut, is_cut) = oneshot::channel();
        self.shared.connections.borrow_mut().insert(connection, Connection::Carried { frames, cut });
        Some((*link, Orders { frames: written, cut: is_cut }))
    }

    fn report_ended(&self, session: SessionId, error: &LinkError) {
        let end = match error {
            LinkError::Goodbye => LinkEnd::Goodbye,
            error => LinkEnd::Broken(error.to_string()),
        };
        self.tell(LinkEnded { session, end });
    }

    fn tell(&self, message: impl Into<ToPeerLink>) {
        self.shared.link.do_send(message.into());
    }
}

#[cfg(test)]
mod tests;
