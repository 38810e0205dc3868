//! The OS thread that owns the engine. Without a step it sleeps on its queue. If the engine runs ahead, the thread busy-polls the queue for a
//! moment after a step before it sleeps.

mod flight;
pub mod step_times;

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use actix::prelude::*;
use engine::{Engine, EngineError, Scope};

use super::mask_threads::MaskThreads;
use crate::effect::ToGenerator;
use crate::kit::AWAKE;
use crate::messages::{RunStep, StepFinished};
use flight::Flight;
use step_times::StepTimes;

/// The engine's state for the watchdog: the running step, its start, its time limit, and whether the engine is lost. Clones share it.
#[derive(Clone, Debug)]
pub struct EnginePulse {
    steps: Arc<Mutex<Steps>>,
    lost: Arc<OnceLock<String>>,
}

#[derive(Debug)]
struct Steps {
    /// The start of the running step, and its number of tokens.
    running: Option<(Instant, u32)>,
    times: StepTimes,
}

impl EnginePulse {
    /// The pulse of an idle engine whose step limits come from `times`.
    pub fn new(times: StepTimes) -> Self {
        Self { steps: Arc::new(Mutex::new(Steps { running: None, times })), lost: Arc::default() }
    }

    fn steps(&self) -> MutexGuard<'_, Steps> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the running step has taken, and its time limit. `None` if no step runs.
    pub fn step(&self, now: Instant) -> Option<(Duration, Duration)> {
        let steps = self.steps();
        let (began, tokens) = steps.running?;
        Some((now.saturating_duration_since(began), steps.times.limit(tokens)))
    }

    /// Why the engine cannot compute any more, and what to do about it; `None` while it can.
    pub fn lost(&self) -> Option<&str> {
        self.lost.get().map(String::as_str)
    }

    pub(crate) fn lose(&self, error: &EngineError) {
        let remedy = "this process cannot use the GPU any more: restart it; if this happens again, check the GPU with nvidia-smi and look for Xid errors in the kernel log";
        // Only the first error is kept.
        let _ = self.lost.set(format!("{error}; {remedy}"));
    }

    /// A step of `tokens` tokens begins.
    fn begin(&self, now: Instant, tokens: u32) {
        self.steps().running = Some((now, tokens));
    }

    /// The running step has ended.
    fn end(&self, now: Instant) {
        let mut steps = self.steps();
        if let Some((began, tokens)) = steps.running.take() {
            steps.times.measured(tokens, now.saturating_duration_since(began));
        }
    }
}

/// The handle. Dropping it ends the thread after its running step.
pub struct EngineThread {
    plans: Option<SyncSender<RunStep>>,
    thread: Option<JoinHandle<()>>,
}

impl EngineThread {
    /// Moves `engine` to a new thread, which answers every plan with one [`StepFinished`].
    ///
    /// # Errors
    /// The operating system cannot start a thread.
    pub fn spawn(
        engine: Box<dyn Engine>,
        results: Recipient<ToGenerator>,
        pulse: EnginePulse,
    ) -> std::io::Result<Self> {
        // At most two steps are in flight.
        let (plans, queue) = sync_channel(2);
        let thread = std::thread::Builder::new()
            .name("baton-engine".into())
            .spawn(move || run(engine, &queue, &results, &pulse))?;
        Ok(Self { plans: Some(plans), thread: Some(thread) })
    }

    /// Queues a step. Returns false if the thread has ended.
    pub fn submit(&self, plan: RunStep) -> bool {
        self.plans.as_ref().is_some_and(|plans| plans.try_send(plan).is_ok())
    }
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        self.plans = None;
        if let Some(thread) = self.thread.take() {
            // If the thread panicked, the panic hook has already reported it.
            let _ = thread.join();
        }
    }
}

fn run(
    mut engine: Box<dyn Engine>,
    queue: &Receiver<RunStep>,
    results: &Recipient<ToGenerator>,
    pulse: &EnginePulse,
) {
    let (awake, most) = if engine.runs_ahead() { (AWAKE, 2) } else { (Duration::ZERO, 1) };
    let engine = engine.as_mut();
    let mut masks = MaskThreads::default();
    let mut running: VecDeque<Flight> = VecDeque::new();
    // Chunks of the last submitted step that sampled no token.
    let mut unsampled = Vec::new();
    // Once set, the engine is not called any more, and every step fails with this error.
    let mut lost: Option<EngineError> = None;
    loop {
        let has_room = running.len() < most && running.back().is_none_or(|flight| flight.is_sampled);
        let plan = match running.len() {
            0 => match next(queue, awake) {
                Some(plan) => Some(plan),
                None => return,
            },
            _ if has_room => queue.try_recv().ok(),
            _ => None,
        };
        if let Some(plan) = plan {
            let tokens = plan.chunks.iter().map(|chunk| chunk.tokens.len() as u32).sum();
            if running.is_empty() {
                pulse.begin(Instant::now(), tokens);
            }
            let flight = match &lost {
                None => Flight::submit(engine, &plan, tokens, &unsampled, &mut masks),
                Some(error) => Flight::failed(tokens, error.clone()),
            };
            unsampled = flight.unsampled();
            running.push_back(flight);
        }
        if let Some(newest) = running.back_mut().filter(|flight| !flight.is_sampled) {
            newest.sample(engine);
            if newest.is_sampled {
                unsampled = newest.unsampled();
            }
        }
        let Some(oldest) = running.front_mut() else { continue };
        let Some(outcome) = oldest.poll(engine) else {
            std::hint::spin_loop();
            continue;
        };
        match &outcome {
            Ok(result) => oldest.tell(result, &mut masks),
            Err(error) => {
                // The tokens of a failed step are not told, so no constrained row can follow it.
                unsampled.extend(oldest.constrained());
                if error.scope() == Scope::Engine {
                    pulse.lose(error);
                    running.iter_mut().for_each(|flight| flight.fail(error.clone()));
                    lost = Some(error.clone());
                }
            }
        }
        running.pop_front();
        if outcome.is_err() {
            // The generator discards what the later step samples.
            running.iter_mut().filter(|flight| !flight.is_sampled).for_each(|flight| flight.give_up(engine));
        }
        let now = Instant::now();
        pulse.end(now);
        if let Some(flight) = running.front() {
            pulse.begin(now, flight.tokens);
        }
        // `do_send` ignores the mailbox's bound; at most two steps are in flight.
        results.do_send(StepFinished { outcome }.into());
    }
}

/// The next plan. Busy-polls for `awake` first, because the next step of a batch usually arrives soon and a wake-up costs a few percent of a
/// step.
fn next(queue: &Receiver<RunStep>, awake: Duration) -> Option<RunStep> {
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

#[cfg(test)]
mod tests;
