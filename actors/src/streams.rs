//! The live streams: a table from each request to the sink of the HTTP handler that waits for its tokens.
//!
//! HTTP workers and the decoder share this table. A sink has room for all events of its request (the prompt's log
//! probabilities, `max_tokens` tokens and one final event), so the decoder never waits for a client. A full or closed sink means that the client has disconnected.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use common::metrics::{Histogram, Metric, MetricsText};
use dashmap::DashMap;
use engine::{Logprobs, Token};
use tokio::sync::mpsc;

use crate::messages::SessionId;
use crate::peer_metrics::{PeerMetrics, PrefillingPeer};
use crate::request::{RequestError, RequestId, StreamEvent};

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

/// A live request: its sink and its permit. The permit becomes free when the request has ended, even if its client still reads.
struct Live {
    sink: mpsc::Sender<StreamEvent>,
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

    /// Opens the stream of `request`, which will produce at most `max_tokens` tokens and holds `permit` until it ends.
    pub fn open(
        &self,
        request: RequestId,
        max_tokens: u32,
        permit: impl Admitted,
    ) -> mpsc::Receiver<StreamEvent> {
        // The prompt's log probabilities, the tokens and the end.
        let (sink, source) = mpsc::channel(max_tokens as usize + 2);
        let live =
            Live { sink, permit: Box::new(permit), last_token: AtomicU64::default(), prefilled_by: None };
        self.live.insert(request, live);
        source
    }

    /// Delivers a token. Returns false if the client has disconnected, or if the request was never opened or has ended.
    pub fn token(&self, request: RequestId, token: Token) -> bool {
        // The map's guard is held for this statement only, and the statement does not block.
        self.live.get(&request).is_some_and(|live| {
            self.tokens.fetch_add(1, Ordering::Relaxed);
            self.time_token(&live.last_token);
            live.sink.try_send(StreamEvent::Token(token)).is_ok()
        })
    }

    /// Notes a token. Only the decoder delivers tokens, so no other thread changes the cell at the same time.
    fn time_token(&self, last: &AtomicU64) {
        let now = self.epoch.elapsed().as_micros() as u64;
        let before = last.load(Ordering::Relaxed);
        last.store(now.max(1), Ordering::Relaxed);
        if before > 0 {
            self.inter_token.add(now.saturating_sub(before) as f64 / 1e6);
        }
    }

    /// Delivers the log probabilities of the prompt. A client that has disconnected is noticed at the next token.
    pub fn prompt(&self, request: RequestId, logprobs: Vec<Logprobs>) {
        if let Some(live) = self.live.get(&request) {
            let _ = live.sink.try_send(StreamEvent::Prompt(logprobs));
        }
    }

    /// Delivers the final event and removes the request. Returns false if the request was not live or its client has
    /// disconnected.
    pub fn end(&self, request: RequestId, event: StreamEvent) -> bool {
        let Some((_, live)) = self.live.remove(&request) else { return false };
        let Live { sink, mut permit, prefilled_by, .. } = live;
        if let StreamEvent::Finished { timings, .. } = &event {
            self.peers.finished(prefilled_by, timings);
        }
        if matches!(event, StreamEvent::Failed(RequestError::Refused(_))) {
            permit.refused();
        }
        // The permit is freed before the client gets the event, so that the client's next request finds it free.
        drop(permit);
        sink.try_send(event).is_ok()
    }

    /// Removes a request without an event, because its client has disconnected.
    pub fn close(&self, request: RequestId) {
        self.live.remove(&request);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Refused;

    /// A permit that checks, when it is dropped, that the final event has not been delivered yet.
    struct Watching(
        std::sync::Arc<std::sync::Mutex<Option<mpsc::Receiver<StreamEvent>>>>,
        std::sync::mpsc::Sender<bool>,
    );

    impl Admitted for Watching {
        fn refused(&mut self) {}
    }

    impl Drop for Watching {
        fn drop(&mut self) {
            let source = self.0.lock().unwrap().take();
            self.1.send(source.is_some_and(|mut source| source.try_recv().is_err())).unwrap();
        }
    }

    #[test]
    fn a_permit_is_freed_before_the_client_gets_the_end() {
        let (streams, request) = (Streams::default(), RequestId(1));
        let (result, results) = std::sync::mpsc::channel();
        let watched = std::sync::Arc::default();
        let source = streams.open(request, 1, Watching(std::sync::Arc::clone(&watched), result));
        *watched.lock().unwrap() = Some(source);
        streams.end(request, StreamEvent::Failed(RequestError::Aborted));
        assert_eq!(results.recv(), Ok(true), "no event was delivered before");
    }

    /// A permit that counts calls of `refused`.
    struct Counting(Arc<std::sync::atomic::AtomicU32>);

    impl Admitted for Counting {
        fn refused(&mut self) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    #[test]
    fn a_permit_is_told_whether_its_request_was_refused() {
        let (streams, request) = (Streams::default(), RequestId(1));
        let refused = |end: &dyn Fn()| {
            let count = Arc::default();
            let _source = streams.open(request, 1, Counting(Arc::clone(&count)));
            end();
            count.load(std::sync::atomic::Ordering::Relaxed)
        };
        let fail = |error: RequestError| streams.end(request, StreamEvent::Failed(error));
        assert_eq!(refused(&|| assert!(fail(Refused::Busy.into()))), 1);
        assert_eq!(refused(&|| streams.refuse(request)), 1);
        assert_eq!(refused(&|| assert!(fail(RequestError::Aborted))), 0);
        assert_eq!(refused(&|| streams.close(request)), 0);
    }

    #[test]
    fn a_stream_ends_exactly_once() {
        let streams = Streams::default();
        let request = RequestId(1);
        let mut source = streams.open(request, 1, ());
        assert!(streams.token(request, 7.into()));
        assert!(streams.end(request, StreamEvent::Failed(RequestError::Aborted)));
        assert!(!streams.end(request, StreamEvent::Failed(RequestError::Aborted)));
        assert!(!streams.token(request, 8.into()));
        assert_eq!(source.try_recv(), Ok(StreamEvent::Token(7.into())));
        assert_eq!(source.try_recv(), Ok(StreamEvent::Failed(RequestError::Aborted)));
        assert!(source.try_recv().is_err());
    }

    #[test]
    fn each_token_after_the_first_one_of_its_answer_is_timed() {
        let streams = Streams::default();
        let sources = [RequestId(1), RequestId(2)].map(|request| (request, streams.open(request, 8, ())));
        for request in [1, 1, 1, 2] {
            assert!(streams.token(RequestId(request), 7.into()));
        }
        assert_eq!(streams.tokens(), 4);
        let mut page = MetricsText::default();
        streams.write_metrics("m", &mut page);
        let text = page.into_string();
        assert!(text.contains("vllm:inter_token_latency_seconds_count{model_name=\"m\"} 2\n"), "{text}");
        drop(sources);
    }

    #[test]
    fn a_token_for_a_disconnected_client_is_not_delivered() {
        let streams = Streams::default();
        drop(streams.open(RequestId(2), 4, ()));
        assert!(!streams.token(RequestId(2), 7.into()));
    }
}
