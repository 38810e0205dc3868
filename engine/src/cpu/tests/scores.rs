//! Log probabilities of prompt tokens.

use super::*;
use crate::sampling::logprobs;
use crate::step::{Score, ScoredChunk};

const TOP: u32 = 3;

/// The scores of a prompt that is computed in chunks of the given lengths, next to another sequence.
fn scores(engine: &mut CpuEngine, tokens: &[u32], cuts: &[usize]) -> Vec<crate::Logprobs> {
    let (table, other, others) = (pages(engine, 0), pages(engine, 1), prompt(8, 3));
    let (mut start, mut found) = (0, Vec::new());
    for length in cuts.iter().copied().chain([tokens.len()]) {
        let end = (start + length).min(tokens.len());
        if start == end {
            break;
        }
        let score = Score { targets: &tokens[start + 1..(end + 1).min(tokens.len())], top: TOP };
        let chunk = Chunk {
            sequence: 1,
            tokens: &tokens[start..end],
            source: TokenSource::Prompt,
            start: start as u32,
            pages: &table,
            sample: Some(Sample::greedy()),
            score: Some(score),
        };
        let company = Chunk { sequence: 2, tokens: &others, start: 0, pages: &other, score: None, ..chunk };
        let mut step = engine.submit(&[company, chunk]).unwrap();
        let output = engine.poll(&mut step).unwrap().unwrap();
        assert_eq!((output.tokens.len(), output.scores.len()), (2, 1), "samples and scores share a step");
        let ScoredChunk { sequence, targets } = output.scores.into_iter().next().unwrap();
        assert_eq!((sequence, targets.len()), (1, score.targets.len()));
        found.extend(targets);
        start = end;
    }
    found
}

#[test]
fn scores_are_those_of_the_logits_before_each_token() {
    for tiny in [USUAL, Tiny { heads: 3, kv_heads: 1, kind: 8, tied: false, ..USUAL }] {
        let (_file, _, mut engine) = open(&tiny);
        let tokens = prompt(4, 150);
        let expect: Vec<_> = (1..tokens.len())
            .map(|end| {
                alone(&mut engine, &tokens[..end], &[], 2);
                logprobs(engine.logits(0).unwrap(), tokens[end], TOP)
            })
            .collect();
        // One chunk is longer than a slice of rows.
        assert_eq!(scores(&mut engine, &tokens, &[150]), expect);
        assert_eq!(scores(&mut engine, &tokens, &[1, 7, 64, 3]), expect);
    }
}

#[test]
fn wrong_scores_are_refused() {
    let (_file, _, mut engine) = open(&USUAL);
    let (tokens, table) = (prompt(4, 5), pages(&engine, 0));
    let chunk = Chunk {
        sequence: 1,
        tokens: &tokens,
        source: TokenSource::Prompt,
        start: 0,
        pages: &table,
        sample: None,
        score: Some(Score { targets: &tokens, top: TOP }),
    };
    assert_eq!(chunk.rows(), 5);
    assert!(engine.submit(&[chunk]).is_ok());
    let refused = |chunk: Chunk<'_>, engine: &mut CpuEngine| engine.submit(&[chunk]).unwrap_err().kind();
    let longer = prompt(4, 6);
    for (targets, top, kind) in
        [(&longer[..], TOP, "bad_score"), (&tokens, 21, "bad_score"), (&[75], TOP, "token_out_of_range")]
    {
        let score = Some(Score { targets, top });
        assert_eq!(refused(Chunk { score, ..chunk }, &mut engine), kind);
    }
    let row = Chunk { tokens: &tokens[..1], source: TokenSource::Sampled, ..chunk };
    let score = Some(Score { targets: &tokens[..1], top: TOP });
    assert_eq!(refused(Chunk { score, ..row }, &mut engine), "bad_score", "a decode row has no target");
}
