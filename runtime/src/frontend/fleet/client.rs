//! The HTTP client for the nodes: one pool of kept connections for all threads of the process.

use std::net::SocketAddr;
use std::time::Duration;

use actix_web::web::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{HttpConnector, HttpInfo};
use hyper_util::rt::{TokioExecutor, TokioTimer};

/// Maximum time for a connection to a node.
const CONNECT: Duration = Duration::from_secs(1);

/// Time after which an unanswered connection ends: the address is gone, although nothing has closed the connection.
const UNANSWERED: Duration = Duration::from_secs(10);

/// Time for which an idle connection is kept. A node closes it after 20 s, so the client closes it first.
const KEEP: Duration = Duration::from_secs(15);

/// What is sent to a node.
pub(super) struct ToNode<'a> {
    pub(super) method: Method,
    /// The node's HTTP port, `host:port`.
    pub(super) address: &'a str,
    pub(super) path: &'a str,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// The client. Clones share the connections.
#[derive(Clone)]
pub(super) struct NodeClient(Client<HttpConnector, Full<Bytes>>);

impl NodeClient {
    /// A client without connections.
    pub(super) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        connector.set_keepalive(Some(UNANSWERED / 2));
        connector.set_keepalive_interval(Some(UNANSWERED / 4));
        connector.set_keepalive_retries(Some(2));
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(KEEP);
        Self(builder.build(connector))
    }

    /// Sends a request. Returns the answer once its head has come. Dropping the answer closes the connection.
    ///
    /// # Errors
    /// Why there is no answer, in one sentence.
    pub(super) async fn send(&self, to: ToNode<'_>) -> Result<Response<Incoming>, String> {
        let mut request = Request::builder()
            .method(to.method)
            .uri(format!("http://{}{}", to.address, to.path))
            .body(Full::new(to.body))
            .map_err(|error| format!("{} is no address: {error}", to.address))?;
        *request.headers_mut() = to.headers;
        self.0.request(request).await.map_err(|error| with_causes(&error))
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
        let to = ToNode { method: Method::GET, address, path, headers: HeaderMap::new(), body: Bytes::new() };
        let response = self.send(to).await?;
        if response.status() != StatusCode::OK {
            return Err(format!("GET {path} answered {}", response.status()));
        }
        let from = response.extensions().get::<HttpInfo>().map(HttpInfo::remote_addr);
        let body = Limited::new(response.into_body(), most).collect().await;
        Ok((body.map_err(|error| format!("GET {path}: {error}"))?.to_bytes(), from))
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

/// Sets a header whose value comes from a client. A value that no header can have is left out.
pub(super) fn set(headers: &mut HeaderMap, name: &'static str, value: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// The error and its causes: hyper's own text is only "client error (Connect)".
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
