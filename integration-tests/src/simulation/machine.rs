//! A minimal model, and the pages that it reads and writes.

use actors::messages::{PlannedChunk, RunStep, StepResult};
use actors::request::CacheSalt;
use connector::page_hash::PageSeed;
use engine::{EngineError, Logprobs, PageId, Token, TokenSource};

use super::plan::{PAGE_TOKENS, VOCABULARY};

fn mix(state: u64, value: u64) -> u64 {
    (state ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

/// The next token after these tokens.
pub(super) fn next_token(tokens: &[u32]) -> u32 {
    let state = tokens.iter().fold(7, |state, token| mix(state, u64::from(*token)));
    (mix(state, 1) >> 32) as u32 % VOCABULARY
}

/// The log probabilities of a prompt's token at a place.
pub(super) fn score(place: u32, token: u32) -> Logprobs {
    Logprobs { sampled: -(token as f32), rank: place, top: Vec::new() }
}

/// The content of one page: the token at each position, and the salt of the request that computed them.
#[derive(Clone, Debug)]
pub(super) struct PageContent {
    pub(super) tokens: Vec<u32>,
    /// No process knows it. It moves with the bytes, so that the simulator can tell who computed them.
    pub(super) salt: Option<CacheSalt>,
}

/// The memory of a pool.
#[derive(Debug)]
pub(super) struct Memory {
    pages: Vec<PageContent>,
}

impl Memory {
    pub(super) fn new(pages: u32) -> Self {
        // This value is no token, so that a read of an unwritten position is detected.
        let page = PageContent { tokens: vec![u32::MAX; PAGE_TOKENS as usize], salt: None };
        Self { pages: vec![page; pages as usize] }
    }

    pub(super) fn page(&self, page: u32) -> &PageContent {
        &self.pages[page as usize]
    }

    pub(super) fn write_page(&mut self, page: u32, content: PageContent) {
        self.pages[page as usize] = content;
    }

    /// A request with this salt will compute these pages.
    pub(super) fn claim(&mut self, pages: &[PageId], salt: Option<CacheSalt>) {
        pages.iter().for_each(|page| self.pages[page.0 as usize].salt = salt);
    }

    pub(super) fn hash(&self, page: PageId, seed: PageSeed) -> u64 {
        let seeds = [seed.session, seed.credit, seed.request, u64::from(seed.place)];
        let content = self.pages[page.0 as usize].tokens.iter().map(|token| u64::from(*token));
        seeds.into_iter().chain(content).fold(3, mix)
    }

    fn at(&mut self, table: &[PageId], position: u32) -> &mut u32 {
        let page = table[(position / PAGE_TOKENS) as usize];
        &mut self.pages[page.0 as usize].tokens[(position % PAGE_TOKENS) as usize]
    }
}

/// A running step. It reads at its start and writes at its end.
#[derive(Debug)]
pub(super) struct Step {
    plan: RunStep,
    read: Vec<Vec<u32>>,
    /// Chunks that the engine's thread has left out, because they follow late ones.
    left_out: Vec<u64>,
}

impl Step {
    /// `late` are the chunks of the previous step that sampled no token.
    pub(super) fn begin(mut plan: RunStep, memory: &mut Memory, late: &[u64]) -> Self {
        let follows_late =
            |chunk: &PlannedChunk| late.contains(&chunk.key) && chunk.source == TokenSource::Follows;
        let left_out =
            plan.chunks.extract_if(.., |chunk| follows_late(chunk)).map(|chunk| chunk.key).collect();
        let read = plan.chunks.iter();
        let read =
            read.map(|chunk| (0..chunk.start).map(|position| *memory.at(&chunk.pages, position)).collect());
        let read = read.collect();
        Self { plan, read, left_out }
    }

    /// Pages that the step reads or writes.
    pub(super) fn pages(&self) -> impl Iterator<Item = PageId> {
        self.plan.chunks.iter().flat_map(|chunk| {
            let end = chunk.start + chunk.tokens.len() as u32;
            chunk.pages[..end.div_ceil(PAGE_TOKENS) as usize].iter().copied()
        })
    }

    /// Pages that the step writes.
    pub(super) fn written(&self) -> impl Iterator<Item = PageId> {
        self.plan.chunks.iter().flat_map(|chunk| {
            let end = chunk.start + chunk.tokens.len() as u32;
            let (first, end) = ((chunk.start / PAGE_TOKENS) as usize, end.div_ceil(PAGE_TOKENS) as usize);
            chunk.pages[first..end].iter().copied()
        })
    }

    /// An error of the whole step or of one of its sequences.
    pub(super) fn error(&self, draw: u64) -> EngineError {
        let chunk = self.plan.chunks.get(draw as usize % self.plan.chunks.len().max(1));
        match chunk {
            Some(chunk) if draw % 2 == 1 => EngineError::EmptyChunk { sequence: chunk.key },
            _ => EngineError::WorkerPanicked,
        }
    }

    /// Writes the pages and samples tokens. `is_late` draws whether a constrained chunk samples none.
    pub(super) fn end(self, memory: &mut Memory, mut is_late: impl FnMut() -> bool) -> StepResult {
        let mut result = StepResult { late: self.left_out, ..StepResult::default() };
        for (chunk, mut tokens) in self.plan.chunks.iter().zip(self.read) {
            for (position, token) in (chunk.start..).zip(&chunk.tokens) {
                *memory.at(&chunk.pages, position) = *token;
            }
            tokens.extend(&chunk.tokens);
            if let Some(planned) = &chunk.score {
                let targets = (chunk.start + 1..).zip(&planned.targets);
                result.scores.push((chunk.key, targets.map(|(place, token)| score(place, *token)).collect()));
            }
            let Some(sample) = &chunk.sample else { continue };
            if sample.constraint.is_some() && is_late() {
                result.late.push(chunk.key);
            } else {
                result.tokens.push((chunk.key, next_token(&tokens).into()));
            }
        }
        result
    }
}

/// Sets the tokens of the chunks in `plan` that take their tokens from the previous step.
pub(super) fn follow(plan: &mut RunStep, sampled: &[(u64, Token)]) {
    for chunk in plan.chunks.iter_mut().filter(|chunk| chunk.source == TokenSource::Follows) {
        let token = sampled.iter().find(|(key, _)| *key == chunk.key);
        // The results of a failed step are not used.
        chunk.tokens = vec![token.map_or(u32::MAX, |(_, token)| token.id)];
    }
}
