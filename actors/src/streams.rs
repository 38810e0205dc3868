//! The live streams: from a request to the sink of the HTTP handler that waits for its tokens.
//!
//! The one table that HTTP workers and the decoder share. A sink is bounded by what a request may produce
//! (`max_tokens` and one terminal event), so the decoder never waits for a client: a sink that is full or closed
//! means the client is gone.

use dashmap::DashMap;
use std::sync::Arc;
use tokio::sync::mpsc;

use engine::Token;

use crate::request::{RequestId, StreamEvent};

/// What a live request holds: its sink, and the permit that admitted it, which is free again when the request has ended,
/// however slowly its client reads.
struct Live {
    sink: mpsc::Sender<StreamEvent>,
    permit: Box<dyn Send + Sync>,
}

/// Request → sink. Cheap to clone; every clone is the same table.
#[derive(Clone, Default)]
pub struct Streams {
    live: Arc<DashMap<RequestId, Live>>,
}

impl Streams {
    /// Opens the stream of `request`, which will produce at most `max_tokens` tokens and holds `permit` until it ends.
    pub fn open(
        &self,
        request: RequestId,
        max_tokens: u32,
        permit: impl Send + Sync + 'static,
    ) -> mpsc::Receiver<StreamEvent> {
        let (sink, source) = mpsc::channel(max_tokens as usize + 1);
        self.live.insert(request, Live { sink, permit: Box::new(permit) });
        source
    }

    /// Delivers a token. False: the client is gone, or the request was never opened or has ended.
    pub fn token(&self, request: RequestId, token: Token) -> bool {
        // The guard lives for this statement only: nothing waits while it is held.
        self.live.get(&request).is_some_and(|live| live.sink.try_send(StreamEvent::Token(token)).is_ok())
    }

    /// Delivers the terminal event and forgets the request. False: it was not live.
    pub fn end(&self, request: RequestId, event: StreamEvent) -> bool {
        let Some((_, Live { sink, permit })) = self.live.remove(&request) else { return false };
        // Before the client can know: its next request finds the permit free.
        drop(permit);
        sink.try_send(event).is_ok()
    }

    /// Forgets a request without an event: its client is gone, or it was refused.
    pub fn close(&self, request: RequestId) {
        self.live.remove(&request);
    }

    /// True if the request is live.
    pub fn has(&self, request: RequestId) -> bool {
        self.live.contains_key(&request)
    }

    /// How many requests are live.
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
    use crate::request::RequestError;

    /// Looks, when it is dropped, whether the end has been delivered already.
    struct Watching(
        std::sync::Arc<std::sync::Mutex<Option<mpsc::Receiver<StreamEvent>>>>,
        std::sync::mpsc::Sender<bool>,
    );

    impl Drop for Watching {
        fn drop(&mut self) {
            let source = self.0.lock().unwrap().take();
            self.1.send(source.is_some_and(|mut source| source.try_recv().is_err())).unwrap();
        }
    }

    #[test]
    fn a_permit_is_free_before_its_client_knows() {
        let (streams, request) = (Streams::default(), RequestId(1));
        let (told, hears) = std::sync::mpsc::channel();
        let seen = std::sync::Arc::default();
        let source = streams.open(request, 1, Watching(std::sync::Arc::clone(&seen), told));
        *seen.lock().unwrap() = Some(source);
        streams.end(request, StreamEvent::Failed(RequestError::Aborted));
        assert_eq!(hears.recv(), Ok(true), "nothing had been delivered");
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
    fn a_gone_client_is_seen() {
        let streams = Streams::default();
        drop(streams.open(RequestId(2), 4, ()));
        assert!(!streams.token(RequestId(2), 7.into()));
    }
}
