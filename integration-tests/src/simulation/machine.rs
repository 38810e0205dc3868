//! A minimal model, and the pages that it reads and writes.

use std::ops::Range;

use actors::messages::{PlannedChunk, RunStep, StepResult};
use actors::request::CacheSalt;
use connector::page_hash::{PageSeed, total};
use engine::{EngineError, Logprobs, PageId, Token, TokenSource};

use super::plan::{HEADS, PAGE_TOKENS, VOCABULARY};

/// The content of a position that was not written.
const NO_TOKEN: u32 = u32::MAX;

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

/// The content of one head of a page: the token at each position, and the salt of the request that computed them. Each head is computed from the
/// same tokens, so all heads of a page are equal unless a piece of the page is damaged or missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) tokens: [u32; PAGE_TOKENS as usize],
    /// No process knows it. It moves with the bytes, so that the simulator can tell who computed them.
    pub(super) salt: Option<CacheSalt>,
}

impl Head {
    /// The sum of a head, which has this place in its page.
    fn content(&self, place: usize) -> u64 {
        self.tokens.iter().map(|token| u64::from(*token)).fold(place as u64, mix)
    }
}

/// The memory of a node's pools, one for each shard of its pages. The shards of a page are its heads in order.
#[derive(Debug)]
pub(super) struct Memory {
    shards: u32,
    pages: Vec<[Head; HEADS as usize]>,
}

impl Memory {
    pub(super) fn new(pages: u32, shards: u32) -> Self {
        let head = Head { tokens: [NO_TOKEN; PAGE_TOKENS as usize], salt: None };
        Self { shards, pages: vec![[head; HEADS as usize]; pages as usize] }
    }

    /// A page and the head in it, from a place in the pool of a shard.
    pub(super) fn place(&self, shard: u32, offset: u64) -> (u32, u32) {
        let heads = u64::from(HEADS / self.shards);
        ((offset / heads) as u32, shard * (HEADS / self.shards) + (offset % heads) as u32)
    }

    pub(super) fn heads(&self, page: u32, heads: Range<u32>) -> &[Head] {
        &self.pages[page as usize][heads.start as usize..heads.end as usize]
    }

    pub(super) fn write_heads(&mut self, page: u32, first: u32, content: &[Head]) {
        self.pages[page as usize][first as usize..first as usize + content.len()].copy_from_slice(content);
    }

    /// True if the heads of a page from `first` on have the tokens of `content`.
    pub(super) fn has_tokens(&self, page: u32, first: u32, content: &[Head]) -> bool {
        let there = self.heads(page, first..first + content.len() as u32).iter().map(|head| head.tokens);
        there.eq(content.iter().map(|head| head.tokens))
    }

    /// True if requests of this salt computed all of the page.
    pub(super) fn has_salt(&self, page: u32, salt: Option<CacheSalt>) -> bool {
        self.pages[page as usize].iter().all(|head| head.salt == salt)
    }

    /// A request with this salt will compute these pages.
    pub(super) fn claim(&mut self, pages: &[PageId], salt: Option<CacheSalt>) {
        for page in pages {
            self.pages[page.0 as usize].iter_mut().for_each(|head| head.salt = salt);
        }
    }

    /// The hash of a page. Each rank sums the heads of its shard, and the sums are added.
    pub(super) fn hash(&self, page: PageId, seed: PageSeed) -> u64 {
        let heads: Vec<u64> =
            self.pages[page.0 as usize].iter().enumerate().map(|(place, head)| head.content(place)).collect();
        let shards = heads.chunks((HEADS / self.shards) as usize);
        let content =
            total(shards.map(|heads| heads.iter().fold(0, |sum: u64, head| sum.wrapping_add(*head))));
        let seeds = [seed.session, seed.credit, seed.request, u64::from(seed.place)];
        seeds.into_iter().fold(content, mix)
    }

    /// The token at a position of a page table, if all heads have the same.
    fn read(&self, table: &[PageId], position: u32) -> u32 {
        let page = &self.pages[table[(position / PAGE_TOKENS) as usize].0 as usize];
        let token = |head: &Head| head.tokens[(position % PAGE_TOKENS) as usize];
        let first = token(&page[0]);
        if page.iter().all(|head| token(head) == first) { first } else { NO_TOKEN }
    }

    fn write(&mut self, table: &[PageId], position: u32, token: u32) {
        let page = &mut self.pages[table[(position / PAGE_TOKENS) as usize].0 as usize];
        page.iter_mut().for_each(|head| head.tokens[(position % PAGE_TOKENS) as usize] = token);
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
    pub(super) fn begin(mut plan: RunStep, memory: &Memory, late: &[u64]) -> Self {
        let follows_late =
            |chunk: &PlannedChunk| late.contains(&chunk.key) && chunk.source == TokenSource::Follows;
        let left_out =
            plan.chunks.extract_if(.., |chunk| follows_late(chunk)).map(|chunk| chunk.key).collect();
        let read = plan.chunks.iter();
        let read =
            read.map(|chunk| (0..chunk.start).map(|position| memory.read(&chunk.pages, position)).collect());
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
                memory.write(&chunk.pages, position, *token);
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
