//! One accepted connection, from the side that ends it.
//!
//! actix-http times a connection's first head and its idleness. It does not time a later head that drips in, a body that
//! nobody reads and that never ends, or an answer that its client does not take: while the socket is full it does not
//! even poll the answer, so no timer in there helps. So each connection has an end here, which moves with what happens on it.
//!
//! Nor does actix-http read on from a client that has sent 32 KiB of further requests: it asks itself again and again whether
//! it may, and does not see that client go. So while an answer is under way, the connection's watcher looks whether anything
//! lies unread.
//!
//! To cut a connection is to shut its socket down, for where actix-http waits for the socket, and to end the handler or the
//! answer, for where it waits for those.
//!
//! Lives on the HTTP worker that accepted it, in actix's connection data. The ends, each [`SLACK`] later than what
//! actix-http or a handler does about the same thing in a kinder way:
//! - accepted: the head's period;
//! - a request came: the body's period;
//! - it has been read: its deadline, and `grace` for the frontend to say so;
//! - its answer is handed over, or 408: nothing if it was 408, else the idle period and the next head's.

use std::any::Any;
use std::cell::Cell;
use std::error::Error as StdError;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Extensions, ServiceRequest, ServiceResponse};
use actix_web::error::ErrorRequestTimeout;
use actix_web::http::StatusCode;
use actix_web::middleware::Next;
use actix_web::web::Bytes;
use actix_web::{HttpRequest, rt};
use tokio::sync::watch;
use tokio::time::sleep_until;
use tracing::{debug, warn};

use super::api_error::ApiError;
use super::limits::Limits;

/// How long a kinder end has before the cut. actix-http reads its clock twice a second.
const SLACK: Duration = Duration::from_secs(1);

/// How often a connection is looked at: twice while it is answered, and a client that is not read from is cut.
const LOOK: Duration = Duration::from_secs(1);

/// What a handler or an answer ends with that lost its client. Nobody gets it.
const CUT: &str = "client was cut off";

/// One accepted connection, and when it ends. Dropped with actix-http's own end of it.
pub(super) struct Connection {
    end: Rc<Cell<ConnectionEnd>>,
    /// Its watcher holds the other side, and is gone once it has cut the connection.
    watcher: watch::Receiver<()>,
    limits: Limits,
}

/// Comes when the connection is cut.
type Cut = Pin<Box<dyn Future<Output = ()>>>;

#[derive(Clone, Copy)]
struct ConnectionEnd {
    at: Instant,
    phase: Phase,
    /// How often it has been moved.
    moves: u32,
}

/// What happens on a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The server waits for a request or reads one.
    Reading,
    /// A request has been read to its end and is being answered.
    Answering,
}

impl Connection {
    /// Puts a new connection into its data. For [`HttpServer::on_connect`](actix_web::HttpServer::on_connect).
    pub(super) fn accept(limits: Limits) -> impl Fn(&dyn Any, &mut Extensions) + Clone + Send + Sync {
        move |socket, data| match Self::of_socket(socket, limits) {
            Ok(connection) => {
                data.insert(Rc::new(connection));
            }
            Err(error) => warn!(%error, "connection cannot be watched"),
        }
    }

    fn of_socket(socket: &dyn Any, limits: Limits) -> io::Result<Self> {
        let socket = socket.downcast_ref::<rt::net::TcpStream>().ok_or(io::ErrorKind::Unsupported)?;
        // A descriptor of our own: the one that actix-http reads and writes cannot be reached later.
        let socket = TcpStream::from(socket.as_fd().try_clone_to_owned()?);
        let end = ConnectionEnd { at: Instant::now() + limits.head + SLACK, phase: Phase::Reading, moves: 0 };
        let end = Rc::new(Cell::new(end));
        let (there, watcher) = watch::channel(());
        rt::spawn(watch_over(socket, Rc::clone(&end), there));
        Ok(Self { end, watcher, limits })
    }

    /// Whose request this is. There is one unless the process ran out of file descriptors.
    pub(super) fn of(request: &HttpRequest) -> Option<&Self> {
        request.conn_data::<Rc<Self>>().map(|connection| &**connection)
    }

    /// A request has been read that must have ended at `deadline`.
    pub(super) fn answers_until(&self, deadline: Instant) {
        self.move_end(deadline + self.limits.grace + SLACK, Phase::Answering);
    }

    fn move_end(&self, at: Instant, phase: Phase) {
        self.end.update(|end| ConnectionEnd { at, phase, moves: end.moves.wrapping_add(1) });
    }

    fn cut(&self) -> Cut {
        let mut watcher = self.watcher.clone();
        Box::pin(async move { while watcher.changed().await.is_ok() {} })
    }

    fn end_in(&self, period: Duration) {
        self.move_end(Instant::now() + period + SLACK, Phase::Reading);
    }
}

/// Cuts the connection when its end comes, or when its client sends more than is read. Looks by itself: a request moves the end
/// three times, and must not wake anybody for it.
async fn watch_over(socket: TcpStream, end: Rc<Cell<ConnectionEnd>>, there: watch::Sender<()>) {
    let mut unread_at = None;
    let reason = loop {
        let ConnectionEnd { at, .. } = end.get();
        tokio::select! {
            () = sleep_until(at.min(Instant::now() + LOOK).into()) => (),
            // It has ended by itself.
            () = there.closed() => return,
        }
        let ConnectionEnd { at, phase, moves } = end.get();
        if Instant::now() >= at {
            break "it took too long";
        }
        if phase == Phase::Reading || !unread(&socket) {
            unread_at = None;
        } else if unread_at == Some(moves) {
            break "it sends on while it is answered, or is gone";
        } else {
            // Once, it may have come this moment.
            unread_at = Some(moves);
        }
    };
    debug!(reason, "client cut off");
    drop(there);
    // An error says that it is closed already.
    let _ = socket.shutdown(Shutdown::Both);
}

/// Whether anything lies in the socket, be it the client's end: actix-http leaves nothing there for long if it reads at all.
fn unread(socket: &TcpStream) -> bool {
    // As little blocking as actix-http's descriptor, whose socket it is.
    !matches!(socket.peek(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Moves the connection's end when a request comes and when its answer has gone, and ends both if it is cut. A middleware.
pub(super) async fn attend<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<Attended>, actix_web::Error> {
    let Some(connection) = request.conn_data::<Rc<Connection>>().cloned() else {
        let message = "server has too many connections; retry after a second";
        let response =
            request.into_response(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).response());
        return Ok(response.map_body(|_, body| Attended { body, connection: None }));
    };
    connection.end_in(connection.limits.body);
    let mut cut = connection.cut();
    let response = tokio::select! {
        response = next.call(request) => response?,
        () = &mut cut => return Err(ErrorRequestTimeout(CUT)),
    };
    // After 408 the client may still be sending what nobody waits for.
    let period = match response.status() {
        StatusCode::REQUEST_TIMEOUT => Duration::ZERO,
        _ => connection.limits.idle + connection.limits.head,
    };
    let connection = Some((connection, cut, period));
    Ok(response.map_body(|_, body| Attended { body: body.boxed(), connection }))
}

/// An answer's body. Dropped when it is in actix-http's hands, at most one write of it still there, or the client is gone.
pub(super) struct Attended {
    body: BoxBody,
    /// Whose it is, and how long that has afterwards.
    connection: Option<(Rc<Connection>, Cut, Duration)>,
}

impl MessageBody for Attended {
    type Error = Box<dyn StdError>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let this = self.get_mut();
        if let Some((_, cut, _)) = &mut this.connection
            && cut.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Some(Err(CUT.into())));
        }
        Pin::new(&mut this.body).poll_next(cx)
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        if let Some((connection, _, period)) = &self.connection {
            connection.end_in(*period);
        }
    }
}
