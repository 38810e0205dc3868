//! A burst of requests to the proxy, and what became of them.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::demo::client::{self, Answer, Refused};
use crate::demo::{child, sse};

/// Requests of a burst.
pub(super) const REQUESTS: usize = 48;
/// Requests at once.
pub(super) const AT_ONCE: usize = 12;
const PLACES: [&str; 8] = ["Lisbon", "Nairobi", "Kyoto", "Lima", "Oslo", "Cairo", "Hanoi", "Quebec"];

/// What became of a request.
#[derive(Debug)]
enum Outcome {
    Answered(Served),
    Failed(Failure),
}

/// The processes that computed an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Served {
    pub(super) prefill_pid: u64,
    pub(super) decode_pid: u64,
}

impl Served {
    /// Whether the prompt was prefilled in another process.
    pub(super) fn is_handed_over(self) -> bool {
        self.prefill_pid != self.decode_pid
    }
}

/// A request without a complete answer.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: FailureKind,
    pub(super) at: Instant,
    pub(super) reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The stream broke off.
    Broken,
    /// The proxy answered 502: the connection to a process broke before the answer began, and no other process got the request.
    NotRetried,
    /// Any other error.
    Other,
}

/// A finished burst.
#[derive(Debug, Default)]
pub(super) struct Burst {
    pub(super) answers: Vec<Served>,
    pub(super) failures: Vec<Failure>,
    pub(super) seconds: f64,
}

/// A running burst, as the thread that watches it sees it.
#[derive(Default)]
pub(super) struct Progress {
    begun: AtomicUsize,
    over: AtomicUsize,
    outcomes: Mutex<Vec<Outcome>>,
}

impl Progress {
    /// Requests that have ended.
    pub(super) fn over(&self) -> usize {
        self.over.load(Ordering::Relaxed)
    }

    /// The next request of the burst, unless all have begun or the demo was asked to end.
    fn next(&self, numbers: &Range<usize>) -> Option<usize> {
        let index = self.begun.fetch_add(1, Ordering::Relaxed);
        (index < numbers.len() && child::asked_to_end().is_none()).then(|| numbers.start + index)
    }

    fn add(&self, outcome: Outcome) {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
        self.over.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sends the requests with these numbers, and calls `meanwhile` on this thread.
pub(super) fn run<T>(port: u16, numbers: Range<usize>, meanwhile: impl FnOnce(&Progress) -> T) -> (Burst, T) {
    let (start, progress) = (Instant::now(), Progress::default());
    let work = || {
        while let Some(number) = progress.next(&numbers) {
            progress.add(outcome(client::chat(port, &body(number), |_| ())));
        }
        start.elapsed().as_secs_f64()
    };
    let (seconds, seen) = thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        let seen = meanwhile(&progress);
        let ends = workers.into_iter().filter_map(|worker| worker.join().ok());
        (ends.fold(0.0, f64::max), seen)
    });
    let mut burst = Burst { seconds, ..Burst::default() };
    for outcome in progress.outcomes.into_inner().unwrap_or_else(PoisonError::into_inner) {
        match outcome {
            Outcome::Answered(served) => burst.answers.push(served),
            Outcome::Failed(failure) => burst.failures.push(failure),
        }
    }
    (burst, seen)
}

/// A short prompt. It differs from those of other numbers in its first words, so no process has cached its beginning.
fn body(number: usize) -> Value {
    let place = PLACES[number % PLACES.len()];
    let system = format!(
        "Guide {number} speaks. You are a guide in {place}. You answer the questions of travellers in one sentence, politely, and without lists."
    );
    let question = format!(
        "What should a visitor with {} hours see in {place}, and how does one get there?",
        number + 2
    );
    json!({
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": question}],
        "max_tokens": 24,
        "temperature": 0,
        "stream": true,
        "return_timings": true,
    })
}

fn outcome(answer: Result<Answer>) -> Outcome {
    match answer.and_then(|answer| served(&answer)) {
        Ok(served) => Outcome::Answered(served),
        Err(error) => {
            let kind = match error.downcast_ref::<Refused>() {
                Some(Refused { status: 502, .. }) => FailureKind::NotRetried,
                _ if error.is::<sse::Broken>() => FailureKind::Broken,
                _ => FailureKind::Other,
            };
            Outcome::Failed(Failure { kind, at: Instant::now(), reason: format!("{error:#}") })
        }
    }
}

fn served(answer: &Answer) -> Result<Served> {
    let timings = answer.timings.as_ref().context("the answer has no `timings`")?;
    let pid = |name: &str| timings[name].as_u64().with_context(|| format!("`timings.{name}` is no number"));
    Ok(Served { prefill_pid: pid("prefill_pid")?, decode_pid: pid("decode_pid")? })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, Shutdown, TcpListener};
    use std::time::Duration;

    use super::*;

    /// Sends a request to a server that answers with this text and closes the connection.
    fn answered_with(text: &'static str) -> Outcome {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            let mut byte = [0];
            while byte != *b"}" {
                stream.read_exact(&mut byte).unwrap();
            }
            stream.write_all(text.as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            // A close with unread bytes would reset the connection. The client may have reset it too.
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let outcome = outcome(client::chat(port, &json!({ "temperature": 0 }), |_| ()));
        server.join().unwrap();
        outcome
    }

    #[test]
    fn outcomes_tell_a_lost_process_from_other_errors() {
        const WHOLE: &str = "HTTP/1.1 200 OK\r\n\r\ndata: {\"choices\":[],\"timings\":{\"prefill_pid\":1,\"decode_pid\":2}}\n\ndata: [DONE]\n\n";
        match answered_with(WHOLE) {
            Outcome::Answered(served) => {
                assert_eq!(served, Served { prefill_pid: 1, decode_pid: 2 });
                assert!(served.is_handed_over());
            }
            failed => panic!("{failed:?}"),
        }
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n10\r\ndata: {\"choices";
        for (text, expect) in [
            ("HTTP/1.1 200 OK\r\n\r\ndata: {\"choices\":[]}\n\n", FailureKind::Broken),
            (chunked, FailureKind::Broken),
            ("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n", FailureKind::NotRetried),
            ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", FailureKind::Other),
            ("HTTP/1.1 200 OK\r\n\r\ndata: {\"error\":{\"message\":\"late\"}}\n\n", FailureKind::Other),
            ("HTTP/1.1 200 OK\r\n\r\ndata: {\"choices\":[]}\n\ndata: [DONE]\n\n", FailureKind::Other),
        ] {
            match answered_with(text) {
                Outcome::Failed(failure) => assert_eq!(failure.kind, expect, "{text}: {}", failure.reason),
                Outcome::Answered(served) => panic!("{text}: {served:?}"),
            }
        }
    }

    #[test]
    fn prompts_differ_in_their_first_words() {
        let system = |number| body(number)["messages"][0]["content"].as_str().unwrap().to_owned();
        let beginnings: std::collections::BTreeSet<String> = (0..2 * REQUESTS)
            .map(|number| system(number).split_once(" speaks").unwrap().0.to_owned())
            .collect();
        assert_eq!(beginnings.len(), 2 * REQUESTS);
    }
}
