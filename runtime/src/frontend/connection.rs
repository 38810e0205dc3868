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

use actix_tls::accept::rustls_0_23::TlsStream;
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

/// Time between an orderly end and the cut. actix-http reads its clock twice per second.
const SLACK: Duration = Duration::from_secs(1);

/// Interval of the checks of a connection. A client with unread bytes at two checks of one response is cut.
const LOOK: Duration = Duration::from_secs(1);

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
    /// Returns a callback for [`HttpServer::on_connect`](actix_web::HttpServer::on_connect) that adds a [`Connection`] to each connection.
    pub(super) fn accept(limits: Limits) -> impl Fn(&dyn Any, &mut Extensions) + Clone + Send + Sync {
        move |socket, data| match Self::of_socket(socket, limits) {
            Ok(connection) => {
                data.insert(Rc::new(connection));
            }
            Err(error) => warn!(%error, "cannot watch a connection"),
        }
    }

    fn of_socket(socket: &dyn Any, limits: Limits) -> io::Result<Self> {
        let tls = || Some(socket.downcast_ref::<TlsStream<rt::net::TcpStream>>()?.get_ref().0);
        let socket = socket.downcast_ref().or_else(tls).ok_or(io::ErrorKind::Unsupported)?;
        // The watcher needs a descriptor of its own, because actix-http owns the other one.
        let socket: &rt::net::TcpStream = socket;
        let socket = TcpStream::from(socket.as_fd().try_clone_to_owned()?);
        let end = ConnectionEnd { at: Instant::now() + limits.head + SLACK, phase: Phase::Reading, moves: 0 };
        let end = Rc::new(Cell::new(end));
        let (there, watcher) = watch::channel(());
        rt::spawn(watch_over(socket, Rc::clone(&end), there));
        Ok(Self { end, watcher, limits })
    }

    /// The connection of a request; `None` if the process has run out of file descriptors.
    pub(super) fn of(request: &HttpRequest) -> Option<&Self> {
        request.conn_data::<Rc<Self>>().map(|connection| &**connection)
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
async fn watch_over(socket: TcpStream, end: Rc<Cell<ConnectionEnd>>, there: watch::Sender<()>) {
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
        if phase == Phase::Reading || !unread(&socket) {
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
    // An error means that the socket is already closed.
    let _ = socket.shutdown(Shutdown::Both);
}

/// Whether the socket has unread bytes or the end of the stream. actix-http reads them soon, unless it has stopped reading.
fn unread(socket: &TcpStream) -> bool {
    // Does not block, because the descriptor shares the socket of actix-http, which is non-blocking.
    !matches!(socket.peek(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Middleware that moves the deadline of the connection when a request arrives and when its response has been sent. It ends both if the
/// connection is cut.
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
    // After 408, the client may still send the rest of its body. The server does not wait for it.
    let period = match response.status() {
        StatusCode::REQUEST_TIMEOUT => Duration::ZERO,
        _ => connection.limits.idle + connection.limits.head,
    };
    let connection = Some((connection, cut, period));
    Ok(response.map_body(|_, body| Attended { body: body.boxed(), connection }))
}

/// The body of a response. actix-http drops it when the client is gone, or when at most one write of the body is left.
pub(super) struct Attended {
    body: BoxBody,
    /// The connection, its cut, and the period of the connection after the response.
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
