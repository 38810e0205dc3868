//! When an answer ends.
//!
//! The generator applies the rule to tokens that this process samples, the decoder to a first token that a sender samples. The frontend
//! uses it to hold the last token until the finish reason arrives. The answer cannot exceed the model's context: the frontend admits a
//! request only if its prompt and `max_tokens` fit. Stop strings are text, so the frontend finds them and ends the
//! request with [`AbortOutcome::Completed`](crate::request::AbortOutcome::Completed).

use crate::request::FinishReason;

/// The tokens that end an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FinishRule {
    eos_tokens: Vec<u32>,
}

impl FinishRule {
    /// The rule for a model with these end-of-sequence tokens.
    pub fn new(eos_tokens: Vec<u32>) -> Self {
        Self { eos_tokens }
    }

    /// Why the answer ends with `token`, or `None` if it continues. `left` is how many more tokens the request may get after this one. An
    /// end-of-sequence token counts as [`FinishReason::Stop`] even if it is also the last token.
    pub fn reason(&self, token: u32, ignore_eos: bool, left: u32) -> Option<FinishReason> {
        if !ignore_eos && self.eos_tokens.contains(&token) {
            return Some(FinishReason::Stop);
        }
        (left == 0).then_some(FinishReason::Length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_with_an_end_of_sequence_token_or_its_last_token() {
        let rule = FinishRule::new(vec![2, 9]);
        let check = |token, ignore_eos, left, expect| {
            assert_eq!(rule.reason(token, ignore_eos, left), expect, "{token} {ignore_eos} {left}");
        };
        check(7, false, 1, None);
        check(7, false, 0, Some(FinishReason::Length));
        for eos in [2, 9] {
            check(eos, false, 1, Some(FinishReason::Stop));
            check(eos, false, 0, Some(FinishReason::Stop));
            check(eos, true, 1, None);
            check(eos, true, 0, Some(FinishReason::Length));
        }
    }

    #[test]
    fn a_model_without_end_of_sequence_tokens_ends_by_length_alone() {
        let rule = FinishRule::default();
        assert_eq!(rule.reason(2, false, 1), None);
        assert_eq!(rule.reason(2, false, 0), Some(FinishReason::Length));
    }
}
