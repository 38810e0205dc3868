//! Fixed prompts and the answers of transformers in float32, made by `fixtures/make_reference.py`.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

/// A position at which the two largest logits of the reference differ by less than 1e-3.
#[derive(Clone, Debug, Deserialize)]
pub struct NearTie {
    /// The number of the new token, from 0.
    pub position: usize,
    /// Difference of the two logits.
    pub gap: f64,
}

/// One prompt and the answer of the reference.
#[derive(Clone, Debug, Deserialize)]
pub struct Prompt {
    /// The prompt's name.
    pub name: String,
    /// `chat`, `raw`, `code` or `unicode`.
    pub kind: String,
    /// Text of a completion.
    pub text: Option<String>,
    /// Messages of a chat.
    pub messages: Option<Value>,
    /// Token ids of the prompt by the tokenizer of the reference.
    pub prompt_ids: Vec<u32>,
    /// Token ids of the answer, 32 of them.
    pub ids: Vec<u32>,
    /// Positions at which rounding may change the token.
    pub near_ties: Vec<NearTie>,
}

impl Prompt {
    /// The input of a request: messages, text, or token ids if the prompt is given by them.
    pub fn input(&self) -> Value {
        match (&self.messages, &self.text) {
            (Some(messages), _) => messages.clone(),
            (None, Some(text)) => Value::from(text.clone()),
            (None, None) => Value::from(self.prompt_ids.clone()),
        }
    }

    /// Number of tokens of the answer that rounding cannot change: all tokens before the first near tie.
    pub fn stable_tokens(&self) -> usize {
        self.near_ties.iter().map(|tie| tie.position).min().unwrap_or(self.ids.len())
    }
}

/// The prompts and answers of the default model, in the order of the file.
///
/// # Errors
/// The fixture cannot be read.
pub fn prompts() -> Result<Vec<Prompt>> {
    read("reference.json")
}

/// The prompts and answers of Qwen2.5-Coder-0.5B-Instruct, in the order of the file.
///
/// # Errors
/// The fixture cannot be read.
pub fn qwen_prompts() -> Result<Vec<Prompt>> {
    read("reference-qwen.json")
}

fn read(file: &str) -> Result<Vec<Prompt>> {
    #[derive(Deserialize)]
    struct Reference {
        prompts: Vec<Prompt>,
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(file);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_str::<Reference>(&text)?.prompts)
}
