use super::*;

const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 3.0];

fn drawn(how: Sampling) -> Sampling {
    Sampling { temperature: 1.0, seed: 7, ..how }
}

/// The share of each token in 20,000 draws.
fn counts(logits: &[f32], how: &Sampling) -> Vec<f64> {
    let mut counts = vec![0.0; logits.len()];
    let positions = 20_000;
    for position in 0..positions {
        let token = choose(
            &mut logits.to_vec(),
            Sample { how, tokens: &[], prompt: 0, constrained: false },
            None,
            position,
        );
        counts[token.id as usize] += 1.0 / f64::from(positions);
    }
    counts
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|logit| f64::from(*logit).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

fn check_close(found: &[f64], expect: &[f64]) {
    for (token, (found, expect)) in found.iter().zip(expect).enumerate() {
        // Five standard deviations of a share in 20,000 draws.
        let tolerance = 5.0 * (expect * (1.0 - expect) / 20_000.0).sqrt() + 1e-9;
        assert!((found - expect).abs() <= tolerance, "token {token}: {found}, expected {expect}");
    }
}

#[test]
fn greedy_takes_the_largest_logit_and_the_lowest_id_among_equals() {
    assert_eq!(choose(&mut LOGITS.to_vec(), Sample::greedy(), None, 3), 1.into());
    assert_eq!(choose(&mut [f32::NAN, f32::NAN], Sample::greedy(), None, 3), 0.into());
}

#[test]
fn a_mask_acts_as_if_the_other_tokens_did_not_exist() {
    let (mask, kept) = ([0b0_1101], [0, 2, 3]);
    let of_kept: Vec<f32> = kept.iter().map(|id| LOGITS[*id]).collect();
    for how in [
        Sampling::GREEDY,
        drawn(Sampling::GREEDY),
        drawn(Sampling { top_k: 2, ..Sampling::GREEDY }),
        drawn(Sampling { top_p: 0.7, min_p: 0.1, ..Sampling::GREEDY }),
        drawn(Sampling { repetition_penalty: 9.0, presence_penalty: 1.0, ..Sampling::GREEDY }),
        drawn(Sampling { logit_bias: vec![(1, 100.0)].into(), ..Sampling::GREEDY }),
    ] {
        for position in 0..500 {
            let sample = Sample { how: &how, ..Sample::greedy() };
            let masked = choose(&mut LOGITS.to_vec(), sample, Some(&mask), position).id;
            let fewer = Sampling { logit_bias: LogitBias::NONE, ..how.clone() };
            let expect = choose(&mut of_kept.clone(), Sample { how: &fewer, ..sample }, None, position).id;
            assert_eq!(masked as usize, kept[expect as usize], "{how:?} at {position}");
        }
    }
}

#[test]
fn a_masked_sample_is_always_allowed() {
    let (nan, low) = (f32::NAN, f32::NEG_INFINITY);
    let hot = drawn(Sampling::GREEDY);
    for how in [&Sampling::GREEDY, &hot] {
        for (logits, mask, expect) in [
            ([9.0, nan, nan, nan, 1.0], 0b01110, 1),
            ([9.0, nan, low, nan, 1.0], 0b01110, 2),
            ([9.0, low, low, nan, 1.0], 0b01000, 3),
            ([f32::INFINITY, 1.0, low, nan, f32::INFINITY], 0b00010, 1),
            ([9.0, 9.0, 9.0, 9.0, 1.0], 1 << 4, 4),
        ] {
            let sample = Sample { how, ..Sample::greedy() };
            assert_eq!(choose(&mut logits.to_vec(), sample, Some(&[mask]), 7).id, expect, "{logits:?}");
        }
    }
}

#[test]
fn token_shares_match_their_probabilities() {
    check_close(&counts(&LOGITS, &drawn(Sampling::GREEDY)), &softmax(&LOGITS));
    let hot = Sampling { temperature: 2.0, ..drawn(Sampling::GREEDY) };
    check_close(&counts(&LOGITS, &hot), &softmax(&LOGITS.map(|logit| logit / 2.0)));
}

#[test]
fn only_the_most_probable_are_drawn() {
    let of = |kept: &[u32]| {
        let kept: Vec<f32> =
            (0..5).map(|n| if kept.contains(&n) { LOGITS[n as usize] } else { f32::NEG_INFINITY }).collect();
        softmax(&kept)
    };
    for (how, kept) in [
        (Sampling { top_k: 1, ..Sampling::GREEDY }, &[1][..]),
        (Sampling { top_k: 3, ..Sampling::GREEDY }, &[1, 2, 4]),
        (Sampling { top_k: 9, ..Sampling::GREEDY }, &[0, 1, 2, 3, 4]),
        // The two largest have a probability of 0.395 each, the others of 0.145, 0.053 and 0.007.
        (Sampling { top_p: 0.1, ..Sampling::GREEDY }, &[1]),
        (Sampling { top_p: 0.79, ..Sampling::GREEDY }, &[1, 4]),
        (Sampling { top_p: 0.8, ..Sampling::GREEDY }, &[1, 2, 4]),
        (Sampling { min_p: 0.3, ..Sampling::GREEDY }, &[1, 2, 4]),
        (Sampling { min_p: 0.1, top_k: 3, top_p: 0.5, ..Sampling::GREEDY }, &[1, 4]),
    ] {
        check_close(&counts(&LOGITS, &drawn(how)), &of(kept));
    }
}

#[test]
fn penalties_count_earlier_tokens() {
    let tokens = [1, 2, 2, 4, 4, 4];
    let check = |how: Sampling, expect: [f32; 5]| {
        let mut logits = LOGITS.to_vec();
        choose(&mut logits, Sample { how: &how, tokens: &tokens, prompt: 3, constrained: false }, None, 6);
        assert_eq!(logits, expect, "{how:?}");
    };
    check(Sampling { repetition_penalty: 2.0, ..Sampling::GREEDY }, [1.0, 1.5, 1.0, -1.0, 1.5]);
    check(Sampling { presence_penalty: 1.0, ..Sampling::GREEDY }, [1.0, 3.0, 2.0, -1.0, 2.0]);
    check(Sampling { frequency_penalty: 0.5, ..Sampling::GREEDY }, [1.0, 3.0, 2.0, -1.0, 1.5]);
    let bias = vec![(99, 1.0), (3, -1.0), (0, 5.0)].into();
    check(Sampling { logit_bias: bias, ..Sampling::GREEDY }, [6.0, 3.0, 2.0, -2.0, 3.0]);
    let mut negative = [-1.0, 0.5];
    let how = Sampling { repetition_penalty: 2.0, ..Sampling::GREEDY };
    choose(&mut negative, Sample { how: &how, tokens: &[0], prompt: 1, constrained: false }, None, 1);
    assert_eq!(negative, [-2.0, 0.5]);
}

#[test]
fn a_draw_depends_only_on_seed_and_position() {
    let draw = |seed, position| {
        let how = Sampling { seed, ..drawn(Sampling::GREEDY) };
        choose(
            &mut vec![0.0; 1000],
            Sample { how: &how, tokens: &[], prompt: 0, constrained: false },
            None,
            position,
        )
        .id
    };
    assert_eq!(draw(1, 5), draw(1, 5));
    let different = |draws: Vec<u32>| draws.iter().collect::<std::collections::BTreeSet<_>>().len();
    assert!(different((0..100).map(|position| draw(1, position)).collect()) > 80);
    assert!(different((0..100).map(|seed| draw(seed, 5)).collect()) > 80);
}

#[test]
fn infinite_and_nan_logits_still_give_a_token() {
    for logits in
        [[f32::NAN; 3], [f32::NEG_INFINITY; 3], [f32::INFINITY, 0.0, f32::INFINITY], [f32::NAN, 1.0, 2.0]]
    {
        for how in
            [Sampling::GREEDY, drawn(Sampling::GREEDY), drawn(Sampling { top_p: 0.5, ..Sampling::GREEDY })]
        {
            let token = choose(
                &mut logits.to_vec(),
                Sample { how: &how, tokens: &[], prompt: 0, constrained: false },
                None,
                1,
            )
            .id;
            assert!(token < 3, "{logits:?}");
        }
    }
}

#[test]
fn logprobs_are_of_the_raw_logits() {
    let how = Sampling { logprobs: Some(3), logit_bias: vec![(0, 50.0)].into(), ..Sampling::GREEDY };
    let token = choose(
        &mut LOGITS.to_vec(),
        Sample { how: &how, tokens: &[], prompt: 0, constrained: false },
        None,
        3,
    );
    assert_eq!(token.id, 0, "the bias selects the token");
    let logprobs = token.logprobs.unwrap();
    let probabilities = softmax(&LOGITS);
    assert_eq!(logprobs.rank, 4);
    assert!(
        (f64::from(logprobs.sampled).exp() - probabilities[0]).abs() < 1e-6,
        "but does not change its log probability"
    );
    let ids: Vec<u32> = logprobs.top.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [1, 4, 2], "sorted by probability, then by id");
    for (id, logprob) in logprobs.top {
        assert!((f64::from(logprob).exp() - probabilities[id as usize]).abs() < 1e-6, "{id}");
    }
}

#[test]
fn exp_is_accurate_and_has_the_same_bits_everywhere() {
    let mut bits = 0u64;
    for step in 0..40_000 {
        let x = step as f32 * -1e-3;
        let (found, right) = (f64::from(exp(x)), f64::from(x).exp());
        if x > -31.0 {
            assert!((found / right - 1.0).abs() < 1.5e-7, "{x}: {found}, expected {right}");
        } else {
            assert_eq!(found, 0.0, "{x}");
        }
        bits = bits.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(exp(x).to_bits()));
    }
    assert_eq!(bits, 12_248_216_212_223_090_797, "every backend must have these bits");
    assert_eq!((exp(0.0), exp(f32::NEG_INFINITY), exp(f32::NAN)), (1.0, 0.0, 0.0));
}

#[test]
fn limits_keep_the_lowest_ids_among_equals() {
    let logits = vec![0.25; 1000];
    for (how, max) in [
        (Sampling { top_k: 10, ..Sampling::GREEDY }, 10),
        (Sampling { top_p: 0.125, ..Sampling::GREEDY }, 125),
        (Sampling { top_k: 100, top_p: 0.5, ..Sampling::GREEDY }, 50),
        (Sampling { min_p: 1.0, ..Sampling::GREEDY }, 1000),
    ] {
        let counts = counts(&logits, &drawn(how.clone()));
        let last = counts.iter().rposition(|count| *count > 0.0);
        assert_eq!(last, Some(max - 1), "{how:?}");
    }
}
