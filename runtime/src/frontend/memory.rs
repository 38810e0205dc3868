//! The memory budget for clients' requests: bodies while they arrive and are parsed, prompts while they wait and are answered.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use actix_web::http::StatusCode;
use actix_web::web;
use tokio::sync::Semaphore;

use super::api_error::ApiError;

/// The memory budget for clients' requests, and the permits for long work. Cheap to clone; all clones share the same state.
#[derive(Clone, Debug)]
pub struct InputMemory(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    bytes: usize,
    used: AtomicUsize,
    room: TokenizeAllowance,
    permits: Arc<Semaphore>,
}

/// Bytes taken from the budget. Dropping this value returns them.
#[derive(Debug)]
pub(super) struct HeldBytes {
    memory: InputMemory,
    bytes: usize,
}

impl InputMemory {
    /// A budget of this many bytes. At most `threads` threads do long work at the same time.
    pub fn new(bytes: usize, threads: usize) -> Self {
        let permits = Arc::new(Semaphore::new(threads.max(1)));
        Self(Arc::new(Budget {
            bytes,
            used: AtomicUsize::new(0),
            room: TokenizeAllowance::new(bytes),
            permits,
        }))
    }

    /// Does work of more than a few milliseconds, such as parsing a long body, on a thread pool, so that it does not delay the streams of
    /// the HTTP worker. The thread finishes its work even if the client has left.
    ///
    /// # Errors
    /// 503 if the thread pool takes no more work.
    pub(super) async fn run_long<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.0.permits).acquire_owned().await.ok();
        let work = move || {
            let _permit = permit;
            work()
        };
        let busy = |_| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server is busy; retry after a second");
        web::block(work).await.map_err(busy)
    }

    /// Takes the permits for long work until the returned value is dropped.
    #[cfg(test)]
    pub(super) fn stop_long_work(&self, threads: u32) -> tokio::sync::OwnedSemaphorePermit {
        Arc::clone(&self.0.permits).try_acquire_many_owned(threads).unwrap()
    }

    /// Bytes in use.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// The allowance for tokenizing.
    pub(super) fn room(&self) -> &TokenizeAllowance {
        &self.0.room
    }

    /// Takes bytes from the budget.
    ///
    /// # Errors
    /// 503 if fewer are left.
    pub(super) fn hold(&self, bytes: usize) -> Result<HeldBytes, ApiError> {
        let mut held = HeldBytes { memory: self.clone(), bytes: 0 };
        held.grow(bytes)?;
        Ok(held)
    }

    fn take(&self, bytes: usize) -> Result<(), ApiError> {
        let Budget { bytes: all, used, .. } = &*self.0;
        let more = |used: usize| used.checked_add(bytes).filter(|used| used <= all);
        match used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(()),
            Err(_) => {
                let message = format!(
                    "requests take more memory than request.input_bytes ({} MiB) allows; retry after a second",
                    all >> 20
                );
                Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message))
            }
        }
    }
}

impl HeldBytes {
    /// Takes more bytes from the budget.
    ///
    /// # Errors
    /// 503 if fewer are left. Bytes that were taken before remain taken.
    pub(super) fn grow(&mut self, more: usize) -> Result<(), ApiError> {
        self.memory.take(more)?;
        self.bytes += more;
        Ok(())
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.memory.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// An allowance for the temporary memory of rendering and tokenizing, which is many times the size of the text. The allowance is as
/// large as the budget, so at most twice the budget is in use. Threads wait for it in order.
#[derive(Debug)]
pub(super) struct TokenizeAllowance {
    bytes: usize,
    queue: Mutex<AllowanceQueue>,
    moved: Condvar,
}

#[derive(Debug)]
struct AllowanceQueue {
    free: usize,
    /// The number of the next thread that arrives, and the number of the thread that may run now.
    next: u64,
    turn: u64,
}

/// Bytes taken from the allowance. Dropping this value returns them.
pub(super) struct Taken<'a> {
    room: &'a TokenizeAllowance,
    bytes: usize,
}

impl TokenizeAllowance {
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            bytes,
            queue: Mutex::new(AllowanceQueue { free: bytes, next: 0, turn: 0 }),
            moved: Condvar::new(),
        }
    }

    /// Waits until this many bytes are free, and takes them. Blocks the thread. The thread must not hold bytes of the allowance.
    ///
    /// # Errors
    /// 413 if the allowance is smaller.
    pub(super) fn take(&self, bytes: usize) -> Result<Taken<'_>, ApiError> {
        if bytes > self.bytes {
            let message = format!(
                "tokenizing this may need {} MiB, more than request.input_bytes ({} MiB); send less text, or token ids",
                bytes.div_ceil(1 << 20),
                self.bytes >> 20
            );
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = queue.next;
        queue.next += 1;
        let waits = |queue: &mut AllowanceQueue| queue.turn != mine || queue.free < bytes;
        let mut queue = self.moved.wait_while(queue, waits).unwrap_or_else(PoisonError::into_inner);
        queue.free -= bytes;
        queue.turn += 1;
        self.moved.notify_all();
        Ok(Taken { room: self, bytes })
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.room.queue.lock().unwrap_or_else(PoisonError::into_inner).free += self.bytes;
        self.room.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn threads_wait_for_the_allowance_in_order() {
        let room = TokenizeAllowance::new(10);
        assert_eq!(room.take(11).err().unwrap().status, StatusCode::PAYLOAD_TOO_LARGE);
        let first = room.take(4).unwrap();
        let (told, hears) = mpsc::channel();
        std::thread::scope(|scope| {
            for (n, bytes) in [(0, 7), (1, 1)] {
                let (room, told) = (&room, told.clone());
                scope.spawn(move || {
                    let taken = room.take(bytes).unwrap();
                    told.send(n).unwrap();
                    drop(taken);
                });
                while room.queue.lock().unwrap().next < n + 2 {
                    std::thread::yield_now();
                }
            }
            let early = hears.recv_timeout(Duration::from_millis(50));
            assert!(early.is_err(), "the second thread waits for its turn although there is room");
            drop(first);
            let mut order = [hears.recv().unwrap(), hears.recv().unwrap()];
            order.sort_unstable();
            assert_eq!(order, [0, 1]);
        });
        assert_eq!(room.queue.lock().unwrap().free, 10);
    }

    #[test]
    fn dropped_bytes_return_to_the_budget() {
        let memory = InputMemory::new(10 << 20, 1);
        let mut first = memory.hold(6 << 20).unwrap();
        assert_eq!(memory.hold(5 << 20).err().unwrap().status, StatusCode::SERVICE_UNAVAILABLE);
        let refused = first.grow(usize::MAX).unwrap_err();
        assert!(refused.message.contains("request.input_bytes (10 MiB)"), "{}", refused.message);
        first.grow(4 << 20).unwrap();
        assert_eq!(memory.used(), 10 << 20);
        drop(first);
        assert_eq!(memory.used(), 0);
        drop(memory.hold(10 << 20).unwrap());
    }
}
