//! Which tokens the engine computes next: the decisions of the generator, without actix, clock or engine.
//!
//! A step mixes decode rows of sequences that are past their prompt with prefill chunks of those that are not.
//!
//! **Prompts** share the step's prompt tokens. The shortest prompt goes first, with ageing: a prompt's rank is its length plus the number of
//! prompt tokens prefilled before it came. So once as many prompt tokens have been prefilled as a prompt has itself, no later prompt
//! overtakes it.
//!
//! **Rows**: a step computes the last token of at most [`StepLimits::rows`] sequences. Where more sequences wait for their next token, they
//! take turns: those that were in a step longest ago come first, the oldest first among equals. A prompt that would end in the step and gets
//! no row leaves its last token for a later step.
//!
//! One step is in flight at a time; of an engine that runs ahead, two. The second is planned before the samples of the first are known, so
//! each of its rows *follows* one of the first, and it has only sequences that certainly go on. It is planned only while every sequence is
//! in the first, because a sequence that arrives meanwhile waits for both.
//!
//! A sequence that ends or is stopped while it is in a step ends when that step comes back: until then the engine may be writing its pages.
//!
//! An engine error fails the sequences that it [belongs to](EngineError::scope). If that is one, the step was refused before anything was
//! computed: the others are planned again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use engine::{EngineError, PageId, Sampling, Scope, StepLimits, Token, TokenSource};

use crate::effect::{Effect, ToGenerator, to};
use crate::messages::{
    ExtendSequence, Plan, PlannedChunk, PlannedSample, SequenceAdvanced, SequenceEnd, SequenceId,
    StartSequence,
};
use crate::request::FinishReason;

#[derive(Debug)]
struct Sequence {
    name: SequenceId,
    tokens: Vec<u32>,
    resident: u32,
    pages: Arc<[PageId]>,
    prompt: u32,
    /// Tokens from here on are computed one by one as they are sampled; those before, as a prompt, also if they were sampled once.
    sampled_from: u32,
    sample: u32,
    sampling: Arc<Sampling>,
    ignore_eos: bool,
    /// How it ended, and its last token, once it has: said when no step holds it any more.
    ending: Option<(Option<Token>, SequenceEnd)>,
    /// Of prompts, the lowest goes first.
    rank: u64,
    /// The last step that it was in, or the last one before it came. The lowest gets a row first.
    step: u64,
    /// Steps in flight that it is in.
    flights: u32,
    /// When its first step was planned, on the caller's clock.
    began_micros: Option<u64>,
}

impl Sequence {
    fn planned_sample(&self) -> PlannedSample {
        let tokens = if self.sampling.looks_back() { self.tokens.clone() } else { Vec::new() };
        PlannedSample { how: self.sampling.clone(), tokens, prompt: self.prompt }
    }

    fn missing(&self) -> u32 {
        self.tokens.len() as u32 - self.resident
    }

    /// A chunk of `length` tokens from `start`, or the one token that will be there.
    fn chunk(&self, key: u64, start: u32, length: u32) -> PlannedChunk {
        let (from, end) = (start as usize, (start + length) as usize);
        let source = match self.tokens.get(from) {
            None => TokenSource::Follows,
            Some(_) if start >= self.sampled_from => TokenSource::Sampled,
            Some(_) => TokenSource::Prompt,
        };
        PlannedChunk {
            key,
            tokens: if source == TokenSource::Follows { vec![0] } else { self.tokens[from..end].to_vec() },
            source,
            start,
            pages: Arc::clone(&self.pages),
            sample: (end >= self.tokens.len()).then(|| self.planned_sample()),
        }
    }

    fn advanced(
        &self,
        now_micros: u64,
        token: Option<Token>,
        ended: Option<SequenceEnd>,
    ) -> SequenceAdvanced {
        SequenceAdvanced {
            sequence: self.name,
            resident: self.resident,
            token,
            running_micros: now_micros.saturating_sub(self.began_micros.unwrap_or(now_micros)),
            ended,
        }
    }
}

/// A sequence's part of a step: its key, and how many tokens of it are computed.
type Part = (u64, u32);

/// A step in flight.
#[derive(Debug)]
struct Flight {
    parts: Vec<Part>,
    /// The step before it failed, so its rows follow nothing: whatever it gives is ignored.
    is_void: bool,
}

impl Flight {
    fn has(&self, key: u64) -> bool {
        self.parts.iter().any(|(part, _)| *part == key)
    }
}

/// The scheduler. Keys count up, so the lowest key is the oldest sequence.
#[derive(Debug)]
pub struct GeneratorState {
    chunk_tokens: u32,
    limits: StepLimits,
    eos_tokens: Vec<u32>,
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
    acquire: Vec<PageId>,
}

impl GeneratorState {
    /// No sequences. A step has at most `chunk_tokens` of prompts, and keeps the engine's `limits`, of which `tokens` should be at least 2:
    /// one for a prompt and one for a row. Pages have `page_tokens`, and `eos_tokens` end a sequence. The engine takes a second step while
    /// one runs if it `runs_ahead`.
    pub fn new(
        chunk_tokens: u32,
        limits: StepLimits,
        page_tokens: u32,
        eos_tokens: Vec<u32>,
        runs_ahead: bool,
    ) -> Self {
        Self {
            chunk_tokens: chunk_tokens.max(1),
            limits: StepLimits { tokens: limits.tokens.max(1), rows: limits.rows.max(1) },
            prefilled: 0,
            steps: 0,
            page_tokens: page_tokens.max(1),
            eos_tokens,
            next_key: 0,
            keys: HashMap::new(),
            sequences: BTreeMap::new(),
            runs_ahead,
            flights: VecDeque::new(),
            acquire: Vec::new(),
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

    /// True while a step is in flight.
    pub fn is_stepping(&self) -> bool {
        !self.flights.is_empty()
    }

    /// Takes a message. A message that gives the engine work is followed by the plans of its next steps.
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
            ToGenerator::Tick(_) => return Vec::new(),
        };
        while let Some(plan) = self.plan(now_micros) {
            effects.push(to::engine(plan));
        }
        effects
    }

    /// Takes a sequence in.
    fn on_start(&mut self, start: StartSequence) {
        let key = self.next_key;
        self.next_key += 1;
        if start.resident > 0 {
            self.acquire.extend(&start.pages);
        }
        let tokens = start.tokens.len() as u32;
        // Of what is resumed all that is missing is a prompt; whether a lone token is left of it depends on the room in a step.
        let sampled_from = if tokens - start.resident > 1 { tokens } else { start.prompt };
        let rank = self.prefilled + start.tokens.len() as u64 - u64::from(start.resident);
        self.keys.insert(start.sequence, key);
        self.sequences.insert(
            key,
            Sequence {
                name: start.sequence,
                tokens: start.tokens,
                resident: start.resident,
                pages: start.pages.into(),
                prompt: start.prompt,
                sampled_from,
                sample: start.sample,
                sampling: start.sampling,
                ignore_eos: start.ignore_eos,
                ending: None,
                rank,
                step: self.steps,
                flights: 0,
                began_micros: None,
            },
        );
    }

    /// A sequence has more pages. One that has ended is ignored.
    fn on_extend(&mut self, extend: &ExtendSequence) {
        let sequence = self.keys.get(&extend.sequence).and_then(|key| self.sequences.get_mut(key));
        if let Some(sequence) = sequence {
            sequence.pages = sequence.pages.iter().chain(&extend.pages).copied().collect();
        }
    }

    /// Ends a sequence: at once, or when the steps it is in have come back. One that has ended is ignored.
    fn on_stop(&mut self, sequence: SequenceId, now_micros: u64) -> Option<SequenceAdvanced> {
        let key = *self.keys.get(&sequence)?;
        self.end(key, now_micros, None, SequenceEnd::Stopped)
    }

    /// The next step, if there is work and room for another step in flight.
    fn plan(&mut self, now_micros: u64) -> Option<Plan> {
        match self.flights.len() {
            0 => self.plan_next(now_micros),
            1 if self.runs_ahead => self.plan_ahead(),
            _ => None,
        }
    }

    /// The step after the one in flight: rows that follow its samples.
    fn plan_ahead(&mut self) -> Option<Plan> {
        let flight = self.flights.front()?;
        if flight.is_void || flight.parts.len() < self.sequences.len() {
            return None;
        }
        let mut next = Vec::with_capacity(flight.parts.len());
        for (key, length) in &flight.parts {
            let sequence = &self.sequences[key];
            if !sequence.sampling.is_plain() {
                return None;
            }
            if sequence.ending.is_some() {
                continue;
            }
            let end = sequence.resident + length;
            if end as usize != sequence.tokens.len() {
                return None;
            }
            let has_place = u64::from(end) < sequence.pages.len() as u64 * u64::from(self.page_tokens);
            if sequence.sample > 1 && has_place {
                next.push((*key, end));
            }
        }
        if next.is_empty() {
            return None;
        }
        let chunks = next.iter().map(|(key, end)| self.sequences[key].chunk(*key, *end, 1)).collect();
        self.launch(next.into_iter().map(|(key, _)| (key, 1)).collect());
        Some(Plan { chunks, acquire: Vec::new() })
    }

    /// A step with these parts is in flight.
    fn launch(&mut self, parts: Vec<Part>) {
        self.steps += 1;
        for (key, _) in &parts {
            if let Some(sequence) = self.sequences.get_mut(key) {
                sequence.step = self.steps;
                sequence.flights += 1;
            }
        }
        self.flights.push_back(Flight { parts, is_void: false });
    }

    fn plan_next(&mut self, now_micros: u64) -> Option<Plan> {
        let parts = self.choose();
        if parts.is_empty() {
            // Every sequence waits for pages, or there is none.
            return None;
        }
        let mut chunks = Vec::with_capacity(parts.len());
        for (key, length) in &parts {
            let Some(sequence) = self.sequences.get_mut(key) else { continue };
            if sequence.missing() > 1 {
                self.prefilled += u64::from(*length);
            }
            sequence.began_micros.get_or_insert(now_micros);
            chunks.push(sequence.chunk(*key, sequence.resident, *length));
        }
        self.launch(parts);
        Some(Plan { chunks, acquire: std::mem::take(&mut self.acquire) })
    }

    /// The parts of the next step: prompts by rank, then decode rows in their turn.
    fn choose(&self) -> Vec<Part> {
        let fits = |sequence: &Sequence| {
            let next = if sequence.missing() == 1 { sequence.tokens.len() } else { 0 };
            next as u64 <= sequence.pages.len() as u64 * u64::from(self.page_tokens)
        };
        let ready = self.sequences.iter().filter(|(_, sequence)| fits(sequence));
        let (decoding, mut prompts): (Vec<_>, Vec<_>) =
            ready.partition(|(_, sequence)| sequence.missing() == 1);
        prompts.sort_by_key(|(key, sequence)| (sequence.rank, **key));
        // Prompts leave a token for decode rows, so neither starves the other.
        let for_rows = u32::from(!decoding.is_empty());
        let mut prompt_room = self.chunk_tokens.min(self.limits.tokens - for_rows);
        let mut room = self.limits.tokens;
        let mut parts: Vec<Part> = Vec::new();
        // Sequences that want a row: when they were in a step, their key, and their place in `parts` if they are prompts.
        let mut wanted: Vec<(u64, u64, Option<usize>)> =
            decoding.into_iter().map(|(key, sequence)| (sequence.step, *key, None)).collect();
        for (key, sequence) in prompts {
            let length = sequence.missing().min(prompt_room);
            if length == 0 {
                break;
            }
            (room, prompt_room) = (room - length, prompt_room - length);
            if length == sequence.missing() {
                wanted.push((sequence.step, *key, Some(parts.len())));
            }
            parts.push((*key, length));
        }
        wanted.sort_unstable();
        let mut rows = self.limits.rows;
        for (_, key, prompt) in wanted {
            match prompt {
                // A prompt has at least two tokens missing, so one at least is left in this step.
                Some(place) if rows == 0 => parts[place].1 -= 1,
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

    /// The oldest step in flight came back with these sampled tokens (by key), or failed.
    fn on_step(
        &mut self,
        outcome: Result<Vec<(u64, Token)>, EngineError>,
        now_micros: u64,
    ) -> Vec<SequenceAdvanced> {
        let Some(flight) = self.flights.pop_front() else { return Vec::new() };
        let (mut sampled, error) = match outcome {
            _ if flight.is_void => (HashMap::new(), None),
            Ok(tokens) => (tokens.into_iter().collect::<HashMap<_, _>>(), None),
            Err(error) => (HashMap::new(), Some(error)),
        };
        if error.is_some() {
            self.flights.iter_mut().for_each(|next| next.is_void = true);
        }
        let is_computed = error.is_none() && !flight.is_void;
        let culprit = match error.as_ref().map(EngineError::scope) {
            Some(Scope::Sequence(key)) if flight.has(key) => Some(key),
            _ => None,
        };
        let mut events = Vec::with_capacity(flight.parts.len());
        for (key, length) in flight.parts {
            let sequence = self.sequences.get_mut(&key).expect("a sequence in flight is kept");
            sequence.flights -= 1;
            let computed = sequence.resident + length;
            let is_known = computed as usize <= sequence.tokens.len();
            if is_computed && is_known && matches!(sequence.ending, Some((_, SequenceEnd::Stopped))) {
                // It may begin again behind what it has.
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
            sequence.resident = computed;
            let Some(token) = sampled.remove(&key) else {
                events.push(sequence.advanced(now_micros, None, None));
                continue;
            };
            sequence.tokens.push(token.id);
            sequence.sample -= 1;
            let reason = if !sequence.ignore_eos && self.eos_tokens.contains(&token.id) {
                Some(FinishReason::Stop)
            } else {
                (sequence.sample == 0).then_some(FinishReason::Length)
            };
            match reason {
                Some(reason) => {
                    events.extend(self.end(key, now_micros, Some(token), SequenceEnd::Finished(reason)));
                }
                None => events.push(sequence.advanced(now_micros, Some(token), None)),
            }
        }
        events
    }

    /// Ends a sequence: now, or when no step holds it any more. The first end counts.
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

/// To the owner of the sequence.
fn advanced(event: SequenceAdvanced) -> Effect {
    match event.sequence {
        SequenceId::Own(_) => to::decoder(event),
        SequenceId::Peer(_) => to::prefiller(event),
    }
}

#[cfg(test)]
mod tests;
