//! Grammars that constrain answers: JSON Schema, regular expressions and Lark, compiled by the library llguidance.
//!
//! - [`Compiler`] bounds compilations in time, number and memory, whatever compiles. It caches their outcomes.
//! - `library` is the only module that calls the library. `vocabulary` gives it the bytes of the model's tokens.
//! - `schema` prepares every schema, also those inside Lark grammars, which `lark_text` finds. `references` decodes the references of schemas,
//!   and `closed` closes their objects.
//! - `limits` refuses sources that the library does not support, or that would take it too long or too much memory.
//! - `dead_ends` finds grammars with a part that no text completes.
//!
//! **Time.** A compilation runs on a thread of its own with a stack of [`STACK_BYTES`]. When it has used [`CPU_TIME_MAX`], its requests are
//! refused as wrong. The thread cannot be stopped, so it runs on until the library returns, and the outcome is cached. At most [`THREADS`]
//! threads run at the same time. A request waits up to [`PATIENCE`] for a thread and the outcome, and is then told to retry.
//!
//! **Memory.** A source has at most `GrammarSource::BYTES_MAX` bytes. The library and `limits` bound the size of the grammar and the depth
//! of recursions. The cache holds at most [`ENTRIES_MAX`] grammars of [`BYTES_MAX`] in all.
//!
//! **Dead ends.** An answer can reach a place from which no token leads on, because the vocabulary lacks a byte of the only text that the
//! grammar allows. It ends there with an end-of-sequence token, as in vLLM. Grammars of which this is known are refused.
//!
//! **Panics.** Compilations, matchers and masks run under [`actors::grammar::guarded`]. See `crate::panics`.

mod closed;
mod compiler;
mod dead_ends;
mod lark_text;
mod library;
mod limits;
mod references;
mod schema;
mod vocabulary;

pub use compiler::state::{BYTES_MAX, CPU_TIME_MAX, ENTRIES_MAX, PATIENCE, THREADS};
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
