//! The HTTP client for the nodes: one pool of kept connections for all threads of the process.

mod connector;
mod lookups;

use std::error::Error as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix_web::web::Bytes;
use connector::{NodeConnector, is_used, mark_used};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::http::Extensions;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::client::legacy::connect::HttpInfo;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::tls::NodesTls;

/// Time for which an idle connection is kept. A node closes it after 20 s, so the client closes it first.
const KEEP: Duration = Duration::from_secs(15);

/// A kept connection that breaks within this time after a request was sent on it may have been closed before the request arrived.
const RESEND_WITHIN: Duration = Duration::from_secs(1);

/// What is sent to a node.
pub(super) struct ToNode<'a> {
    /// The node's HTTP port, `host:port`.
    pub(super) address: &'a str,
    pub(super) path: &'a str,
    pub(super) headers: HeaderMap,
    /// The body of a POST; `None` for a GET.
    pub(super) body: Option<Bytes>,
}

/// Why a node has not answered, in one sentence.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// No connection could be made, so the node has not got the request.
    #[error("{0}")]
    Unreachable(String),
    /// The connection broke.
    #[error("{0}")]
    Broke(String),
}

/// The client. Clones share the connections.
#[derive(Clone)]
pub(super) struct NodeClient {
    /// Keeps connections for later requests.
    kept: Arc<Mutex<KeptConnections>>,
    /// Makes a connection for each request.
    fresh: Client<NodeConnector, Full<Bytes>>,
    tls: Option<NodesTls>,
    scheme: &'static str,
}

/// The connections of one set of authorities.
struct KeptConnections {
    client: Client<NodeConnector, Full<Bytes>>,
    /// [`NodesTls::renewals`] when the client was made.
    renewals: u64,
}

impl NodeClient {
    /// A client without connections. It uses HTTPS with `tls`.
    pub(super) fn new(tls: Option<NodesTls>) -> Self {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let connector = NodeConnector::new(tls.clone());
        let renewals = tls.as_ref().map_or(0, NodesTls::renewals);
        let kept = KeptConnections { client: keeping(connector.clone()), renewals };
        let fresh = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Self { kept: Arc::new(Mutex::new(kept)), fresh, tls, scheme }
    }

    /// The client that keeps connections. New authorities get a new one, because a kept connection may be to a node that they do not sign. The
    /// connections of the old one end with their requests.
    fn kept(&self) -> Client<NodeConnector, Full<Bytes>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock: an older count would replace the newest client.
        let renewals = self.tls.as_ref().map_or(0, NodesTls::renewals);
        if kept.renewals != renewals {
            *kept = KeptConnections { client: keeping(NodeConnector::new(self.tls.clone())), renewals };
        }
        kept.client.clone()
    }

    /// Sends a request. Returns the answer once its head has come. Dropping the answer closes the connection.
    ///
    /// A node may close an idle connection at the moment at which a request is sent on it. Then the request is sent again, on a new connection. A
    /// connection that breaks later than [`RESEND_WITHIN`] was not idle.
    ///
    /// # Errors
    /// [`SendError`].
    pub(super) async fn send(&self, to: &ToNode<'_>) -> Result<Response<Incoming>, SendError> {
        let sent = Instant::now();
        let error = match self.kept().request(to.request(self.scheme)?).await {
            Ok(response) => {
                mark_used(response.extensions());
                return Ok(response);
            }
            Err(error) => error,
        };
        if error.is_connect() {
            return Err(SendError::Unreachable(with_causes(&error)));
        }
        let mut extras = Extensions::new();
        error.connect_info().inspect(|info| info.get_extras(&mut extras));
        if !is_used(&extras) || sent.elapsed() > RESEND_WITHIN {
            return Err(SendError::Broke(explained(&error, self.scheme)));
        }
        // The node may have got the request, even if this attempt fails.
        let again = self.fresh.request(to.request(self.scheme)?).await;
        again.map_err(|error| SendError::Broke(with_causes(&error)))
    }

    /// Gets a document of at most `most` bytes, and the address that it came from.
    ///
    /// # Errors
    /// Why there is none, in one sentence.
    pub(super) async fn get(
        &self,
        address: &str,
        path: &str,
        most: usize,
    ) -> Result<(Bytes, Option<SocketAddr>), String> {
        let to = ToNode { address, path, headers: HeaderMap::new(), body: None };
        let response = self.send(&to).await.map_err(|error| error.to_string())?;
        if response.status() != StatusCode::OK {
            return Err(format!("GET {path} answered {}", response.status()));
        }
        let from = response.extensions().get::<HttpInfo>().map(HttpInfo::remote_addr);
        let body = Limited::new(response.into_body(), most).collect().await;
        Ok((body.map_err(|error| format!("GET {path}: {error}"))?.to_bytes(), from))
    }
}

fn keeping(connector: NodeConnector) -> Client<NodeConnector, Full<Bytes>> {
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_timer(TokioTimer::new()).pool_idle_timeout(KEEP).build(connector)
}

impl ToNode<'_> {
    fn request(&self, scheme: &str) -> Result<Request<Full<Bytes>>, SendError> {
        let method = if self.body.is_some() { Method::POST } else { Method::GET };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{scheme}://{}{}", self.address, self.path))
            .body(Full::new(self.body.clone().unwrap_or_default()))
            .map_err(|error| SendError::Unreachable(format!("{} is no address: {error}", self.address)))?;
        *request.headers_mut() = self.headers.clone();
        Ok(request)
    }
}

/// The headers of a request to a node with this API key.
pub(super) fn headers(key: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(value) = key.and_then(|key| HeaderValue::from_str(&format!("Bearer {key}")).ok()) {
        headers.insert(AUTHORIZATION, value);
    }
    headers
}

/// Sets a header. A value that no header can have is left out.
pub(super) fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// The error and its causes, with a remedy for an answer that is no HTTP.
fn explained(error: &Error, scheme: &str) -> String {
    let text = with_causes(error);
    let is_no_http = |error: &hyper::Error| error.is_parse();
    let cause = error.source().and_then(|cause| cause.downcast_ref());
    match cause.is_some_and(is_no_http) && scheme == "http" {
        true => format!("{text}; if the node serves HTTPS, set fleet.nodes_ca_file"),
        false => text,
    }
}

/// The error and its causes: hyper's own text is only "client error (Connect)".
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
