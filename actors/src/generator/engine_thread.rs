//! The one OS thread that owns the engine. It sleeps on its queue when there is no step; between the steps of a GPU it waits awake for a
//! moment first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use actix::prelude::*;
use engine::{Chunk, Engine, EngineError, Sample, Token};

use super::state::Plan;
use crate::kit::Vitals;

/// Several times what it takes to plan a step.
const AWAKE: Duration = Duration::from_micros(500);

/// Engine thread → generator: the step in flight is over.
#[derive(Clone, Debug, PartialEq, Message)]
#[rtype(result = "()")]
pub struct StepFinished {
    /// Sampled tokens by the engine's key of their sequence, or what the engine said.
    pub outcome: Result<Vec<(u64, Token)>, String>,
}

/// Whether the engine is in a step, and since when: for the watchdog.
#[derive(Clone, Debug)]
pub struct EnginePulse {
    /// Marked when a step begins and when it ends.
    pub vitals: Vitals,
    busy: Arc<AtomicBool>,
}

impl EnginePulse {
    /// The pulse of an idle engine.
    pub fn new() -> Self {
        Self { vitals: Vitals::new("engine"), busy: Arc::default() }
    }

    /// True while a step runs.
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    fn set(&self, busy: bool) {
        self.vitals.mark();
        self.busy.store(busy, Ordering::Relaxed);
    }
}

impl Default for EnginePulse {
    fn default() -> Self {
        Self::new()
    }
}

/// The handle; dropping it ends the thread after its step.
pub struct EngineThread {
    plans: Option<SyncSender<Plan>>,
    thread: Option<JoinHandle<()>>,
}

impl EngineThread {
    /// Moves `engine` to a thread of its own, which answers every plan with one [`StepFinished`].
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn spawn(
        engine: Box<dyn Engine>,
        results: Recipient<StepFinished>,
        pulse: EnginePulse,
    ) -> std::io::Result<Self> {
        // One step is in flight at a time, so one place is enough.
        let (plans, queue) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("baton-engine".into())
            .spawn(move || run(engine, &queue, &results, &pulse))?;
        Ok(Self { plans: Some(plans), thread: Some(thread) })
    }

    /// Hands a step over; false if the thread is gone.
    pub fn submit(&self, plan: Plan) -> bool {
        self.plans.as_ref().is_some_and(|plans| plans.try_send(plan).is_ok())
    }
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        self.plans = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by its hook.
            let _ = thread.join();
        }
    }
}

fn run(
    mut engine: Box<dyn Engine>,
    queue: &Receiver<Plan>,
    results: &Recipient<StepFinished>,
    pulse: &EnginePulse,
) {
    let awake = if engine.runs_elsewhere() { AWAKE } else { Duration::ZERO };
    while let Some(plan) = next(queue, awake) {
        pulse.set(true);
        let outcome = step(engine.as_mut(), &plan).map_err(|error| error.to_string());
        pulse.set(false);
        // Bounded: at most one step is in flight.
        results.do_send(StepFinished { outcome });
    }
}

/// The next plan: one that comes soon is waited for awake, for it is the next step of a batch, and to be woken takes a few percent of one.
fn next(queue: &Receiver<Plan>, awake: Duration) -> Option<Plan> {
    let began = Instant::now();
    while began.elapsed() < awake {
        match queue.try_recv() {
            Ok(plan) => return Some(plan),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => std::hint::spin_loop(),
        }
    }
    queue.recv().ok()
}

fn step(engine: &mut dyn Engine, plan: &Plan) -> Result<Vec<(u64, Token)>, EngineError> {
    engine.acquire(&plan.acquire)?;
    let batch: Vec<Chunk<'_>> = plan
        .chunks
        .iter()
        .map(|chunk| Chunk {
            sequence: chunk.key,
            tokens: &chunk.tokens,
            start: chunk.start,
            pages: &chunk.pages,
            sample: chunk.sample.as_ref().map(|sample| Sample {
                how: &sample.how,
                tokens: &sample.tokens,
                prompt: sample.prompt,
            }),
        })
        .collect();
    let mut step = engine.submit(&batch)?;
    loop {
        if let Some(output) = engine.poll(&mut step)? {
            return Ok(output.tokens.into_iter().map(|sampled| (sampled.sequence, sampled.token)).collect());
        }
        std::hint::spin_loop();
    }
}
