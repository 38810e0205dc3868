//! The generator: the scheduler in front of the engine thread.
//!
//! - **Thread**: the node's arbiter; the engine has a thread of its own ([`engine_thread`]).
//! - **Mailbox**: [`kit::MAILBOX`]; sequences are bounded by admission permits and by the pages they hold, and two steps at most are in flight.
//! - **In**: `StartSequence`, `StopSequence` (decoder, prefiller), `ExtendSequence` (decoder); `StepFinished` (engine thread); `Tick`.
//! - **Out**: `SequenceAdvanced` to the owner of each sequence; plans to the engine thread.
//! - **Failure**: an engine error ends the sequence that it belongs to, or else all of its step; their owners say so. When the engine is
//!   lost, every step fails and the watchdog ends the process. A step that does not come back leaves the engine's pulse busy, and the
//!   watchdog turns the node unhealthy; requests end at their deadlines.

pub mod engine_thread;
pub mod state;

use std::time::Instant;

use actix::prelude::*;
use engine::EngineError;

use crate::kit::{self, Outbox, Vitals};
use crate::messages::{ExtendSequence, SequenceAdvanced, SequenceId, StartSequence, StopSequence, Tick};
use engine_thread::{EngineThread, StepFinished};
use state::GeneratorState;

/// The actor.
pub struct Generator {
    state: GeneratorState,
    engine: EngineThread,
    decoder: Outbox<SequenceAdvanced>,
    prefiller: Option<Outbox<SequenceAdvanced>>,
    epoch: Instant,
    vitals: Vitals,
}

impl Generator {
    /// Schedules `state`'s sequences on `engine`; tells `decoder` of own and `prefiller` of peers' requests.
    pub fn new(
        state: GeneratorState,
        engine: EngineThread,
        decoder: Outbox<SequenceAdvanced>,
        prefiller: Option<Outbox<SequenceAdvanced>>,
        vitals: Vitals,
    ) -> Self {
        Self { state, engine, decoder, prefiller, epoch: Instant::now(), vitals }
    }

    fn now_micros(&self) -> u64 {
        self.epoch.elapsed().as_micros() as u64
    }

    fn tell(&self, event: SequenceAdvanced) {
        match (event.sequence, &self.prefiller) {
            (SequenceId::Peer(_), Some(prefiller)) => prefiller.post(event),
            _ => self.decoder.post(event),
        }
    }

    /// Keeps the engine busy.
    fn drive(&mut self) {
        let now = self.now_micros();
        while let Some(plan) = self.state.plan(now) {
            if self.engine.submit(plan) {
                continue;
            }
            while self.state.is_stepping() {
                // Only a panic ends the engine's thread.
                for event in self.state.on_step(Err(EngineError::WorkerPanicked), now) {
                    self.tell(event);
                }
            }
        }
    }
}

impl Actor for Generator {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(kit::MAILBOX);
    }
}

impl Handler<StartSequence> for Generator {
    type Result = ();

    fn handle(&mut self, start: StartSequence, _: &mut Self::Context) {
        self.vitals.mark();
        self.state.on_start(start);
        self.drive();
    }
}

impl Handler<ExtendSequence> for Generator {
    type Result = ();

    fn handle(&mut self, extend: ExtendSequence, _: &mut Self::Context) {
        self.vitals.mark();
        self.state.on_extend(&extend);
        self.drive();
    }
}

impl Handler<StopSequence> for Generator {
    type Result = ();

    fn handle(&mut self, stop: StopSequence, _: &mut Self::Context) {
        self.vitals.mark();
        if let Some(event) = self.state.on_stop(stop.sequence, self.now_micros()) {
            self.tell(event);
        }
    }
}

impl Handler<StepFinished> for Generator {
    type Result = ();

    fn handle(&mut self, step: StepFinished, _: &mut Self::Context) {
        self.vitals.mark();
        for event in self.state.on_step(step.outcome, self.now_micros()) {
            self.tell(event);
        }
        self.drive();
    }
}

impl Handler<Tick> for Generator {
    type Result = ();

    fn handle(&mut self, _: Tick, _: &mut Self::Context) {
        self.vitals.mark();
    }
}
