//! What a sender samples and scores for a receiver, to and from frames: the first token, its sampling settings, and log probabilities.

use connector::frame::{FirstToken, TokenLogprobs};
use engine::{Logprobs, Sampling, Token};

/// The settings with which a sender samples the first token, and the log probabilities of the prompt that it reports.
pub fn to_frame(sampling: &Sampling, prompt_logprobs: Option<u32>) -> Box<FirstToken> {
    let Sampling { temperature, top_p, top_k, min_p, repetition_penalty, seed, logprobs, .. } = *sampling;
    let logit_bias = sampling.logit_bias.to_vec();
    Box::new(FirstToken {
        temperature,
        top_p,
        top_k,
        min_p,
        repetition_penalty,
        logit_bias,
        seed,
        logprobs,
        prompt_logprobs,
    })
}

/// The sampling settings in a receiver's frame.
pub fn from_frame(first: FirstToken) -> Sampling {
    let FirstToken {
        temperature, top_p, top_k, min_p, repetition_penalty, logit_bias, seed, logprobs, ..
    } = first;
    Sampling {
        temperature,
        top_p,
        top_k,
        min_p,
        repetition_penalty,
        logit_bias: logit_bias.into(),
        seed,
        logprobs: logprobs.map(|top| top.min(Sampling::LOGPROBS_MAX)),
        // These penalties count sampled tokens, and none has been sampled yet.
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
    }
}

/// The parts of a sampled token that a frame carries.
pub fn split(token: Token) -> (u32, Option<TokenLogprobs>) {
    (token.id, token.logprobs.map(|logprobs| logprobs_to_frame(*logprobs)))
}

/// Log probabilities as a frame carries them.
pub fn logprobs_to_frame(logprobs: Logprobs) -> TokenLogprobs {
    let Logprobs { sampled, rank, top } = logprobs;
    TokenLogprobs { sampled, rank, top }
}

/// The log probabilities in a frame.
pub fn logprobs_of_frame(logprobs: TokenLogprobs) -> Logprobs {
    let TokenLogprobs { sampled, rank, top } = logprobs;
    Logprobs { sampled, rank, top }
}

/// The token that a frame carries.
pub fn join(id: u32, logprobs: Option<TokenLogprobs>) -> Token {
    let logprobs = logprobs.map(|logprobs| Box::new(logprobs_of_frame(logprobs)));
    Token { id, logprobs }
}

/// True if the id is below `vocabulary` and the log probabilities, if there are any, [are known](are_known).
pub fn is_known(token: &Token, vocabulary: u32) -> bool {
    let logprobs = token.logprobs.as_deref();
    token.id < vocabulary && logprobs.is_none_or(|logprobs| are_known(logprobs, vocabulary))
}

/// True if every id is below `vocabulary` and there are at most [`Sampling::LOGPROBS_MAX`] alternatives.
pub fn are_known(logprobs: &Logprobs, vocabulary: u32) -> bool {
    logprobs.top.len() <= Sampling::LOGPROBS_MAX as usize
        && logprobs.top.iter().all(|(id, _)| *id < vocabulary)
}
