//! The live streams: a map from a request to the channel of the HTTP handler that waits for its tokens.
//!
//! This is the only table that HTTP workers and the decoder share. A channel has room for all events of its request (`max_tokens` tokens and
//! one terminal event), so the decoder never waits for a client. A closed channel means that the client is gone.

use dashmap::DashMap;
use std::sync::Arc;
use tokio::sync::mpsc;

use engine::Token;

use crate::request::{RequestError, RequestId, StreamEvent};

/// What admitted a request. It is dropped when the request has ended.
pub trait Admitted: Send + Sync + 'static {
    /// The request was refused after it had been admitted: how long it held this says nothing about requests.
    fn refused(&mut self);
}

impl Admitted for () {
    fn refused(&mut self) {}
}

/// A live request: its channel, and its admission permit. The permit is free when the request has ended, even if its client still reads.
struct Live {
    sink: mpsc::Sender<StreamEvent>,
    permit: Box<dyn Admitted>,
}

/// The live streams. Cheap to clone; clones share the table.
#[derive(Clone, Default)]
pub struct Streams {
    live: Arc<DashMap<RequestId, Live>>,
}

impl Streams {
    /// Opens the stream of `request`. The request produces at most `max_tokens` tokens and holds `permit` until it ends.
    pub fn open(
        &self,
        request: RequestId,
        max_tokens: u32,
        permit: impl Admitted,
    ) -> mpsc::Receiver<StreamEvent> {
        let (sink, source) = mpsc::channel(max_tokens as usize + 1);
        self.live.insert(request, Live { sink, permit: Box::new(permit) });
        source
    }

    /// Delivers a token. Returns false if the client is gone or the request is not live.
    pub fn token(&self, request: RequestId, token: Token) -> bool {
        // The guard of the map is dropped at the end of this statement, and `try_send` does not wait.
        self.live.get(&request).is_some_and(|live| live.sink.try_send(StreamEvent::Token(token)).is_ok())
    }

    /// Delivers the terminal event and removes the request. Returns false if it was not live.
    pub fn end(&self, request: RequestId, event: StreamEvent) -> bool {
        let Some((_, Live { sink, mut permit })) = self.live.remove(&request) else { return false };
        if matches!(event, StreamEvent::Failed(RequestError::Refused(_))) {
            permit.refused();
        }
        // Before the client sees the end, so that its next request finds the permit free.
        drop(permit);
        sink.try_send(event).is_ok()
    }

    /// Removes a request without an event: its client is gone.
    pub fn close(&self, request: RequestId) {
        self.live.remove(&request);
    }

    /// Forgets a request that was not taken.
    pub fn refuse(&self, request: RequestId) {
        if let Some((_, Live { mut permit, .. })) = self.live.remove(&request) {
            permit.refused();
        }
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
    use crate::request::Refused;

    /// Reports when it is dropped: true if the terminal event has not been delivered yet.
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
    fn a_permit_is_free_before_the_client_sees_the_end() {
        let (streams, request) = (Streams::default(), RequestId(1));
        let (report, reported) = std::sync::mpsc::channel();
        let seen = std::sync::Arc::default();
        let source = streams.open(request, 1, Watching(std::sync::Arc::clone(&seen), report));
        *seen.lock().unwrap() = Some(source);
        streams.end(request, StreamEvent::Failed(RequestError::Aborted));
        assert_eq!(reported.recv(), Ok(true), "the permit is dropped before the event");
    }

    /// Counts refusals.
    struct Counting(Arc<std::sync::atomic::AtomicU32>);

    impl Admitted for Counting {
        fn refused(&mut self) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    #[test]
    fn a_permit_knows_whether_its_request_was_refused() {
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
    fn a_token_for_a_gone_client_is_not_delivered() {
        let streams = Streams::default();
        drop(streams.open(RequestId(2), 4, ()));
        assert!(!streams.token(RequestId(2), 7.into()));
    }
}
