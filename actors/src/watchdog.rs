//! The watchdog: looks at every pulse and turns the node unhealthy when one stops or the engine is lost.
//!
//! - **Thread**: one of its own, so that nothing it watches can stop it. It is not an actix actor for that reason.
//! - **Mailbox**: none; it reads atomics.
//! - **In**: [`Vitals`] of every actor, the engine's [`EnginePulse`], the transport's progress counter. How long a step of the engine may take
//!   follows from those measured ([`step_times`]).
//! - **Out**: [`NodeHealth`], which `/health` and the peer link read, and one log line a change; the [`KillSwitch`], when the engine is lost.
//! - **Failure**: it has no state worth keeping and touches nothing that could fail.

pub mod engine_pulse;
pub mod state;
pub mod step_times;

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use connector::transport::Transport;

use crate::kit::{KillSwitch, Vitals};
use engine_pulse::EnginePulse;
use state::{Fault, Observation, observe};

/// How often every pulse is looked at: as often as actors are ticked, so that a lost engine is known before much is sent to it.
const PERIOD: Duration = Duration::from_millis(250);

/// How long an actor, which is ticked four times a second, or the transport's thread may go without a mark.
const LIMIT: Duration = Duration::from_secs(5);

/// What is wrong with this node, if anything. Cheap to clone; clones share it.
#[derive(Clone, Debug, Default)]
pub struct NodeHealth {
    fault: Arc<Mutex<Option<String>>>,
}

impl NodeHealth {
    /// One sentence, or `None` if all is well.
    pub fn fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, fault: Option<&str>) {
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

/// Everything that is watched.
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
    /// Watches until dropped, and ends the process by `faults` when the engine is lost.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn spawn(watched: Watched, health: NodeHealth, faults: KillSwitch) -> std::io::Result<Self> {
        let (stop, stopped) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("baton-watchdog".into())
            .spawn(move || watch(&watched, &health, &faults, &stopped))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by its hook.
            let _ = thread.join();
        }
    }
}

fn watch(watched: &Watched, health: &NodeHealth, faults: &KillSwitch, stopped: &Receiver<()>) {
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
            faults.pull(text);
        }
    }
}
