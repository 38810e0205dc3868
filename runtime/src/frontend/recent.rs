//! `GET /debug/requests`: the newest ended requests of the process and how long their parts took, the newest first.
//!
//! The list has no text and no tokens of prompts and answers.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use actix_web::{HttpRequest, HttpResponse, web};
use actors::request::{FinishReason, RequestError, Timings};
use jiff::Timestamp;
use serde::Serialize;

use super::Frontend;
use super::observed::Ended;
use super::operator;
use super::response::json;

/// The newest ended requests.
pub(super) struct RecentRequests {
    most: usize,
    /// The newest last.
    list: Mutex<VecDeque<RecentRequest>>,
}

/// An answer that has ended. The times of `timings` count from the moment when it left the queue.
#[derive(Clone, Debug, Serialize)]
pub(super) struct RecentRequest {
    /// The id that the client got, and the index of the answer.
    id: String,
    /// The id in logs.
    request: String,
    /// The trace that it belongs to, if it is recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<String>,
    /// The arrival of the request, as RFC 3339 says.
    arrived: String,
    /// `stop`, `length`, or the reason in one word if it failed.
    outcome: &'static str,
    /// From the arrival of the head until the request was read.
    read_ms: f64,
    /// From then on until it left the queue.
    queue_ms: f64,
    /// From its arrival to its end here.
    total_ms: f64,
    #[serde(flatten)]
    timings: Option<Timings>,
}

/// Milliseconds with three places.
pub(super) fn rounded_ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

impl RecentRequest {
    /// An answer that ends now.
    pub(super) fn new(ended: &Ended<'_>, how: Result<(FinishReason, &Timings), &RequestError>) -> Self {
        let Ended { head, choice, request, begin } = ended;
        let total = begin.arrived.elapsed();
        let outcome = match how {
            Ok((FinishReason::Stop, _)) => "stop",
            Ok((FinishReason::Length, _)) => "length",
            Err(error) => error.kind(),
        };
        Self {
            id: format!("{}-{choice}", head.id),
            request: request.to_string(),
            trace: begin.trace.as_ref().map(|trace| trace.id()),
            arrived: time_of(SystemTime::now() - total),
            outcome,
            read_ms: rounded_ms(begin.read.saturating_duration_since(begin.arrived)),
            queue_ms: rounded_ms(begin.began.saturating_duration_since(begin.read)),
            total_ms: rounded_ms(total),
            timings: how.ok().map(|(_, timings)| timings.clone()),
        }
    }
}

/// A time with milliseconds, such as `2026-11-22T21:32:52.123Z`.
fn time_of(time: SystemTime) -> String {
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

impl RecentRequests {
    /// Keeps the newest `most` requests.
    pub(super) fn new(most: usize) -> Self {
        Self { most, list: Mutex::default() }
    }

    /// Adds a request and forgets the oldest one if there are too many.
    pub(super) fn add(&self, ended: impl FnOnce() -> RecentRequest) {
        if self.most == 0 {
            return;
        }
        let ended = ended();
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if list.len() == self.most {
            list.pop_front();
        }
        list.push_back(ended);
    }

    /// The newest first.
    fn newest_first(&self) -> Vec<RecentRequest> {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.iter().rev().cloned().collect()
    }
}

pub(super) async fn list(frontend: web::Data<Frontend>, request: HttpRequest) -> HttpResponse {
    #[derive(Serialize)]
    struct List {
        requests: Vec<RecentRequest>,
    }
    if let Err(error) = operator::check(frontend.api_key.is_some(), &request) {
        return error.response();
    }
    let list = List { requests: frontend.observed.recent.newest_first() };
    HttpResponse::Ok().content_type("application/json").body(json(&list))
}
