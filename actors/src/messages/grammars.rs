//! Grammars of receivers: stored and compiled by a sender.

use std::sync::Arc;

use super::SessionId;
use crate::grammar::{CompiledGrammar, GrammarError, GrammarHash, GrammarSource};

/// Peer link → prefiller: later prefills of the session may name this grammar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreGrammar {
    /// The receiver's session.
    pub session: SessionId,
    /// Where to store it: below [`GRAMMARS_MAX`](connector::frame::GRAMMARS_MAX). It replaces the grammar that is there.
    pub index: u32,
    /// The grammar.
    pub source: Arc<GrammarSource>,
}

/// Prefiller → grammar thread: compile a receiver's grammar. Answered by [`GrammarCompiled`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileGrammar {
    /// The receiver's session.
    pub session: SessionId,
    /// The name of the grammar.
    pub hash: GrammarHash,
    /// The grammar.
    pub source: Arc<GrammarSource>,
}

/// Grammar thread → prefiller: the grammar is compiled, or was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrammarCompiled {
    /// [`CompileGrammar::session`].
    pub session: SessionId,
    /// [`CompileGrammar::hash`].
    pub hash: GrammarHash,
    /// The compiled grammar, or why there is none.
    pub outcome: Result<CompiledGrammar, GrammarError>,
}
