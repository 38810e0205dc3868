//! etcd's JSON gateway: its gRPC calls as HTTP requests.
//!
//! Keys and values are base64, and 64-bit numbers are strings. A field with the value zero is left out. A streaming call answers with one JSON
//! document a line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::frontend::with_causes;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::EtcdSettings;
use super::tls::{Connector, Credentials};

/// Maximum time for an answer.
const ANSWER: Duration = Duration::from_secs(3);

/// Time for which an idle connection is kept. Leases are renewed more often.
const KEEP: Duration = Duration::from_secs(30);

/// Maximum size of an answer: 4,096 members have 4 MB.
pub(super) const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Why a call has no result.
#[derive(Debug)]
pub(super) enum CallError {
    /// The lease of the call does not exist.
    LeaseGone,
    /// Another reason, in one sentence.
    Other(String),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeaseGone => f.write_str("the lease does not exist"),
            Self::Other(reason) => f.write_str(reason),
        }
    }
}

type HttpClient = Client<Connector, Full<Bytes>>;

/// A client of an etcd.
pub(super) struct Gateway {
    /// The client, and what its connector was made of.
    client: Mutex<(HttpClient, Credentials)>,
    endpoints: Vec<String>,
    user: Option<(String, PathBuf)>,
    /// What `fleet.etcd_user` has logged in with. etcd forgets it after some minutes.
    token: Mutex<Option<String>>,
}

impl Gateway {
    /// A client without connections.
    ///
    /// # Errors
    /// A file of the settings cannot be read.
    pub(super) fn new(settings: &EtcdSettings) -> anyhow::Result<Self> {
        let (credentials, connector) = Credentials::new(settings)?;
        Ok(Self {
            client: Mutex::new((client(connector), credentials)),
            endpoints: settings.endpoints.clone(),
            user: settings.user.clone(),
            token: Mutex::default(),
        })
    }

    /// The client. If the files for TLS have changed, it is a new one without connections. Calls that run keep theirs.
    fn client(&self) -> HttpClient {
        let mut held = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connector) = held.1.renewed() {
            held.0 = client(connector);
        }
        held.0.clone()
    }

    /// Number of endpoints.
    pub(super) fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    /// Calls, and reads the answer.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        endpoint: usize,
        path: &str,
        body: &Value,
    ) -> Result<T, CallError> {
        let answer = async {
            let response = self.open_with_token(endpoint, path, body).await?;
            read(response).await
        };
        let bytes = self.within(endpoint, answer).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.error(endpoint, &format!("{path}: {error}")))
    }

    /// Calls, and returns the answer once its head has come.
    pub(super) async fn open(
        &self,
        endpoint: usize,
        path: &str,
        body: &Value,
    ) -> Result<Response<Incoming>, CallError> {
        self.within(endpoint, self.open_with_token(endpoint, path, body)).await
    }

    async fn within<T>(
        &self,
        endpoint: usize,
        answer: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        match timeout(ANSWER, answer).await {
            Ok(Err(CallError::Other(reason))) => Err(self.error(endpoint, &reason)),
            Ok(answer) => answer,
            Err(_) => Err(self.error(endpoint, "no answer in 3 s")),
        }
    }

    fn error(&self, endpoint: usize, reason: &str) -> CallError {
        CallError::Other(format!("{}: {reason}", self.endpoints[endpoint]))
    }

    /// Calls with a token, if there is a user. If etcd does not know the token, logs in again and calls once more.
    async fn open_with_token(
        &self,
        endpoint: usize,
        path: &str,
        body: &Value,
    ) -> Result<Response<Incoming>, CallError> {
        let Some(user) = &self.user else { return self.send(endpoint, path, body, None).await };
        let known = self.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(token) = known {
            match self.send(endpoint, path, body, Some(&token)).await {
                Err(CallError::Other(reason)) if is_about_token(&reason) => {}
                answer => return answer,
            }
        }
        let token = self.log_in(endpoint, user).await?;
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
        self.send(endpoint, path, body, Some(&token)).await
    }

    async fn log_in(&self, endpoint: usize, (name, file): &(String, PathBuf)) -> Result<String, CallError> {
        #[derive(Deserialize)]
        struct Answer {
            token: String,
        }
        // The file is read each time, so that a new password needs no restart.
        let password = std::fs::read_to_string(file).map_err(|error| {
            CallError::Other(format!("cannot read fleet.etcd_password_file {}: {error}", file.display()))
        })?;
        let body = json!({ "name": name, "password": password.trim_end_matches(['\r', '\n']) });
        let answer = read(self.send(endpoint, "/v3/auth/authenticate", &body, None).await?).await?;
        let answer: Answer =
            serde_json::from_slice(&answer).map_err(|error| CallError::Other(error.to_string()))?;
        Ok(answer.token)
    }

    async fn send(
        &self,
        endpoint: usize,
        path: &str,
        body: &Value,
        token: Option<&str>,
    ) -> Result<Response<Incoming>, CallError> {
        let mut request = Request::post(format!("{}{path}", self.endpoints[endpoint]));
        request = request.header(CONTENT_TYPE, "application/json");
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, token);
        }
        let request = request
            .body(Full::new(Bytes::from(body.to_string())))
            .map_err(|error| CallError::Other(error.to_string()))?;
        let response =
            self.client().request(request).await.map_err(|error| CallError::Other(with_causes(&error)))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = read(response).await.unwrap_or_default();
        let message = message(&text).unwrap_or_else(|| status.to_string());
        Err(failure(message))
    }
}

fn client(connector: Connector) -> HttpClient {
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_timer(TokioTimer::new()).pool_idle_timeout(KEEP);
    builder.build(connector)
}

/// The error of a message of etcd.
pub(super) fn failure(message: String) -> CallError {
    if message.contains("requested lease not found") {
        CallError::LeaseGone
    } else {
        CallError::Other(message)
    }
}

/// The message of an error document: `{"message": …}`, or in a stream `{"error": {"message": …}}`.
pub(super) fn message(document: &[u8]) -> Option<String> {
    let document: Value = serde_json::from_slice(document).ok()?;
    let message = document.get("message").or_else(|| document.get("error")?.get("message"))?;
    Some(message.as_str()?.chars().take(200).collect())
}

/// The token has expired, or the users have changed since it was made.
fn is_about_token(reason: &str) -> bool {
    ["invalid auth token", "revision of auth store is old", "auth store is old"]
        .iter()
        .any(|text| reason.contains(text))
}

async fn read(response: Response<Incoming>) -> Result<Bytes, CallError> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    Ok(body.map_err(|error| CallError::Other(with_causes(&*error)))?.to_bytes())
}

/// The head of an answer.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Header {
    #[serde(deserialize_with = "number")]
    pub(super) cluster_id: u64,
    #[serde(deserialize_with = "number")]
    pub(super) revision: i64,
}

/// A key with its value.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct KeyValue {
    #[serde(deserialize_with = "bytes")]
    pub(super) key: Vec<u8>,
    #[serde(deserialize_with = "bytes")]
    pub(super) value: Vec<u8>,
    #[serde(deserialize_with = "number")]
    pub(super) mod_revision: i64,
}

/// Reads a number that is written as a string.
pub(super) fn number<'de, D: Deserializer<'de>, T: FromStr>(from: D) -> Result<T, D::Error> {
    let value = Value::deserialize(from)?;
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.parse().map_err(|_| serde::de::Error::custom(format!("{text} is no number")))
}

fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(from)?;
    STANDARD.decode(text).map_err(serde::de::Error::custom)
}

/// Writes bytes for the gateway.
pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
