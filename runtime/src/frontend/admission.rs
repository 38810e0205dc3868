//! The door: one permit pool for the process, and the names of what it lets in.

use std::fmt::Write as _;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use actix_web::http::StatusCode;
use actors::request::{Refused, RequestId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use super::api_error::ApiError;
use super::openai::Kind;

/// The process's next request; both of its HTTP ports draw from here, because they share one table of live streams.
static NEXT_REQUEST: AtomicU64 = AtomicU64::new(1);

/// Longest name that a client may give a request; it is echoed in every chunk.
const NAME_BYTES_MAX: usize = 128;

/// The process's permits, one for each answer that is being computed. Cheap to clone; every clone is the same pool.
#[derive(Clone, Debug)]
pub struct Permits {
    free: Arc<Semaphore>,
    most: usize,
    pace: Arc<Mutex<Pace>>,
}

/// How fast permits come back.
#[derive(Debug)]
struct Pace {
    last: Instant,
    /// Seconds from one to the next, the newest counting for an eighth.
    between: f64,
}

/// One permit; comes back when dropped.
pub(super) struct Permit {
    _held: OwnedSemaphorePermit,
    /// Of an answer: only those say how long one takes.
    pace: Option<Arc<Mutex<Pace>>>,
}

impl Permit {
    /// The permit is an answer's from now on.
    pub(super) fn for_an_answer(mut self, permits: &Permits) -> Self {
        self.pace = Some(Arc::clone(&permits.pace));
        self
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(pace) = &self.pace else { return };
        let mut pace = pace.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        pace.between += ((now - pace.last).as_secs_f64() - pace.between) / 8.0;
        pace.last = now;
    }
}

/// Longest time after which a client is asked to try again: what is measured may be out of date by then.
const RETRY_SECONDS_MAX: u64 = 60;

impl Permits {
    /// A pool of `most` permits.
    pub fn new(most: usize) -> Self {
        let pace = Pace { last: Instant::now(), between: 0.0 };
        Self { free: Arc::new(Semaphore::new(most)), most, pace: Arc::new(Mutex::new(pace)) }
    }

    /// Nothing more is admitted, with 503: the process is ending.
    pub fn close(&self) {
        self.free.close();
    }

    /// Waits until none is taken.
    #[cfg(test)]
    pub(super) async fn all(&self) {
        drop(self.free.acquire_many(self.most as u32).await.expect("it is open"));
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.most - self.free.available_permits()
    }

    /// Takes `more` permits for a request that holds some, now or never: a client waits better than a queue does.
    ///
    /// # Errors
    /// 400 if there will never be so many; 429 if they are not free; 503 if the pool was closed.
    pub(super) fn take(&self, held: usize, more: usize) -> Result<Vec<Permit>, ApiError> {
        let count = held.saturating_add(more);
        if count > self.most {
            let most = self.most;
            let message =
                format!("{count} answers are asked for, and request.concurrency is {most}; ask for fewer");
            return Err(ApiError::new(StatusCode::BAD_REQUEST, message));
        }
        if self.taken() == 0 {
            // Nobody has asked for a while, which says nothing about how long an answer takes.
            self.pace.lock().unwrap_or_else(PoisonError::into_inner).last = Instant::now();
        }
        let many = u32::try_from(more).unwrap_or(u32::MAX);
        match Arc::clone(&self.free).try_acquire_many_owned(many) {
            Ok(mut all) => {
                let permit = |held| Permit { _held: held, pace: None };
                Ok((0..more).filter_map(|_| all.split(1)).map(permit).collect())
            }
            Err(TryAcquireError::NoPermits) => {
                let seconds = self.retry_seconds(more);
                let message =
                    format!("all permits of request.concurrency are taken; retry after {seconds} s");
                let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, message);
                Err(ApiError { retry_seconds: seconds, ..error })
            }
            Err(TryAcquireError::Closed) => Err(Refused::ShuttingDown.into()),
        }
    }

    /// How many there are.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// When as many will be free, as far as the pace at which they have come back says.
    fn retry_seconds(&self, wanted: usize) -> u64 {
        let pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = wanted.saturating_sub(self.free.available_permits()).max(1);
        // A pace that was once, and has not been kept since, is too good.
        let between = pace.between.max(pace.last.elapsed().as_secs_f64() / 8.0);
        ((between * missing as f64).ceil() as u64).clamp(1, RETRY_SECONDS_MAX)
    }
}

/// A fresh number for a request.
pub(super) fn next_request() -> RequestId {
    RequestId(NEXT_REQUEST.fetch_add(1, Ordering::Relaxed))
}

/// The name of a request in responses: the client's own if it is printable and short, else 32 random hex digits.
pub(super) fn public_id(kind: Kind, wanted: Option<&str>) -> String {
    let usable = |name: &&str| {
        !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(|byte| byte.is_ascii_graphic())
    };
    let mut id = format!("{}-", kind.prefix());
    match wanted.filter(usable) {
        Some(name) => id.push_str(name),
        None => {
            // Each `RandomState` has new keys; nothing here needs to be hard to guess.
            let word = || RandomState::new().hash_one(0u8);
            let _ = write!(id, "{:016x}{:016x}", word(), word());
        }
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_the_clients_or_random() {
        assert_eq!(public_id(Kind::Completion, Some("bench-1")), "cmpl-bench-1");
        assert_eq!(public_id(Kind::Chat, Some("a b")).len(), "chatcmpl-".len() + 32);
        assert_ne!(public_id(Kind::Chat, None), public_id(Kind::Chat, None));
        assert_eq!(public_id(Kind::Completion, Some(&"x".repeat(129))).len(), "cmpl-".len() + 32);
    }

    #[test]
    fn permits_run_out_and_close() {
        let pool = Permits::new(2);
        let held = pool.take(0, 2).unwrap();
        let held: Vec<Permit> = held.into_iter().map(|permit| permit.for_an_answer(&pool)).collect();
        assert_eq!(pool.take(1, 1).err().unwrap().status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(pool.take(1, 2).err().unwrap().status, StatusCode::BAD_REQUEST, "waiting does not help");
        assert_eq!(pool.retry_seconds(1), 1, "at least");
        pool.pace.lock().unwrap().between = 7.5;
        assert_eq!(pool.take(0, 2).err().unwrap().retry_seconds, 15, "two at a pace of 7.5 s");
        drop(held);
        assert!(pool.pace.lock().unwrap().between < 7.5, "they came back sooner");
        assert!(pool.take(0, 2).is_ok());
        pool.close();
        assert_eq!(pool.take(0, 1).err().unwrap().status, StatusCode::SERVICE_UNAVAILABLE);
    }
}
