//! The grammars that receivers have sent, and their compilation.
//!
//! A receiver sends each grammar once, with the index at which it is stored here. A later grammar with the same index replaces it. So a
//! session has at most [`GRAMMARS_MAX`](connector::frame::GRAMMARS_MAX) grammars here. A grammar is compiled when the first prefill names it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::grammar::{CompiledGrammar, GrammarError, GrammarHash, GrammarSource};
use crate::messages::{CompileGrammar, GrammarCompiled, SessionId, StoreGrammar};

/// Maximum number of grammars that the grammar thread has at a time. One takes up to about a second. A receiver whose grammar is refused
/// prefills the request itself, which is sooner than the end of a longer queue.
pub(super) const COMPILATIONS_MAX: usize = 16;

#[derive(Debug)]
struct Stored {
    hash: GrammarHash,
    source: Arc<GrammarSource>,
    progress: Progress,
}

#[derive(Debug)]
enum Progress {
    /// No prefill has named the grammar.
    Stored,
    /// The grammar thread has the grammar.
    Compiling,
    /// The grammar thread has answered.
    Over(Result<CompiledGrammar, GrammarError>),
}

/// A grammar that a prefill names.
pub(super) enum Wanted {
    /// The grammar can be used.
    Compiled(CompiledGrammar),
    /// The grammar thread has the grammar.
    Compiling,
    /// The grammar must be compiled.
    New(CompileGrammar),
}

/// All receivers' grammars.
#[derive(Debug)]
pub(super) struct Grammars {
    /// False if this process cannot compile grammars.
    compiles: bool,
    stored: BTreeMap<(SessionId, u32), Stored>,
    /// Grammars that the grammar thread has.
    compiling: usize,
}

impl Grammars {
    /// No grammars.
    pub(super) fn new(compiles: bool) -> Self {
        Self { compiles, stored: BTreeMap::new(), compiling: 0 }
    }

    /// A receiver has sent a grammar.
    pub(super) fn store(&mut self, store: StoreGrammar) {
        let StoreGrammar { session, index, source } = store;
        let stored = Stored { hash: source.hash(), source, progress: Progress::Stored };
        self.stored.insert((session, index), stored);
    }

    /// A session has ended.
    pub(super) fn forget(&mut self, session: SessionId) {
        self.stored.retain(|(of, _), _| *of != session);
    }

    fn find(&mut self, session: SessionId, hash: GrammarHash) -> Option<&mut Stored> {
        let mut of_session = self.stored.range_mut((session, 0)..=(session, u32::MAX));
        of_session.find(|(_, stored)| stored.hash == hash).map(|(_, stored)| stored)
    }

    /// The grammar that a prefill names. The caller sends a new one to the grammar thread.
    ///
    /// # Errors
    /// Why a prefill with this grammar is refused.
    pub(super) fn want(&mut self, session: SessionId, hash: GrammarHash) -> Result<Wanted, String> {
        if !self.compiles {
            return Err("this sender does not compile grammars".to_owned());
        }
        let is_full = self.compiling >= COMPILATIONS_MAX;
        let Some(stored) = self.find(session, hash) else {
            return Err("this sender does not have the request's grammar".to_owned());
        };
        match &stored.progress {
            Progress::Over(Ok(grammar)) => Ok(Wanted::Compiled(grammar.clone())),
            Progress::Over(Err(error)) => Err(refused(error)),
            Progress::Compiling => Ok(Wanted::Compiling),
            Progress::Stored if is_full => {
                Err(format!("{COMPILATIONS_MAX} other grammars wait to be compiled on this sender"))
            }
            Progress::Stored => {
                stored.progress = Progress::Compiling;
                let source = stored.source.clone();
                self.compiling += 1;
                Ok(Wanted::New(CompileGrammar { session, hash, source }))
            }
        }
    }

    /// The grammar thread has answered.
    pub(super) fn on_compiled(&mut self, compiled: &GrammarCompiled) {
        self.compiling -= 1;
        // The receiver may have replaced the grammar, or the session may have ended.
        if let Some(stored) = self.find(compiled.session, compiled.hash) {
            stored.progress = Progress::Over(compiled.outcome.clone());
        }
    }
}

/// The reason for a receiver whose grammar was not compiled.
pub(super) fn refused(error: &GrammarError) -> String {
    format!("this sender cannot compile the grammar: {error}")
}
