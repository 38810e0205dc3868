//! `GET /debug/live`: the state of the process as a stream of JSON lines, one each second. The live page shows it.
//!
//! A stream ends when its client leaves, when the process refuses requests because it drains, or after five minutes. The page then opens another one.
//! At most [`STREAMS_MAX`] streams are open at a time.

mod snapshot;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS};
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse, web};
use actors::counters::Counters;
use actors::peer_metrics::PeerMetrics;
use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::Frontend;
use super::api_error::ApiError;
use super::connection::Connection;
use super::handlers::no_such_path;
use super::operator;
use super::page::PageText;
use super::response::json;
use crate::drain::{Drain, DrainStage};

pub(super) use snapshot::SnapshotHead;

/// Maximum number of streams of a process. A browser has one for each tab that shows the page.
const STREAMS_MAX: usize = 8;

/// Time between two snapshots.
const EVERY: Duration = Duration::from_secs(1);

/// Time that a client has to read a snapshot.
const READ_WITHIN: Duration = Duration::from_secs(20);

/// A stream ends after this time, and the page opens another one. So a client that does not read loses its place.
const AGE_MAX: Duration = Duration::from_secs(300);

/// Maximum number of ended requests in a snapshot, the newest ones.
pub(super) const REQUESTS_MAX: usize = 256;

/// The document of the live page, and the streams of snapshots that it shows. Cheap to clone; clones share the limit of streams.
#[derive(Clone)]
pub(super) struct LiveFeed {
    text: Arc<PageText>,
    began: Instant,
    drain: Drain,
    streams: Arc<Semaphore>,
}

impl LiveFeed {
    /// The page of a process that starts now.
    pub(super) fn new(drain: Drain) -> Self {
        let streams = Arc::new(Semaphore::new(STREAMS_MAX));
        Self { text: Arc::new(PageText::new()), began: Instant::now(), drain, streams }
    }

    /// The document.
    pub(super) fn text(&self) -> &PageText {
        &self.text
    }

    /// The time since the process started.
    pub(super) fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    /// Answers with a stream of snapshots. `snapshot` writes one as JSON. `has_key` tells that the port has an API key.
    pub(super) fn respond(
        self,
        has_key: bool,
        request: HttpRequest,
        snapshot: impl FnMut() -> String + 'static,
    ) -> HttpResponse {
        if let Err(error) = operator::check(has_key, &request) {
            return error.response();
        }
        let Ok(permit) = Arc::clone(&self.streams).try_acquire_owned() else {
            let message =
                format!("{STREAMS_MAX} clients read /debug/live, the maximum; close another live page");
            return ApiError::new(StatusCode::TOO_MANY_REQUESTS, message).response();
        };
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let live = SnapshotStream {
            feed: self,
            snapshot,
            request,
            ticks,
            began: Instant::now(),
            is_over: false,
            _permit: permit,
        };
        HttpResponse::Ok()
            .content_type("application/x-ndjson")
            .insert_header((CACHE_CONTROL, "no-store"))
            .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
            .streaming(lines(live))
    }
}

/// The live page of a node: what it shows beside the parts of a [`Frontend`]. Cheap to clone; clones share the limit of streams.
#[derive(Clone)]
pub struct LivePage {
    feed: LiveFeed,
    counters: Counters,
    peers: PeerMetrics,
    ring_pages: u32,
}

impl LivePage {
    /// The page of a process that starts now. `ring_pages` is the maximum of its outstanding credits.
    pub fn new(counters: Counters, peers: PeerMetrics, ring_pages: u32, drain: Drain) -> Self {
        Self { feed: LiveFeed::new(drain), counters, peers, ring_pages }
    }

    /// The document.
    pub(super) fn text(&self) -> &PageText {
        self.feed.text()
    }
}

/// The state of a stream between two snapshots.
struct SnapshotStream<S> {
    feed: LiveFeed,
    snapshot: S,
    request: HttpRequest,
    ticks: Interval,
    is_over: bool,
    began: Instant,
    _permit: OwnedSemaphorePermit,
}

/// The snapshots of a node, each with the requests that have ended since the one before.
pub(super) async fn stream(frontend: web::Data<Frontend>, request: HttpRequest) -> HttpResponse {
    let Some(page) = frontend.page.clone() else { return no_such_path(request).await };
    let has_key = frontend.api_key.is_some();
    let mut seen = 0;
    page.feed.clone().respond(has_key, request, move || {
        let ended = frontend.observed.recent.since(seen, REQUESTS_MAX);
        seen = ended.added;
        let facts = snapshot::LiveFacts {
            counters: &page.counters,
            peers: page.peers.report(),
            ring_pages: page.ring_pages,
            uptime: page.feed.uptime(),
        };
        json(&snapshot::LiveSnapshot::new(&frontend, &(frontend.health)(), facts, &ended))
    })
}

/// A snapshot each second. The last one shows a process that drains.
fn lines(live: SnapshotStream<impl FnMut() -> String>) -> impl Stream<Item = Result<Bytes, Infallible>> {
    unfold(live, |mut live| async move {
        if live.is_over {
            return None;
        }
        live.is_over = live.began.elapsed() >= AGE_MAX;
        tokio::select! {
            biased;
            () = live.feed.drain.reached(DrainStage::Refusing) => live.is_over = true,
            _ = live.ticks.tick() => (),
        }
        Connection::of(&live.request).answers_until(Instant::now() + READ_WITHIN);
        let mut line = (live.snapshot)();
        line.push('\n');
        Some((Ok(Bytes::from(line)), live))
    })
}
