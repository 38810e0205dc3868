//! The door: one permit pool for the process, and the names of what it lets in.

use std::fmt::Write as _;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
}

impl Permits {
    /// A pool of `most` permits.
    pub fn new(most: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(most)), most }
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
    pub(super) fn take(&self, held: usize, more: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let count = held.saturating_add(more);
        if count > self.most {
            let most = self.most;
            let message =
                format!("{count} answers are asked for, and request.concurrency is {most}; ask for fewer");
            return Err(ApiError::new(StatusCode::BAD_REQUEST, message));
        }
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        Arc::clone(&self.free).try_acquire_many_owned(more).map_err(|error| match error {
            TryAcquireError::NoPermits => ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "all permits of request.concurrency are taken; retry after a second",
            ),
            TryAcquireError::Closed => Refused::ShuttingDown.into(),
        })
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
        assert_eq!(pool.take(1, 1).unwrap_err().status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(pool.take(1, 2).unwrap_err().status, StatusCode::BAD_REQUEST, "waiting does not help");
        drop(held);
        assert!(pool.take(0, 2).is_ok());
        pool.close();
        assert_eq!(pool.take(0, 1).unwrap_err().status, StatusCode::SERVICE_UNAVAILABLE);
    }
}
