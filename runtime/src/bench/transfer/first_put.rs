//! A transport that says when the first put of a prompt is given to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use connector::transport::{Command, SubmitError, Transport};

use super::clock;

/// Waits for the first put after it is told to.
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

    /// Set: the next put is the first one.
    pub(super) fn awaited(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.awaited)
    }

    /// Looks at what `inner` is given.
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
