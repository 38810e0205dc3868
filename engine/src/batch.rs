//! Checks a batch before a backend computes it.

use crate::error::EngineError;
use crate::kv::{KvPool, PageId, PageTable};
use crate::model::ModelInfo;
use crate::sampling::Sampling;
use crate::step::{Chunk, Score, StepLimits, TokenSource};

/// Checks batches, and reuses its buffers.
#[derive(Debug, Default)]
pub(crate) struct BatchCheck {
    sequences: Vec<u64>,
    /// The pages that the batch writes, and the sequences that write them.
    written: Vec<(PageId, u64)>,
}

impl BatchCheck {
    /// Refuses a batch that exceeds `limits`, has a token, position or page out of bounds, has two chunks of a sequence, has a sample without the
    /// tokens that it looks back at, or would write a page twice. Also refuses a chunk that takes its token from the previous step if `samples` is
    /// false for its sequence.
    pub(crate) fn check(
        &mut self,
        batch: &[Chunk<'_>],
        model: &ModelInfo,
        kv: &KvPool,
        limits: StepLimits,
        samples: impl Fn(u64) -> bool,
    ) -> Result<(), EngineError> {
        let Self { sequences, written } = self;
        let tokens: u64 = batch.iter().map(|chunk| chunk.tokens.len() as u64).sum();
        if tokens > u64::from(limits.tokens) {
            return Err(EngineError::TooManyTokens { tokens, limit: limits.tokens });
        }
        let rows = batch.iter().map(Chunk::rows).sum::<usize>() as u64;
        if rows > u64::from(limits.rows) {
            return Err(EngineError::TooManyRows { rows, limit: limits.rows });
        }
        let page_tokens = u64::from(kv.layout().page_tokens);
        sequences.clear();
        sequences.extend(batch.iter().map(|chunk| chunk.sequence));
        written.clear();
        for chunk in batch {
            check_chunk(chunk, model, page_tokens)?;
            let sequence = chunk.sequence;
            if chunk.source != TokenSource::Prompt && chunk.tokens.len() != 1 {
                return Err(EngineError::ManySampled { sequence, tokens: chunk.tokens.len() });
            }
            if chunk.source == TokenSource::Follows && !samples(sequence) {
                return Err(EngineError::FollowsNothing { sequence });
            }
            check_table(chunk.pages, kv, sequence)?;
            let first = u64::from(chunk.start) / page_tokens;
            let last = (u64::from(chunk.start) + chunk.tokens.len() as u64 - 1) / page_tokens;
            written.extend(
                chunk.pages[first as usize..=last as usize].iter().map(|&page| (page, chunk.sequence)),
            );
        }
        sequences.sort_unstable();
        if let Some(pair) = sequences.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(EngineError::RepeatedSequence { sequence: pair[1] });
        }
        written.sort_unstable();
        match written.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(EngineError::PageWrittenTwice { page: pair[1].0.0, sequence: pair[1].1 }),
            None => Ok(()),
        }
    }
}

/// Refuses pages that the pool does not have.
pub(crate) fn check_pages(pages: &[PageId], kv: &KvPool) -> Result<(), EngineError> {
    check_page(pages.iter().copied().max(), kv, None)
}

/// Refuses the page table of a sequence if the pool does not have all of its pages. Looks at one page, because each step has the tables of all its
/// sequences.
fn check_table(table: &PageTable, kv: &KvPool, sequence: u64) -> Result<(), EngineError> {
    check_page(table.largest(), kv, Some(sequence))
}

fn check_page(largest: Option<PageId>, kv: &KvPool, sequence: Option<u64>) -> Result<(), EngineError> {
    match largest.filter(|page| page.0 >= kv.pages()) {
        Some(page) => Err(EngineError::PageOutOfRange { page: page.0, pages: kv.pages(), sequence }),
        None => Ok(()),
    }
}

fn check_chunk(chunk: &Chunk<'_>, model: &ModelInfo, page_tokens: u64) -> Result<(), EngineError> {
    let sequence = chunk.sequence;
    if chunk.tokens.is_empty() {
        return Err(EngineError::EmptyChunk { sequence });
    }
    let vocabulary = model.vocabulary;
    if let Some(&token) = chunk.tokens.iter().find(|&&token| token >= vocabulary) {
        return Err(EngineError::TokenOutOfRange { sequence, token, vocabulary });
    }
    if let Some(score) = chunk.score {
        check_score(chunk, score, vocabulary)?;
    }
    let end = u64::from(chunk.start) + chunk.tokens.len() as u64;
    if end > u64::from(model.context_tokens) {
        return Err(EngineError::ContextExceeded { sequence, end, context_tokens: model.context_tokens });
    }
    let (needed, given) = (end.div_ceil(page_tokens), chunk.pages.len() as u64);
    if given < needed {
        return Err(EngineError::TooFewPages { sequence, needed, given });
    }
    check_history(chunk)
}

/// Refuses a sample that looks back if tokens before it are missing. The last one may be missing if the previous step samples it: the device counts it.
fn check_history(chunk: &Chunk<'_>) -> Result<(), EngineError> {
    let Some(sample) = chunk.sample.filter(|sample| sample.how.looks_back()) else { return Ok(()) };
    let unknown = usize::from(chunk.source == TokenSource::Follows);
    let (needed, given) = (chunk.end() - unknown, sample.tokens.len());
    if given < needed {
        return Err(EngineError::ShortHistory { sequence: chunk.sequence, needed, given });
    }
    Ok(())
}

fn check_score(chunk: &Chunk<'_>, score: Score<'_>, vocabulary: u32) -> Result<(), EngineError> {
    let (sequence, targets) = (chunk.sequence, score.targets.len());
    let fits = chunk.source == TokenSource::Prompt && targets <= chunk.tokens.len();
    if !fits || score.top > Sampling::LOGPROBS_MAX {
        return Err(EngineError::BadScore { sequence, targets, tokens: chunk.tokens.len() });
    }
    match score.targets.iter().find(|target| **target >= vocabulary) {
        Some(&token) => Err(EngineError::TokenOutOfRange { sequence, token, vocabulary }),
        None => Ok(()),
    }
}
