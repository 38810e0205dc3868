//! Tests the engine on tiny random models: against a plain reference, and against itself bit for bit.

use proptest::prelude::*;

use super::*;
use crate::kv::{KvDtype, PageTable};
use crate::model::KvCacheDtype;
use crate::sampling::Sample;
use crate::step::{SampledToken, TokenSource};
use crate::testing::{Random, TempFile, Tiny};

mod interleavings;
mod masks;
mod reference;
mod refusals;
mod scores;
mod threads;

const USUAL: Tiny = Tiny::USUAL;

const MODELS: [Tiny; 9] = [
    USUAL,
    Tiny { heads: 3, kv_heads: 1, kind: 8, tied: false, ..USUAL },
    Tiny { heads: 2, kv_heads: 2, kind: 0, ..USUAL },
    Tiny { heads: 6, kv_heads: 2, tied: false, ..USUAL },
    // These sizes are not multiples of the panel width or of a vector register.
    Tiny { kind: 0, hidden: 50, feed: 77, ..USUAL },
    Tiny { architecture: "qwen2", tied: false, ..USUAL },
    Tiny { architecture: "qwen3", kind: 8, ..USUAL },
    Tiny { heads: 3, kv_heads: 1, kind: 8, kv_dtype: KvCacheDtype::Bf16, ..USUAL },
    Tiny { kind: 0, hidden: 50, feed: 77, kv_dtype: KvCacheDtype::Fp8, ..USUAL },
];

fn prompt(seed: u64, length: usize) -> Vec<u32> {
    let mut random = Random(seed);
    (0..length).map(|_| random.next() % Tiny::VOCABULARY).collect()
}

/// The pages of a sequence: every third page of the pool, in descending order.
fn pages(engine: &CpuEngine, sequence: u32) -> PageTable {
    (0..engine.kv.pages()).rev().filter(|page| page % 3 == sequence % 3).map(PageId).collect()
}

fn submit(engine: &mut CpuEngine, batch: &[Chunk<'_>]) -> Vec<SampledToken> {
    let mut step = engine.submit(batch).unwrap();
    engine.poll(&mut step).unwrap().unwrap().tokens
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Runs one sequence alone in the pages of `table`, in chunks of the given lengths. Returns the bits of the last logits.
fn alone(engine: &mut CpuEngine, tokens: &[u32], cuts: &[usize], table: u32) -> Vec<u32> {
    let pages = &pages(engine, table);
    let mut start = 0;
    let mut cuts = cuts.iter().copied();
    while start < tokens.len() {
        let end = (start + cuts.next().unwrap_or(tokens.len())).min(tokens.len());
        let chunk = Chunk {
            sequence: 1,
            tokens: &tokens[start..end],
            source: TokenSource::Prompt,
            start: start as u32,
            pages,
            sample: (end == tokens.len()).then(Sample::greedy),
            score: None,
        };
        submit(engine, &[chunk]);
        start = end;
    }
    bits(engine.logits(0).unwrap())
}

fn open(model: &Tiny) -> (TempFile, EngineConfig, CpuEngine) {
    let (file, config) = model.file();
    let engine = CpuEngine::open(&config).unwrap();
    (file, config, engine)
}

/// The reference does not round keys and values. In FP8 they are off by up to a sixteenth.
#[test]
fn logits_match_the_reference() {
    for model in MODELS {
        let most = match model.kv_dtype {
            KvCacheDtype::Auto => 2e-6,
            KvCacheDtype::Bf16 => 1e-2,
            KvCacheDtype::Fp8 => 1e-1,
        };
        let (_file, _, mut engine) = open(&model);
        for length in [1, 2, 7, 33, 70] {
            let tokens = prompt(length, length as usize);
            alone(&mut engine, &tokens, &[5, 1], 0);
            let expect = reference::logits(&model, &tokens);
            let got = engine.logits(0).unwrap();
            let largest = expect.iter().fold(0.0f64, |max, value| max.max(value.abs()));
            for (got, expect) in got.iter().zip(&expect) {
                let error = (f64::from(*got) - expect).abs() / largest;
                assert!(error < most, "{model:?} {length}: {got} {expect}");
            }
        }
    }
}

#[test]
fn model_info_describes_the_file() {
    let model = MODELS[0];
    let (file, _, engine) = open(&model);
    let info = engine.model();
    assert_eq!((info.name.as_str(), info.path.as_path()), ("tiny", file.path()));
    assert_eq!((info.context_tokens, info.vocabulary), (Tiny::CONTEXT, Tiny::VOCABULARY));
    assert_eq!(info.eos_tokens, [2]);
    let count: usize = model.build().1.values().map(Vec::len).sum();
    assert_eq!(info.parameters, count as u64);
    assert_eq!(engine.kv().pages(), 128);
    assert_eq!(engine.limits(), StepLimits { tokens: 256, rows: 256 });
}

#[test]
fn threads_pages_and_instruction_sets_change_no_bit() {
    for model in MODELS {
        let (_file, config, mut engine) = open(&model);
        let tokens = prompt(3, 150);
        let expect = alone(&mut engine, &tokens, &[], 0);
        for kernels in Kernels::all() {
            for (threads, page_tokens) in [(1, 8), (3, 1), (2, 13), (4, 64)] {
                let config = EngineConfig { threads, page_tokens: Some(page_tokens), ..config.clone() };
                let mut other = CpuEngine::open_with(&config, kernels, &|_, _| ()).unwrap();
                let got = alone(&mut other, &tokens, &[100, 3], 1);
                assert_eq!(got, expect, "{} {threads} {page_tokens}", kernels.name);
            }
        }
    }
}

#[test]
fn positions_past_the_last_one_are_never_read() {
    let (_file, _, mut engine) = open(&MODELS[0]);
    let tokens = prompt(5, 41);
    let expect = alone(&mut engine, &tokens, &[20, 1], 0);
    let kv = Arc::clone(engine.kv());
    for at in 0..kv.bytes() / 4 {
        // SAFETY: inside the pool, and no step runs.
        unsafe { kv.base().cast::<f32>().add(at).write(f32::NAN) };
    }
    engine.acquire(&[PageId(0), PageId(kv.pages() - 1)]).unwrap();
    assert_eq!(alone(&mut engine, &tokens, &[20, 1], 0), expect);
}

#[test]
fn a_page_copied_to_another_engine_decodes_the_same() {
    for model in [MODELS[0], MODELS[8]] {
        copied_pages_decode_the_same(&model);
    }
}

fn copied_pages_decode_the_same(model: &Tiny) {
    let (_file, config, mut engine) = open(model);
    let mut other = CpuEngine::open(&config).unwrap();
    let (from, to) = (pages(&engine, 0), pages(&other, 2));
    let tokens = prompt(6, 30);
    alone(&mut engine, &tokens[..29], &[], 0);
    let bytes = engine.kv.layout().page_bytes() as usize;
    for (from, to) in from.iter().zip(to.iter()).take(4) {
        // SAFETY: the pools are distinct, the pages are inside them, and no step runs.
        unsafe {
            let from = engine.kv.base().add(from.0 as usize * bytes);
            from.copy_to_nonoverlapping(other.kv.base().add(to.0 as usize * bytes), bytes);
        }
    }
    other.acquire(&to).unwrap();
    let last = |pages| {
        [Chunk {
            sequence: 1,
            tokens: &tokens[29..],
            source: TokenSource::Prompt,
            start: 29,
            pages,
            sample: Some(Sample::greedy()),
            score: None,
        }]
    };
    assert_eq!(submit(&mut engine, &last(&from)), submit(&mut other, &last(&to)));
    assert_eq!(bits(engine.logits(0).unwrap()), bits(other.logits(0).unwrap()));
}

#[test]
fn pages_in_fp8_have_a_quarter_of_the_bytes_and_other_numbers() {
    let fp8 = Tiny { kv_dtype: KvCacheDtype::Fp8, ..USUAL };
    let ((_one, _, mut plain), (_two, _, mut rounded)) = (open(&USUAL), open(&fp8));
    assert_eq!(rounded.kv().layout().dtype, KvDtype::Fp8);
    assert_eq!(rounded.kv().layout().page_bytes() * 4, plain.kv().layout().page_bytes());
    assert_eq!(rounded.kv().pages(), 4 * plain.kv().pages());
    let tokens = prompt(8, 40);
    assert_ne!(alone(&mut rounded, &tokens, &[], 0), alone(&mut plain, &tokens, &[], 0));
}

#[test]
fn an_empty_batch_is_a_step_without_output() {
    let (_file, _, mut engine) = open(&MODELS[0]);
    let mut step = engine.submit(&[]).unwrap();
    assert_eq!(engine.poll(&mut step), Ok(Some(StepOutput::default())));
    assert_eq!(engine.poll(&mut step), Err(EngineError::StepSpent));
    assert_eq!(engine.logits(0), None);
}

#[test]
fn argmax_takes_the_lowest_index_among_equals() {
    let check =
        |logits: &[f32], expect: u32| assert_eq!(crate::sampling::argmax(logits), expect, "{logits:?}");
    check(&[0.0], 0);
    check(&[1.0, 3.0, 3.0], 1);
    check(&[-5.0, -1.0], 1);
    check(&[f32::NAN, 2.0, f32::NAN], 1);
    check(&[f32::NAN; 3], 0);
    let mut long = vec![1.0; 40];
    (long[21], long[37]) = (2.0, 2.0);
    check(&long, 21);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn chunks_change_no_bit(length in 1usize..140, cuts in proptest::collection::vec(1usize..40, 0..20), which in 0usize..MODELS.len()) {
        let (_file, _, mut engine) = open(&MODELS[which]);
        let tokens = prompt(length as u64, length);
        let expect = alone(&mut engine, &tokens, &[], 0);
        prop_assert_eq!(alone(&mut engine, &tokens, &cuts, 1), expect);
    }

    /// Three sequences in mixed steps of any composition give the same logits as each sequence alone.
    #[test]
    fn batching_changes_no_bit(
        lengths in proptest::array::uniform3(2usize..60),
        steps in proptest::collection::vec(proptest::array::uniform3(0usize..30), 1..12),
        which in 0usize..MODELS.len(),
    ) {
        let (_file, _, mut engine) = open(&MODELS[which]);
        let tables: Vec<_> = (0..3).map(|sequence| pages(&engine, sequence)).collect();
        let prompts: Vec<_> = lengths.iter().map(|&length| prompt(length as u64, length)).collect();
        let mut done = [0; 3];
        let mut together: [Vec<u32>; 3] = Default::default();
        for counts in steps.into_iter().chain([[60; 3]]) {
            let mut batch = Vec::new();
            for sequence in 0..3 {
                let (start, tokens) = (done[sequence], &prompts[sequence]);
                let end = (start + counts[sequence]).min(tokens.len());
                if start < end {
                    batch.push(Chunk {
                        sequence: sequence as u64,
                        tokens: &tokens[start..end],
                        source: TokenSource::Prompt,
                        start: start as u32,
                        pages: &tables[sequence],
                        sample: (end == tokens.len()).then(Sample::greedy),
                        score: None,
                    });
                    done[sequence] = end;
                }
            }
            for (index, token) in submit(&mut engine, &batch).into_iter().enumerate() {
                let logits = engine.logits(index).unwrap();
                prop_assert_eq!(token.token.id, crate::sampling::argmax(logits));
                together[token.sequence as usize] = bits(logits);
            }
        }
        for sequence in 0..3 {
            let expect = alone(&mut engine, &prompts[sequence], &[], sequence as u32);
            prop_assert_eq!(&together[sequence], &expect);
        }
    }
}
