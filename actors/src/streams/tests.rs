//! Tests of the table of live streams.

use super::*;
use crate::request::Refused;

/// A permit that checks, when it is dropped, that the final event has not been delivered yet.
struct Watching(Arc<Post>, std::sync::mpsc::Sender<bool>);

impl Admitted for Watching {
    fn refused(&mut self) {}
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.1.send(self.0.push(RequestId(2), None)).unwrap();
    }
}

#[test]
fn a_permit_is_freed_before_the_client_gets_the_end() {
    let (streams, request) = (Streams::default(), RequestId(1));
    let (result, results) = std::sync::mpsc::channel();
    let reader = StreamReader::new(&streams);
    let mut source = reader.open(request, 1, Watching(reader.post(), result));
    streams.batch().end(request, StreamEvent::Failed(RequestError::Aborted));
    assert_eq!(results.recv(), Ok(true), "no event was posted before");
    assert_eq!(source.next_now(), Some(StreamEvent::Failed(RequestError::Aborted)));
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
        let _source = StreamReader::new(&streams).open(request, 1, Counting(Arc::clone(&count)));
        end();
        count.load(std::sync::atomic::Ordering::Relaxed)
    };
    let fail = |error: RequestError| streams.batch().end(request, StreamEvent::Failed(error));
    assert_eq!(refused(&|| assert!(fail(Refused::Busy.into()))), 1);
    assert_eq!(refused(&|| streams.refuse(request)), 1);
    assert_eq!(refused(&|| assert!(fail(RequestError::Aborted))), 0);
    assert_eq!(refused(&|| streams.close(request)), 0);
}

#[test]
fn a_stream_ends_exactly_once() {
    let streams = Streams::default();
    let request = RequestId(1);
    let mut source = StreamReader::new(&streams).open(request, 1, ());
    assert!(streams.batch().token(request, 7.into()));
    assert!(streams.batch().end(request, StreamEvent::Failed(RequestError::Aborted)));
    assert!(!streams.batch().end(request, StreamEvent::Failed(RequestError::Aborted)));
    assert!(!streams.batch().token(request, 8.into()));
    assert_eq!(source.next_now(), Some(StreamEvent::Token(7.into())));
    assert_eq!(source.next_now(), Some(StreamEvent::Failed(RequestError::Aborted)));
    assert_eq!(source.next_now(), None);
}

#[test]
fn each_token_after_the_first_one_of_its_answer_is_timed() {
    let streams = Streams::default();
    let sources = [RequestId(1), RequestId(2)]
        .map(|request| (request, StreamReader::new(&streams).open(request, 8, ())));
    for request in [1, 1, 1, 2] {
        assert!(streams.batch().token(RequestId(request), 7.into()));
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
    drop(StreamReader::new(&streams).open(RequestId(2), 4, ()));
    assert!(!streams.batch().token(RequestId(2), 7.into()));
}

#[test]
fn a_stream_has_at_most_its_tokens() {
    let (streams, request) = (Streams::default(), RequestId(1));
    let mut source = StreamReader::new(&streams).open(request, 2, ());
    let mut batch = streams.batch();
    assert_eq!([0, 1, 2].map(|_| batch.token(request, 7.into())), [true, true, false]);
    assert!(batch.end(request, StreamEvent::Failed(RequestError::Aborted)), "there is room for the end");
    drop(batch);
    assert_eq!(std::iter::from_fn(|| source.next_now()).count(), 3);
}

#[test]
fn a_batch_wakes_each_reader_once_for_all_of_its_streams() {
    let streams = Streams::default();
    let readers = [StreamReader::new(&streams), StreamReader::new(&streams)];
    let source = |n: u64| readers[n as usize % 2].open(RequestId(n), 8, ());
    let mut sources: Vec<_> = (0..6).map(source).collect();
    let mut batch = streams.batch();
    (0..6).for_each(|n| assert!(batch.token(RequestId(n), 7.into())));
    assert_eq!(batch.woken.len(), 2);
    drop(batch);
    // The first source moves the events of the others of its reader too.
    for source in &mut sources {
        assert_eq!(source.next_now(), Some(StreamEvent::Token(7.into())));
        assert_eq!(source.next_now(), None);
    }
}

#[actix::test]
async fn events_of_other_threads_come_to_the_tasks_that_wait() {
    const TOKENS: u32 = 1000;
    let streams = Streams::default();
    let reader = StreamReader::start(&streams);
    let requests = [RequestId(1), RequestId(2), RequestId(3)];
    let tasks = requests.map(|request| {
        let mut source = reader.open(request, TOKENS, ());
        actix::spawn(async move {
            let mut ids = Vec::new();
            while let Some(event) = source.recv().await {
                if let StreamEvent::Token(token) = event {
                    ids.push(token.id);
                }
            }
            ids
        })
    });
    let thread = std::thread::spawn(move || {
        for id in 0..TOKENS {
            let mut batch = streams.batch();
            requests.iter().for_each(|request| assert!(batch.token(*request, id.into())));
        }
        // Two ends with a final event, and one without.
        let mut batch = streams.batch();
        requests[..2].iter().for_each(|request| {
            assert!(batch.end(*request, StreamEvent::Failed(RequestError::Aborted)));
        });
        streams.close(requests[2]);
    });
    for task in tasks {
        let ids = tokio::time::timeout(std::time::Duration::from_secs(120), task).await;
        assert_eq!(ids.expect("no event is lost").expect("no panic"), (0..TOKENS).collect::<Vec<_>>());
    }
    thread.join().expect("no panic");
}

#[actix::test]
async fn the_task_of_a_reader_ends_with_its_last_source() {
    let streams = Streams::default();
    let reader = StreamReader::start(&streams);
    let queue = Arc::downgrade(&reader.post());
    let source = reader.open(RequestId(1), 1, ());
    drop(reader);
    assert!(queue.upgrade().is_some());
    drop(source);
    let gone = async {
        while queue.upgrade().is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(120), gone).await.expect("the task ends");
    assert!(streams.is_empty());
}
