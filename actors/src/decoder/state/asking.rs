//! The frames with which the decoder asks a sender for a prefill.

use std::time::Instant;

use connector::frame::{Frame, GRAMMAR_BYTES_MAX, GrammarKind, PROMPT_TOKENS_MAX};

use crate::effect::{Effect, to};
use crate::first_token;
use crate::grammar::{CompiledGrammar, GrammarHash, GrammarSource};
use crate::messages::{SendFrame, SessionId};
use crate::request::Generate;

const _: () = assert!(GrammarSource::BYTES_MAX == GRAMMAR_BYTES_MAX);

/// A sender that can prefill.
#[derive(Debug)]
pub(super) struct Peer {
    /// Its process id.
    pub(super) pid: u32,
    grammars: SentGrammars,
}

/// The grammars that a sender has. The decoder alone decides which one a new grammar replaces, and the frame says so. So both sides agree.
#[derive(Debug)]
struct SentGrammars {
    /// By index: the grammar, and when a prefill last named it, counted in prefills.
    sent: Vec<(GrammarHash, u64)>,
    most: usize,
    uses: u64,
}

/// True if the prompt and the grammar fit into frames.
pub(crate) fn fits_frames(generate: &Generate) -> bool {
    let fits = |grammar: &CompiledGrammar| grammar.source().text().len() <= GRAMMAR_BYTES_MAX;
    generate.prompt.len() <= PROMPT_TOKENS_MAX && generate.grammar.as_ref().is_none_or(fits)
}

impl Peer {
    /// A sender that keeps up to `grammars` grammars and has none yet.
    pub(super) fn new(pid: u32, grammars: u32) -> Self {
        let most = grammars.max(1) as usize;
        Self { pid, grammars: SentGrammars { sent: Vec::new(), most, uses: 0 } }
    }

    /// Asks the sender to prefill a request of which `resident` tokens are here, and for the log probabilities of its prompt. Sends the request's grammar first, unless the sender
    /// has it, and the request's trace.
    pub(super) fn ask(
        &mut self,
        now: Instant,
        session: SessionId,
        generate: &Generate,
        resident: u32,
        prompt_logprobs: Option<u32>,
    ) -> Vec<Effect> {
        let grammar = generate.grammar.as_ref();
        let new = grammar.and_then(|grammar| Some(frame(self.grammars.replace(grammar.hash())?, grammar)));
        let prefill = Frame::Prefill {
            request: generate.request.0,
            prompt: generate.prompt.to_vec(),
            resident,
            sampling: first_token::to_frame(&generate.sampling, prompt_logprobs),
            salt: generate.salt.map(|salt| salt.0),
            grammar: grammar.map(|grammar| grammar.hash().0.into()),
            remaining_ms: generate.deadline.saturating_duration_since(now).as_millis() as u64,
        };
        let request = generate.request.0;
        let trace = generate.trace.map(|context| Frame::Trace { request, context });
        let frames = new.into_iter().chain(trace).chain([prefill]);
        frames.map(|frame| to::peer_link(SendFrame { session, frame })).collect()
    }
}

impl SentGrammars {
    /// Marks a grammar as used. Returns the index to which it must be sent: a free one, or that of the least recently used grammar.
    /// `None` if the sender has the grammar.
    fn replace(&mut self, hash: GrammarHash) -> Option<u32> {
        self.uses += 1;
        if let Some((_, used)) = self.sent.iter_mut().find(|(sent, _)| *sent == hash) {
            *used = self.uses;
            return None;
        }
        if self.sent.len() < self.most {
            self.sent.push((hash, self.uses));
            return Some(self.sent.len() as u32 - 1);
        }
        let (index, oldest) = (0..).zip(&mut self.sent).min_by_key(|(_, (_, used))| *used)?;
        *oldest = (hash, self.uses);
        Some(index)
    }
}

fn frame(index: u32, grammar: &CompiledGrammar) -> Frame {
    let kind = match **grammar.source() {
        GrammarSource::JsonSchema(_) => GrammarKind::JsonSchema,
        GrammarSource::Regex(_) => GrammarKind::Regex,
        GrammarSource::Lark(_) => GrammarKind::Lark,
    };
    Frame::Grammar { index, kind, text: grammar.source().text().to_owned() }
}
