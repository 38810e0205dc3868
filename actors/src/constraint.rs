//! The constraint of one sequence: its grammar, followed through the tokens that were sampled so far, and the mask of the next token.
//!
//! The engine's thread tells the constraint each token as soon as it knows it. A thread of
//! [`MaskThreads`](crate::devices::mask_threads::MaskThreads) then computes the mask of the next token, while the engine computes the
//! logits.

use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::grammar::{CompiledGrammar, GrammarError, Matcher, TokenMask, guarded};

/// The constraint of one sequence. The generator creates it; the engine's thread and the mask threads share it.
pub struct Constraint {
    grammar: CompiledGrammar,
    progress: Mutex<Progress>,
    /// Notified when a mask is ready.
    ready: Condvar,
}

struct Progress {
    /// The tokens after the prompt, as far as they are known.
    tokens: Vec<u32>,
    /// The matcher, unless it is not made yet or a thread works with it.
    matcher: Option<Box<dyn Matcher>>,
    /// Tokens that the matcher has consumed.
    consumed: usize,
    /// A thread works on the constraint or will.
    is_queued: bool,
    /// The mask of the token after the consumed ones.
    mask: Option<TokenMask>,
    /// Why there will be no more masks.
    failed: Option<GrammarError>,
}

impl Progress {
    /// True if a mask is missing and can be computed.
    fn has_work(&self) -> bool {
        self.failed.is_none() && (self.mask.is_none() || self.consumed < self.tokens.len())
    }

    fn mask(&self, count: usize) -> Option<Result<TokenMask, GrammarError>> {
        match &self.failed {
            Some(error) => Some(Err(error.clone())),
            None if self.consumed == count => self.mask.clone().map(Ok),
            None => None,
        }
    }
}

impl Constraint {
    /// The constraint of a sequence without tokens after the prompt.
    pub fn new(grammar: CompiledGrammar) -> Self {
        let progress = Progress {
            tokens: Vec::new(),
            matcher: None,
            consumed: 0,
            is_queued: false,
            mask: None,
            failed: None,
        };
        Self { grammar, progress: Mutex::new(progress), ready: Condvar::new() }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells tokens of the sequence. The first of them is token number `first` after the prompt; tokens that are known already are
    /// ignored. Returns true if the caller must have [`work`](Self::work) called: no thread works on the constraint, and a mask is missing.
    #[must_use]
    pub fn tell(&self, first: usize, tokens: &[u32]) -> bool {
        let mut progress = self.progress();
        let known = progress.tokens.len().saturating_sub(first);
        progress.tokens.extend(tokens.get(known..).unwrap_or_default());
        if progress.is_queued || !progress.has_work() {
            return false;
        }
        progress.is_queued = true;
        true
    }

    /// Computes the mask of the next token, until no known token is left. Called by one thread at a time.
    pub fn work(&self) {
        loop {
            let (matcher, tokens) = {
                let mut progress = self.progress();
                if !progress.has_work() {
                    progress.is_queued = false;
                    return;
                }
                // The old mask is no longer asked for.
                progress.mask = None;
                (progress.matcher.take(), progress.tokens[progress.consumed..].to_vec())
            };
            let outcome = guarded(|| {
                let mut matcher = matcher.map_or_else(|| self.grammar.grammar().matcher(), Ok)?;
                tokens.iter().try_for_each(|token| matcher.consume(*token))?;
                let mask = matcher.mask()?;
                Ok((matcher, mask))
            });
            let mut progress = self.progress();
            match outcome {
                Ok((matcher, mask)) => {
                    progress.consumed += tokens.len();
                    (progress.matcher, progress.mask) = (Some(matcher), Some(mask));
                }
                Err(error) => progress.failed = Some(error),
            }
            drop(progress);
            self.ready.notify_all();
        }
    }

    /// The mask of the token after the first `count` tokens. `None` if it is not computed yet.
    pub fn mask(&self, count: usize) -> Option<Result<TokenMask, GrammarError>> {
        self.progress().mask(count)
    }

    /// Waits for the mask of the token after the first `count` tokens, at most for `most`.
    pub fn wait(&self, count: usize, most: Duration) {
        let is_missing = |progress: &mut Progress| progress.mask(count).is_none();
        // The mask is read again by the caller.
        drop(self.ready.wait_timeout_while(self.progress(), most, is_missing));
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Constraint").field(&self.grammar).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::grammar::testing::{Counting, compiled};

    fn mask(constraint: &Constraint, count: usize) -> Option<u32> {
        constraint.mask(count).map(|mask| mask.unwrap()[0])
    }

    #[test]
    fn masks_follow_the_tokens() {
        let constraint = Constraint::new(compiled(Counting::default()));
        assert_eq!(mask(&constraint, 0), None);
        assert!(constraint.tell(0, &[]), "the first mask needs no token");
        assert!(!constraint.tell(0, &[]), "it is queued");
        constraint.work();
        // The double allows token n after n tokens.
        assert_eq!((mask(&constraint, 0), mask(&constraint, 1)), (Some(1 << 0), None));
        assert!(!constraint.tell(0, &[]), "the mask is there");
        assert!(constraint.tell(0, &[0]));
        assert!(!constraint.tell(1, &[1]), "the queued thread takes this token too");
        assert!(!constraint.tell(0, &[0, 1]), "both are known");
        constraint.work();
        assert_eq!((mask(&constraint, 1), mask(&constraint, 2)), (None, Some(1 << 2)));
    }

    #[test]
    fn an_error_stays() {
        let constraint = Constraint::new(compiled(Counting::default()));
        assert!(constraint.tell(0, &[5]));
        constraint.work();
        let error = GrammarError::Failed("token 5 is not allowed".to_owned());
        assert_eq!(constraint.mask(1), Some(Err(error.clone())));
        assert!(!constraint.tell(1, &[1]), "there is nothing left to compute");
        assert_eq!(constraint.mask(2), Some(Err(error)));
    }

    #[test]
    fn a_panic_of_the_library_is_an_error_of_its_sequence() {
        let constraint = Constraint::new(compiled(Counting { panics_after: Some(2) }));
        assert!(constraint.tell(0, &[0, 1]));
        constraint.work();
        assert!(matches!(constraint.mask(2), Some(Err(GrammarError::Panicked(_)))));
    }

    #[test]
    fn a_waiting_thread_wakes_when_the_mask_is_there() {
        let constraint = Arc::new(Constraint::new(compiled(Counting::default())));
        assert!(constraint.tell(0, &[0]));
        let worker = std::thread::spawn({
            let constraint = Arc::clone(&constraint);
            move || {
                std::thread::sleep(Duration::from_millis(20));
                constraint.work();
            }
        });
        constraint.wait(1, Duration::from_secs(60));
        assert_eq!(mask(&constraint, 1), Some(1 << 1));
        worker.join().unwrap();
    }
}
