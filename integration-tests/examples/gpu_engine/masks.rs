//! Checks steps with constrained samples: their tokens against those of the host, with one and with two steps in flight, and what they cost.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use engine::{
    Chunk, CudaEngine, Engine, EngineError, PageId, PageTable, Sample, Sampling, Step, TokenMask,
    TokenSource, choose,
};
use integration_tests::statistics::median;

use super::pages;

/// The token and the position with which every sequence starts.
const FIRST: (u32, u32) = (1, 3);

/// A mask that allows about half of the tokens, chosen by sequence and position.
pub(super) fn mask(sequence: u64, position: u32, vocabulary: u32) -> TokenMask {
    let word = |n: u64| {
        let bits =
            (n + 1 + sequence * 7919 + u64::from(position) * 104_729).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (bits >> 20) as u32 | 1
    };
    (0..u64::from(vocabulary.div_ceil(32))).map(word).collect()
}

/// A run of sequences.
struct Run<'a> {
    tables: &'a [PageTable],
    how: &'a Sampling,
    /// Sequences below this number are constrained.
    constrained: u64,
    steps: u32,
    /// Two steps are in flight.
    ahead: bool,
}

impl Run<'_> {
    fn submit(&self, gpu: &mut CudaEngine, step: u32, last: &[u32]) -> Result<Step> {
        let chunk = |(sequence, pages)| Chunk {
            sequence,
            tokens: &last[sequence as usize..=sequence as usize],
            source: if self.ahead && step > 0 { TokenSource::Follows } else { TokenSource::Sampled },
            start: FIRST.1 + step,
            pages,
            sample: Some(Sample {
                how: self.how,
                constrained: sequence < self.constrained,
                ..Sample::greedy()
            }),
            score: None,
        };
        let batch: Vec<Chunk<'_>> = (0..).zip(self.tables).map(chunk).collect();
        Ok(gpu.submit(&batch)?)
    }

    /// The tokens of each sequence, and the seconds between steps. The masks of a step are given when the step before has ended, as a
    /// grammar needs its tokens.
    fn decode(&self, gpu: &mut CudaEngine, masks: &[Vec<TokenMask>]) -> Result<(Vec<Vec<u32>>, Vec<f64>)> {
        let mut answers: Vec<Vec<u32>> = vec![Vec::new(); self.tables.len()];
        let (mut times, mut running) = (Vec::new(), VecDeque::new());
        let mut last = vec![FIRST.0; self.tables.len()];
        let (mut submitted, mut sampled, mut began) = (0, 0, Instant::now());
        while (times.len() as u32) < self.steps {
            let most = if self.ahead { 2 } else { 1 };
            if running.len() < most && submitted < self.steps && sampled == submitted {
                running.push_back(self.submit(gpu, submitted, &last)?);
                submitted += 1;
            }
            if self.constrained == 0 {
                sampled = submitted;
            } else if sampled < submitted && times.len() as u32 == sampled {
                let given: Vec<Option<TokenMask>> =
                    masks[sampled as usize % masks.len()].iter().cloned().map(Some).collect();
                gpu.sample(running.back_mut().context("a step waits")?, &given)?;
                sampled += 1;
            }
            let step = running.front_mut().context("no step is running")?;
            let Some(output) = gpu.poll(step)? else { continue };
            running.pop_front();
            times.push(began.elapsed().as_secs_f64());
            began = Instant::now();
            for token in output.tokens {
                last[token.sequence as usize] = token.token.id;
                answers[token.sequence as usize].push(token.token.id);
            }
        }
        Ok((answers, times))
    }
}

/// Masks for a number of steps: for each step, one per constrained sequence.
fn masks(steps: u32, constrained: u64, vocabulary: u32) -> Vec<Vec<TokenMask>> {
    let of_step = |step| (0..constrained).map(|sequence| mask(sequence, step, vocabulary)).collect();
    (0..steps).map(of_step).collect()
}

/// Compares constrained and plain rows of the same steps with the host's samples. Returns how many tokens were compared.
pub(super) fn check(gpu: &mut CudaEngine) -> Result<usize> {
    const STEPS: u32 = 12;
    let (vocabulary, tables) = (gpu.model().vocabulary, (0..5).map(|n| pages(n * 3, 3)).collect::<Vec<_>>());
    let drawn = Sampling { temperature: 0.9, top_k: 20, top_p: 0.97, seed: 11, ..Sampling::GREEDY };
    let reported = Sampling { logprobs: Some(2), ..drawn.clone() };
    let mut compared = 0;
    for (how, constrained) in [(&Sampling::GREEDY, 3), (&drawn, 5), (&drawn, 1)] {
        let masks = masks(STEPS, constrained, vocabulary);
        let run = Run { tables: &tables, how, constrained, steps: STEPS, ahead: false };
        let one = run.decode(gpu, &masks)?.0;
        let two = Run { ahead: true, ..run }.decode(gpu, &masks)?.0;
        ensure!(one == two, "one step in flight gives {one:?}, two give {two:?}");
        if how.temperature > 0.0 {
            let reported = Run { tables: &tables, how: &reported, constrained, steps: STEPS, ahead: true };
            let reported = reported.decode(gpu, &masks)?.0;
            ensure!(one == reported, "with log probabilities the GPU samples {reported:?}, not {one:?}");
        }
        // The last step again, sampled by hand.
        let last: Vec<u32> = one.iter().map(|answer| answer[answer.len() - 2]).collect();
        let again = Run { tables: &tables, how, constrained, steps: STEPS, ahead: false };
        let mut step = again.submit(gpu, STEPS - 1, &last)?;
        let given: Vec<Option<TokenMask>> = masks[STEPS as usize - 1].iter().cloned().map(Some).collect();
        gpu.sample(&mut step, &given)?;
        while gpu.poll(&mut step)?.is_none() {}
        for (sequence, answer) in one.iter().enumerate() {
            let mask = given.get(sequence).and_then(Option::as_deref);
            let sample = Sample { how, ..Sample::greedy() };
            let right = choose(&mut gpu.logits(sequence)?, sample, mask, FIRST.1 + STEPS).id;
            ensure!(
                answer.last() == Some(&right),
                "sequence {sequence} samples {answer:?}, the host {right}"
            );
            compared += 1;
        }
    }
    late(gpu, &tables, vocabulary)?;
    Ok(compared)
}

/// A row without a mask samples nothing, and nothing can follow it.
fn late(gpu: &mut CudaEngine, tables: &[PageTable], vocabulary: u32) -> Result<()> {
    let run = Run { tables, how: &Sampling::GREEDY, constrained: 2, steps: 1, ahead: false };
    let last = vec![FIRST.0; tables.len()];
    let mut step = run.submit(gpu, 0, &last)?;
    ensure!(gpu.poll(&mut step)?.is_none(), "a step ended before it got its masks");
    ensure!(
        matches!(run.submit(gpu, 1, &last), Err(error) if error.is::<EngineError>()),
        "it was not refused"
    );
    ensure!(gpu.sample(&mut step, &[None]).is_err(), "one mask for two rows was accepted");
    let given = mask(1, 0, vocabulary);
    gpu.sample(&mut step, &[None, Some(given)])?;
    let output = loop {
        if let Some(output) = gpu.poll(&mut step)? {
            break output;
        }
    };
    let sampled: Vec<u64> = output.tokens.iter().map(|token| token.sequence).collect();
    ensure!(sampled == [1, 2, 3, 4], "rows {sampled:?} were sampled");
    let follows = Run { ahead: true, ..run }.submit(gpu, 1, &last);
    ensure!(follows.is_err(), "a row followed one that was not sampled");
    Ok(())
}

/// Prints the time of a decode step with 0, 1 and all of `rows` rows constrained.
pub(super) fn cost(gpu: &mut CudaEngine, rows: u64, context: u32) -> Result<()> {
    let each = (context + 64).div_ceil(gpu.kv().layout().page_tokens) + 1;
    let tables: Vec<PageTable> =
        (0..rows as u32).map(|n| (0..each).map(|page| PageId(n * each + page)).collect()).collect();
    let (how, vocabulary) = (&Sampling::GREEDY, gpu.model().vocabulary);
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..7 {
        for (times, constrained) in times.iter_mut().zip([0, 1, rows]) {
            let masks = masks(4, constrained, vocabulary);
            let run = Run { tables: &tables, how, constrained, steps: 40, ahead: true };
            times.push(median(run.decode(gpu, &masks)?.1[8..].iter().copied()));
        }
    }
    let [none, one, all] = times.map(median);
    println!(
        "{rows} rows: {:.3} ms a step; with one row constrained {:.3} times as long, with all {:.3}",
        none * 1e3,
        one / none,
        all / none
    );
    Ok(())
}
