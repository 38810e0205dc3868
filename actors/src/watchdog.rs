//! The watchdog: marks the node unhealthy when an actor, the transport or the engine makes no progress, or when the engine is lost.
//!
//! - **Thread**: its own, so that nothing that it watches can block it. For that reason it is not an actix actor.
//! - **Mailbox**: none; it reads atomics.
//! - **In**: [`Vitals`] of every actor, the engine's [`EnginePulse`], and the transport's progress counter. The time limit of an engine step
//!   follows from measured steps ([`step_times`](crate::devices::engine_thread::step_times)).
//! - **Out**: [`NodeHealth`], which `/health`, the peer link and the reports to systemd read; one log line for each change; and the [`KillSwitch`] when the engine is
//!   lost.
//! - **Failure**: it keeps no state and calls nothing that can fail. A stalled actor that recovers makes the node healthy again.

pub mod state;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use connector::transport::Transport;

use crate::devices::engine_thread::EnginePulse;
use crate::kit::{KillSwitch, Vitals};
use state::{Fault, Observation, observe};

/// Time between two checks. It equals the actors' tick period. It is short, so that few steps are sent to an engine that is already lost.
const PERIOD: Duration = Duration::from_millis(250);

/// Maximum time that an actor or the transport's thread may make no progress. An actor is ticked four times per second.
const LIMIT: Duration = Duration::from_secs(5);

/// Whether this node is healthy. Cheap to clone; clones share it.
#[derive(Clone, Debug, Default)]
pub struct NodeHealth {
    fault: Arc<Mutex<Option<String>>>,
    checks_passed: Arc<AtomicU64>,
}

impl NodeHealth {
    /// The fault as one sentence, or `None` if the node is healthy.
    pub fn fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Number of checks that found no fault. It stands still while the node has a fault, and when the watchdog itself has stopped.
    pub fn checks_passed(&self) -> u64 {
        self.checks_passed.load(Ordering::Relaxed)
    }

    fn set(&self, fault: Option<&str>) {
        if fault.is_none() {
            self.checks_passed.fetch_add(1, Ordering::Relaxed);
        }
        let mut current = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_deref() != fault {
            match fault {
                Some(fault) => tracing::error!(fault, "node is unhealthy"),
                None => tracing::info!("node is healthy again"),
            }
            *current = fault.map(str::to_owned);
        }
    }
}

/// The parts of the node that are watched.
pub struct Watched {
    /// The actors.
    pub actors: Vec<Vitals>,
    /// The engine thread.
    pub engine: EnginePulse,
    /// The transport's thread, if there is one.
    pub transport: Option<Arc<dyn Transport>>,
}

/// The handle; dropping it ends the thread.
pub struct Watchdog {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Watches until dropped. It checks once more when dropped. It pulls the kill switch `kill` when the engine is lost.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn spawn(watched: Watched, health: NodeHealth, kill: KillSwitch) -> std::io::Result<Self> {
        let (stop, stopped) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("baton-watchdog".into())
            .spawn(move || watch(&watched, &health, &kill, &stopped))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // If the thread panicked, the panic hook has already reported it.
            let _ = thread.join();
        }
    }
}

fn watch(watched: &Watched, health: &NodeHealth, kill: &KillSwitch, stopped: &Receiver<()>) {
    let mut transport = (0, Instant::now());
    while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
        let now = Instant::now();
        let silent = |name, age, limit| Observation { name, age, limit };
        let mut all: Vec<Observation> =
            watched.actors.iter().map(|actor| silent(actor.name(), actor.age(now), LIMIT)).collect();
        all.extend(watched.engine.step(now).map(|(age, limit)| silent("engine", age, limit)));
        if let Some(progress) = watched.transport.as_ref().map(|transport| transport.progress()) {
            if progress != transport.0 {
                transport = (progress, now);
            }
            all.push(silent("transport", now - transport.1, LIMIT));
        }
        let fault = observe(watched.engine.lost(), all);
        health.set(fault.as_ref().map(Fault::text));
        if let Some(Fault::EngineLost(text)) = fault {
            kill.pull(text);
        }
    }
    // The engine may be lost since the last check, with the last request of a drain.
    if let Some(Fault::EngineLost(text)) = observe(watched.engine.lost(), []) {
        kill.pull(text);
    }
}

#[cfg(test)]
mod tests {
    use engine::{CudaError, EngineError};

    use crate::devices::engine_thread::step_times::StepTimes;

    use super::*;

    #[test]
    fn only_checks_without_a_fault_are_counted() {
        let health = NodeHealth::default();
        let counts = [None, Some("engine has made no progress for 9 s"), None].map(|fault| {
            health.set(fault);
            health.checks_passed()
        });
        assert_eq!(counts, [1, 1, 2]);
    }

    #[test]
    fn an_engine_that_is_lost_at_the_end_is_a_fault() {
        let (engine, kill) = (EnginePulse::new(StepTimes::new(0, false)), KillSwitch::default());
        let watched = Watched { actors: Vec::new(), engine: engine.clone(), transport: None };
        let watchdog = Watchdog::spawn(watched, NodeHealth::default(), kill.clone()).expect("a thread");
        engine.lose(&EngineError::Device(CudaError::of_status("cuEventQuery", 700)));
        drop(watchdog);
        assert!(kill.fault().is_some_and(|fault| fault.contains("cuEventQuery")), "{:?}", kill.fault());
    }
}
