//! The link's TCP connections: they listen, dial and carry frames, and report to the peer link.
//!
//! All tasks run on the peer link's arbiter. What they do with a connection the peer link decides; each connection has a
//! [`ConnectionId`], and everything that is said about it is a message of the table in [`effect`](crate::effect).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use connector::frame::{self, Capabilities, Challenge, Frame, Hello, Incarnation, KvShape, Versions};
use connector::link::{Link, LinkError, Prover};
use connector::process::Pidfd;
use connector::transport::Descriptor;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::effect::{ToPeerLink, ToSockets};
use crate::messages::{
    Carry, Challenged, ConnectionId, DialDue, DialFailed, FrameCame, HelloCame, LinkEnd, LinkEnded,
    ProcessWatched, ReceiverId, Refuse, SayHello, SayWelcome, SenderSession, SessionId, Welcomed, WriteFrame,
};

/// Handshakes that may be under way at once: strangers on the port cannot pile up.
const HANDSHAKES: usize = 16;
/// Pause after a connection that could not be accepted, for example for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Frames that may wait for a session's socket. A ring's grants and announcements, and every admitted request's frames, fit; a
/// peer that takes none of them is dead.
const FRAMES_WAITING: usize = 4096;

/// Who we are on the link. It holds the secret, so it has no `Debug`.
#[derive(Clone)]
pub struct Identity {
    /// This process.
    pub incarnation: Incarnation,
    /// What it serves.
    pub shape: KvShape,
    /// `link.secret`.
    pub secret: Option<String>,
    /// Most credits outstanding in a session that we receive in.
    pub ring_pages: u32,
    /// The addresses that this process dials.
    pub receivers: Vec<String>,
    /// What it can do for its peers.
    pub capabilities: Capabilities,
    /// Where it serves HTTP, as `host:port`; empty if it does not.
    pub http: String,
}

/// A receiver that answers, and its challenge.
struct Met {
    link: Link,
    challenge: Challenge,
}

/// A connection whose handshake is over as far as it goes without the peer link.
enum Line {
    /// It waits for [`SayHello`] or a hang-up.
    Challenged(Box<Met>),
    /// It waits for [`SayWelcome`], [`Refuse`], [`Carry`] or a hang-up.
    Shaken {
        link: Box<Link>,
        /// The process that dialled, if the kernel says that it runs on this host.
        process: Option<Pidfd>,
    },
    /// A task carries frames.
    Carried {
        /// Those that it is to write. Closing this queue makes the task say goodbye.
        frames: mpsc::Sender<Frame>,
        /// Ends the task at once, without a goodbye.
        cut: oneshot::Sender<()>,
    },
}

/// What a task that carries a session's frames waits for.
struct Orders {
    frames: mpsc::Receiver<Frame>,
    cut: oneshot::Receiver<()>,
}

struct Shared {
    identity: Identity,
    link: Recipient<ToPeerLink>,
    lines: RefCell<HashMap<ConnectionId, Line>>,
    next: Cell<u64>,
}

/// All connections of this process. Cheap to clone; clones share them. Lives on the peer link's arbiter.
#[derive(Clone)]
pub struct Sockets {
    shared: Rc<Shared>,
}

impl Sockets {
    /// No connections yet; `link` hears what happens to them.
    pub fn new(identity: Identity, link: Recipient<ToPeerLink>) -> Self {
        let (lines, next) = (RefCell::default(), Cell::new(0));
        Self { shared: Rc::new(Shared { identity, link, lines, next }) }
    }

    /// Does what the peer link says.
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
                actix::spawn(self.clone().dial(dial.receiver));
            }
            ToSockets::SayHello(hello) => {
                if let Some(Line::Challenged(met)) = self.take(hello.connection) {
                    actix::spawn(self.clone().say_hello(hello, *met));
                }
            }
            ToSockets::Refuse(Refuse { connection, reason }) => {
                if let Some(Line::Shaken { mut link, .. }) = self.take(connection) {
                    actix::spawn(async move {
                        // A peer that is gone needs no answer.
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
            // Dropping a carried line's queue makes its task say goodbye.
            ToSockets::HangUp(hang_up) => drop(self.take(hang_up.connection)),
            ToSockets::WatchProcess(watch) => {
                if let Some(Line::Shaken { process, .. }) =
                    self.shared.lines.borrow_mut().get_mut(&watch.connection)
                    && let Some(process) = process.take()
                {
                    actix::spawn(self.clone().watch(watch.incarnation, process));
                }
            }
        }
    }

    /// Accepts senders for as long as the process lives.
    pub async fn listen(self, listener: TcpListener) {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        loop {
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "link port could not accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // A connection beyond the bound is closed at once, so that silent strangers cannot keep senders out.
            let Ok(permit) = handshakes.clone().try_acquire_owned() else { continue };
            let sockets = self.clone();
            actix::spawn(async move {
                let identity = &sockets.shared.identity;
                match Link::accept(stream, identity.incarnation, &identity.shape, identity.secret.as_deref())
                    .await
                {
                    Ok((link, hello)) => sockets.tell_hello(link, &hello),
                    Err(error) => tracing::warn!(%address, reason = %error, "link connection refused"),
                }
                drop(permit);
            });
        }
    }

    fn tell_hello(&self, mut link: Link, hello: &Hello) {
        let process = link.take_dialer();
        let is_watched = process.is_some();
        let (address, seed) = (link.peer().to_string(), link.nonces().session_seed());
        self.tell(HelloCame {
            connection: self.keep(Line::Shaken { link: link.into(), process }),
            address,
            http: hello.http.clone(),
            sender: SenderSession { incarnation: hello.incarnation, number: hello.session, is_watched },
            previous: hello.previous,
            drained: hello.previous_drained,
            seed,
        });
    }

    async fn dial(self, receiver: ReceiverId) {
        let receivers = &self.shared.identity.receivers;
        let dialled = match receivers.get(receiver.0 as usize) {
            Some(address) => Link::dial(address).await,
            None => Err(LinkError::Closed),
        };
        match dialled {
            Ok((link, challenge)) => {
                let incarnation = challenge.incarnation;
                let connection = self.keep(Line::Challenged(Box::new(Met { link, challenge })));
                self.tell(Challenged { receiver, connection, incarnation });
            }
            Err(error) => self.tell_dial_failed(receiver, &error),
        }
    }

    async fn say_hello(self, hello: SayHello, met: Met) {
        let SayHello { receiver, connection, attempt } = hello;
        let Met { mut link, challenge } = met;
        let Identity { incarnation, shape, secret, capabilities, http, .. } = &self.shared.identity;
        let hello = Hello {
            versions: Versions::OURS,
            version: Versions::OURS.highest,
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
        match link.hello(&challenge, hello, secret.as_deref()).await {
            Ok(welcome) => {
                let (address, seed) = (link.peer().to_string(), link.nonces().session_seed());
                let frame::Welcome { incarnation, descriptor, ring_pages, .. } = *welcome;
                let line = Line::Shaken { link: link.into(), process: None };
                self.shared.lines.borrow_mut().insert(connection, line);
                self.tell(Welcomed {
                    receiver,
                    connection,
                    address,
                    incarnation,
                    descriptor,
                    ring_pages,
                    seed,
                });
            }
            Err(error) => self.tell_dial_failed(receiver, &error),
        }
    }

    fn tell_dial_failed(&self, receiver: ReceiverId, error: &LinkError) {
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
            Err(error) => self.tell_ended(session, &error),
        }
    }

    /// Carries a session's frames until either side ends it, then says so.
    async fn carry(self, link: Link, orders: Orders, session: SessionId) {
        let Orders { frames, mut cut } = orders;
        let (writer, mut reader) = link.split();
        let reading = async {
            loop {
                match reader.next().await {
                    // Waiting for the handler is the bound: one frame of a session is in the mailbox at a time.
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
            // First: a queue that is closed as well must not be taken for the session's end.
            biased;
            // The peer link was told why.
            Ok(()) = &mut cut => return,
            error = reading => error,
            result = writer.run(frames) => result.err().unwrap_or(LinkError::Closed),
        };
        self.tell_ended(session, &error);
    }

    fn write(&self, write: WriteFrame) {
        let WriteFrame { session, connection, frame } = write;
        let is_full = match self.shared.lines.borrow().get(&connection) {
            Some(Line::Carried { frames, .. }) => {
                matches!(frames.try_send(frame), Err(mpsc::error::TrySendError::Full(_)))
            }
            _ => false,
        };
        // A frame is missing from now on, so the peer must get none of the later ones.
        if is_full && let Some(Line::Carried { cut, .. }) = self.take(connection) {
            let _ = cut.send(());
            let reason = format!("peer did not take {FRAMES_WAITING} frames");
            self.tell(LinkEnded { session, end: LinkEnd::Broken(reason) });
        }
    }

    /// Tells the peer link when a peer's process has ended.
    async fn watch(self, incarnation: Incarnation, process: Pidfd) {
        let gone = process.gone().await.is_ok();
        self.tell(ProcessWatched { incarnation, gone });
    }

    fn keep(&self, line: Line) -> ConnectionId {
        let connection = ConnectionId(self.shared.next.get());
        self.shared.next.set(connection.0 + 1);
        self.shared.lines.borrow_mut().insert(connection, line);
        connection
    }

    fn take(&self, connection: ConnectionId) -> Option<Line> {
        self.shared.lines.borrow_mut().remove(&connection)
    }

    /// The connection's frames are carried from now on.
    fn begin_to_carry(&self, connection: ConnectionId) -> Option<(Link, Orders)> {
        let Some(Line::Shaken { link, .. }) = self.take(connection) else { return None };
        let (frames, written) = mpsc::channel(FRAMES_WAITING);
        let (cut, is_cut) = oneshot::channel();
        self.shared.lines.borrow_mut().insert(connection, Line::Carried { frames, cut });
        Some((*link, Orders { frames: written, cut: is_cut }))
    }

    fn tell_ended(&self, session: SessionId, error: &LinkError) {
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
