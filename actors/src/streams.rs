//! The live streams: a table from each request to the thread that waits for its tokens.
//!
//! HTTP workers and the decoder share this table. Each thread that reads answers has one [`StreamReader`]. Events are posted in a
//! [batch](StreamBatch), and a batch wakes each thread once, however many of its streams get a token in the same step. The decoder never waits for a
//! client: the events of a request (the prompt's log probabilities, `max_tokens` tokens and one final event) wait in memory until its client reads
//! them.

mod reader;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use common::metrics::{Histogram, Metric, MetricsText};
use dashmap::DashMap;
use engine::{Logprobs, Token};

use crate::messages::SessionId;
use crate::peer_metrics::{PeerMetrics, PrefillingPeer};
use crate::request::{RequestError, RequestId, StreamEvent};

use reader::Post;
pub use reader::{AnswerEvents, StreamReader};

/// vLLM's buckets for the time between two tokens, and finer ones below 25 ms.
const INTER_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];

const INTER_TOKEN: Metric = Metric::histogram(
    "vllm:inter_token_latency_seconds",
    "Time between two tokens of an answer when they are ready for the client.",
)
.by(&["model_name"]);

/// The permit of an admitted request. It is dropped when the request has ended.
pub trait Admitted: Send + Sync + 'static {
    /// The request was refused after its admission, so the time for which it held the permit is not the duration of an answer.
    fn refused(&mut self);
}

impl Admitted for () {
    fn refused(&mut self) {}
}

/// A live request: its reader and its permit. The permit becomes free when the request has ended, even if its client still reads.
struct Live {
    post: Arc<Post>,
    /// Tokens that may still come.
    room: AtomicU32,
    permit: Box<dyn Admitted>,
    /// When its last token came, in microseconds after [`Streams::epoch`]; 0 before the first token.
    last_token: AtomicU64,
    /// The peer that has prefilled its prompt.
    prefilled_by: Option<PrefillingPeer>,
}

/// The table of live streams. Cheap to clone; clones share the table.
#[derive(Clone)]
pub struct Streams {
    live: Arc<DashMap<RequestId, Live>>,
    peers: PeerMetrics,
    inter_token: Arc<Histogram>,
    tokens: Arc<AtomicU64>,
    epoch: Instant,
}

impl Default for Streams {
    fn default() -> Self {
        Self::new(PeerMetrics::default())
    }
}

impl Streams {
    /// No streams yet. `peers` counts the KV that was handed over for them.
    pub fn new(peers: PeerMetrics) -> Self {
        let inter_token = Arc::new(Histogram::seconds(INTER_TOKEN_SECONDS));
        Self { live: Arc::default(), peers, inter_token, tokens: Arc::default(), epoch: Instant::now() }
    }

    /// Writes the times between tokens. `model` is the label.
    pub fn write_metrics(&self, model: &str, page: &mut MetricsText) {
        page.family(&INTER_TOKEN).histogram(&[model], &self.inter_token);
    }

    /// Number of tokens of answers since the start, also of answers that still run.
    pub fn tokens(&self) -> u64 {
        self.tokens.load(Ordering::Relaxed)
    }

    /// A sender has prefilled the prompt of a request.
    pub(crate) fn prefilled(&self, request: RequestId, session: SessionId) {
        let peer = self.peers.of_session(session);
        if let Some(mut live) = self.live.get_mut(&request) {
            live.prefilled_by = peer;
        }
    }

    /// Adds the stream of `request`, which will produce at most `max_tokens` tokens and holds `permit` until it ends.
    fn insert(&self, request: RequestId, post: Arc<Post>, max_tokens: u32, permit: impl Admitted) {
        let live = Live {
            post,
            room: max_tokens.into(),
            permit: Box::new(permit),
            last_token: AtomicU64::default(),
            prefilled_by: None,
        };
        self.live.insert(request, live);
    }

    /// A batch of events. Its readers are woken when it is dropped.
    pub fn batch(&self) -> StreamBatch<'_> {
        StreamBatch { streams: self, woken: Vec::new(), now: None }
    }

    /// Removes a request without a final event. If its source still exists, it ends.
    pub fn close(&self, request: RequestId) {
        if let Some((_, live)) = self.live.remove(&request) {
            self.batch().post(&live.post, request, None);
        }
    }

    /// Removes a request that the proxy did not accept.
    pub fn refuse(&self, request: RequestId) {
        if let Some((_, Live { mut permit, .. })) = self.live.remove(&request) {
            permit.refused();
        }
    }

    /// True if the request is live.
    pub fn has(&self, request: RequestId) -> bool {
        self.live.contains_key(&request)
    }

    /// The number of live requests.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// True if no request is live.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }
}

/// Events for clients, usually of one step. Dropping it wakes the threads that read them.
pub struct StreamBatch<'a> {
    streams: &'a Streams,
    /// The readers that had no events before.
    woken: Vec<Arc<Post>>,
    /// The time of the batch, in microseconds after the epoch of the streams, once a token needs it.
    now: Option<u64>,
}

impl StreamBatch<'_> {
    /// Delivers a token. Returns false if the client has disconnected, if the request was never opened or has ended, or if it has its `max_tokens`
    /// tokens already.
    pub fn token(&mut self, request: RequestId, token: Token) -> bool {
        // The map's guard is held in this function only, which does not block.
        let Some(live) = self.streams.live.get(&request) else { return false };
        // Only the decoder delivers tokens, so no other thread changes the cells of a request at the same time.
        let room = live.room.load(Ordering::Relaxed);
        if room == 0 {
            return false;
        }
        live.room.store(room - 1, Ordering::Relaxed);
        self.streams.tokens.fetch_add(1, Ordering::Relaxed);
        let now = *self.now.get_or_insert_with(|| self.streams.epoch.elapsed().as_micros() as u64);
        let before = live.last_token.swap(now.max(1), Ordering::Relaxed);
        if before > 0 {
            self.streams.inter_token.add(now.saturating_sub(before) as f64 / 1e6);
        }
        self.post(&live.post, request, Some(StreamEvent::Token(token)));
        true
    }

    /// Delivers the log probabilities of the prompt. A client that has disconnected is noticed at the next token.
    pub fn prompt(&mut self, request: RequestId, logprobs: Vec<Logprobs>) {
        if let Some(live) = self.streams.live.get(&request) {
            self.post(&live.post, request, Some(StreamEvent::Prompt(logprobs)));
        }
    }

    /// Delivers the final event and removes the request. Returns false if the request was not live.
    pub fn end(&mut self, request: RequestId, event: StreamEvent) -> bool {
        let Some((_, live)) = self.streams.live.remove(&request) else { return false };
        let Live { post, mut permit, prefilled_by, .. } = live;
        if let StreamEvent::Finished { timings, .. } = &event {
            self.streams.peers.finished(prefilled_by, timings);
        }
        if matches!(event, StreamEvent::Failed(RequestError::Refused(_))) {
            permit.refused();
        }
        // The permit is freed before the client gets the event, so that the client's next request finds it free.
        drop(permit);
        self.post(&post, request, Some(event));
        true
    }

    /// Posts an event, or the end without one.
    fn post(&mut self, post: &Arc<Post>, request: RequestId, event: Option<StreamEvent>) {
        if post.push(request, event) {
            self.woken.push(Arc::clone(post));
        }
    }
}

impl Drop for StreamBatch<'_> {
    fn drop(&mut self) {
        self.woken.iter().for_each(|post| post.wake());
    }
}

#[cfg(test)]
mod tests;
