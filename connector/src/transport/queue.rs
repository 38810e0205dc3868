//! The bounded command queue of a transport's thread, and the eventfd that wakes the thread.
//!
//! A command counts against the bound from `submit` until its final event (success or failure) has been reported. So one number bounds
//! the queue, the operations in flight, and the events that wait for the sink (the callback that gets the events).

use super::{Command, SubmitError, Transport};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

/// Puts and flushes are accepted while fewer than this many commands are outstanding. A session of the transfer actor has at most 32
/// outstanding, for any number of lanes.
pub(crate) const OPERATIONS_MAX: usize = 1024;
/// Additional room for `Open`, `Connect` and `Close`, so that a session whose puts are stuck can still be closed.
const CONTROL_MAX: usize = 64;
/// Maximum number of commands that the thread takes per iteration, so that it polls completions between batches.
const BATCH_MAX: usize = 64;

/// The state that callers and the thread share.
pub(crate) struct Queue {
    commands: Mutex<Pending>,
    /// Number of commands that were accepted and have no final event yet.
    outstanding: AtomicUsize,
    /// Whether the thread sleeps in `poll`, or is about to.
    parked: AtomicBool,
    /// Number of the thread's iterations, for the watchdog.
    turns: AtomicU64,
    /// The eventfd that wakes the thread.
    doorbell: OwnedFd,
}

#[derive(Default)]
struct Pending {
    commands: VecDeque<Command>,
    stopping: bool,
}

impl Queue {
    pub(crate) fn new() -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            commands: Mutex::default(),
            outstanding: AtomicUsize::new(0),
            parked: AtomicBool::new(false),
            turns: AtomicU64::new(0),
            doorbell: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, command: Command) -> Result<(), SubmitError> {
        let bound = match command {
            Command::Put { .. } | Command::Flush { .. } => OPERATIONS_MAX,
            _ => OPERATIONS_MAX + CONTROL_MAX,
        };
        let mut pending = self.lock();
        if pending.stopping {
            return Err(SubmitError::ShutDown);
        }
        // The count grows only under the lock, so the bound holds. If the thread lowers it at the same
        // time, this may refuse one command too many.
        if self.outstanding.load(Ordering::Relaxed) >= bound {
            return Err(SubmitError::Full);
        }
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        pending.commands.push_back(command);
        drop(pending);
        self.wake();
        Ok(())
    }

    /// Wakes the thread if it is parked.
    ///
    /// The thread sets `parked` *before* it locks the queue and checks it for the last time. If that check misses a caller's change, the
    /// caller has locked the queue after the check. So the caller sees `parked` and wakes the thread.
    fn wake(&self) {
        if self.parked.swap(false, Ordering::AcqRel) {
            // The write fails only if the counter is full, and a full counter wakes the thread too.
            let _ = rustix::io::write(&self.doorbell, &1u64.to_ne_bytes());
        }
    }

    fn stop(&self) {
        self.lock().stopping = true;
        self.wake();
    }

    /// Called by the thread: moves at most one batch of commands out. Returns true if the transport is shutting down.
    pub(crate) fn take(&self, into: &mut Vec<Command>) -> bool {
        self.turns.fetch_add(1, Ordering::Relaxed);
        let mut pending = self.lock();
        let count = pending.commands.len().min(BATCH_MAX);
        into.extend(pending.commands.drain(..count));
        pending.stopping
    }

    /// Called by the thread: the final events of `count` commands have been reported.
    pub(crate) fn answered(&self, count: usize) {
        self.outstanding.fetch_sub(count, Ordering::Relaxed);
    }

    /// Called by the thread: sleeps until a caller wakes it, one of `fds` becomes readable, or `timeout` passes.
    ///
    /// Returns at once if commands wait, or if a shutdown has begun and `stopping_seen` is false.
    pub(crate) fn park(&self, fds: &[BorrowedFd<'_>], timeout: Duration, stopping_seen: bool) {
        self.parked.store(true, Ordering::SeqCst);
        let idle = {
            let pending = self.lock();
            pending.commands.is_empty() && (stopping_seen || !pending.stopping)
        };
        if idle {
            let watch = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
            let mut polled: Vec<_> = fds.iter().copied().map(watch).collect();
            polled.push(watch(self.doorbell.as_fd()));
            let timeout = timeout.clamp(Duration::from_millis(1), Duration::from_secs(1));
            let timeout =
                Timespec { tv_sec: timeout.as_secs().cast_signed(), tv_nsec: timeout.subsec_nanos().into() };
            // An interrupted poll is treated like a short one.
            let _ = poll(&mut polled, Some(&timeout));
            if polled.last().is_some_and(|doorbell| !doorbell.revents().is_empty()) {
                // The eventfd is readable, so this does not block.
                let _ = rustix::io::read(&self.doorbell, &mut [0; 8]);
            }
        }
        self.parked.store(false, Ordering::Release);
    }
}

/// A running transport thread and its queue: the callers' side.
pub(crate) struct Driver {
    name: &'static str,
    close_ends_writes: bool,
    queue: Arc<Queue>,
    thread_id: ThreadId,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Driver {
    /// Wraps a thread that serves `queue` until a shutdown.
    pub(crate) fn new(
        name: &'static str,
        close_ends_writes: bool,
        queue: Arc<Queue>,
        thread: JoinHandle<()>,
    ) -> Self {
        let thread_id = thread.thread().id();
        Self { name, close_ends_writes, queue, thread_id, thread: Mutex::new(Some(thread)) }
    }
}

impl Transport for Driver {
    fn name(&self) -> &'static str {
        self.name
    }

    fn close_ends_writes(&self) -> bool {
        self.close_ends_writes
    }

    fn submit(&self, command: Command) -> Result<(), SubmitError> {
        self.queue.push(command)
    }

    fn progress(&self) -> u64 {
        self.queue.turns.load(Ordering::Relaxed)
    }

    fn shutdown(&self) {
        self.queue.stop();
        if std::thread::current().id() == self.thread_id {
            return; // The sink, which runs on this thread, has called `shutdown`. The thread cannot join itself; it ends after this iteration.
        }
        // The lock is held during the join, so that every caller returns only after the thread has ended.
        let mut held = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = held.take()
            && thread.join().is_err()
        {
            tracing::error!(transport = self.name, "transport thread panicked");
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Owned by the thread. When the thread ends, also by a panic, the queue accepts no more commands.
pub(crate) struct StopOnExit(pub(crate) Arc<Queue>);

impl Drop for StopOnExit {
    fn drop(&mut self) {
        self.0.stop();
    }
}
