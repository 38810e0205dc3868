//! Compiles and evaluates grammars with llguidance.

use std::sync::{Arc, OnceLock};

use actors::grammar::{
    CompiledGrammar, Grammar, GrammarCompiler, GrammarError, GrammarSource, Matcher, TokenMask,
};
use llguidance::ParserFactory;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::SimpleVob;

use super::compiler::Compiler;
use super::dead_ends::has_dead_end;
use super::lark_text::LarkText;
use super::limits;
use super::schema;
use super::vocabulary::vocabulary;
use crate::frontend::Tokenizer;

/// Maximum size of the library's tables for a grammar, which it copies for each answer.
const TABLE_BYTES_MAX: usize = 8 << 20;

/// Longest text of an error of the library, in characters. The library quotes lines of the source.
const MESSAGE_MAX: usize = 400;

/// Longest part of a string in a message, in characters.
const STRING_MAX: usize = 40;

/// The compiler for one model. Its first grammar takes longer, because it builds the trie of tokens: about 0.2 s for 49,152 tokens and
/// 0.6 s for 128,256.
pub struct ModelCompiler {
    tokenizer: Arc<Tokenizer>,
    tokens: u32,
    eos: Vec<u32>,
    compiler: OnceLock<Compiler>,
}

impl ModelCompiler {
    /// The compiler for a model with `tokens` tokens, of which the tokenizer knows the first ones. `eos` are the end-of-sequence tokens.
    pub fn new(tokenizer: Arc<Tokenizer>, tokens: u32, eos: &[u32]) -> Self {
        let eos = eos.iter().copied().filter(|token| *token < tokens).collect();
        Self { tokenizer, tokens, eos, compiler: OnceLock::new() }
    }

    /// The number of running compilations.
    pub fn running(&self) -> usize {
        self.compiler.get().map_or(0, Compiler::running)
    }
}

impl GrammarCompiler for ModelCompiler {
    fn compile(&self, source: &GrammarSource) -> Result<CompiledGrammar, GrammarError> {
        let compiler = self.compiler.get_or_init(|| {
            let library = Library::new(&self.tokenizer, self.tokens, &self.eos);
            Compiler::new(move |source| {
                let compiled = library.as_ref().map_err(Clone::clone)?.compile(source)?;
                Ok(Arc::new(compiled) as Arc<dyn Grammar>)
            })
        });
        compiler.compile(source)
    }

    fn cached(&self, source: &GrammarSource) -> Option<Result<CompiledGrammar, GrammarError>> {
        self.compiler.get()?.cached(source)
    }
}

/// The library, prepared for one model.
struct Library {
    factory: ParserFactory,
    eos: Arc<EndTokens>,
    /// The bytes that ordinary tokens have.
    bytes: [bool; 256],
}

/// The end-of-sequence tokens.
struct EndTokens {
    tokens: Vec<u32>,
    mask: TokenMask,
}

impl Library {
    fn new(tokenizer: &Tokenizer, tokens: u32, eos: &[u32]) -> Result<Self, GrammarError> {
        let invalid = |message: &str| GrammarError::Invalid(message.to_owned());
        if tokenizer.ordinary().is_empty() {
            return Err(invalid("this model has no tokenizer, so its answers cannot follow a grammar"));
        }
        if eos.is_empty() {
            return Err(invalid(
                "this model has no end-of-sequence token, so its answers cannot follow a grammar",
            ));
        }
        let environment = vocabulary(tokenizer, tokens, eos);
        let end = environment.tok_trie().eos_token_set();
        let mut factory =
            ParserFactory::new_simple(&environment).map_err(|error| invalid(&error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            // An object with n optional properties has up to 4 n items in a row.
            max_items_in_row: 4 * limits::PROPERTIES_MAX + 2000,
            // Some items take 10 µs.
            step_max_items: 20_000,
            // The time of a mask grows with the square of the symbols that may be empty: 30,000 take 5 s.
            max_grammar_size: 30_000,
            initial_lexer_fuel: 500_000,
            // Each takes about 2 KB, and each request may have as many.
            max_lexer_states: 20_000,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        let eos = EndTokens { tokens: eos.to_vec(), mask: mask(&end, tokens as usize) };
        let mut bytes = [false; 256];
        for token in tokenizer.ordinary() {
            tokenizer.bytes_of(token).iter().for_each(|byte| bytes[usize::from(*byte)] = true);
        }
        Ok(Self { factory, eos: Arc::new(eos), bytes })
    }

    fn compile(&self, source: &GrammarSource) -> Result<Compiled, GrammarError> {
        let grammar = match source {
            GrammarSource::JsonSchema(text) => TopLevelGrammar::from_json_schema(schema::parsed(text)?),
            GrammarSource::Regex(text) => TopLevelGrammar::from_regex(text),
            GrammarSource::Lark(text) => {
                let read = LarkText::read(text);
                self.check_strings(&read.strings)?;
                TopLevelGrammar::from_lark(schema::in_lark(text, read)?)
            }
        };
        let parser =
            self.factory.create_parser(grammar).map_err(|error| refused(source, &error.to_string()))?;
        let bytes = parser.parser.lexer_stats().num_bytes;
        if bytes > TABLE_BYTES_MAX {
            let message = format!(
                "each answer would need {bytes} bytes for the grammar; it may need {TABLE_BYTES_MAX}"
            );
            return Err(GrammarError::TooLarge(message));
        }
        if has_dead_end(parser.parser.grammar(), self.factory.limits().clone()) {
            let message = "a part of the grammar matches no finite text, for example because it contains itself in every case; \
                           an answer that reached it could not end";
            return Err(GrammarError::Invalid(message.to_owned()));
        }
        let mut start = llguidance::Matcher::new(Ok(parser));
        // A grammar without a first token is refused here, and not when its answer begins.
        start.compute_mask_or_eos().map_err(|error| refused(source, &error.to_string()))?;
        let tokens = self.factory.tok_env().tok_trie().vocab_size();
        Ok(Compiled { start, eos: Arc::clone(&self.eos), tokens })
    }

    /// Refuses a string, such as a choice, that tokens of the model cannot spell. An answer that began with it would have no next token.
    fn check_strings(&self, strings: &[String]) -> Result<(), GrammarError> {
        let missing = |string: &&String| string.bytes().any(|byte| !self.bytes[usize::from(byte)]);
        let Some(string) = strings.iter().find(missing) else { return Ok(()) };
        let begin: String = string.chars().take(STRING_MAX).collect();
        let message = format!("the model has no tokens for the string {begin:?}");
        Err(GrammarError::Invalid(message))
    }
}

/// The library's refusal of a source.
fn refused(source: &GrammarSource, error: &str) -> GrammarError {
    let gbnf = matches!(source, GrammarSource::Lark(text) if LarkText::read(text).is_gbnf);
    match failed(error, GrammarError::Invalid) {
        GrammarError::Invalid(text) if gbnf => {
            GrammarError::Invalid(format!("{text}; ::= is GBNF, and this server reads Lark"))
        }
        error => error,
    }
}

/// The library's error as ours. The library catches its own panics and reports them with a backtrace.
fn failed(error: &str, kind: fn(String) -> GrammarError) -> GrammarError {
    let text = error.split("\n<").next().unwrap_or_default();
    let text: String =
        text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MESSAGE_MAX).collect();
    match text.strip_prefix("panic: ") {
        Some(panic) => GrammarError::Panicked(panic.to_owned()),
        None if is_dead_end(&text) => kind("no answer of the model's tokens matches the grammar".to_owned()),
        None => kind(text),
    }
}

/// True for the library's error if no token continues an answer.
fn is_dead_end(error: &str) -> bool {
    error.starts_with("NoExtension")
}

/// The mask with one bit for each token.
fn mask(set: &SimpleVob, tokens: usize) -> TokenMask {
    let mut words = set.as_slice()[..tokens.div_ceil(32)].to_vec();
    if let Some(last) = words.last_mut().filter(|_| !tokens.is_multiple_of(32)) {
        *last &= (1 << (tokens % 32)) - 1;
    }
    words.into()
}

/// A compiled grammar.
struct Compiled {
    /// A matcher before the first token.
    start: llguidance::Matcher,
    eos: Arc<EndTokens>,
    tokens: usize,
}

impl Compiled {
    fn answer(&self) -> Answer {
        // A shallow clone would share the lexer: matchers would wait for each other, and a panic in one would break the others.
        let matcher = self.start.deep_clone();
        Answer { matcher, eos: Arc::clone(&self.eos), tokens: self.tokens, over: false }
    }
}

impl Grammar for Compiled {
    fn matcher(&self) -> Result<Box<dyn Matcher>, GrammarError> {
        Ok(Box::new(self.answer()))
    }
}

/// One answer and its place in the grammar.
struct Answer {
    matcher: llguidance::Matcher,
    eos: Arc<EndTokens>,
    tokens: usize,
    /// An end-of-sequence token was taken.
    over: bool,
}

impl Matcher for Answer {
    fn consume(&mut self, token: u32) -> Result<(), GrammarError> {
        let wrong = |error: &str| Err(failed(error, GrammarError::Failed));
        let is_end = self.eos.tokens.contains(&token);
        match (is_end, self.over || self.matcher.is_stopped()) {
            (false, true) => wrong("the answer is complete"),
            (false, false) => self.matcher.consume_token(token).or_else(|error| wrong(&error.to_string())),
            (true, true) => {
                self.over = true;
                Ok(())
            }
            (true, false) => match self.matcher.is_accepting() {
                Err(error) => wrong(&error.to_string()),
                // A grammar can name the token, and a dead end allows it.
                Ok(false) if !is_set(&self.mask()?, token) => wrong("the answer may not end here"),
                Ok(_) => {
                    self.over = true;
                    Ok(())
                }
            },
        }
    }

    fn mask(&mut self) -> Result<TokenMask, GrammarError> {
        if self.over {
            return Ok(Arc::clone(&self.eos.mask));
        }
        let error = match self.matcher.compute_mask_or_eos() {
            Ok(set) => return Ok(mask(&set, self.tokens)),
            Err(error) => error.to_string(),
        };
        if !is_dead_end(&error) {
            return Err(failed(&error, GrammarError::Failed));
        }
        tracing::warn!("an answer ends before its grammar does, because no token of the model continues it");
        self.over = true;
        Ok(Arc::clone(&self.eos.mask))
    }
}

/// Whether the mask has this token.
fn is_set(mask: &TokenMask, token: u32) -> bool {
    mask.get(token as usize / 32).is_some_and(|word| word & (1 << (token % 32)) != 0)
}

#[cfg(test)]
mod tests;
