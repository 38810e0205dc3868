//! Which tokens the engine computes next: the decisions of the generator, without actix, clock or engine.
//!
//! A step mixes one decode row of every sequence that is past its prompt with prefill chunks of those that are not. Of prompts the
//! shortest goes first, with ageing: a prompt's rank is its length, and one that comes later starts with a handicap of what was
//! prefilled before it came. So once as many prompt tokens have been prefilled as a prompt has itself, nobody who comes
//! overtakes it.
//!
//! One step is in flight at a time; of an engine that runs ahead, two. The second is made before anyone knows what the first will sample, so
//! each of its rows *follows* one of the first, and only sequences that surely go on are in it. It is made only while nobody
//! else waits, since who comes then waits for both.
//!
//! A sequence that ends or is stopped while it is in a step ends when that step comes back: until then the engine may be writing its pages.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use engine::{PageId, Sampling, Source, Token};

use crate::effect::{Effect, ToGenerator, to};
use crate::messages::{ExtendSequence, SequenceAdvanced, SequenceEnd, SequenceId, StartSequence};
use crate::request::FinishReason;

/// A part of a step: some tokens of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedChunk {
    /// The engine's number for the sequence.
    pub key: u64,
    /// Token ids to compute.
    pub tokens: Vec<u32>,
    /// Where they come from; of one that follows the step in flight, `tokens` holds a number that nobody reads.
    pub source: Source,
    /// Position of the first one.
    pub start: u32,
    /// The sequence's page table: shared, since every decode step names it again.
    pub pages: Arc<[PageId]>,
    /// How the token that follows the last one is chosen, if it is.
    pub sample: Option<PlannedSample>,
}

/// How a sequence's next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedSample {
    /// The settings.
    pub how: Arc<Sampling>,
    /// All tokens so far, if the settings look back; else none.
    pub tokens: Vec<u32>,
    /// How many of them are the prompt's.
    pub prompt: u32,
}

/// One step for the engine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Never empty.
    pub chunks: Vec<PlannedChunk>,
    /// Pages that a peer has written since the last step.
    pub acquire: Vec<PageId>,
}

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
            None => Source::Follows,
            Some(_) if start >= self.sampled_from => Source::Sampled,
            Some(_) => Source::Prompt,
        };
        PlannedChunk {
            key,
            tokens: if source == Source::Follows { vec![0] } else { self.tokens[from..end].to_vec() },
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

/// The scheduler. Keys count up, so the lowest key is the oldest sequence.
#[derive(Debug)]
pub struct GeneratorState {
    chunk_tokens: u32,
    step_tokens: u32,
    eos_tokens: Vec<u32>,
    next_key: u64,
    keys: HashMap<SequenceId, u64>,
    sequences: BTreeMap<u64, Sequence>,
    /// Prompt tokens planned so far.
    prefilled: u64,
    page_tokens: u32,
    runs_ahead: bool,
    /// Keys and lengths of the chunks of each step in flight, the oldest step first.
    flights: VecDeque<Vec<(u64, u32)>>,
    acquire: Vec<PageId>,
}

impl GeneratorState {
    /// No sequences; a step has at most `chunk_tokens` of prompts and `step_tokens` (at least one) in all, pages have
    /// `page_tokens`, and `eos_tokens` end a sequence. The engine takes a second step while one runs if it `runs_ahead`.
    pub fn new(
        chunk_tokens: u32,
        step_tokens: u32,
        page_tokens: u32,
        eos_tokens: Vec<u32>,
        runs_ahead: bool,
    ) -> Self {
        Self {
            chunk_tokens: chunk_tokens.max(1),
            step_tokens: step_tokens.max(1),
            prefilled: 0,
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

    fn flies(&self, key: u64) -> bool {
        self.flights.iter().flatten().any(|(flying, _)| *flying == key)
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
        let nobody_waits = flight.len() == self.sequences.len();
        let mut next = Vec::with_capacity(flight.len());
        for (key, length) in flight {
            let sequence = &self.sequences[key];
            if !nobody_waits || !sequence.sampling.is_plain() {
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
        self.flights.push_back(next.into_iter().map(|(key, _)| (key, 1)).collect());
        Some(Plan { chunks, acquire: Vec::new() })
    }

    fn plan_next(&mut self, now_micros: u64) -> Option<Plan> {
        let fits = |sequence: &Sequence| {
            let next = if sequence.missing() == 1 { sequence.tokens.len() } else { 0 };
            next as u64 <= sequence.pages.len() as u64 * u64::from(self.page_tokens)
        };
        let ready = self.sequences.iter().filter(|(_, sequence)| fits(sequence));
        let (decoding, mut prompts): (Vec<_>, Vec<_>) =
            ready.partition(|(_, sequence)| sequence.missing() == 1);
        prompts.sort_by_key(|(key, sequence)| (sequence.rank, **key));
        // Prompts first, so that rows beyond the step's room cannot starve them; then rows, the oldest first.
        let prompts: Vec<u64> = prompts.into_iter().map(|(key, _)| *key).collect();
        let rows: Vec<u64> = decoding.into_iter().map(|(key, _)| *key).collect();
        let mut room = self.step_tokens;
        let mut prompt_room = self.chunk_tokens;
        let mut flight = Vec::new();
        let mut chunks = Vec::new();
        for (key, is_prompt) in
            prompts.into_iter().map(|key| (key, true)).chain(rows.into_iter().map(|key| (key, false)))
        {
            let Some(sequence) = self.sequences.get_mut(&key) else { continue };
            let most = if is_prompt { room.min(prompt_room) } else { room };
            let length = sequence.missing().min(most);
            if length == 0 {
                continue;
            }
            room -= length;
            if is_prompt {
                prompt_room -= length;
                self.prefilled += u64::from(length);
            }
            sequence.began_micros.get_or_insert(now_micros);
            flight.push((key, length));
            chunks.push(sequence.chunk(key, sequence.resident, length));
        }
        if chunks.is_empty() {
            // Every sequence waits for pages, or there is none.
            return None;
        }
        self.flights.push_back(flight);
        Some(Plan { chunks, acquire: std::mem::take(&mut self.acquire) })
    }

    /// The oldest step in flight came back with these sampled tokens (by key), or failed.
    fn on_step(
        &mut self,
        outcome: Result<Vec<(u64, Token)>, String>,
        now_micros: u64,
    ) -> Vec<SequenceAdvanced> {
        let flown = self.flights.pop_front().unwrap_or_default();
        let (mut sampled, error) = match outcome {
            Ok(tokens) => (tokens.into_iter().collect::<HashMap<_, _>>(), None),
            Err(error) => (HashMap::new(), Some(error)),
        };
        let mut events = Vec::with_capacity(flown.len());
        for (key, length) in flown {
            let sequence = self.sequences.get_mut(&key).expect("a sequence in flight is kept");
            let computed = sequence.resident + length;
            let is_known = computed as usize <= sequence.tokens.len();
            if error.is_none() && is_known && matches!(sequence.ending, Some((_, SequenceEnd::Stopped))) {
                // It may begin again behind what it has.
                sequence.resident = computed;
            }
            if let Some((token, end)) = sequence.ending.take() {
                events.extend(self.end(key, now_micros, token, end));
                continue;
            }
            if let Some(error) = &error {
                events.extend(self.end(key, now_micros, None, SequenceEnd::Failed(error.clone())));
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
        if self.flies(key) {
            self.sequences.get_mut(&key)?.ending.get_or_insert((token, end));
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
