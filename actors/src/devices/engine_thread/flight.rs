//! A step in flight on the engine's thread, and the masks that it waits for.

use std::collections::HashMap;
use std::sync::{Arc, RwLockReadGuard};
use std::time::{Duration, Instant};

use engine::{Chunk, Engine, EngineError, Sample, Score, Step, StepOutput, TokenSource};

use crate::constraint::Constraint;
use crate::devices::mask_threads::MaskThreads;
use crate::grammar::{GrammarError, TokenMask};
use crate::messages::{PlannedChunk, RunStep, StepResult};

/// The longest single wait for a mask. The thread looks at the engine in between.
const WAIT: Duration = Duration::from_micros(500);

/// The longest time that a step waits only for masks. Then all its constrained rows are late, and the deadlines of their requests apply.
const PATIENCE: Duration = Duration::from_secs(1);

/// A chunk whose sample needs a mask.
struct ConstrainedRow {
    key: u64,
    constraint: Arc<Constraint>,
    /// Tokens after the prompt before the sampled one.
    count: usize,
}

/// A step in flight.
pub(super) struct Flight {
    /// Tokens of the step.
    pub(super) tokens: u32,
    /// The step, or why it was not submitted or not sampled.
    step: Result<Step, EngineError>,
    rows: Vec<ConstrainedRow>,
    /// Some samples of the step need no mask.
    has_plain: bool,
    /// The samples have been taken. Before, the step waits for masks.
    pub(super) is_sampled: bool,
    began: Instant,
    /// When the step was first seen to wait for nothing but masks.
    computed: Option<Instant>,
    result: StepResult,
}

impl Flight {
    /// A step of `tokens` tokens that was not submitted.
    pub(super) fn failed(tokens: u32, error: EngineError) -> Self {
        Self::new(tokens, Vec::new(), false, Err(error))
    }

    fn new(tokens: u32, rows: Vec<ConstrainedRow>, has_plain: bool, step: Result<Step, EngineError>) -> Self {
        let is_sampled = rows.is_empty() || step.is_err();
        let (began, computed, result) = (Instant::now(), None, StepResult::default());
        Self { tokens, step, rows, has_plain, is_sampled, began, computed, result }
    }

    /// Submits a planned step and has its masks computed. `unsampled` are the chunks that the step before did not sample: chunks that
    /// follow them are left out.
    pub(super) fn submit(
        engine: &mut dyn Engine,
        plan: &RunStep,
        tokens: u32,
        unsampled: &[u64],
        masks: &mut MaskThreads,
    ) -> Self {
        let is_left_out =
            |chunk: &PlannedChunk| chunk.source == TokenSource::Follows && unsampled.contains(&chunk.key);
        let (left_out, chunks): (Vec<_>, Vec<_>) = plan.chunks.iter().partition(|chunk| is_left_out(chunk));
        let rows: Vec<ConstrainedRow> = chunks.iter().filter_map(|chunk| row(chunk, masks)).collect();
        let samples = chunks.iter().filter(|chunk| chunk.sample.is_some()).count();
        let histories: Vec<_> = chunks.iter().map(|chunk| history(chunk)).collect();
        let tokens_of =
            histories.iter().map(|history| history.as_ref().map_or(&[][..], |tokens| &tokens[..]));
        let batch: Vec<Chunk<'_>> =
            chunks.into_iter().zip(tokens_of).map(|(chunk, history)| engine_chunk(chunk, history)).collect();
        let submitted = engine.acquire(&plan.acquire).and_then(|()| match batch.is_empty() {
            true => Ok(Step::finished(StepOutput::default())),
            false => engine.submit(&batch),
        });
        let has_plain = samples > rows.len();
        let mut flight = Self::new(tokens, rows, has_plain, submitted);
        flight.result.late.extend(left_out.iter().map(|chunk| chunk.key));
        flight
    }

    /// Chunks that sampled no token.
    pub(super) fn unsampled(&self) -> Vec<u64> {
        let refused = self.result.refused.iter().map(|(key, _)| *key);
        self.result.late.iter().copied().chain(refused).collect()
    }

    /// All constrained chunks.
    pub(super) fn constrained(&self) -> Vec<u64> {
        self.rows.iter().map(|row| row.key).collect()
    }

    /// Takes the samples if their masks are ready. Samples without a mask wait for no mask once the engine has computed their logits: then the
    /// rows whose masks are missing are late. Rows that all need a mask wait for each other, as long again as the engine needed. If no mask is
    /// ready, they wait longer, at most [`PATIENCE`].
    pub(super) fn sample(&mut self, engine: &mut dyn Engine) {
        let Ok(step) = &mut self.step else { return };
        let masks: Vec<Option<Result<TokenMask, GrammarError>>> =
            self.rows.iter().map(|row| row.constraint.mask(row.count)).collect();
        if let Some(missing) = masks.iter().position(Option::is_none) {
            match engine.is_computed(step) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return self.fail(error),
            }
            let now = Instant::now();
            let computed = *self.computed.get_or_insert(now);
            let (waited, took) = (now - computed, computed - self.began);
            let is_patient = waited < took || (waited < PATIENCE && masks.iter().all(Option::is_none));
            if !self.has_plain && is_patient {
                let row = &self.rows[missing];
                return row.constraint.wait(row.count, WAIT);
            }
        }
        self.take(engine, &masks);
    }

    /// Takes the samples without masks, because the step before failed, and so the tokens that the masks depend on will not be known.
    pub(super) fn give_up(&mut self, engine: &mut dyn Engine) {
        let none: Vec<_> = self.rows.iter().map(|_| None).collect();
        self.take(engine, &none);
    }

    fn take(&mut self, engine: &mut dyn Engine, masks: &[Option<Result<TokenMask, GrammarError>>]) {
        let Ok(step) = &mut self.step else { return };
        let words = |mask: &Option<Result<TokenMask, GrammarError>>| match mask {
            Some(Ok(mask)) => Some(Arc::clone(mask)),
            Some(Err(_)) | None => None,
        };
        let words: Vec<Option<TokenMask>> = masks.iter().map(words).collect();
        if let Err(error) = engine.sample(step, &words) {
            return self.fail(error);
        }
        self.is_sampled = true;
        for (row, mask) in self.rows.iter().zip(masks) {
            match mask {
                Some(Ok(_)) => {}
                Some(Err(error)) => self.result.refused.push((row.key, error.clone())),
                None => self.result.late.push(row.key),
            }
        }
    }

    /// The step ends with this error.
    pub(super) fn fail(&mut self, error: EngineError) {
        self.step = Err(error);
        self.is_sampled = true;
    }

    /// The outcome, if the step has ended.
    pub(super) fn poll(&mut self, engine: &mut dyn Engine) -> Option<Result<StepResult, EngineError>> {
        if !self.is_sampled {
            return None;
        }
        let output = match &mut self.step {
            Ok(step) => engine.poll(step).transpose()?,
            Err(error) => Err(error.clone()),
        };
        Some(output.map(|output| {
            let tokens = output.tokens.into_iter().map(|sampled| (sampled.sequence, sampled.token)).collect();
            let scores = output.scores.into_iter().map(|scored| (scored.sequence, scored.targets)).collect();
            StepResult { tokens, scores, ..std::mem::take(&mut self.result) }
        }))
    }

    /// Tells the constraints the tokens that the step sampled.
    pub(super) fn tell(&self, result: &StepResult, masks: &mut MaskThreads) {
        if self.rows.is_empty() {
            return;
        }
        let tokens: HashMap<u64, u32> = result.tokens.iter().map(|(key, token)| (*key, token.id)).collect();
        for row in &self.rows {
            let Some(token) = tokens.get(&row.key) else { continue };
            if row.constraint.tell(row.count, &[*token]) {
                masks.work_on(Arc::clone(&row.constraint));
            }
        }
    }
}

/// The constrained row of a chunk, if its sample is constrained. Has its mask computed.
fn row(chunk: &PlannedChunk, masks: &mut MaskThreads) -> Option<ConstrainedRow> {
    let sample = chunk.sample.as_ref()?;
    let planned = sample.constraint.as_ref()?;
    let constraint = Arc::clone(&planned.constraint);
    if constraint.tell(0, &planned.tokens) {
        masks.work_on(Arc::clone(&constraint));
    }
    let end = chunk.start as usize + chunk.tokens.len();
    Some(ConstrainedRow { key: chunk.key, constraint, count: end.saturating_sub(sample.prompt as usize) })
}

/// The tokens of a chunk's sequence, if its sample looks back at them.
fn history(chunk: &PlannedChunk) -> Option<RwLockReadGuard<'_, Vec<u32>>> {
    Some(chunk.sample.as_ref()?.history.as_ref()?.read())
}

/// The chunk of a sequence with these tokens.
fn engine_chunk<'a>(chunk: &'a PlannedChunk, history: &'a [u32]) -> Chunk<'a> {
    Chunk {
        sequence: chunk.key,
        tokens: &chunk.tokens,
        source: chunk.source,
        start: chunk.start,
        pages: &chunk.pages,
        sample: chunk.sample.as_ref().map(|sample| Sample {
            how: &sample.how,
            tokens: history,
            prompt: sample.prompt,
            constrained: sample.constraint.is_some(),
        }),
        score: chunk.score.as_ref().map(|score| Score { targets: &score.targets, top: score.top }),
    }
}
