//! Ends a process that gets a signal before it serves, while it downloads or loads its model.
//!
//! Without a handler, the first process of a container ignores SIGTERM. The thread of this module ends the process with the exit code that a
//! shell shows for the signal. A download needs no other care: the next start continues it.

use std::io::{self, IsTerminal};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};

/// Whether a thread waits for signals.
static WATCHED: AtomicBool = AtomicBool::new(false);

/// Whether the thread ends the process.
static IS_EARLY: AtomicBool = AtomicBool::new(true);

/// Has a thread end the process at SIGTERM and SIGINT, until [`leave`] is called.
pub fn watch() {
    if WATCHED.swap(true, Ordering::SeqCst) {
        return;
    }
    // Without the thread, the signals have their default effect.
    let _ = thread::Builder::new().name("baton-signals".into()).spawn(wait);
}

/// Leaves the signals to the caller, which handles them from now on.
pub fn leave() {
    IS_EARLY.store(false, Ordering::SeqCst);
}

fn wait() {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    let waiting = async {
        let mut terminate = signal(SignalKind::terminate()).ok()?;
        let mut interrupt = signal(SignalKind::interrupt()).ok()?;
        Some(tokio::select! {
            _ = terminate.recv() => ("SIGTERM", SignalKind::terminate()),
            _ = interrupt.recv() => ("SIGINT", SignalKind::interrupt()),
        })
    };
    let Some((name, kind)) = runtime.block_on(waiting) else { return };
    if IS_EARLY.load(Ordering::SeqCst) {
        // The bar of a download may be on the line.
        let clear = if io::stderr().is_terminal() { "\r\x1b[2K" } else { "" };
        eprintln!(
            "{clear}error: {name} ended the process before it was ready; the next start continues a download"
        );
        process::exit(128 + kind.as_raw_value());
    }
}
