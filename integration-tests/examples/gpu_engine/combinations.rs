//! Checks rows with every combination of penalties, biases, masks and log probabilities against the host, with one and with two steps in flight, alone and
//! in company.

use std::collections::VecDeque;

use anyhow::{Context, Result, ensure};
use engine::{
    Chunk, CudaEngine, Engine, LogitBias, PageTable, Sample, Sampling, Step, StepOutput, Token, TokenMask,
    TokenSource, choose,
};

use super::masks::mask;
use super::sampling::same;
use super::{pages, run};

const STEPS: usize = 10;
/// The step whose masks are late in [`Sequences::check_late`].
const LATE: usize = 4;

/// A sequence.
struct Case {
    how: Sampling,
    constrained: bool,
    prompt: Vec<u32>,
    pages: PageTable,
}

/// The sequences, and the ids that are in use.
struct Sequences {
    cases: Vec<Case>,
    vocabulary: u32,
    /// The id of the first sequence. Other runs of the sequences have other ids.
    first: u64,
}

/// The tokens of each sequence so far.
type Answers = Vec<Vec<Token>>;

impl Sequences {
    /// A sequence for each combination.
    fn new(vocabulary: u32) -> Self {
        let case = |n: u32| {
            let has = |bit: u32| n >> bit & 1 == 1;
            let token = |i: u32| (n * 101 + i * i * 7) % vocabulary;
            let bias = (0..40).map(|i| (token(i % 30), i as f32 * 0.1 - 1.0)).collect();
            let how = Sampling {
                temperature: if has(5) { 0.9 } else { 0.0 },
                top_k: 30,
                top_p: 0.97,
                seed: u64::from(n),
                repetition_penalty: if has(0) { 1.4 } else { 1.0 },
                presence_penalty: if has(1) { 0.6 } else { 0.0 },
                frequency_penalty: if has(1) { 0.4 } else { 0.0 },
                logit_bias: if has(2) { bias } else { LogitBias::NONE },
                logprobs: has(3).then_some(n % 8),
                ..Sampling::GREEDY
            };
            let prompt = (0..3 + n % 2).map(token).collect();
            Case { how, constrained: has(4), prompt, pages: pages(n, 1) }
        };
        Self { cases: (0..64).map(case).collect(), vocabulary, first: 1 << 32 }
    }

    /// The same sequences get other ids.
    fn renew(&mut self) {
        self.first += 1000;
    }

    /// The mask of a sequence at a step.
    fn mask(&self, case: usize, step: usize) -> Option<TokenMask> {
        self.cases[case].constrained.then(|| mask(case as u64, step as u32, self.vocabulary))
    }

    /// The tokens of a sequence before a step, as far as they are known.
    fn history(&self, case: usize, answers: &Answers, step: usize) -> Vec<u32> {
        let sampled = answers[case].iter().take(step).map(|token| token.id);
        self.cases[case].prompt.iter().copied().chain(sampled).collect()
    }

    /// Submits a step of these sequences. The constrained ones get their masks, unless they are `late`.
    fn submit(
        &self,
        gpu: &mut CudaEngine,
        which: &[usize],
        answers: &Answers,
        (step, late): (usize, bool),
    ) -> Result<Step> {
        let histories: Vec<Vec<u32>> = which.iter().map(|case| self.history(*case, answers, step)).collect();
        let batch: Vec<Chunk<'_>> = (which.iter().zip(&histories))
            .map(|(case, history)| {
                let (of, sequence) = (&self.cases[*case], self.first + *case as u64);
                let prompt = of.prompt.len();
                let known = &history[(prompt + step).saturating_sub(1).min(history.len())..];
                let (start, source, tokens) = match step {
                    0 => (0, TokenSource::Prompt, &of.prompt[..]),
                    _ if known.is_empty() => (prompt + step - 1, TokenSource::Follows, &[0][..]),
                    _ => (prompt + step - 1, TokenSource::Sampled, known),
                };
                let (how, constrained, prompt) = (&of.how, of.constrained, prompt as u32);
                let sample = Some(Sample { how, tokens: history, prompt, constrained });
                let start = start as u32;
                Chunk { sequence, tokens, source, start, pages: &of.pages, sample, score: None }
            })
            .collect();
        let mut submitted = gpu.submit(&batch)?;
        let constrained: Vec<usize> =
            which.iter().copied().filter(|case| self.cases[*case].constrained).collect();
        if !constrained.is_empty() {
            let mask = |case: &usize| self.mask(*case, step).filter(|_| !late);
            let masks: Vec<Option<TokenMask>> = constrained.iter().map(mask).collect();
            gpu.sample(&mut submitted, &masks)?;
        }
        Ok(submitted)
    }

    /// Compares a step's tokens with those that the host samples from its logits.
    fn compare(
        &self,
        gpu: &CudaEngine,
        which: &[usize],
        answers: &Answers,
        (step, output): (usize, &StepOutput),
    ) -> Result<()> {
        ensure!(output.tokens.len() == which.len(), "{} rows, {} tokens", which.len(), output.tokens.len());
        for (row, (case, found)) in which.iter().zip(&output.tokens).enumerate() {
            let (of, tokens) = (&self.cases[*case], self.history(*case, answers, step));
            let prompt = of.prompt.len() as u32;
            let sample = Sample { how: &of.how, tokens: &tokens, prompt, constrained: of.constrained };
            let mask = self.mask(*case, step);
            let right = choose(&mut gpu.logits(row)?, sample, mask.as_deref(), tokens.len() as u32);
            ensure!(
                same(&found.token, &right),
                "step {step}: the GPU samples {:?} and the host {right:?} with {sample:?}",
                found.token
            );
        }
        Ok(())
    }

    /// The answers of these sequences. With one step in flight, they are compared with the host's.
    fn decode(&self, gpu: &mut CudaEngine, which: &[usize], ahead: bool) -> Result<Answers> {
        let mut answers: Answers = vec![Vec::new(); self.cases.len()];
        let (mut running, mut submitted, mut ended) = (VecDeque::new(), 0, 0);
        while ended < STEPS {
            if running.len() <= usize::from(ahead) && submitted < STEPS {
                running.push_back(self.submit(gpu, which, &answers, (submitted, false))?);
                submitted += 1;
                continue;
            }
            let Some(output) = gpu.poll(running.front_mut().context("a step runs")?)? else { continue };
            running.pop_front();
            if !ahead {
                self.compare(gpu, which, &answers, (ended, &output))?;
            }
            self.add(&mut answers, &output);
            ended += 1;
        }
        Ok(answers)
    }

    fn add(&self, answers: &mut Answers, output: &StepOutput) {
        for sampled in &output.tokens {
            answers[(sampled.sequence - self.first) as usize].push(sampled.token.clone());
        }
    }

    /// Samples whose masks are late are not counted, and are taken again in the next step. The step after that has tokens that follow.
    fn check_late(&self, gpu: &mut CudaEngine, right: &Answers) -> Result<()> {
        let all: Vec<usize> = (0..self.cases.len()).collect();
        let (constrained, free): (Vec<usize>, Vec<usize>) =
            all.iter().partition(|case| self.cases[**case].constrained);
        let mut answers: Answers = right.iter().map(|answer| answer[..LATE].to_vec()).collect();
        for (which, late, sampled) in [(&all, true, &free), (&constrained, false, &constrained)] {
            let mut step = self.submit(gpu, which, &answers, (LATE, late))?;
            let output = wait(gpu, &mut step)?;
            let found: Vec<usize> =
                output.tokens.iter().map(|token| (token.sequence - self.first) as usize).collect();
            ensure!(found == *sampled, "sequences {found:?} were sampled, not {sampled:?}");
            for (case, sampled) in found.iter().zip(&output.tokens) {
                let right = &right[*case][LATE];
                ensure!(sampled.token == *right, "beside late masks, {:?} and not {right:?}", sampled.token);
            }
            self.add(&mut answers, &output);
        }
        // The tokens of the constrained sequences are not known, so they follow.
        constrained.iter().for_each(|case| answers[*case].truncate(LATE));
        let mut step = self.submit(gpu, &constrained, &answers, (LATE + 1, false))?;
        let output = wait(gpu, &mut step)?;
        ensure!(output.tokens.len() == constrained.len(), "{} tokens", output.tokens.len());
        for (case, sampled) in constrained.iter().zip(&output.tokens) {
            let right = &right[*case][LATE + 1];
            ensure!(sampled.token == *right, "after a late mask, {:?} and not {right:?}", sampled.token);
        }
        Ok(())
    }

    /// Sequences go on after others have taken all places of the counts.
    fn check_evicted(&self, gpu: &mut CudaEngine, right: &Answers) -> Result<()> {
        let some: Vec<usize> = (0..self.cases.len()).filter(|case| case % 5 == 3).collect();
        let rows = u64::from(gpu.limits().rows);
        let tables: Vec<PageTable> =
            pages(self.cases.len() as u32, 16).iter().map(|page| [*page].into()).collect();
        let answers: Answers = right.iter().map(|answer| answer[..STEPS - 2].to_vec()).collect();
        let how = Sampling { frequency_penalty: 0.5, ..Sampling::GREEDY };
        for step in [STEPS - 2, STEPS - 1] {
            let answers = if step == STEPS - 1 { right } else { &answers };
            let mut submitted = self.submit(gpu, &some, answers, (step, false))?;
            let output = wait(gpu, &mut submitted)?;
            ensure!(output.tokens.len() == some.len(), "{} tokens", output.tokens.len());
            for (case, sampled) in some.iter().zip(&output.tokens) {
                let right = &right[*case][step];
                ensure!(sampled.token == *right, "step {step}: {:?} and not {right:?}", sampled.token);
            }
            for others in (0..=rows).collect::<Vec<_>>().chunks(tables.len()) {
                let sample = Some(Sample { how: &how, tokens: &[1], prompt: 0, constrained: false });
                let (source, tokens) = (TokenSource::Prompt, &[1][..]);
                let batch: Vec<Chunk<'_>> = (others.iter().zip(&tables))
                    .map(|(sequence, pages)| {
                        let sequence = *sequence;
                        Chunk { sequence, tokens, source, start: 0, pages, sample, score: None }
                    })
                    .collect();
                run(gpu, &batch)?;
            }
        }
        Ok(())
    }
}

fn wait(gpu: &mut CudaEngine, step: &mut Step) -> Result<StepOutput> {
    loop {
        if let Some(output) = gpu.poll(step)? {
            return Ok(output);
        }
    }
}

/// Returns how many tokens were compared with the host's.
pub(super) fn check(gpu: &mut CudaEngine) -> Result<usize> {
    let mut sequences = Sequences::new(gpu.model().vocabulary);
    let all: Vec<usize> = (0..sequences.cases.len()).collect();
    let right = sequences.decode(gpu, &all, false)?;
    sequences.renew();
    let ahead = sequences.decode(gpu, &all, true)?;
    ensure!(right == ahead, "one step in flight gives {right:?}, two give {ahead:?}");
    for case in &all {
        sequences.renew();
        let alone = sequences.decode(gpu, &[*case], case.is_multiple_of(2))?;
        ensure!(alone[*case] == right[*case], "alone {:?}, in company {:?}", alone[*case], right[*case]);
    }
    sequences.renew();
    sequences.check_late(gpu, &right)?;
    sequences.renew();
    sequences.check_evicted(gpu, &right)?;
    Ok(all.len() * STEPS)
}
