//! The requests that a proxy has forwarded, for `GET /debug/requests` and the live page.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use crate::frontend::recent::{rounded_ms, time_of};

/// A forwarded request.
#[derive(Debug)]
pub(super) struct ForwardedRequest {
    /// Its name in logs and at the nodes.
    name: String,
    trace: Option<String>,
    arrived: SystemTime,
    /// How it ended, in one word.
    outcome: &'static str,
    /// The status of the answer that the client got from a node.
    status: Option<u16>,
    /// The node that it was sent to last.
    node: Option<Arc<str>>,
    /// The node that was to prefill, if it was another one.
    prefiller: Option<String>,
    attempts: u32,
    read: Duration,
    first_byte: Option<Duration>,
    total: Duration,
}

/// An entry of the list.
#[derive(Serialize)]
pub(super) struct ForwardedRow<'a> {
    /// The name of the request in logs and at the nodes.
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<&'a str>,
    /// The arrival of the request, as RFC 3339 says.
    arrived: String,
    /// `answered`, `rejected` (the node answered with another status than 200), `broke_off`, `client_left`, or `no_answer`.
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefiller: Option<&'a str>,
    /// Number of nodes that it was sent to.
    attempts: u32,
    /// From the arrival of the head until the request was read and a node was chosen.
    read_ms: f64,
    /// From its arrival to the first byte of a successful answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_byte_ms: Option<f64>,
    /// From its arrival to its end here.
    total_ms: f64,
}

impl ForwardedRequest {
    pub(super) fn row(&self) -> ForwardedRow<'_> {
        ForwardedRow {
            id: &self.name,
            trace: self.trace.as_deref(),
            arrived: time_of(self.arrived),
            outcome: self.outcome,
            status: self.status,
            node: self.node.as_deref(),
            prefiller: self.prefiller.as_deref(),
            attempts: self.attempts,
            read_ms: rounded_ms(self.read),
            first_byte_ms: self.first_byte.map(rounded_ms),
            total_ms: rounded_ms(self.total),
        }
    }
}

/// What is noted of a request while it is forwarded.
#[derive(Debug)]
pub(super) struct ForwardNotes {
    arrived: Instant,
    read: Duration,
    /// How the request ends if nothing else is noted.
    pub(super) outcome: &'static str,
    pub(super) status: Option<u16>,
    node: Option<Arc<str>>,
    prefiller: Option<String>,
    attempts: u32,
    pub(super) first_byte: Option<Duration>,
}

impl ForwardNotes {
    /// The notes of a request that has just been read.
    pub(super) fn new(arrived: Instant) -> Self {
        Self {
            arrived,
            read: arrived.elapsed(),
            outcome: "client_left",
            status: None,
            node: None,
            prefiller: None,
            attempts: 0,
            first_byte: None,
        }
    }

    /// The request is sent to a node.
    pub(super) fn attempt(&mut self, node: &Arc<str>, prefiller: Option<SocketAddr>) {
        self.node = Some(Arc::clone(node));
        self.prefiller = prefiller.map(|prefiller| prefiller.to_string());
        self.attempts += 1;
    }

    /// The request ends now.
    pub(super) fn ended(&self, name: &str, trace: Option<String>) -> ForwardedRequest {
        let total = self.arrived.elapsed();
        ForwardedRequest {
            name: name.to_owned(),
            trace,
            arrived: SystemTime::now() - total,
            outcome: self.outcome,
            status: self.status,
            node: self.node.clone(),
            prefiller: self.prefiller.clone(),
            attempts: self.attempts,
            read: self.read,
            first_byte: self.first_byte,
            total,
        }
    }
}
