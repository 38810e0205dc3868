//! The prompts fixed in advance and what transformers answers to them in float32: see `fixtures/make_reference.py`.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

/// A position where the reference's best two tokens are closer than 1e-3.
#[derive(Clone, Debug, Deserialize)]
pub struct NearTie {
    /// Which new token, from 0.
    pub position: usize,
    /// Distance of the two logits.
    pub gap: f64,
}

/// One prompt and the reference's answer.
#[derive(Clone, Debug, Deserialize)]
pub struct Prompt {
    /// Its name.
    pub name: String,
    /// `chat`, `raw`, `code` or `unicode`.
    pub kind: String,
    /// Text of a completion.
    pub text: Option<String>,
    /// Messages of a chat.
    pub messages: Option<Value>,
    /// Ids that the reference's tokenizer gives.
    pub prompt_ids: Vec<u32>,
    /// The 32 tokens that follow.
    pub ids: Vec<u32>,
    /// Positions that rounding may decide.
    pub near_ties: Vec<NearTie>,
}

impl Prompt {
    /// What is POSTed: messages, text, or ids where the prompt is defined by them.
    pub fn input(&self) -> Value {
        match (&self.messages, &self.text) {
            (Some(messages), _) => messages.clone(),
            (None, Some(text)) => Value::from(text.clone()),
            (None, None) => Value::from(self.prompt_ids.clone()),
        }
    }

    /// How many leading tokens must be equal: all before the first near tie.
    pub fn firm(&self) -> usize {
        self.near_ties.iter().map(|tie| tie.position).min().unwrap_or(self.ids.len())
    }
}

/// All prompts, in the order of the file.
///
/// # Errors
/// The fixture is missing or broken.
pub fn prompts() -> Result<Vec<Prompt>> {
    #[derive(Deserialize)]
    struct Reference {
        prompts: Vec<Prompt>,
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reference.json");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_str::<Reference>(&text)?.prompts)
}
