//! The requests of a load: their prompts, the lengths of their answers and their times.

mod custom;
mod random;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand_distr::{Distribution, Gamma};

use super::{DatasetName, LoadOptions};
use crate::frontend::ServedModel;

/// One request of the benchmark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BenchRequest {
    pub(super) prompt: String,
    /// 0 if the client has no tokenizer. The server's count replaces it.
    pub(super) prompt_tokens: u32,
    pub(super) output_tokens: u32,
}

/// A part of the requests of a benchmark.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// Number of the first request. Parts have different prompts unless the dataset is too small.
    pub(super) first: usize,
    pub(super) count: usize,
}

/// Makes a part of the requests.
///
/// # Errors
/// The dataset or the tokenizer cannot be used, in one sentence.
pub(super) fn requests(
    options: &LoadOptions,
    model: Option<&ServedModel>,
    part: Part,
) -> Result<Vec<BenchRequest>, String> {
    match options.dataset_name {
        DatasetName::Random => {
            let model = model.ok_or("random prompts need a tokenizer; set --tokenizer")?;
            random::requests(options, &model.tokenizer, part)
        }
        DatasetName::Custom => custom::requests(options, model, part),
    }
}

/// The time of each request in seconds. The waits are gamma-distributed and scaled so that the last request is sent at `count / rate`.
pub(super) fn arrivals(count: usize, rate: f64, burstiness: f64, seed: u64) -> Vec<f64> {
    if rate.is_infinite() || count == 0 {
        return vec![0.0; count];
    }
    let mut random = SmallRng::seed_from_u64(seed ^ 0xa441);
    let gamma = Gamma::new(burstiness, 1.0 / (rate * burstiness)).ok();
    let mut at = 0.0;
    let times: Vec<f64> = (0..count)
        .map(|_| {
            at += gamma.as_ref().map_or(1.0 / rate, |gamma| gamma.sample(&mut random));
            at
        })
        .collect();
    let scale = count as f64 / rate / at;
    times.into_iter().map(|time| time * scale).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use super::*;
    use crate::bench::testing::options;
    use crate::frontend::testing::bytes_model;

    #[test]
    fn parts_have_other_prompts_of_the_same_lengths() {
        let model = ServedModel::new(Path::new("m"), &bytes_model(), None).unwrap();
        let lengths =
            ["--random-input-len", "20", "--random-output-len", "50", "--random-range-ratio", "0.8"];
        let options = options(&lengths).load;
        let part = |first| requests(&options, Some(&model), Part { first, count: 8 }).unwrap();
        let lengths = |all: &[BenchRequest]| all.iter().map(|one| one.output_tokens).collect::<Vec<_>>();
        assert_eq!(lengths(&part(0)), lengths(&part(8)));
        assert!(lengths(&part(0)).iter().any(|tokens| *tokens != 50), "{:?}", part(0));
        // Bytes that are no text make some of the prompts equal.
        let earlier: HashSet<String> = part(0).into_iter().map(|request| request.prompt).collect();
        assert!(part(8).iter().filter(|request| !earlier.contains(&request.prompt)).count() > 4);
        assert_eq!(part(0), part(0));
    }

    #[test]
    fn all_parts_have_the_same_prefix() {
        let model = ServedModel::new(Path::new("m"), &bytes_model(), None).unwrap();
        let lengths = ["--random-input-len", "5", "--random-prefix-len", "400"];
        let options = options(&lengths).load;
        let first = |first| requests(&options, Some(&model), Part { first, count: 1 }).unwrap().remove(0);
        let (a, b) = (first(0).prompt, first(8).prompt);
        // Bytes that are no text may change the end of the prefix.
        let common = a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count();
        assert!(common > 100, "{common} characters are equal");
    }

    #[test]
    fn arrivals_have_the_wanted_rate_and_burstiness() {
        assert_eq!(arrivals(3, f64::INFINITY, 1.0, 1), [0.0; 3]);
        for burstiness in [0.5, 1.0, 100.0, f64::INFINITY] {
            let times = arrivals(400, 2.0, burstiness, 1);
            assert!((times[399] - 200.0).abs() < 1e-9, "{burstiness}");
            assert!(times.is_sorted());
            let waits: Vec<f64> = times.windows(2).map(|two| two[1] - two[0]).collect();
            let mean = waits.iter().sum::<f64>() / waits.len() as f64;
            let variance = waits.iter().map(|wait| (wait - mean).powi(2)).sum::<f64>() / waits.len() as f64;
            let expect = 1.0 / burstiness.sqrt();
            // A coefficient of variation of 400 waits is off by less than a third.
            assert!((variance.sqrt() / mean - expect).abs() <= 0.33 * expect + 1e-9, "{burstiness}");
        }
    }
}
