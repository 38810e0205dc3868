//! The way into a transport's thread: a bounded queue of commands, a doorbell, and the thread's own end of both.
//!
//! The bound counts commands from `submit` to their terminal event, so it bounds the queue, the operations in flight
//! and the events that wait for the sink, all with one number.

use super::{Command, SubmitError, Transport};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

/// Puts and flushes that are accepted and not yet answered: eight sessions with the default ring (128 pages) each.
pub(crate) const OPERATIONS_MAX: usize = 1024;
/// Room above that for `Open`, `Connect` and `Close`, so that a session whose puts are stuck can still be closed.
const CONTROL_MAX: usize = 64;
/// Commands taken at once, so that completions are reaped in between.
const BATCH_MAX: usize = 64;

/// What the callers and the thread share.
pub(crate) struct Queue {
    commands: Mutex<Pending>,
    /// Accepted and not answered.
    outstanding: AtomicUsize,
    parked: AtomicBool,
    beat: AtomicU64,
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
            beat: AtomicU64::new(0),
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
        // Only grows under the lock, so the check holds; a concurrent answer makes it stricter than need be.
        if self.outstanding.load(Ordering::Relaxed) >= bound {
            return Err(SubmitError::Full);
        }
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        pending.commands.push_back(command);
        drop(pending);
        self.ring();
        Ok(())
    }

    /// Wakes the thread if it is parked. The thread sets `parked` *before* it locks the queue for its last look, so
    /// a caller whose change that look missed took the lock later and sees the flag.
    fn ring(&self) {
        if self.parked.swap(false, Ordering::AcqRel) {
            // A full counter wakes as well, and nothing else can fail.
            let _ = rustix::io::write(&self.doorbell, &1u64.to_ne_bytes());
        }
    }

    fn stop(&self) {
        self.lock().stopping = true;
        self.ring();
    }

    /// Thread: moves at most one batch of commands out; true says that the transport is being shut down.
    pub(crate) fn take(&self, into: &mut Vec<Command>) -> bool {
        self.beat.fetch_add(1, Ordering::Relaxed);
        let mut pending = self.lock();
        let count = pending.commands.len().min(BATCH_MAX);
        into.extend(pending.commands.drain(..count));
        pending.stopping
    }

    /// Thread: `count` commands have had their terminal event.
    pub(crate) fn answered(&self, count: usize) {
        self.outstanding.fetch_sub(count, Ordering::Relaxed);
    }

    /// Thread: sleeps until the doorbell, one of `fds` becomes readable, or `timeout`. Returns at once when commands
    /// wait or the transport is stopping and `stopping_seen` is false.
    pub(crate) fn park(&self, fds: &[BorrowedFd<'_>], timeout: Duration, stopping_seen: bool) {
        self.parked.store(true, Ordering::SeqCst);
        let quiet = {
            let pending = self.lock();
            pending.commands.is_empty() && (stopping_seen || !pending.stopping)
        };
        if quiet {
            let watch = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
            let mut polled: Vec<_> = fds.iter().copied().map(watch).collect();
            polled.push(watch(self.doorbell.as_fd()));
            let timeout = timeout.clamp(Duration::from_millis(1), Duration::from_secs(1));
            let timeout =
                Timespec { tv_sec: timeout.as_secs().cast_signed(), tv_nsec: timeout.subsec_nanos().into() };
            // An interrupted wait is a short one.
            let _ = poll(&mut polled, Some(&timeout));
            if polled.last().is_some_and(|doorbell| !doorbell.revents().is_empty()) {
                // Does not block: the doorbell has rung.
                let _ = rustix::io::read(&self.doorbell, &mut [0; 8]);
            }
        }
        self.parked.store(false, Ordering::Release);
    }
}

/// The callers' end: a running thread and the queue it serves.
pub(crate) struct Driver {
    name: &'static str,
    close_ends_writes: bool,
    queue: Arc<Queue>,
    thread_id: ThreadId,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Driver {
    /// Wraps a thread that serves `queue` until it is told to stop.
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
        self.queue.beat.load(Ordering::Relaxed)
    }

    fn shutdown(&self) {
        self.queue.stop();
        if std::thread::current().id() == self.thread_id {
            return; // called from the sink: it cannot wait for itself, and ends by itself now
        }
        // Held while joining, so that every caller returns only after the end of the thread.
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

/// Held by the thread: however it ends, nothing is accepted afterwards.
pub(crate) struct StopOnExit(pub(crate) Arc<Queue>);

impl Drop for StopOnExit {
    fn drop(&mut self) {
        self.0.stop();
    }
}
