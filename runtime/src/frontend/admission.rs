//! Admission: the process's pool of permits, and the queue of requests that wait for permits.
//!
//! This module is a thin shell around the pure [`state`]. It reads the clock and wakes the requests that may run. HTTP workers
//! enter requests and the decoder's arbiter ends answers, so a lock guards the state. No code blocks while it holds the lock.

pub(super) mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actors::request::Refused;
use actors::streams::Admitted;
use tokio::sync::oneshot;

use super::api_error::ApiError;
use state::{Granted, Refusal, State, Ticket};

pub use state::Bounds;

/// The permits of the process and its queue. A request needs one permit per answer. Cheap to clone; clones share permits and
/// queue.
#[derive(Clone)]
pub struct Admission {
    state: Arc<Mutex<State<Waker>>>,
}

type Waker = oneshot::Sender<Vec<Permit>>;

/// The permit of one answer. Dropping it lets the next request run.
pub(super) struct Permit {
    admission: Admission,
    /// When the answer began; `None` if its duration is not to be measured.
    began: Option<Instant>,
}

impl Permit {
    /// The answer begins now. The time until the permit is dropped counts as its duration.
    pub(super) fn begin(mut self) -> Self {
        self.began = Some(Instant::now());
        self
    }
}

impl Admitted for Permit {
    fn refused(&mut self) {
        self.began = None;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let now = Instant::now();
        let granted = self.admission.lock().give_back(self.began.map(|began| now - began), now);
        self.admission.wake(granted);
    }
}

/// A request's place in the queue, or its permits once it may run. Dropping it leaves the queue or returns the permits.
pub(super) struct Place {
    admission: Admission,
    ticket: Ticket,
    permits: oneshot::Receiver<Vec<Permit>>,
}

impl Place {
    /// Waits until the request may run and returns one permit per answer.
    ///
    /// # Errors
    /// 503 if the process drains.
    pub(super) async fn permits(mut self) -> Result<Vec<Permit>, ApiError> {
        // The sender is dropped only by `close`.
        (&mut self.permits).await.map_err(|_| Refused::ShuttingDown.into())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let granted = self.admission.lock().leave(self.ticket, Instant::now());
        self.admission.wake(granted);
    }
}

/// Minimum and maximum `Retry-After`, in seconds. A longer forecast would not be reliable.
const RETRY_SECONDS: [u64; 2] = [1, 3600];

impl Admission {
    /// An admission without requests.
    pub fn new(bounds: Bounds) -> Self {
        Self { state: Arc::new(Mutex::new(State::new(bounds))) }
    }

    /// Refuses new requests and fails waiting requests with 503, because the process drains.
    pub fn close(&self) {
        let waiting = self.lock().close();
        drop(waiting);
    }

    /// Number of answers that run.
    pub fn running(&self) -> usize {
        self.lock().running()
    }

    /// Number of answers of waiting requests.
    pub fn waiting(&self) -> usize {
        self.lock().waiting()
    }

    /// Upper bound of the answers that run at once.
    pub(super) fn most(&self) -> usize {
        self.lock().bounds().concurrency
    }

    /// Enters a request for `answers` answers that takes `bytes` of memory while it waits.
    ///
    /// # Errors
    /// 400 if it needs more permits than the process has; 429 if the queue is full or the request would wait past its deadline;
    /// 503 if the process drains.
    pub(super) fn enter(&self, answers: usize, bytes: usize, deadline: Instant) -> Result<Place, ApiError> {
        let (waker, permits) = oneshot::channel();
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        let mut state = self.lock();
        let bounds = state.bounds();
        let entered = state.enter((answers, bytes), left, now, waker);
        drop(state);
        let (ticket, granted) = entered.map_err(|refusal| refused(refusal, answers, bounds))?;
        self.wake(granted);
        Ok(Place { admission: self.clone(), ticket, permits })
    }

    fn lock(&self) -> MutexGuard<'_, State<Waker>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends permits to requests that may run. The caller must not hold the lock: if a request has left, its permits are dropped
    /// here, and dropping them takes the lock.
    fn wake(&self, granted: Granted<Waker>) {
        for (waker, answers) in granted {
            let permit = |_| Permit { admission: self.clone(), began: None };
            drop(waker.send((0..answers).map(permit).collect()));
        }
    }
}

fn refused(refusal: Refusal, answers: usize, bounds: Bounds) -> ApiError {
    let later = |retry: Duration, what: &dyn Fn(u64) -> String| {
        let [least, most] = RETRY_SECONDS;
        let retry_seconds = (retry.as_secs_f64().ceil() as u64).clamp(least, most);
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, what(retry_seconds));
        ApiError { retry_seconds, ..error }
    };
    match refusal {
        Refusal::Closed => Refused::ShuttingDown.into(),
        Refusal::TooMany => too_many(answers, bounds.concurrency),
        Refusal::Full { retry } => {
            later(retry, &|seconds| format!("the queue (request.queue) is full; retry after {seconds} s"))
        }
        Refusal::TooLong { wait, retry } => later(retry, &|seconds| {
            let wait = wait.as_secs_f64().ceil();
            format!(
                "the request would wait about {wait} s, past its deadline (request.deadline); retry after {seconds} s"
            )
        }),
    }
}

/// The error 400 for a request that asks for more answers than may run at once.
pub(super) fn too_many(answers: usize, most: usize) -> ApiError {
    let message =
        format!("the request asks for {answers} answers, but request.concurrency is {most}; ask for fewer");
    ApiError::new(StatusCode::BAD_REQUEST, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// The permits of a request that has been granted them.
    fn granted(mut place: Place) -> Vec<Permit> {
        place.permits.try_recv().expect("the request may run")
    }

    #[test]
    fn permits_go_to_waiting_requests_and_are_returned() {
        let admission = Admission::new(Bounds { concurrency: 2, queue: 2, queue_bytes: 10 });
        let first = granted(admission.enter(2, 0, soon()).unwrap());
        let mut waits = admission.enter(1, 0, soon()).unwrap();
        let leaves = admission.enter(2, 0, soon()).unwrap();
        assert_eq!((admission.running(), admission.waiting()), (2, 3));
        let refused = admission.enter(1, 0, soon()).err().unwrap();
        assert_eq!((refused.status, refused.retry_seconds), (StatusCode::TOO_MANY_REQUESTS, 1));
        assert!(refused.message.contains("request.queue"), "{}", refused.message);
        drop(leaves);
        assert_eq!(admission.waiting(), 1);
        assert!(waits.permits.try_recv().is_err(), "no permit is free");
        drop(first);
        assert_eq!(admission.running(), 1);
        // This request got its permit but is dropped before it uses the permit.
        drop(waits);
        assert_eq!((admission.running(), admission.waiting()), (0, 0));
        assert_eq!(admission.enter(3, 0, soon()).err().unwrap().status, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn a_wait_past_the_deadline_is_refused_once_answers_are_measured() {
        let admission = Admission::new(Bounds { concurrency: 1, queue: 9, queue_bytes: 10 });
        let mut answer = granted(admission.enter(1, 0, soon()).unwrap()).pop().unwrap();
        let _waits = admission.enter(1, 0, Instant::now()).unwrap();
        answer.began = Some(Instant::now() - Duration::from_secs(100));
        drop(answer);
        let refused = admission.enter(1, 0, Instant::now() + Duration::from_secs(60)).err().unwrap();
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        assert!(refused.message.contains("request.deadline"), "{}", refused.message);
        assert!((39..=41).contains(&refused.retry_seconds), "100 s less 60 s: {}", refused.retry_seconds);
        assert!(admission.enter(1, 0, Instant::now() + Duration::from_secs(200)).is_ok());
    }

    #[test]
    fn requests_that_are_refused_after_admission_do_not_count_for_the_wait() {
        let admission = Admission::new(Bounds { concurrency: 1, queue: 9, queue_bytes: 10 });
        let slow = |refused: bool| {
            let mut permit = granted(admission.enter(1, 0, soon()).unwrap()).pop().unwrap().begin();
            permit.began = Some(Instant::now() - Duration::from_secs(100));
            if refused {
                permit.refused();
            }
        };
        let has_room = || {
            let _runs = admission.enter(1, 0, soon()).unwrap();
            admission.enter(1, 0, soon()).is_ok()
        };
        slow(true);
        assert!(has_room());
        slow(false);
        assert!(!has_room(), "an answer that took 100 s counts");
    }

    #[test]
    fn waiting_requests_fail_when_the_process_shuts_down() {
        let admission = Admission::new(Bounds { concurrency: 1, queue: 9, queue_bytes: 10 });
        let first = granted(admission.enter(1, 0, soon()).unwrap());
        let mut waits = admission.enter(1, 0, soon()).unwrap();
        admission.close();
        assert_eq!(waits.permits.try_recv().err(), Some(oneshot::error::TryRecvError::Closed));
        assert_eq!(admission.enter(1, 0, soon()).err().unwrap().status, StatusCode::SERVICE_UNAVAILABLE);
        drop((first, waits));
        assert_eq!(admission.running(), 0);
    }
}
