//! A grammar double: each token of an answer is determined up to a multiple of a number.

use std::sync::Arc;
use std::time::Duration;

use ::actors::grammar::{CompiledGrammar, Grammar, GrammarError, GrammarSource, Matcher, TokenMask};

use super::VOCABULARY;

/// Token number n of an answer must be n modulo `modulus`.
#[derive(Clone, Debug)]
pub(super) struct Modular {
    pub(super) modulus: u32,
    /// The mask of each token takes this long.
    pub(super) takes: Duration,
    /// The matcher panics at the mask after this many tokens.
    pub(super) panics_after: Option<u32>,
}

impl Modular {
    /// Every token is allowed.
    pub(super) const EVERYTHING: Self = Self { modulus: 1, takes: Duration::ZERO, panics_after: None };
    /// One of seven tokens is allowed.
    pub(super) const SEVENS: Self = Self { modulus: 7, ..Self::EVERYTHING };

    pub(super) fn compiled(self, source: GrammarSource) -> CompiledGrammar {
        CompiledGrammar::new(source, Arc::new(self))
    }

    /// The mask of the token after `count` tokens.
    pub(super) fn mask(&self, count: u32) -> TokenMask {
        let mut words = vec![0; VOCABULARY.div_ceil(32) as usize];
        (0..VOCABULARY)
            .filter(|token| token % self.modulus == count % self.modulus)
            .for_each(|token| words[token as usize / 32] |= 1 << (token % 32));
        words.into()
    }
}

impl Grammar for Modular {
    fn matcher(&self) -> Result<Box<dyn Matcher>, GrammarError> {
        Ok(Box::new(ModularMatcher { grammar: self.clone(), count: 0 }))
    }
}

struct ModularMatcher {
    grammar: Modular,
    count: u32,
}

impl Matcher for ModularMatcher {
    fn consume(&mut self, token: u32) -> Result<(), GrammarError> {
        let modulus = self.grammar.modulus;
        if token % modulus != self.count % modulus {
            return Err(GrammarError::Failed(format!("token {token} is not allowed at {}", self.count)));
        }
        self.count += 1;
        Ok(())
    }

    fn mask(&mut self) -> Result<TokenMask, GrammarError> {
        assert!(self.grammar.panics_after != Some(self.count), "the double panics");
        std::thread::sleep(self.grammar.takes);
        Ok(self.grammar.mask(self.count))
    }
}
