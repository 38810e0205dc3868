//! An engine without a model: its pages hold token ids, and it samples from the ids that it reads back.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use engine::{
    Chunk, Engine, EngineError, KvDtype, KvLayout, KvPool, Logprobs, ModelInfo, PageId, SampledToken,
    ScoredChunk, Step, StepLimits, StepOutput, TokenMask, TokenSource,
};

use super::{PAGE_TOKENS, ROWS, VOCABULARY};

/// The engine.
pub(super) struct Echo {
    model: ModelInfo,
    pub(super) pool: Arc<KvPool>,
    /// The samples of the last step. Chunks of the next step may take their tokens from them.
    sampled: Vec<SampledToken>,
    /// The samples of the last step while it waits for masks, and whether each needs one.
    pending: Vec<(SampledToken, bool)>,
    /// The scores of that step.
    scores: Vec<ScoredChunk>,
    error: Arc<Mutex<Option<EngineError>>>,
}

impl Echo {
    /// An engine with `pages` pages. While `error` is set, every step fails with it.
    pub(super) fn new(pages: u32, error: Arc<Mutex<Option<EngineError>>>) -> Self {
        let layout =
            KvLayout { layers: 1, kv_heads: 1, head_dim: 32, page_tokens: PAGE_TOKENS, dtype: KvDtype::F32 };
        let model = ModelInfo {
            name: "echo".into(),
            path: PathBuf::new(),
            fingerprint: [1; 32],
            context_tokens: 4096,
            vocabulary: VOCABULARY,
            eos_tokens: vec![0],
            parameters: 0,
        };
        let pool = Arc::new(KvPool::new(layout, pages).expect("the pool is small"));
        Self { model, pool, sampled: Vec::new(), pending: Vec::new(), scores: Vec::new(), error }
    }

    /// The four bytes that hold the token at `position`.
    fn cell(&self, pages: &[PageId], position: u32) -> &[AtomicU8] {
        let page = pages[(position / PAGE_TOKENS) as usize];
        let page_bytes = self.pool.layout().page_bytes() as usize;
        let at = page.0 as usize * page_bytes + (position % PAGE_TOKENS) as usize * 128;
        &self.pool.cells().expect("the pool is on the host")[at..at + 4]
    }
}

/// The next token after these tokens.
pub(super) fn next_token(tokens: impl Iterator<Item = u32>) -> u32 {
    1 + tokens.fold(7u32, |hash, token| hash.wrapping_mul(31).wrapping_add(token)) % (VOCABULARY - 1)
}

/// The log probabilities of a prompt's tokens but the first: made up from token and place.
pub(super) fn scores(prompt: &[u32]) -> Vec<Logprobs> {
    (1..).zip(&prompt[1..]).map(|(place, token)| score(place, *token)).collect()
}

fn score(place: u32, token: u32) -> Logprobs {
    Logprobs { sampled: -(token as f32), rank: place, top: vec![(token, 0.5)] }
}

/// The first token from `token` on that the mask allows. After the last token comes token 0.
pub(super) fn allowed_from(mask: &[u32], token: u32) -> u32 {
    let is_allowed = |token: &u32| mask[*token as usize / 32] >> (token % 32) & 1 == 1;
    (token..VOCABULARY).chain(0..token).find(is_allowed).expect("a mask allows a token")
}

impl Engine for Echo {
    fn model(&self) -> &ModelInfo {
        &self.model
    }

    fn kv(&self) -> &Arc<KvPool> {
        &self.pool
    }

    fn limits(&self) -> StepLimits {
        StepLimits { tokens: 64, rows: ROWS }
    }

    fn runs_ahead(&self) -> bool {
        true
    }

    fn submit(&mut self, batch: &[Chunk<'_>]) -> Result<Step, EngineError> {
        if let Some(error) = self.error.lock().expect("the thread did not panic").clone() {
            return Err(error);
        }
        if !self.pending.is_empty() {
            return Err(EngineError::NotReady("the previous step waits for its masks"));
        }
        let scored = batch.iter().filter_map(|chunk| Some((chunk, chunk.score?)));
        let of_chunk = |(chunk, score): (&Chunk<'_>, engine::Score<'_>)| {
            let targets =
                (chunk.start + 1..).zip(score.targets).map(|(place, token)| self::score(place, *token));
            ScoredChunk { sequence: chunk.sequence, targets: targets.collect() }
        };
        let scores: Vec<ScoredChunk> = scored.map(of_chunk).collect();
        let mut samples = Vec::new();
        let rows = batch.iter().map(Chunk::rows).sum::<usize>() as u64;
        if rows > u64::from(ROWS) {
            return Err(EngineError::TooManyRows { rows, limit: ROWS });
        }
        for chunk in batch {
            let followed = self.sampled.iter().find(|sampled| sampled.sequence == chunk.sequence);
            let follows = chunk.source == TokenSource::Follows;
            let followed = followed.filter(|_| follows).map(|sampled| [sampled.token.id]);
            if follows && followed.is_none() {
                return Err(EngineError::FollowsNothing { sequence: chunk.sequence });
            }
            let tokens = followed.as_ref().map_or(chunk.tokens, |token| token);
            for (position, token) in (chunk.start..).zip(tokens) {
                let cell = self.cell(chunk.pages, position);
                cell.iter()
                    .zip(token.to_le_bytes())
                    .for_each(|(cell, byte)| cell.store(byte, Ordering::Relaxed));
            }
            if chunk.sample.is_some() {
                let end = chunk.start + chunk.tokens.len() as u32;
                let read = |position| {
                    let cell = self.cell(chunk.pages, position);
                    u32::from_le_bytes(std::array::from_fn(|n| cell[n].load(Ordering::Relaxed)))
                };
                let token = next_token((0..end).map(read));
                let sampled = SampledToken { sequence: chunk.sequence, token: token.into() };
                samples.push((sampled, chunk.is_constrained()));
            }
        }
        if samples.iter().any(|(_, is_constrained)| *is_constrained) {
            (self.sampled, self.pending, self.scores) = (Vec::new(), samples, scores);
            return Ok(Step::unfinished());
        }
        self.sampled = samples.into_iter().map(|(sampled, _)| sampled).collect();
        Ok(Step::finished(StepOutput { tokens: self.sampled.clone(), scores }))
    }

    fn sample(&mut self, step: &mut Step, masks: &[Option<TokenMask>]) -> Result<(), EngineError> {
        let mut masks = masks.iter();
        let take = |(mut sampled, is_constrained): (SampledToken, bool)| {
            if is_constrained {
                let mask = masks.next().expect("there is an entry for each constrained sample").as_ref()?;
                sampled.token.id = allowed_from(mask, sampled.token.id);
            }
            Some(sampled)
        };
        self.sampled = std::mem::take(&mut self.pending).into_iter().filter_map(take).collect();
        let scores = std::mem::take(&mut self.scores);
        step.finish(StepOutput { tokens: self.sampled.clone(), scores });
        Ok(())
    }

    fn poll(&mut self, step: &mut Step) -> Result<Option<StepOutput>, EngineError> {
        Ok(step.take())
    }

    fn acquire(&mut self, _: &[PageId]) -> Result<(), EngineError> {
        Ok(())
    }
}
