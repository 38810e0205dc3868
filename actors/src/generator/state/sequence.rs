//! A sequence on the engine: its tokens and pages, and its part of a step.

use std::sync::Arc;

use engine::{PageTable, Sampling, Token, TokenSource};

use crate::constraint::Constraint;
use crate::messages::{
    History, PlannedChunk, PlannedConstraint, PlannedSample, PlannedScore, SequenceAdvanced, SequenceEnd,
    SequenceId, StartSequence,
};

/// A sequence that runs or waits.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) name: SequenceId,
    pub(super) tokens: Vec<u32>,
    pub(super) resident: u32,
    /// Value of `resident` when the sequence arrived.
    pub(super) cached: u32,
    pub(super) pages: PageTable,
    pub(super) prompt: u32,
    /// Tokens from this index on are computed one at a time, as they are sampled. The tokens before it are computed as a prompt; after a
    /// preemption they include sampled tokens.
    pub(super) sampled_from: u32,
    pub(super) sample: u32,
    pub(super) sampling: Arc<Sampling>,
    /// A copy of `tokens` for the engine's thread, if the sampling looks back.
    history: Option<History>,
    pub(super) constraint: Option<Arc<Constraint>>,
    /// The constraint knows the tokens that the sequence arrived with, because a planned sample told them.
    pub(super) is_told: bool,
    pub(super) ignore_eos: bool,
    /// See [`StartSequence`](crate::messages::StartSequence).
    pub(super) prompt_logprobs: Option<u32>,
    /// The first step that samples a token of the sequence is to be announced, and is not planned yet.
    pub(super) announce: bool,
    /// The sequence's last token and how the sequence ended. Reported when no step in flight contains the sequence.
    pub(super) ending: Option<(Option<Token>, SequenceEnd)>,
    /// The prompt with the lowest rank goes first.
    pub(super) rank: u64,
    /// The last step that contained the sequence, or the last step before the sequence arrived. The lowest gets a row first.
    pub(super) step: u64,
    /// Steps in flight that contain the sequence.
    pub(super) flights: u32,
    /// The sequence's mask was late, and no step in flight contains the sequence.
    pub(super) is_late: bool,
    /// The time at which the sequence's first step was planned, on the caller's clock.
    pub(super) began_micros: Option<u64>,
}

impl Sequence {
    /// A sequence that arrives after `step` steps.
    pub(super) fn new(start: StartSequence, rank: u64, step: u64) -> Self {
        let tokens = start.tokens.len() as u32;
        // A resumed sequence computes all its missing tokens as a prompt, even if chunking leaves one token alone.
        let sampled_from = if tokens - start.resident > 1 { tokens } else { start.prompt };
        let history = start.sampling.looks_back().then(|| History::new(start.tokens.clone()));
        Self {
            name: start.sequence,
            tokens: start.tokens,
            resident: start.resident,
            cached: start.resident,
            pages: start.pages.into(),
            prompt: start.prompt,
            sampled_from,
            sample: start.sample,
            sampling: start.sampling,
            history,
            constraint: start.grammar.map(|grammar| Arc::new(Constraint::new(grammar))),
            is_told: false,
            ignore_eos: start.ignore_eos,
            prompt_logprobs: start.prompt_logprobs,
            announce: start.announce,
            ending: None,
            rank,
            step,
            flights: 0,
            is_late: false,
            began_micros: None,
        }
    }

    fn planned_sample(&mut self) -> PlannedSample {
        let constraint = self.constraint.clone().map(|constraint| {
            let is_told = std::mem::replace(&mut self.is_told, true);
            let tokens = if is_told { Vec::new() } else { self.tokens[self.prompt as usize..].to_vec() };
            PlannedConstraint { constraint, tokens }
        });
        let history = self.history.clone();
        PlannedSample { how: self.sampling.clone(), history, prompt: self.prompt, constraint }
    }

    /// Adds a sampled token.
    pub(super) fn push(&mut self, token: u32) {
        self.tokens.push(token);
        if let Some(history) = &self.history {
            history.push(token);
        }
    }

    pub(super) fn missing(&self) -> u32 {
        self.tokens.len() as u32 - self.resident
    }

    /// The chunk of `length` tokens from `start`. If `start` is the end of the known tokens, the chunk is the one token that the step in
    /// flight samples.
    pub(super) fn chunk(&mut self, key: u64, start: u32, length: u32) -> PlannedChunk {
        let (from, end) = (start as usize, (start + length) as usize);
        let source = match self.tokens.get(from) {
            None => TokenSource::Follows,
            Some(_) if start >= self.sampled_from => TokenSource::Sampled,
            Some(_) => TokenSource::Prompt,
        };
        let sample = (end >= self.tokens.len()).then(|| self.planned_sample());
        let score = self.prompt_logprobs.filter(|_| source == TokenSource::Prompt).and_then(|top| {
            let targets = self.targets(start, length);
            (!targets.is_empty()).then(|| PlannedScore { targets: targets.to_vec(), top })
        });
        PlannedChunk {
            key,
            tokens: if source == TokenSource::Follows { vec![0] } else { self.tokens[from..end].to_vec() },
            source,
            start,
            pages: self.pages.clone(),
            sample,
            score,
        }
    }

    /// The prompt tokens after each of the `length` tokens from `start`.
    fn targets(&self, start: u32, length: u32) -> &[u32] {
        let (from, end) = (start + 1, (start + 1).saturating_add(length).min(self.prompt));
        self.tokens.get(from as usize..end as usize).unwrap_or_default()
    }

    /// Rows with logits that a chunk of `length` tokens takes for the log probabilities of the prompt.
    pub(super) fn scored_rows(&self, length: u32) -> u32 {
        self.prompt_logprobs.map_or(0, |_| self.targets(self.resident, length).len() as u32)
    }

    pub(super) fn advanced(
        &self,
        now_micros: u64,
        token: Option<Token>,
        ended: Option<SequenceEnd>,
    ) -> SequenceAdvanced {
        SequenceAdvanced {
            sequence: self.name,
            resident: self.resident,
            prompt_logprobs: Vec::new(),
            token,
            running_micros: now_micros.saturating_sub(self.began_micros.unwrap_or(now_micros)),
            ended,
        }
    }
}
