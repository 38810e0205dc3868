//! The first token, which a sender samples and a receiver delivers: its sampling settings and the token itself, to and from frames.

use connector::frame::{FirstToken, FirstTokenLogprobs};
use engine::{Logprobs, Sampling, Token};

/// The settings with which a sender samples the first token.
pub fn to_frame(sampling: &Sampling) -> Box<FirstToken> {
    let Sampling { temperature, top_p, top_k, min_p, repetition_penalty, seed, logprobs, .. } = *sampling;
    let logit_bias = sampling.logit_bias.clone();
    Box::new(FirstToken { temperature, top_p, top_k, min_p, repetition_penalty, logit_bias, seed, logprobs })
}

/// The sampling settings in a receiver's frame.
pub fn from_frame(first: FirstToken) -> Sampling {
    let FirstToken { temperature, top_p, top_k, min_p, repetition_penalty, logit_bias, seed, logprobs } =
        first;
    Sampling {
        temperature,
        top_p,
        top_k,
        min_p,
        repetition_penalty,
        logit_bias,
        seed,
        logprobs: logprobs.map(|top| top.min(Sampling::LOGPROBS_MAX)),
        // These penalties count sampled tokens, and none has been sampled yet.
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
    }
}

/// The parts of a sampled token that a frame carries.
pub fn split(token: Token) -> (u32, Option<FirstTokenLogprobs>) {
    let logprobs = token.logprobs.map(|logprobs| {
        let Logprobs { sampled, rank, top } = *logprobs;
        FirstTokenLogprobs { sampled, rank, top }
    });
    (token.id, logprobs)
}

/// The token that a frame carries.
pub fn join(id: u32, logprobs: Option<FirstTokenLogprobs>) -> Token {
    let logprobs = logprobs.map(|logprobs| {
        let FirstTokenLogprobs { sampled, rank, top } = logprobs;
        Box::new(Logprobs { sampled, rank, top })
    });
    Token { id, logprobs }
}

/// True if every id is below `vocabulary` and there are at most [`Sampling::LOGPROBS_MAX`] alternatives.
pub fn is_known(token: &Token, vocabulary: u32) -> bool {
    let known = |logprobs: &Logprobs| {
        logprobs.top.len() <= Sampling::LOGPROBS_MAX as usize
            && logprobs.top.iter().all(|(id, _)| *id < vocabulary)
    };
    token.id < vocabulary && token.logprobs.as_deref().is_none_or(known)
}
