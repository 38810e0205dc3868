//! Deadlines of accepted connections.
//!
//! actix-http has timeouts for the first head of a connection and for idle connections. It has no timeout for a later head that
//! arrives slowly, for a body that no handler reads, or for a response that the client does not read. While the socket's buffer is
//! full, actix-http does not poll the response, so a timer inside the response cannot help. Therefore each connection has a deadline
//! here, which moves with the events on the connection.
//!
//! actix-http stops reading from a client that has sent 32 KiB of further requests, and does not notice that this client leaves.
//! Therefore the watcher of a connection checks for unread bytes while a request is answered.
//!
//! With TLS, the watcher looks at the encrypted bytes, and cuts the connection below TLS.
//!
//! The watcher cuts a connection in two ways: it shuts the socket down, which ends actix-http's waits for the socket, and it ends the
//! handler or the response body, which ends actix-http's waits for those.
//!
//! A connection lives on the HTTP worker that accepted it, in actix's connection data. actix-http or a handler gets [`SLACK`] to end
//! the connection in an orderly way, before the watcher cuts it. The deadline, without `SLACK`, after each event:
//! - accepted: the period for a head;
//! - a request has arrived: the period for a body;
//! - its body has been read: the deadline of the request, and `grace`;
//! - its response has been sent: the idle period and the period for the next head; now, if the response was 408.

use std::cell::Cell;
use std::error::Error as StdError;
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
use tracing::debug;

use super::client_stream::{ClientStream, WatchedSocket};
use super::limits::Limits;

/// Time between an orderly end and the cut. actix-http reads its clock twice per second.
const SLACK: Duration = Duration::from_secs(1);

/// Interval of the checks of a connection. A client with unread bytes at two checks of one response is cut.
const LOOK: Duration = Duration::from_secs(1);

/// Why each request has a connection.
const ADDED: &str = "the server adds a connection to each accepted socket";

/// The error that ends the handler or the response of a cut connection. No client receives it.
const CUT: &str = "client was cut off";

/// One accepted connection and its deadline. actix-http drops it with the connection.
pub(super) struct Connection {
    end: Rc<Cell<ConnectionEnd>>,
    /// Closed when the watcher has cut the connection.
    watcher: watch::Receiver<()>,
    limits: Limits,
}

/// Completes when the connection is cut.
type Cut = Pin<Box<dyn Future<Output = ()>>>;

/// When a connection ends.
#[derive(Clone, Copy)]
struct ConnectionEnd {
    at: Instant,
    phase: Phase,
    /// How often the deadline has moved.
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
    /// Returns a callback for actix-http that adds a [`Connection`] to each connection.
    pub(super) fn accept(limits: Limits) -> impl Fn(&ClientStream, &mut Extensions) {
        move |stream, data| {
            data.insert(Rc::new(Self::of_socket(stream.socket().watched(), limits)));
        }
    }

    fn of_socket(socket: WatchedSocket, limits: Limits) -> Self {
        let end = ConnectionEnd { at: Instant::now() + limits.head + SLACK, phase: Phase::Reading, moves: 0 };
        let end = Rc::new(Cell::new(end));
        let (there, watcher) = watch::channel(());
        rt::spawn(watch_over(socket, Rc::clone(&end), there));
        Self { end, watcher, limits }
    }

    /// The connection of a request.
    pub(super) fn of(request: &HttpRequest) -> &Self {
        request.conn_data::<Rc<Self>>().expect(ADDED)
    }

    /// Notes that a request has been read and must end by `deadline`.
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

/// Cuts the connection at its deadline, or when its client sends more than the server reads. It polls the deadline, because each
/// request moves the deadline three times and a wake-up for each move would cost more.
async fn watch_over(socket: WatchedSocket, end: Rc<Cell<ConnectionEnd>>, there: watch::Sender<()>) {
    let mut unread_at = None;
    let reason = loop {
        let ConnectionEnd { at, .. } = end.get();
        tokio::select! {
            () = sleep_until(at.min(Instant::now() + LOOK).into()) => (),
            // The connection has ended.
            () = there.closed() => return,
        }
        let ConnectionEnd { at, phase, moves } = end.get();
        if Instant::now() >= at {
            break "its deadline has passed";
        }
        if phase == Phase::Reading || !socket.has_unread() {
            unread_at = None;
        } else if unread_at == Some(moves) {
            break "it sends more than the server reads, or has left";
        } else {
            // At one check, the bytes may have just arrived.
            unread_at = Some(moves);
        }
    };
    debug!(reason, "client cut off");
    drop(there);
    socket.shut_down();
}

/// Middleware that moves the deadline of the connection when a request arrives and when its response has been sent. It ends both if the
/// connection is cut.
pub(super) async fn attend<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<Attended>, actix_web::Error> {
    let connection = Rc::clone(request.conn_data::<Rc<Connection>>().expect(ADDED));
    connection.end_in(connection.limits.body);
    let mut cut = connection.cut();
    let response = tokio::select! {
        response = next.call(request) => response?,
        () = &mut cut => return Err(ErrorRequestTimeout(CUT)),
    };
    // After 408, the client may still send the rest of its body. The server does not wait for it.
    let period = match response.status() {
        StatusCode::REQUEST_TIMEOUT => Duration::ZERO,
        _ => connection.limits.idle + connection.limits.head,
    };
    Ok(response.map_body(|_, body| Attended { body: body.boxed(), connection, cut, period }))
}

/// The body of a response. actix-http drops it when the client is gone, or when at most one write of the body is left.
pub(super) struct Attended {
    body: BoxBody,
    connection: Rc<Connection>,
    cut: Cut,
    /// The period of the connection after the response.
    period: Duration,
}

impl MessageBody for Attended {
    type Error = Box<dyn StdError>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let this = self.get_mut();
        if this.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(CUT.into())));
        }
        Pin::new(&mut this.body).poll_next(cx)
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        self.connection.end_in(self.period);
    }
}
