//! `GET /debug/requests`: the newest ended requests of the process and how long their parts took, the newest first.
//!
//! The list has no text and no tokens of prompts and answers.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use actix_web::{HttpRequest, HttpResponse, web};
use actors::request::{FinishReason, RequestError, RequestId, Timings};
use jiff::Timestamp;
use serde::Serialize;

use super::Frontend;
use super::ended::Ended;
use super::operator;
use super::response::json;

/// The newest ended requests of a node or of a proxy.
pub(super) struct RecentRequests<R> {
    most: usize,
    list: Mutex<RecentList<R>>,
}

struct RecentList<R> {
    /// Number of requests that were added since the start.
    added: u64,
    /// The newest last.
    requests: VecDeque<Arc<R>>,
}

/// Requests that have ended since an earlier moment.
pub(super) struct EndedSince<R> {
    /// Number of requests that were added since the start.
    pub(super) added: u64,
    /// The newest first.
    pub(super) requests: Vec<Arc<R>>,
}

/// An answer that has ended.
#[derive(Debug)]
pub(super) struct RecentRequest {
    id: String,
    choice: usize,
    request: RequestId,
    trace: Option<String>,
    arrived: SystemTime,
    outcome: &'static str,
    read: Duration,
    queue: Duration,
    total: Duration,
    timings: Option<Timings>,
}

/// An entry of the list. The times of `timings` count from the moment when the request left the queue.
#[derive(Serialize)]
pub(super) struct Row<'a> {
    /// The id that the client got, and the index of the answer.
    id: String,
    /// The id in logs.
    request: String,
    /// The trace that it belongs to, if it is recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<&'a str>,
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
    timings: Option<&'a Timings>,
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
            id: head.id.clone(),
            choice: *choice,
            request: *request,
            trace: begin.trace.as_ref().map(|trace| trace.id()),
            arrived: SystemTime::now() - total,
            outcome,
            read: begin.read.saturating_duration_since(begin.arrived),
            queue: begin.began.saturating_duration_since(begin.read),
            total,
            timings: how
                .ok()
                .filter(|(_, timings)| timings.prompt_tokens > 0)
                .map(|(_, timings)| timings.clone()),
        }
    }

    pub(super) fn row(&self) -> Row<'_> {
        Row {
            id: format!("{}-{}", self.id, self.choice),
            request: self.request.to_string(),
            trace: self.trace.as_deref(),
            arrived: time_of(self.arrived),
            outcome: self.outcome,
            read_ms: rounded_ms(self.read),
            queue_ms: rounded_ms(self.queue),
            total_ms: rounded_ms(self.total),
            timings: self.timings.as_ref(),
        }
    }
}

/// A time with milliseconds, such as `2026-11-22T21:32:52.123Z`.
pub(super) fn time_of(time: SystemTime) -> String {
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

impl<R> RecentRequests<R> {
    /// Keeps the newest `most` requests.
    pub(super) fn new(most: usize) -> Self {
        Self { most, list: Mutex::new(RecentList { added: 0, requests: VecDeque::new() }) }
    }

    /// Adds a request and forgets the oldest one if there are too many.
    pub(super) fn add(&self, ended: impl FnOnce() -> R) {
        if self.most == 0 {
            return;
        }
        let ended = Arc::new(ended());
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.added += 1;
        if list.requests.len() == self.most {
            list.requests.pop_front();
        }
        list.requests.push_back(ended);
    }

    /// The newest first.
    pub(super) fn newest_first(&self) -> Vec<Arc<R>> {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.requests.iter().rev().cloned().collect()
    }

    /// The newest requests that were added after the first `seen` ones, at most `most`.
    pub(super) fn since(&self, seen: u64, most: usize) -> EndedSince<R> {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let count = usize::try_from(list.added.saturating_sub(seen)).unwrap_or(usize::MAX).min(most);
        EndedSince { added: list.added, requests: list.requests.iter().rev().take(count).cloned().collect() }
    }
}

pub(super) async fn list(frontend: web::Data<Frontend>, request: HttpRequest) -> HttpResponse {
    let newest = frontend.observed.recent.newest_first();
    respond(frontend.api_key.is_some(), &request, || newest.iter().map(|ended| ended.row()).collect())
}

/// Answers with the list of requests. `has_key` tells that the port has an API key.
pub(super) fn respond<R: Serialize>(
    has_key: bool,
    request: &HttpRequest,
    rows: impl FnOnce() -> Vec<R>,
) -> HttpResponse {
    #[derive(Serialize)]
    struct List<R> {
        requests: Vec<R>,
    }
    match operator::check(has_key, request) {
        Ok(()) => {
            let list = json(&List { requests: rows() });
            HttpResponse::Ok().content_type("application/json").body(list)
        }
        Err(error) => error.response(),
    }
}
