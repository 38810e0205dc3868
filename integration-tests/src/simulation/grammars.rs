//! Grammars: a compiler that takes virtual time, and the checks that a node prefills for peers only with grammars that it has compiled.

use std::sync::Arc;

use actors::effect::{Endpoint, ToBufferManager, ToPrefiller, to};
use actors::grammar::{CompiledGrammar, Grammar, GrammarError, GrammarSource, Matcher, TokenMask};
use actors::messages::{CompileGrammar, GrammarCompiled, SequenceId, StartSequence};

use super::dice::Dice;
use super::plan::{MS, SECOND, VOCABULARY};
use super::world::World;

/// Different grammars in a history.
const GRAMMARS: u64 = 6;

/// A grammar that allows every token.
struct Everything;

impl Grammar for Everything {
    fn matcher(&self) -> Result<Box<dyn Matcher>, GrammarError> {
        Ok(Box::new(Self))
    }
}

impl Matcher for Everything {
    fn consume(&mut self, _: u32) -> Result<(), GrammarError> {
        Ok(())
    }

    fn mask(&mut self) -> Result<TokenMask, GrammarError> {
        let bits = |word: u32| (1u64 << (VOCABULARY - 32 * word).min(32)) - 1;
        Ok((0..VOCABULARY.div_ceil(32)).map(|word| bits(word) as u32).collect())
    }
}

fn everything(source: GrammarSource) -> CompiledGrammar {
    CompiledGrammar::new(source, Arc::new(Everything))
}

/// The grammar of a request. Two of three requests have none.
pub(super) fn any_grammar(dice: &mut Dice) -> Option<CompiledGrammar> {
    let number = dice.between(0, GRAMMARS - 1);
    dice.one_in(3).then(|| everything(GrammarSource::Lark(number.to_string())))
}

impl World {
    /// The grammar thread of a process gets a grammar. It compiles one after the other.
    pub(super) fn compile(&mut self, node: usize, compile: CompileGrammar) {
        let CompileGrammar { session, hash, source } = compile;
        let outcome = match self.dice.between(0, 9) {
            0 => Err(GrammarError::TooLarge("the grammar is too large".to_owned())),
            1 => Err(GrammarError::Panicked("index out of range".to_owned())),
            _ => Ok(everything((*source).clone())),
        };
        // Without faults, no compilation is so slow that requests wait long for pages behind it.
        let slow = if self.plan.bound.is_some() { 200 * MS } else { 12 * SECOND };
        let takes = self.dice.wait(50 * MS, slow);
        let busy_until = self.nodes[node].compiling_until.max(self.now) + takes;
        self.nodes[node].compiling_until = busy_until;
        let compiled = to::prefiller(GrammarCompiled { session, hash, outcome });
        self.send_later(node, busy_until - self.now, Endpoint::GrammarThread, compiled);
    }

    /// A prefiller gets a message.
    pub(super) fn prefiller_hears(&mut self, node: usize, mail: &ToPrefiller) {
        match mail {
            ToPrefiller::GrammarCompiled(GrammarCompiled { outcome: Ok(grammar), .. }) => {
                self.nodes[node].compiled.insert(grammar.hash());
            }
            ToPrefiller::PeerLost(lost) => {
                if let Some(prefilling) = &self.nodes[node].prefilling {
                    self.report.lost_while_compiling += prefilling.prefiller.compiling(lost.session) as u64;
                }
            }
            ToPrefiller::Tick(_) => self.gives_up(node),
            _ => {}
        }
    }

    /// A buffer manager gets a message. A node reserves pages for a peer's prompt only after it has compiled the prompt's grammar.
    pub(super) fn pages_are_for(&mut self, node: usize, mail: &ToBufferManager) {
        if let ToBufferManager::ReservePages(reserve) = mail {
            self.is_compiled(node, reserve.sequence);
        }
    }

    fn is_compiled(&mut self, node: usize, sequence: SequenceId) {
        let request = self.request_of(node, sequence).and_then(|request| self.clients.get(&request));
        let Some(grammar) = request.and_then(|client| client.grammar.as_ref()) else { return };
        let is_peers = matches!(sequence, SequenceId::Peer(_));
        if is_peers && !self.nodes[node].compiled.contains(&grammar.hash()) {
            let source = grammar.source().clone();
            self.fail(format!("node {node} prefills {sequence} before it has compiled {source:?}"));
        }
    }

    /// A sequence starts. It must have its request's grammar.
    pub(super) fn grammar_is_right(&mut self, node: usize, start: &StartSequence) {
        self.is_compiled(node, start.sequence);
        let client = self.request_of(node, start.sequence).and_then(|request| self.clients.get(&request));
        let expect = client.and_then(|client| client.grammar.clone());
        if start.grammar != expect {
            let (sequence, grammar) = (start.sequence, &start.grammar);
            self.fail(format!("{sequence} of process {node} starts with {grammar:?} instead of {expect:?}"));
        } else if matches!(start.sequence, SequenceId::Peer(_)) && expect.is_some() {
            self.report.constrained += 1;
        }
    }
}
