//! The one OS thread that owns the engine. It sleeps on its queue when there is no step; after a step of an engine that runs ahead it waits
//! awake for a moment first.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use actix::prelude::*;
use engine::{Chunk, Engine, EngineError, Sample, Scope, Step, StepOutput, Token};

use super::state::Plan;
use crate::effect::ToGenerator;
use crate::kit::AWAKE;
use crate::watchdog::engine_pulse::EnginePulse;

/// Engine thread → generator: the oldest step in flight is over.
#[derive(Clone, Debug, PartialEq)]
pub struct StepFinished {
    /// Sampled tokens by the engine's key of their sequence, or the engine's error.
    pub outcome: Result<Vec<(u64, Token)>, EngineError>,
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
        results: Recipient<ToGenerator>,
        pulse: EnginePulse,
    ) -> std::io::Result<Self> {
        // Of two steps in flight one may wait here while the other runs.
        let (plans, queue) = sync_channel(2);
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
    results: &Recipient<ToGenerator>,
    pulse: &EnginePulse,
) {
    let (awake, most) = if engine.runs_ahead() { (AWAKE, 2) } else { (Duration::ZERO, 1) };
    // Tokens of the steps that run, and the steps, or the engine's error instead.
    let mut running: VecDeque<(u32, Result<Step, EngineError>)> = VecDeque::new();
    // Once the engine is lost it is not called any more, and every step fails with this error.
    let mut lost: Option<EngineError> = None;
    loop {
        let plan = match running.len() {
            0 => match next(queue, awake) {
                Some(plan) => Some(plan),
                None => return,
            },
            steps if steps < most => queue.try_recv().ok(),
            _ => None,
        };
        if let Some(plan) = plan {
            let tokens = plan.chunks.iter().map(|chunk| chunk.tokens.len() as u32).sum();
            if running.is_empty() {
                pulse.begin(Instant::now(), tokens);
            }
            let step = match &lost {
                None => submit(engine.as_mut(), &plan),
                Some(error) => Err(error.clone()),
            };
            running.push_back((tokens, step));
        }
        let outcome = match running.pop_front() {
            Some((tokens, Ok(mut step))) => match engine.poll(&mut step).transpose() {
                Some(outcome) => outcome,
                None => {
                    running.push_front((tokens, Ok(step)));
                    std::hint::spin_loop();
                    continue;
                }
            },
            Some((_, Err(error))) => Err(error),
            None => continue,
        };
        if let Err(error) = &outcome
            && error.scope() == Scope::Engine
        {
            pulse.lose(error);
            running.iter_mut().for_each(|(_, step)| *step = Err(error.clone()));
            lost = Some(error.clone());
        }
        let now = Instant::now();
        pulse.end(now);
        if let Some((tokens, _)) = running.front() {
            pulse.begin(now, *tokens);
        }
        let tokens = |output: StepOutput| {
            output.tokens.into_iter().map(|sampled| (sampled.sequence, sampled.token)).collect()
        };
        // Bounded: at most two steps are in flight.
        results.do_send(StepFinished { outcome: outcome.map(tokens) }.into());
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

fn submit(engine: &mut dyn Engine, plan: &Plan) -> Result<Step, EngineError> {
    engine.acquire(&plan.acquire)?;
    let batch: Vec<Chunk<'_>> = plan
        .chunks
        .iter()
        .map(|chunk| Chunk {
            sequence: chunk.key,
            tokens: &chunk.tokens,
            source: chunk.source,
            start: chunk.start,
            pages: &chunk.pages,
            sample: chunk.sample.as_ref().map(|sample| Sample {
                how: &sample.how,
                tokens: &sample.tokens,
                prompt: sample.prompt,
            }),
        })
        .collect();
    engine.submit(&batch)
}
