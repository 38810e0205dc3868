//! A transport wrapper that reports the time of the first put of a prompt.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use connector::transport::{Command, SubmitError, Transport};

use super::clock;

/// Reports the next put when `awaited` is set.
pub(super) struct FirstPut {
    awaited: Arc<AtomicBool>,
    put_at: Sender<u64>,
}

struct WatchedTransport {
    inner: Arc<dyn Transport>,
    first_put: FirstPut,
}

impl FirstPut {
    pub(super) fn new(put_at: Sender<u64>) -> Self {
        Self { awaited: Arc::default(), put_at }
    }

    /// The flag that marks the next put as the first one.
    pub(super) fn awaited(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.awaited)
    }

    /// Wraps `inner` and observes its puts.
    pub(super) fn over(self, inner: Arc<dyn Transport>) -> Arc<dyn Transport> {
        Arc::new(WatchedTransport { inner, first_put: self })
    }
}

impl Transport for WatchedTransport {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn close_ends_writes(&self) -> bool {
        self.inner.close_ends_writes()
    }

    fn submit(&self, command: Command) -> Result<(), SubmitError> {
        let FirstPut { awaited, put_at } = &self.first_put;
        if matches!(command, Command::Put { .. }) && awaited.swap(false, Ordering::AcqRel) {
            let _ = put_at.send(clock());
        }
        self.inner.submit(command)
    }

    fn progress(&self) -> u64 {
        self.inner.progress()
    }

    fn shutdown(&self) {
        self.inner.shutdown();
    }
}
