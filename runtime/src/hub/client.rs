//! Requests to the hub.
//!
//! - Redirects are followed here. The token goes to the hub only, never to the hosts that it sends clients to.
//! - The hub describes a file in the headers of its own answer, which may be a redirect.
//! - Each wait ends after `HF_HUB_DOWNLOAD_TIMEOUT`: the one for the head of an answer, and those for further bytes.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, ETAG, HeaderMap, HeaderValue, LOCATION, RANGE,
    RETRY_AFTER, USER_AGENT,
};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioExecutor;
use tokio::time::timeout;

use super::error::HubError;
use super::trust;
use crate::config::{HubSettings, Secret};
use crate::frontend::with_causes;

/// Maximum number of redirects of one request.
const REDIRECTS_MAX: usize = 10;

/// Maximum size of the hub's answer about a model. A repository of 10,000 files has 2 MB.
const ANSWER_BYTES_MAX: usize = 64 << 20;

type Direct = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;
type Tunnelled = Client<HttpsConnector<Tunnel<HttpConnector>>, Empty<Bytes>>;

/// Why a request has no answer that can be used.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection, no answer in time, or a connection that broke.
    Connection {
        /// The URL of the request.
        url: String,
        /// The reason.
        reason: String,
    },
    /// A status other than success.
    Status(RefusedStatus),
    /// An answer that does not follow the protocol.
    Protocol {
        /// The URL of the request.
        url: String,
        /// The rest of a sentence that begins with the URL and `answered`.
        what: String,
    },
}

/// A status other than success, and the headers that explain it.
#[derive(Debug)]
pub(super) struct RefusedStatus {
    url: String,
    pub(super) status: StatusCode,
    /// Whether the hub itself answered, not a host that it redirects to.
    is_hub: bool,
    code: Option<String>,
    message: Option<String>,
    /// How long the hub asks to wait.
    asked: Option<Duration>,
}

/// The description of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileHead {
    /// The checksum.
    pub(super) etag: String,
    /// The size, if the hub says it.
    pub(super) bytes: Option<u64>,
}

/// A client of one hub.
pub(super) struct HubClient {
    direct: Direct,
    tunnelled: Option<(Matcher, Tunnelled)>,
    /// The URL of the hub.
    pub(super) endpoint: String,
    token: Option<Secret>,
    /// The longest wait for something from the hub.
    pub(super) patience: Duration,
}

impl HubClient {
    /// A client without connections.
    ///
    /// # Errors
    /// A variable has a value that cannot be used.
    pub(super) fn new(settings: &HubSettings) -> Result<Self, HubError> {
        check_endpoint(&settings.endpoint)?;
        let token = settings.token();
        if token.as_ref().is_some_and(|token| HeaderValue::try_from(bearer(token)).is_err()) {
            return Err(HubError::Settings(
                "the token has a character that cannot be sent; write it again to HF_TOKEN, or to the file in HF_TOKEN_PATH"
                    .to_owned(),
            ));
        }
        let tls = trust::config(settings.certificates.as_deref())?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(settings.patience));
        tcp.set_nodelay(true);
        let https =
            || HttpsConnectorBuilder::new().with_tls_config(tls.clone()).https_or_http().enable_http1();
        let builder = Client::builder(TokioExecutor::new());
        let tunnelled = settings.proxy.as_ref().map(|proxy| {
            let matcher = Matcher::builder().https(proxy.reveal()).no(&*settings.no_proxy).build();
            let probe = Uri::from_static("https://host.invalid");
            // The connection to the proxy is plain HTTP.
            let is_http =
                proxy.reveal().split_once("://").is_none_or(|(scheme, _)| scheme.eq_ignore_ascii_case("http"));
            // The URL may have a password, so the error does not show it.
            let Some(found) = matcher.intercept(&probe).filter(|_| is_http) else {
                return Err(HubError::Settings(
                    "HTTPS_PROXY is not the URL of a proxy that is reached by plain HTTP; set it to one such as http://host:port"
                        .to_owned(),
                ));
            };
            let tunnel = Tunnel::new(found.uri().clone(), tcp.clone());
            let tunnel = match found.basic_auth() {
                Some(auth) => tunnel.with_auth(auth.clone()),
                None => tunnel,
            };
            Ok((matcher, builder.build(https().wrap_connector(tunnel))))
        });
        Ok(Self {
            direct: builder.build(https().wrap_connector(tcp)),
            tunnelled: tunnelled.transpose()?,
            endpoint: settings.endpoint.clone(),
            token,
            patience: settings.patience,
        })
    }

    /// Whether requests to the hub have a token.
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// The URL of the hub's answer about a revision of a model.
    pub(super) fn model_url(&self, repo: &str, revision: &str) -> String {
        format!("{}/api/models/{repo}/revision/{}?blobs=true", self.endpoint, encoded(revision, ""))
    }

    /// The URL of a file.
    pub(super) fn file_url(&self, repo: &str, commit: &str, path: &str) -> String {
        format!("{}/{repo}/resolve/{commit}/{}", self.endpoint, encoded(path, "/"))
    }

    /// Reads a JSON document.
    pub(super) async fn json(&self, url: &str) -> Result<serde_json::Value, Failure> {
        let response = self.send(Method::GET, url, 0, true).await?;
        let broken = |reason: String| Failure::Connection { url: url.to_owned(), reason };
        let mut body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        let mut bytes = Vec::new();
        // A long list may come slowly.
        while let Some(frame) =
            timeout(self.patience, body.frame()).await.map_err(|_| broken(self.silence()))?
        {
            let frame = frame.map_err(|error| broken(with_causes(&*error)))?;
            if let Ok(part) = frame.into_data() {
                bytes.extend_from_slice(&part);
            }
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| Failure::Protocol { url: url.to_owned(), what: format!("no JSON ({error})") })
    }

    /// Asks for the description of a file.
    pub(super) async fn head(&self, url: &str) -> Result<FileHead, Failure> {
        let response = self.send(Method::HEAD, url, 0, false).await?;
        let headers = response.headers();
        let number = |name: &str| text(headers, name)?.parse().ok();
        let is_redirect = response.status().is_redirection();
        let length = || if is_redirect { None } else { number(CONTENT_LENGTH.as_str()) };
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, ETAG.as_str()));
        let Some(etag) = etag else {
            return Err(Failure::Protocol {
                url: url.to_owned(),
                what: "without the checksum of the file".to_owned(),
            });
        };
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        Ok(FileHead { etag, bytes: number("x-linked-size").or_else(length) })
    }

    /// Asks for a file from a position on.
    pub(super) async fn get(&self, url: &str, start: u64) -> Result<Response<Incoming>, Failure> {
        self.send(Method::GET, url, start, true).await
    }

    /// Sends a request and follows redirects: all of them if `leaves`, else those that stay at the hub.
    async fn send(
        &self,
        method: Method,
        url: &str,
        start: u64,
        leaves: bool,
    ) -> Result<Response<Incoming>, Failure> {
        let mut url = url.to_owned();
        for _ in 0..=REDIRECTS_MAX {
            let response = self.send_once(&method, &url, start).await?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            let is_hub = origin(&url) == origin(&self.endpoint);
            if !status.is_redirection() {
                return Err(Failure::Status(RefusedStatus::new(url, is_hub, &response)));
            }
            let target = text(response.headers(), LOCATION.as_str()).and_then(|place| joined(&url, place));
            let Some(target) = target else {
                return Err(Failure::Protocol { url, what: format!("{status} without a place to go to") });
            };
            if !leaves && origin(&target) != origin(&url) {
                return Ok(response);
            }
            url = target;
        }
        Err(Failure::Protocol { url, what: format!("after {REDIRECTS_MAX} redirects with another one") })
    }

    async fn send_once(&self, method: &Method, url: &str, start: u64) -> Result<Response<Incoming>, Failure> {
        let broken = |reason: String| Failure::Connection { url: url.to_owned(), reason };
        let mut request = Request::builder()
            .method(method)
            .uri(url)
            .header(USER_AGENT, concat!("baton/", env!("CARGO_PKG_VERSION")))
            // A compressed answer has another length, and no part of it can be asked for.
            .header(ACCEPT_ENCODING, "identity");
        if start > 0 {
            request = request.header(RANGE, format!("bytes={start}-"));
        }
        if let Some(token) = self.token.as_ref().filter(|_| origin(url) == origin(&self.endpoint)) {
            request = request.header(AUTHORIZATION, bearer(token));
        }
        let request = request.body(Empty::new()).map_err(|error| Failure::Protocol {
            url: url.to_owned(),
            what: format!("with an address that cannot be sent ({error})"),
        })?;
        let tunnelled = self.tunnelled.as_ref();
        let sent = match tunnelled.filter(|(matcher, _)| matcher.intercept(request.uri()).is_some()) {
            Some((_, client)) => timeout(self.patience, client.request(request)).await,
            None => timeout(self.patience, self.direct.request(request)).await,
        };
        sent.map_err(|_| broken(self.silence()))?.map_err(|error| broken(explained(with_causes(&error))))
    }

    /// The reason of a wait that has ended without anything.
    pub(super) fn silence(&self) -> String {
        format!("nothing came for {} s", self.patience.as_secs())
    }

    /// The error of a failure. `what` is the revision or file that was asked for.
    pub(super) fn error(&self, failure: Failure, repo: &str, revision: &str) -> HubError {
        let (endpoint, repo) = (self.endpoint.clone(), repo.to_owned());
        let refused = match failure {
            Failure::Connection { url, reason } => return HubError::Unreachable { url: shown(&url), reason },
            Failure::Protocol { url, what } => return HubError::Unexpected { url: shown(&url), what },
            Failure::Status(refused) => RefusedStatus { url: shown(&refused.url), ..refused },
        };
        let has_token = self.has_token();
        match (refused.status.as_u16(), refused.code.as_deref()) {
            (_, Some("GatedRepo")) => HubError::Gated { endpoint, repo },
            (_, Some("RevisionNotFound")) => HubError::NoRevision { repo, revision: revision.to_owned() },
            (404, Some("EntryNotFound")) => HubError::Unexpected {
                url: refused.url,
                what: "404 for a file that it had listed".to_owned(),
            },
            (401, code) if has_token && code != Some("RepoNotFound") => {
                HubError::TokenRefused { endpoint, repo }
            }
            (401 | 404, _) if refused.is_hub => HubError::Missing { endpoint, repo, has_token },
            (403, _) if refused.is_hub => {
                let message = refused.message.unwrap_or_else(|| "403 Forbidden".to_owned());
                HubError::Refused { endpoint, repo, message }
            }
            (429, _) => {
                let seconds = refused.asked.map_or(60, |asked| asked.as_secs());
                HubError::TooManyRequests { endpoint, seconds }
            }
            (500.., _) => {
                HubError::Unreachable { url: refused.url, reason: format!("it answers {}", refused.status) }
            }
            _ => HubError::Unexpected { url: refused.url, what: refused.status.to_string() },
        }
    }
}

impl RefusedStatus {
    fn new(url: String, is_hub: bool, response: &Response<Incoming>) -> Self {
        let headers = response.headers();
        let owned = |name: &str| text(headers, name).map(str::to_owned);
        let seconds = text(headers, RETRY_AFTER.as_str()).and_then(|value| value.trim().parse().ok());
        // The hub's own form: `"api";r=0;t=55`.
        let reset = || {
            let limit =
                text(headers, "ratelimit").filter(|_| response.status() == StatusCode::TOO_MANY_REQUESTS)?;
            limit.split(';').find_map(|part| part.trim().strip_prefix("t=")?.parse().ok())
        };
        Self {
            url,
            status: response.status(),
            is_hub,
            code: owned("x-error-code"),
            message: owned("x-error-message"),
            asked: seconds.or_else(reset).map(Duration::from_secs),
        }
    }
}

impl Failure {
    /// Whether another attempt may succeed, and how long the hub asks to wait before it. The address of a file at another host expires, and a
    /// new attempt gets a new one.
    pub(super) fn may_pass(&self) -> Option<Option<Duration>> {
        match self {
            Self::Connection { .. } => Some(None),
            Self::Protocol { .. } => None,
            Self::Status(refused) => {
                let passes = matches!(refused.status.as_u16(), 408 | 429 | 500..) || !refused.is_hub;
                passes.then_some(refused.asked)
            }
        }
    }

    /// The reason in a few words.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Connection { reason, .. } => reason.clone(),
            Self::Protocol { what, .. } => format!("answered {what}"),
            Self::Status(refused) => format!("answered {}", refused.status),
        }
    }
}

/// The reason of a failed connection, with what to do if a proxy or a private hub has a certificate of an authority that this machine does not know.
fn explained(reason: String) -> String {
    if !reason.contains("UnknownIssuer") {
        return reason;
    }
    format!(
        "{reason} (this machine does not know the authority of its certificate; set SSL_CERT_FILE to a PEM file that has it)"
    )
}

/// Refuses what is no URL of a hub, and a URL with secrets, because errors show it.
fn check_endpoint(endpoint: &str) -> Result<(), HubError> {
    let uri: Option<Uri> = endpoint.parse().ok();
    let is_http = |uri: &&Uri| matches!(uri.scheme_str(), Some("http" | "https"));
    let Some(uri) = uri.as_ref().filter(is_http) else {
        let value = if endpoint.contains('@') { "not shown here" } else { endpoint };
        return Err(HubError::Settings(format!(
            "HF_ENDPOINT is {value:?}, which is no URL of HTTP; set it to one such as https://host:port"
        )));
    };
    if uri.query().is_some() || uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(HubError::Settings(
            "HF_ENDPOINT has a user name, a password or a query; leave them out, and set HF_TOKEN to a token"
                .to_owned(),
        ));
    }
    Ok(())
}

fn bearer(token: &Secret) -> String {
    format!("Bearer {}", token.reveal())
}

/// The URL without user name, password and query: the address of a file at another host is a secret for a while.
fn shown(url: &str) -> String {
    let plain = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = plain.split_once("://") else { return plain.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Scheme, host and port of a URL.
fn origin(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some((scheme, uri.host()?.to_ascii_lowercase(), port))
}

/// The URL of `place`, which may be relative to the host of `url`.
fn joined(url: &str, place: &str) -> Option<String> {
    if place.starts_with("http://") || place.starts_with("https://") {
        return Some(place.to_owned());
    }
    let uri: Uri = url.parse().ok()?;
    match place.strip_prefix("//") {
        Some(rest) => Some(format!("{}://{rest}", uri.scheme_str()?)),
        None if place.starts_with('/') => {
            Some(format!("{}://{}{place}", uri.scheme_str()?, uri.authority()?))
        }
        None => None,
    }
}

/// The text with all but letters, digits, `-._~` and `safe` in percent encoding.
fn encoded(text: &str, safe: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-._~".contains(c) || (byte.is_ascii() && safe.contains(c)) {
            out.push(c);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests;
