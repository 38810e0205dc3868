//! Grammars that constrain the answer of a request. This crate knows their sources and the traits; the process supplies the compiler.
//!
//! A library that compiles and evaluates grammars may panic on input that it did not expect. Such a panic must cost its request and
//! nothing else. So every call of a [`GrammarCompiler`], a [`Grammar`] or a [`Matcher`] goes through [`guarded`], on a thread that owns
//! nothing else. The panic hook of the process ends the process after every other panic; [`is_guarded`] tells it the difference.

use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

pub use engine::TokenMask;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What a grammar is written in. The frontend converts every form of structured output and of forced tool calls to one of these.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GrammarSource {
    /// A JSON Schema, as JSON.
    JsonSchema(String),
    /// A regular expression that the whole answer matches.
    Regex(String),
    /// A grammar in llguidance's dialect of Lark. Its first rule is `start`.
    Lark(String),
}

impl GrammarSource {
    /// Maximum size of a source in bytes. A source travels in one frame.
    pub const BYTES_MAX: usize = 256 << 10;

    /// The text of the source.
    pub fn text(&self) -> &str {
        match self {
            Self::JsonSchema(text) | Self::Regex(text) | Self::Lark(text) => text,
        }
    }

    /// The SHA-256 of kind and text. Peers name a grammar by it.
    pub fn hash(&self) -> GrammarHash {
        let kind: u8 = match self {
            Self::JsonSchema(_) => 0,
            Self::Regex(_) => 1,
            Self::Lark(_) => 2,
        };
        let mut hasher = Sha256::new();
        hasher.update([kind]);
        hasher.update(self.text());
        GrammarHash(hasher.finalize().into())
    }
}

/// The name of a grammar: [`GrammarSource::hash`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GrammarHash(pub [u8; 32]);

/// Why a grammar cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrammarError {
    /// The source is wrong, or uses a keyword that is not supported. The text names it.
    #[error("{0}")]
    Invalid(String),
    /// The source exceeds a limit on size, memory or time.
    #[error("{0}")]
    TooLarge(String),
    /// The answer so far does not match the grammar, or the evaluation exceeds a limit.
    #[error("the grammar failed while the answer was generated: {0}")]
    Failed(String),
    /// The grammar library panicked.
    #[error("the grammar library failed on this grammar: {0}")]
    Panicked(String),
    /// Too many grammars are compiled at the same time. The same grammar may be compiled later.
    #[error("{0}")]
    Busy(String),
}

/// Compiles grammars for one model's vocabulary. Threads share it; compiled grammars are cached behind it.
pub trait GrammarCompiler: Send + Sync {
    /// Compiles a source. Blocks for at most about two seconds: the call belongs on a thread for such work, inside [`guarded`].
    ///
    /// # Errors
    /// The source is invalid or exceeds a limit, or the compiler is busy.
    fn compile(&self, source: &GrammarSource) -> Result<CompiledGrammar, GrammarError>;

    /// The outcome for a source that was compiled recently; `None` if it has to be compiled. Does not call the library, so any thread may
    /// call it.
    fn cached(&self, source: &GrammarSource) -> Option<Result<CompiledGrammar, GrammarError>> {
        let _ = source;
        None
    }
}

/// A compiled grammar.
pub trait Grammar: Send + Sync {
    /// A matcher at the start of the grammar. Takes microseconds.
    ///
    /// # Errors
    /// The grammar cannot be evaluated.
    fn matcher(&self) -> Result<Box<dyn Matcher>, GrammarError>;
}

/// Follows one answer through its grammar.
pub trait Matcher: Send {
    /// Takes the next token of the answer. After an end-of-sequence token the answer is complete.
    ///
    /// # Errors
    /// The grammar does not allow the token.
    fn consume(&mut self, token: u32) -> Result<(), GrammarError>;

    /// The tokens that may come next. End-of-sequence tokens are among them if the answer may end here. After the end of the answer, only
    /// they are. Takes 50 µs to a few milliseconds.
    ///
    /// # Errors
    /// The evaluation exceeds a limit.
    fn mask(&mut self) -> Result<TokenMask, GrammarError>;
}

/// A compiled grammar with its source. Cheap to clone. Two are equal if their sources are.
#[derive(Clone)]
pub struct CompiledGrammar {
    source: Arc<GrammarSource>,
    hash: GrammarHash,
    grammar: Arc<dyn Grammar>,
}

impl CompiledGrammar {
    /// The grammar that `source` was compiled to.
    pub fn new(source: GrammarSource, grammar: Arc<dyn Grammar>) -> Self {
        Self { hash: source.hash(), source: Arc::new(source), grammar }
    }

    /// The source.
    pub fn source(&self) -> &Arc<GrammarSource> {
        &self.source
    }

    /// The name of the grammar.
    pub fn hash(&self) -> GrammarHash {
        self.hash
    }

    /// The grammar.
    pub fn grammar(&self) -> &Arc<dyn Grammar> {
        &self.grammar
    }
}

impl PartialEq for CompiledGrammar {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl Eq for CompiledGrammar {}

impl fmt::Debug for CompiledGrammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CompiledGrammar").field(&self.source).finish()
    }
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, which calls the grammar library. A panic in it becomes [`GrammarError::Panicked`].
///
/// # Errors
/// Those of `work`, and its panic.
pub fn guarded<T>(work: impl FnOnce() -> Result<T, GrammarError>) -> Result<T, GrammarError> {
    let outer = GUARDED.replace(true);
    // The values that `work` captures are dropped after a panic: a matcher is not used again, and a compiler keeps nothing unfinished.
    let outcome = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(GrammarError::Panicked(text.unwrap_or("it panicked without a message").to_owned()))
    })
}

/// True while this thread runs [`guarded`] work. The panic hook of the process does not end the process then.
pub fn is_guarded() -> bool {
    GUARDED.get()
}

#[cfg(test)]
pub(crate) mod testing {
    //! A grammar of which every answer is the tokens 0, 1, 2 and so on.

    use super::*;

    /// The grammar double.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Counting {
        /// The matcher panics when it is asked for the mask after this many tokens.
        pub(crate) panics_after: Option<u32>,
    }

    struct CountingMatcher(Counting, u32);

    pub(crate) fn compiled(counting: Counting) -> CompiledGrammar {
        CompiledGrammar::new(GrammarSource::Regex(format!("{counting:?}")), Arc::new(counting))
    }

    /// A grammar with this source.
    pub(crate) fn named(text: &str) -> CompiledGrammar {
        CompiledGrammar::new(GrammarSource::Lark(text.to_owned()), Arc::new(Counting::default()))
    }

    impl Grammar for Counting {
        fn matcher(&self) -> Result<Box<dyn Matcher>, GrammarError> {
            Ok(Box::new(CountingMatcher(self.clone(), 0)))
        }
    }

    impl Matcher for CountingMatcher {
        fn consume(&mut self, token: u32) -> Result<(), GrammarError> {
            if token != self.1 {
                return Err(GrammarError::Failed(format!("token {token} is not allowed")));
            }
            self.1 += 1;
            Ok(())
        }

        fn mask(&mut self) -> Result<TokenMask, GrammarError> {
            assert!(self.0.panics_after != Some(self.1), "the double panics after {} tokens", self.1);
            let mut words = vec![0; self.1 as usize / 32 + 1];
            words[self.1 as usize / 32] = 1 << (self.1 % 32);
            Ok(words.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_guarded_work_is_an_error() {
        let outcome = guarded(|| -> Result<(), _> { panic!("index {} is out of range", 7) });
        assert_eq!(outcome, Err(GrammarError::Panicked("index 7 is out of range".to_owned())));
        assert!(!is_guarded());
        assert_eq!(guarded(|| Ok(is_guarded())), Ok(true));
    }

    #[test]
    fn inner_guarded_work_leaves_the_outer_work_guarded() {
        let outcome = guarded(|| {
            guarded(|| Ok(()))?;
            Ok(is_guarded())
        });
        assert_eq!(outcome, Ok(true));
    }

    #[test]
    fn the_kind_is_part_of_the_hash() {
        let text = || "\"a\"".to_owned();
        let hashes =
            [GrammarSource::JsonSchema(text()), GrammarSource::Regex(text()), GrammarSource::Lark(text())]
                .map(|source| source.hash());
        assert!(hashes[0] != hashes[1] && hashes[1] != hashes[2] && hashes[0] != hashes[2]);
    }
}
