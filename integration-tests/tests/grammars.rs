//! Grammars with the tokenizer and the vocabulary of a real model.

#[path = "grammars/worst.rs"]
mod worst;

#[path = "grammars/documents.rs"]
mod documents;

#[path = "grammars/fuzz.rs"]
mod fuzz;

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use actors::grammar::{
    CompiledGrammar, GrammarCompiler as _, GrammarError, GrammarSource, TokenMask, guarded,
};
use common::splitmix::SplitMix64;
use runtime::config::Surroundings;
use runtime::frontend::{Bos, ServedModel, Tokenizer};
use runtime::grammar::ModelCompiler;
use serde_json::{Value, json};

/// SmolLM2 has 49,152 tokens. The other ones stand for the padding of a model's vocabulary.
const TOKENS: u32 = 49_280;
/// `<|im_end|>` and `<|endoftext|>`.
const ENDS: [u32; 2] = [2, 0];

struct Model {
    tokenizer: Arc<Tokenizer>,
    compiler: ModelCompiler,
}

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let path: PathBuf = Surroundings::of_process().default_model();
    let model = ServedModel::open(&path, &path, None).expect("the model is there: run `cargo xtask fetch`");
    let compiler = ModelCompiler::new(Arc::clone(&model.tokenizer), TOKENS, &ENDS);
    Model { tokenizer: model.tokenizer, compiler }
});

fn compile(source: &GrammarSource) -> CompiledGrammar {
    guarded(|| MODEL.compiler.compile(source)).unwrap_or_else(|error| panic!("{source:?}: {error}"))
}

fn allows(mask: &TokenMask, token: u32) -> bool {
    mask[token as usize / 32] & (1 << (token % 32)) != 0
}

/// Walks a text through a grammar, tokenized by the model's tokenizer.
///
/// # Errors
/// The number of tokens before the first one that is refused, and that token; `None` if the text may not end there.
fn walk(grammar: &CompiledGrammar, text: &str) -> Result<(), (usize, Option<u32>)> {
    let mut matcher = guarded(|| grammar.grammar().matcher()).expect("the grammar has a matcher");
    let tokens = MODEL.tokenizer.encode(text, Bos::Omit).expect("the model has a tokenizer");
    for (index, token) in tokens.iter().enumerate() {
        let mask = guarded(|| matcher.mask()).expect("there is a mask");
        assert_eq!(mask.len(), TOKENS.div_ceil(32) as usize);
        assert!((49_152..TOKENS).all(|padding| !allows(&mask, padding)));
        if !allows(&mask, *token) {
            assert!(
                guarded(|| matcher.consume(*token)).is_err(),
                "{text}: the mask refuses what the matcher takes"
            );
            return Err((index, Some(*token)));
        }
        guarded(|| matcher.consume(*token)).expect("the mask allows the token");
    }
    let mask = guarded(|| matcher.mask()).expect("there is a mask");
    let may_end = ENDS.map(|end| allows(&mask, end));
    assert_eq!(may_end[0], may_end[1]);
    if may_end[0] { Ok(()) } else { Err((tokens.len(), None)) }
}

/// A random answer to a grammar: at each place a random token of those that are allowed.
fn random_answer(grammar: &CompiledGrammar, random: &mut SplitMix64, tokens_max: usize) -> Option<String> {
    let mut matcher = guarded(|| grammar.grammar().matcher()).expect("the grammar has a matcher");
    let mut bytes = Vec::new();
    for _ in 0..tokens_max {
        let mask = guarded(|| matcher.mask()).expect("there is a mask");
        let allowed: Vec<u32> = (0..TOKENS).filter(|token| allows(&mask, *token)).collect();
        if ENDS.iter().any(|end| allowed.contains(end)) {
            return Some(String::from_utf8(bytes).expect("answers are UTF-8"));
        }
        let token = allowed[(random.draw() % allowed.len() as u64) as usize];
        guarded(|| matcher.consume(token)).expect("the mask allows the token");
        bytes.extend_from_slice(MODEL.tokenizer.bytes_of(token));
    }
    None
}

#[test]
fn random_answers_match_their_schema() {
    let mut random = SplitMix64::new(1);
    let mut answers = 0;
    for _ in 0..40 {
        let schema = documents::schema(&mut random, 2);
        let grammar = compile(&GrammarSource::JsonSchema(schema.to_string()));
        let Some(answer) = random_answer(&grammar, &mut random, 300) else { continue };
        let value: Value = serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{answer}: {error}"));
        assert!(documents::is_valid(&schema, &value), "{schema}\n{answer}");
        answers += 1;
    }
    assert!(answers > 20, "only {answers} answers ended");
}

#[test]
fn valid_documents_are_allowed_and_invalid_ones_refused() {
    let mut random = SplitMix64::new(2);
    let mut invalid = 0;
    for _ in 0..150 {
        let schema = documents::schema(&mut random, 3);
        let grammar = compile(&GrammarSource::JsonSchema(schema.to_string()));
        for _ in 0..3 {
            let instance = documents::instance(&schema, &mut random);
            assert!(documents::is_valid(&schema, &instance), "{schema}\n{instance}");
            let text = documents::written(&instance);
            if let Err((index, token)) = walk(&grammar, &text) {
                let token =
                    token.map(|token| String::from_utf8_lossy(MODEL.tokenizer.bytes_of(token)).into_owned());
                panic!("{schema}\n{text}\ntoken {index}, {token:?}, is refused");
            }
            let mutant = documents::mutant(&instance, &mut random);
            if !documents::is_valid(&schema, &mutant) {
                invalid += 1;
                assert!(
                    walk(&grammar, &documents::written(&mutant)).is_err(),
                    "{schema}\n{mutant} is allowed"
                );
            }
            let cut = text.char_indices().map(|(index, _)| index).nth(text.chars().count() / 2).unwrap_or(0);
            if serde_json::from_str::<Value>(&text[..cut]).is_err() {
                assert!(walk(&grammar, &text[..cut]).is_err(), "{text} cut at {cut}");
            }
        }
    }
    assert!(invalid > 100, "only {invalid} mutants were invalid");
}

#[test]
fn choices_are_exact() {
    let choices = ["yes", "yes, sir", "no", "naïve", "a\"b\\", "", "<|im_end|>", "two\nlines"];
    let list: Vec<String> = choices.iter().map(|choice| json!(choice).to_string()).collect();
    let grammar = compile(&GrammarSource::Lark(format!("start: CHOICE\nCHOICE: {}\n", list.join(" | "))));
    let tokens = |text: &str| MODEL.tokenizer.encode(text, Bos::Omit).expect("the model has a tokenizer");
    for choice in choices.iter().filter(|choice| !tokens(choice).contains(&ENDS[0])) {
        assert_eq!(walk(&grammar, choice), Ok(()), "{choice:?}");
    }
    for other in ["y", "yes,", "No", "yes sir", "nono", "two"] {
        assert!(walk(&grammar, other).is_err(), "{other:?}");
    }
}
