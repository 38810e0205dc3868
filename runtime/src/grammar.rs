//! Grammars that constrain answers: JSON Schema, regular expressions and Lark, compiled by the library llguidance.
//!
//! - [`Compiler`] bounds compilations in time, number and memory, whatever compiles. It caches their outcomes.
//! - `library` is the only module that calls the library. `vocabulary` gives it the bytes of the model's tokens.
//! - `closed` closes the objects of schemas.
//! - `limits` refuses sources that the library does not support, or that would take it too long or too much memory.
//!
//! **Time.** A compilation runs on a thread of its own with a stack of [`STACK_BYTES`]. Its request waits for [`DEADLINE`] and is then
//! refused. The thread cannot be stopped, so it runs on until the library returns, and the outcome is cached. At most [`THREADS`] threads
//! run at the same time. While all of them are busy, a new grammar waits up to [`DEADLINE`] for one and is then refused.
//!
//! **Memory.** A source has at most `GrammarSource::BYTES_MAX` bytes. The library and `limits` bound the size of the grammar and the depth
//! of recursions. The cache holds at most [`ENTRIES_MAX`] grammars of [`BYTES_MAX`] in all.
//!
//! **Panics.** Compilations, matchers and masks run under [`actors::grammar::guarded`]. See `crate::panics`.

mod closed;
mod compiler;
mod library;
mod limits;
mod vocabulary;

pub use compiler::state::{BYTES_MAX, DEADLINE, ENTRIES_MAX, THREADS};
pub use compiler::{Compiler, STACK_BYTES};
pub use library::ModelCompiler;
pub use limits::{FORMATS, UNSUPPORTED};

#[cfg(test)]
pub(crate) mod testing {
    //! A grammar for tests of what happens before an answer begins.

    use std::sync::Arc;

    use actors::grammar::{CompiledGrammar, Grammar, GrammarError, GrammarSource, Matcher};

    /// A grammar without a matcher.
    pub(crate) struct Nothing;

    impl Nothing {
        /// The grammar of this source.
        pub(crate) fn compiled(source: &GrammarSource) -> CompiledGrammar {
            CompiledGrammar::new(source.clone(), Arc::new(Self))
        }
    }

    impl Grammar for Nothing {
        fn matcher(&self) -> Result<Box<dyn Matcher>, GrammarError> {
            Err(GrammarError::Failed("the double has no matcher".to_owned()))
        }
    }
}
