//! One budget of bytes for what clients send: bodies while they arrive and are read, prompts while they wait and are answered.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use actix_web::http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::api_error::ApiError;

/// The budget, and the threads that read long bodies within it. Cheap to clone; every clone is the same.
#[derive(Clone, Debug)]
pub struct InputMemory(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    bytes: usize,
    used: AtomicUsize,
    room: TokenizeAllowance,
    readers: Arc<Semaphore>,
}

/// Bytes of the budget; given back when dropped.
#[derive(Debug)]
pub(super) struct HeldBytes {
    memory: InputMemory,
    bytes: usize,
}

impl InputMemory {
    /// A budget of so many bytes. At most `readers` bodies that are long are read at once.
    pub fn new(bytes: usize, readers: usize) -> Self {
        let readers = Arc::new(Semaphore::new(readers.max(1)));
        Self(Arc::new(Budget {
            bytes,
            used: AtomicUsize::new(0),
            room: TokenizeAllowance::new(bytes),
            readers,
        }))
    }

    /// Waits for its turn to read a long body.
    pub(super) async fn reader(&self) -> Option<OwnedSemaphorePermit> {
        // It is never closed.
        Arc::clone(&self.0.readers).acquire_owned().await.ok()
    }

    /// Bytes in use.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// The allowance for tokenising.
    pub(super) fn room(&self) -> &TokenizeAllowance {
        &self.0.room
    }

    /// Takes bytes of the budget.
    ///
    /// # Errors
    /// 503 if there are not as many left.
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
    /// Takes more.
    ///
    /// # Errors
    /// 503 if there are not as many left; what is held stays held.
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

/// An allowance for what rendering and tokenising take besides, which is many times the text and is given back at once. It is as
/// large as the budget. Threads wait for it, in order; so at most twice the budget is in use.
#[derive(Debug)]
pub(super) struct TokenizeAllowance {
    bytes: usize,
    queue: Mutex<AllowanceQueue>,
    moved: Condvar,
}

#[derive(Debug)]
struct AllowanceQueue {
    free: usize,
    /// Numbers of the next thread that comes and of the one whose turn it is.
    next: u64,
    turn: u64,
}

/// Bytes of the allowance; given back when dropped.
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

    /// Waits until so many bytes are free, and takes them. Blocks the thread, which holds none.
    ///
    /// # Errors
    /// 413 if there are never as many.
    pub(super) fn take(&self, bytes: usize) -> Result<Taken<'_>, ApiError> {
        if bytes > self.bytes {
            let message = format!(
                "{} MiB may be needed to tokenize this, more than request.input_bytes ({} MiB); send less text or token ids",
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
    fn threads_wait_for_room_in_order() {
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
            assert!(early.is_err(), "the second has room, and its turn comes after the first");
            drop(first);
            let mut order = [hears.recv().unwrap(), hears.recv().unwrap()];
            order.sort_unstable();
            assert_eq!(order, [0, 1]);
        });
        assert_eq!(room.queue.lock().unwrap().free, 10);
    }

    #[test]
    fn bytes_are_taken_and_given_back() {
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
