//! Which tokens the engine computes next: the decisions of the generator, without actix, clock or engine.
//!
//! A step mixes decode rows with prefill chunks.
//!
//! **Prompts** share the step's prompt tokens. The shortest prompt goes first, with ageing: a prompt's rank is its length plus the number of
//! prompt tokens that were planned before it arrived. So no later prompt overtakes a prompt once as many prompt tokens were planned after
//! its arrival as it has tokens.
//!
//! **Rows**: a step computes the last token of at most [`StepLimits::rows`] sequences. If more sequences are ready for their next token, they
//! take turns: the sequence that has waited longest since its last step comes first, and among equals the oldest. If a prompt would end in the
//! step but gets no row, its last token is left for a later step.
//!
//! **Running ahead**: one step is in flight at a time, or two if the engine runs ahead. The second step is planned before the samples of the
//! first are known. So each row of the second step takes the token that a row of the first step samples, and the second step contains only
//! sequences that are certain to continue. It is planned only if every sequence is in the first step; otherwise a sequence that arrives in the
//! meantime would wait for both steps.
//!
//! **Pace**: while sequences decode, a step has only as many prompt tokens as [`GeneratorConfig::inter_token_bound`] leaves time for.
//!
//! **Constraints**: the mask of a constrained sample may be late. Then the step samples no token for that sequence, and the last token of the
//! sequence is computed again in a later step. So a slow grammar delays no other sequence.
//!
//! **Ends**: a sequence that ends or is stopped while a step in flight contains it ends when that step returns, because the engine may still
//! write its pages.
//!
//! **Errors**: an engine error fails the sequences in its [scope](EngineError::scope). If the scope is one sequence, the engine has refused the
//! step before it computed anything, and the other sequences are planned again.

mod load;
mod pace;
mod sequence;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use engine::{EngineError, Logprobs, PageId, Scope, StepLimits, Token};

use crate::effect::{Effect, ToGenerator, to};
use crate::finish::FinishRule;
use crate::messages::{
    ExtendSequence, LoadReport, RunStep, SequenceAdvanced, SequenceBegun, SequenceEnd, SequenceId,
    StartSequence, StepResult,
};
use pace::Pace;
use sequence::Sequence;

/// A sequence's part of a step: its key, and how many of its tokens the step computes.
type Part = (u64, u32);

/// A step in flight.
#[derive(Debug)]
struct Flight {
    parts: Vec<Part>,
    /// True if the step before this one failed. This step's tokens are then invalid, and its result is ignored.
    is_void: bool,
    /// Prompt tokens of the step.
    prompt_tokens: u32,
    /// When the step was planned.
    began_micros: u64,
}

impl Flight {
    fn has(&self, key: u64) -> bool {
        self.parts.iter().any(|(part, _)| *part == key)
    }
}

/// The generator's configuration.
#[derive(Clone, Debug)]
pub struct GeneratorConfig {
    /// Maximum number of prompt tokens in a step; at least one.
    pub chunk_tokens: u32,
    /// The engine's limits. `tokens` should be at least 2: one for a prompt and one for a decode row.
    pub limits: StepLimits,
    /// The time that a step with decode rows and prompts should take at most. Prompts get at least 64 tokens of a step nevertheless. `None`:
    /// only `chunk_tokens` limits the prompts.
    pub inter_token_bound: Option<Duration>,
    /// Tokens in a page; at least one.
    pub page_tokens: u32,
    /// When a sequence finishes.
    pub finish: FinishRule,
    /// True if the engine accepts a second step while one runs.
    pub runs_ahead: bool,
}

/// The scheduler. Keys count up, so the lowest key is the oldest sequence.
#[derive(Debug)]
pub struct GeneratorState {
    chunk_tokens: u32,
    pace: Pace,
    limits: StepLimits,
    finish: FinishRule,
    next_key: u64,
    keys: HashMap<SequenceId, u64>,
    sequences: BTreeMap<u64, Sequence>,
    /// Prompt tokens planned so far.
    prefilled: u64,
    /// Steps planned so far.
    steps: u64,
    page_tokens: u32,
    runs_ahead: bool,
    /// The steps in flight, the oldest first.
    flights: VecDeque<Flight>,
    /// When the last step returned.
    returned_micros: u64,
    /// The last report of the load.
    reported: Option<LoadReport>,
    /// When it was made.
    reported_micros: Option<u64>,
    acquire: Vec<PageId>,
    /// Sequences whose first sampling step was planned and is to be announced.
    begun: Vec<SequenceId>,
}

impl GeneratorState {
    /// No sequences.
    pub fn new(config: GeneratorConfig) -> Self {
        let GeneratorConfig { chunk_tokens, inter_token_bound, limits, page_tokens, finish, runs_ahead } =
            config;
        Self {
            chunk_tokens: chunk_tokens.max(1),
            pace: Pace::new(inter_token_bound, chunk_tokens.max(1)),
            limits: StepLimits { tokens: limits.tokens.max(1), rows: limits.rows.max(1) },
            prefilled: 0,
            steps: 0,
            page_tokens: page_tokens.max(1),
            finish,
            next_key: 0,
            keys: HashMap::new(),
            sequences: BTreeMap::new(),
            runs_ahead,
            flights: VecDeque::new(),
            returned_micros: 0,
            reported: None,
            reported_micros: None,
            acquire: Vec::new(),
            begun: Vec::new(),
        }
    }

    /// Sequences that run or wait.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// True if there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// True if this sequence runs or waits.
    pub fn contains(&self, sequence: SequenceId) -> bool {
        self.keys.contains_key(&sequence)
    }

    /// True while a step is in flight.
    pub fn is_stepping(&self) -> bool {
        !self.flights.is_empty()
    }

    /// Handles a message. Returns the events for the sequences' owners, then the plans of the next steps.
    pub fn on(&mut self, now_micros: u64, mail: ToGenerator) -> Vec<Effect> {
        let mut effects: Vec<Effect> = match mail {
            ToGenerator::StartSequence(start) => {
                self.on_start(*start);
                Vec::new()
            }
            ToGenerator::ExtendSequence(extend) => {
                self.on_extend(&extend);
                Vec::new()
            }
            ToGenerator::StopSequence(stop) => {
                return self.on_stop(stop.sequence, now_micros).into_iter().map(advanced).collect();
            }
            ToGenerator::StepFinished(step) => {
                self.on_step(step.outcome, now_micros).into_iter().map(advanced).collect()
            }
            ToGenerator::Tick(_) => return self.report(now_micros),
        };
        while let Some(plan) = self.plan(now_micros) {
            effects.push(to::engine(plan));
        }
        effects.extend(self.begun.drain(..).map(|sequence| to::decoder(SequenceBegun { sequence })));
        effects.extend(self.report_in_time(now_micros));
        effects
    }

    /// A sequence arrives.
    fn on_start(&mut self, start: StartSequence) {
        let key = self.next_key;
        self.next_key += 1;
        if start.resident > 0 {
            self.acquire.extend(&start.pages);
        }
        let rank = self.prefilled + start.tokens.len() as u64 - u64::from(start.resident);
        self.keys.insert(start.sequence, key);
        self.sequences.insert(key, Sequence::new(start, rank, self.steps));
    }

    /// A sequence has more pages. One that has ended is ignored.
    fn on_extend(&mut self, extend: &ExtendSequence) {
        let sequence = self.keys.get(&extend.sequence).and_then(|key| self.sequences.get_mut(key));
        if let Some(sequence) = sequence {
            sequence.pages = sequence.pages.extended(&extend.pages);
        }
    }

    /// Ends a sequence: at once, or when the steps that contain it have returned. One that has ended is ignored.
    fn on_stop(&mut self, sequence: SequenceId, now_micros: u64) -> Option<SequenceAdvanced> {
        let key = *self.keys.get(&sequence)?;
        self.end(key, now_micros, None, SequenceEnd::Stopped)
    }

    /// The next step, if there is work and room for another step in flight.
    fn plan(&mut self, now_micros: u64) -> Option<RunStep> {
        match self.flights.len() {
            0 => self.plan_next(now_micros),
            1 if self.runs_ahead => self.plan_ahead(now_micros),
            _ => None,
        }
    }

    /// Plans the step after the one in flight. Its rows take the tokens that the step in flight samples. It has the late sequences too,
    /// which the step in flight does not contain.
    fn plan_ahead(&mut self, now_micros: u64) -> Option<RunStep> {
        let flight = self.flights.front()?;
        let late = || self.sequences.iter().filter(|(_, sequence)| sequence.is_late);
        if flight.is_void || flight.parts.len() + late().count() < self.sequences.len() {
            return None;
        }
        let mut next = Vec::with_capacity(flight.parts.len());
        for (key, length) in &flight.parts {
            let sequence = &self.sequences[key];
            if sequence.ending.is_some() {
                continue;
            }
            let end = sequence.resident + length;
            if end as usize != sequence.tokens.len() {
                return None;
            }
            let has_room = u64::from(end) < sequence.pages.len() as u64 * u64::from(self.page_tokens);
            if sequence.sample > 1 && has_room {
                next.push((*key, end));
            }
        }
        if next.is_empty() {
            return None;
        }
        let room = self.limits.rows.min(self.limits.tokens) as usize;
        next.extend(late().map(|(key, sequence)| (*key, sequence.resident)));
        next.truncate(room);
        let chunk = |(key, end): &Part| Some(self.sequences.get_mut(key)?.chunk(*key, *end, 1));
        let chunks = next.iter().filter_map(chunk).collect();
        self.launch(now_micros, 0, next.into_iter().map(|(key, _)| (key, 1)).collect());
        Some(RunStep { chunks, acquire: Vec::new() })
    }

    /// Records that a step with these parts is in flight. `prompt_tokens` of its tokens belong to prompts.
    fn launch(&mut self, now_micros: u64, prompt_tokens: u32, parts: Vec<Part>) {
        self.steps += 1;
        for (key, length) in &parts {
            if let Some(sequence) = self.sequences.get_mut(key) {
                sequence.step = self.steps;
                sequence.flights += 1;
                sequence.is_late = false;
                if *length >= sequence.missing() && std::mem::take(&mut sequence.announce) {
                    self.begun.push(sequence.name);
                }
            }
        }
        self.flights.push_back(Flight { parts, is_void: false, prompt_tokens, began_micros: now_micros });
    }

    fn plan_next(&mut self, now_micros: u64) -> Option<RunStep> {
        let parts = self.choose();
        if parts.is_empty() {
            // Every sequence waits for pages, or there is none.
            return None;
        }
        let mut chunks = Vec::with_capacity(parts.len());
        let mut prompt_tokens = 0;
        for (key, length) in &parts {
            let Some(sequence) = self.sequences.get_mut(key) else { continue };
            if sequence.missing() > 1 {
                prompt_tokens += *length;
            }
            sequence.began_micros.get_or_insert(now_micros);
            chunks.push(sequence.chunk(*key, sequence.resident, *length));
        }
        self.prefilled += u64::from(prompt_tokens);
        self.launch(now_micros, prompt_tokens, parts);
        Some(RunStep { chunks, acquire: std::mem::take(&mut self.acquire) })
    }

    /// The parts of the next step: prompts by rank, then the decode rows that have waited longest.
    fn choose(&self) -> Vec<Part> {
        let fits = |sequence: &Sequence| {
            let next = if sequence.missing() == 1 { sequence.tokens.len() } else { 0 };
            next as u64 <= sequence.pages.len() as u64 * u64::from(self.page_tokens)
        };
        let ready = self.sequences.iter().filter(|(_, sequence)| fits(sequence));
        let (decoding, mut prompts): (Vec<_>, Vec<_>) =
            ready.partition(|(_, sequence)| sequence.missing() == 1);
        prompts.sort_by_key(|(key, sequence)| (sequence.rank, **key));
        // Prompts leave one token for decode rows, so that prompts do not starve them.
        let for_rows = u32::from(!decoding.is_empty());
        let mut prompt_room = self.chunk_tokens.min(self.limits.tokens - for_rows);
        if !decoding.is_empty() {
            prompt_room = prompt_room.min(self.pace.prompt_tokens());
        }
        let mut room = self.limits.tokens;
        let mut rows = self.limits.rows;
        // Decode rows keep half of the rows while prompts are scored, and the only row of an engine with one.
        let mut rows_to_score = if decoding.is_empty() { rows } else { rows / 2 };
        let mut parts: Vec<Part> = Vec::new();
        // Sequences that need a row: their last step, their key, and, for a prompt, its index in `parts`.
        let mut wanted: Vec<(u64, u64, Option<usize>)> =
            decoding.into_iter().map(|(key, sequence)| (sequence.step, *key, None)).collect();
        for (key, sequence) in prompts {
            let length = sequence.missing().min(prompt_room);
            if length == 0 {
                break;
            }
            let scored = sequence.scored_rows(length);
            // All but the last token of the prompt take a row each.
            let length = if scored > rows_to_score { rows_to_score } else { length };
            let scored = scored.min(rows_to_score);
            if length == 0 {
                continue;
            }
            (rows_to_score, rows) = (rows_to_score - scored, rows - scored);
            (room, prompt_room) = (room - length, prompt_room - length);
            if length == sequence.missing() {
                wanted.push((sequence.step, *key, Some(parts.len())));
            }
            parts.push((*key, length));
        }
        wanted.sort_unstable();
        for (_, key, prompt) in wanted {
            match prompt {
                // A prompt has at least two missing tokens, so its part keeps at least one.
                Some(index) if rows == 0 => parts[index].1 -= 1,
                Some(_) => rows -= 1,
                None if rows > 0 && room > 0 => {
                    (room, rows) = (room - 1, rows - 1);
                    parts.push((key, 1));
                }
                None => {}
            }
        }
        parts
    }

    /// The oldest step in flight returned its result, or failed.
    fn on_step(
        &mut self,
        outcome: Result<StepResult, EngineError>,
        now_micros: u64,
    ) -> Vec<SequenceAdvanced> {
        let Some(flight) = self.flights.pop_front() else { return Vec::new() };
        let (result, error) = match outcome {
            _ if flight.is_void => (StepResult::default(), None),
            Ok(result) => (result, None),
            Err(error) => (StepResult::default(), Some(error)),
        };
        let StepResult { tokens, scores, late, refused } = result;
        let mut scores: HashMap<u64, Vec<Logprobs>> = scores.into_iter().collect();
        let mut sampled: HashMap<u64, Token> = tokens.into_iter().collect();
        if error.is_some() {
            self.flights.iter_mut().for_each(|next| next.is_void = true);
        }
        let is_computed = error.is_none() && !flight.is_void;
        self.measure(&flight, is_computed, now_micros);
        let culprit = match error.as_ref().map(EngineError::scope) {
            Some(Scope::Sequence(key)) if flight.has(key) => Some(key),
            _ => None,
        };
        let mut events = Vec::with_capacity(flight.parts.len());
        for (key, length) in flight.parts {
            let sequence = self.sequences.get_mut(&key).expect("a sequence in flight is not removed");
            sequence.flights -= 1;
            let computed = sequence.resident + length;
            let is_known = computed as usize <= sequence.tokens.len();
            if is_computed && is_known && matches!(sequence.ending, Some((_, SequenceEnd::Stopped))) {
                // It may resume after these tokens.
                sequence.resident = computed;
            }
            if let Some((token, end)) = sequence.ending.take() {
                events.extend(self.end(key, now_micros, token, end));
                continue;
            }
            if let Some(error) = error.as_ref().filter(|_| culprit.is_none_or(|culprit| culprit == key)) {
                events.extend(self.end(key, now_micros, None, SequenceEnd::Failed(error.to_string())));
                continue;
            }
            if !is_computed {
                // It is planned again.
                continue;
            }
            if let Some(prompt_logprobs) = scores.remove(&key) {
                events
                    .push(SequenceAdvanced { prompt_logprobs, ..sequence.advanced(now_micros, None, None) });
            }
            if let Some((_, error)) = refused.iter().find(|(refused, _)| *refused == key) {
                events.extend(self.end(key, now_micros, None, SequenceEnd::GrammarFailed(error.to_string())));
                continue;
            }
            if late.contains(&key) {
                // Its last token is computed again, to sample the token after it. A step in flight that follows this one has left the
                // sequence out.
                (sequence.resident, sequence.flights, sequence.is_late) = (computed - 1, 0, true);
                self.flights.iter_mut().for_each(|next| next.parts.retain(|(part, _)| *part != key));
                continue;
            }
            sequence.resident = computed;
            let Some(token) = sampled.remove(&key) else {
                events.push(sequence.advanced(now_micros, None, None));
                continue;
            };
            sequence.push(token.id);
            sequence.sample -= 1;
            match self.finish.reason(token.id, sequence.ignore_eos, sequence.sample) {
                Some(reason) => {
                    events.extend(self.end(key, now_micros, Some(token), SequenceEnd::Finished(reason)));
                }
                None => events.push(sequence.advanced(now_micros, Some(token), None)),
            }
        }
        events
    }

    /// A step has returned. Of two steps in flight, the second began to run when the first returned.
    fn measure(&mut self, flight: &Flight, is_computed: bool, now_micros: u64) {
        let began = flight.began_micros.max(self.returned_micros);
        self.returned_micros = now_micros;
        if is_computed {
            let tokens: u32 = flight.parts.iter().map(|(_, length)| length).sum();
            let rows = tokens - flight.prompt_tokens;
            self.pace.measured(flight.prompt_tokens, rows, now_micros.saturating_sub(began));
        }
    }

    /// Ends a sequence: now, or when no step in flight contains it. The first end counts.
    fn end(
        &mut self,
        key: u64,
        now_micros: u64,
        token: Option<Token>,
        end: SequenceEnd,
    ) -> Option<SequenceAdvanced> {
        let sequence = self.sequences.get_mut(&key)?;
        if sequence.flights > 0 {
            sequence.ending.get_or_insert((token, end));
            return None;
        }
        let sequence = self.sequences.remove(&key)?;
        self.keys.remove(&sequence.name);
        Some(sequence.advanced(now_micros, token, Some(end)))
    }
}

/// Addresses the event to the sequence's owner.
fn advanced(event: SequenceAdvanced) -> Effect {
    match event.sequence {
        SequenceId::Own(_) => to::decoder(event),
        SequenceId::Peer(_) => to::prefiller(event),
    }
}

#[cfg(test)]
mod tests;
