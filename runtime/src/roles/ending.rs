//! The end of a process: the signals that begin it, and the tasks that take its steps.

use std::time::{Duration, Instant};

use actors::node::Node;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

use super::SharedState;
use crate::config::Config;
use crate::drain::{Drain, DrainStage};
use crate::early_signals;
use crate::membership::Registered;

/// Maximum time for releasing resources after a fault.
pub(super) const TEAR_DOWN_LIMIT: Duration = Duration::from_secs(10);

/// Exits the process after `limit`. Calls that release the resources of a failed device may never return.
pub(super) fn exit_after(limit: Duration, fault: String) -> std::io::Result<()> {
    let exit = move || {
        std::thread::sleep(limit);
        tracing::error!(limit_s = limit.as_secs(), "resources were not released in time; exiting without it");
        eprintln!("error: {fault}");
        std::process::exit(1);
    };
    std::thread::Builder::new().name("baton-exit".into()).spawn(exit).map(drop)
}

/// Waits for a signal, which gives `None`, or a fault, which gives its sentence.
pub(super) async fn ending(node: &Node, signals: &mut Signals) -> Option<String> {
    tokio::select! {
        name = signals.next() => {
            tracing::info!(signal = name, "shutting down");
            None
        }
        fault = node.faults.wait() => Some(fault),
    }
}

/// SIGTERM and SIGINT.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Signals from now on.
    ///
    /// # Errors
    /// The operating system refuses the handlers.
    pub(super) fn new() -> std::io::Result<Self> {
        let signals =
            Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
        early_signals::leave();
        Ok(signals)
    }

    /// The name of the next signal.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Has a task remove the process from the fleet's members as soon as its drain begins.
pub(super) fn leave_when_asked(shared: &SharedState, registered: Registered) -> JoinHandle<()> {
    let drain = shared.drain.clone();
    actix::spawn(async move {
        drain.reached(DrainStage::Leaving).await;
        registered.leave().await;
    })
}

/// Has a task take the steps of the drain once it has begun.
pub(super) fn drain_when_asked(shared: &SharedState, node: &Node) {
    let (drain, admission, node) = (shared.drain.clone(), shared.admission.clone(), node.drain.clone());
    actix::spawn(async move {
        let refuse = || {
            admission.close();
            node.refuse();
        };
        drain.run(|| node.announce(), refuse, node.done()).await;
    });
}

/// The latest time at which a process ends after a signal, also if something fails meanwhile. A service manager kills it later than that.
pub(super) fn end_by(now: Instant, config: &Config) -> Instant {
    now + config.shutdown.delay + config.shutdown.drain + TEAR_DOWN_LIMIT
}

/// Has a task end the drain at once if the process fails during it. The process ends by `end`.
pub(super) fn end_at_faults(node: &Node, drain: Drain, end: Instant) {
    let faults = node.faults.clone();
    actix::spawn(async move {
        let fault = faults.wait().await;
        tracing::error!(fault, "the process has failed while it drains");
        drain.begin_at_once();
        if let Err(error) = exit_after(end.saturating_duration_since(Instant::now()), fault) {
            tracing::error!(%error, "no thread watches the end of the process");
        }
    });
}
