//! Constrained samples: a step with them takes no sample before it gets their masks.

use super::*;
use crate::TokenMask;
use crate::sampling::Sampling;

/// The words of a mask that allows these tokens.
fn mask(tokens: &[u32]) -> TokenMask {
    let mut words = vec![0; Tiny::VOCABULARY.div_ceil(32) as usize];
    tokens.iter().for_each(|token| words[*token as usize / 32] |= 1 << (token % 32));
    words.into()
}

fn chunk<'a>(sequence: u64, tokens: &'a [u32], pages: &'a PageTable, sample: Sample<'a>) -> Chunk<'a> {
    Chunk {
        sequence,
        tokens,
        source: TokenSource::Prompt,
        start: 0,
        pages,
        sample: Some(sample),
        score: None,
    }
}

#[test]
fn constrained_rows_share_a_step_with_plain_ones() {
    let (_file, _, mut engine) = open(&USUAL);
    let prompts: Vec<Vec<u32>> = (0..3).map(|seed| prompt(seed, 5)).collect();
    let tables: Vec<PageTable> = (0..3).map(|sequence| pages(&engine, sequence)).collect();
    let constrained = Sample { constrained: true, ..Sample::greedy() };
    let batch = [
        chunk(0, &prompts[0], &tables[0], constrained),
        chunk(1, &prompts[1], &tables[1], Sample::greedy()),
        chunk(2, &prompts[2], &tables[2], constrained),
    ];
    let plain = batch.map(|chunk| Chunk { sample: Some(Sample::greedy()), ..chunk });
    let free = submit(&mut engine, &plain);
    let (mut step, best) = (engine.submit(&batch).unwrap(), free[0].token.id);
    assert_eq!(engine.poll(&mut step), Ok(None), "no sample is taken before the masks are there");
    assert!(matches!(engine.submit(&plain), Err(EngineError::NotReady(_))));
    assert!(matches!(engine.sample(&mut step, &[None]), Err(EngineError::BadMasks { .. })));
    assert_eq!(engine.is_computed(&step), Ok(true));
    let (of_first, of_third) = (mask(&[(best + 1) % Tiny::VOCABULARY]), mask(&[free[2].token.id, best]));
    engine.sample(&mut step, &[Some(of_first), Some(of_third.clone())]).unwrap();
    let output = engine.poll(&mut step).unwrap().unwrap().tokens;
    let ids: Vec<_> = output.iter().map(|sampled| (sampled.sequence, sampled.token.id)).collect();
    assert_eq!(ids, [(0, (best + 1) % Tiny::VOCABULARY), (1, free[1].token.id), (2, free[2].token.id)]);
    assert_eq!(engine.poll(&mut step), Err(EngineError::StepSpent));
    assert!(matches!(engine.sample(&mut step, &[]), Err(EngineError::NotReady(_))));

    let mut step = engine.submit(&batch).unwrap();
    engine.sample(&mut step, &[None, Some(of_third)]).unwrap();
    let late = engine.poll(&mut step).unwrap().unwrap().tokens;
    assert_eq!(late.iter().map(|sampled| sampled.sequence).collect::<Vec<_>>(), [1, 2], "row 0 was late");
}

#[test]
fn log_probabilities_of_a_constrained_sample_are_the_models_own() {
    let (_file, _, mut engine) = open(&USUAL);
    let how = Sampling { logprobs: Some(3), ..Sampling::GREEDY };
    let (tokens, table) = (prompt(9, 6), pages(&engine, 1));
    let sample = Sample { how: &how, ..Sample::greedy() };
    let free = submit(&mut engine, &[chunk(1, &tokens, &table, sample)]).remove(0).token;
    let free = free.logprobs.unwrap();
    let second = free.top[1].0;
    let constrained = chunk(1, &tokens, &table, Sample { constrained: true, ..sample });
    let mut step = engine.submit(&[constrained]).unwrap();
    engine.sample(&mut step, &[Some(mask(&[second]))]).unwrap();
    let token = engine.poll(&mut step).unwrap().unwrap().tokens.remove(0).token;
    let logprobs = token.logprobs.unwrap();
    assert_eq!((token.id, logprobs.rank, logprobs.sampled), (second, 2, free.top[1].1));
    assert_eq!(logprobs.top, free.top);
}
