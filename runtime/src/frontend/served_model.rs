//! The model as clients see it: its name, its bounds, its words.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use engine::gguf::Gguf;

use super::chat_template::ChatTemplate;
use super::model_text::{ModelText, TextError};
use super::tokenizer::Tokenizer;

/// The model as clients see it. Shared by the frontends of a process.
pub struct ServedModel {
    /// The name under which clients ask for it.
    pub name: String,
    /// The model file's path; `root` in the list of models.
    pub root: String,
    /// How many tokens prompt and answer may have together.
    pub context_tokens: u32,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
    /// Text to tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Messages to text, if the model can chat.
    pub template: Option<ChatTemplate>,
    /// When this process began to serve it, in seconds since 1970.
    pub created: u64,
}

impl ServedModel {
    /// The model in a GGUF file, named `name` or else after the file.
    ///
    /// # Errors
    /// [`TextError`] if the file's tokenizer or chat template cannot be used.
    pub fn from_gguf(path: &Path, gguf: &Gguf, name: Option<&str>) -> Result<Self, TextError> {
        Self::new(path, &ModelText::from_gguf(gguf)?, name)
    }

    /// The model with this text.
    ///
    /// # Errors
    /// As [`from_gguf`](Self::from_gguf).
    pub fn new(path: &Path, text: &ModelText, name: Option<&str>) -> Result<Self, TextError> {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self {
            name: name.map_or_else(|| name_of(path), str::to_owned),
            root: path.display().to_string(),
            context_tokens: text.context_tokens,
            eos: text.eos.into_iter().collect(),
            tokenizer: Arc::new(Tokenizer::new(text)?),
            template: ChatTemplate::new(text)?,
            created: since_epoch.as_secs(),
        })
    }
}

/// A model's name after its file, without the kind of quantisation: `general.name` in the files of the wild is a line of
/// its training log ("Smollm2 135M 8k Lc100K Mix1 Ep2") more often than a name.
fn name_of(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let quantisation = |tail: &str| {
        let tail = tail.to_ascii_uppercase();
        let numbered = tail.strip_prefix("IQ").or(tail.strip_prefix('Q'));
        numbered.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
            || ["F16", "F32", "BF16"].contains(&&*tail)
    };
    match stem.rsplit_once(['.', '-']) {
        Some((name, tail)) if quantisation(tail) && !name.is_empty() => name.to_owned(),
        _ => stem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_files() {
        for (file, expect) in [
            ("/m/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"),
            ("Llama-3.1-8B-bf16.gguf", "Llama-3.1-8B"),
            ("tiny-IQ2_XS.gguf", "tiny"),
            ("Qwen-Quiet.gguf", "Qwen-Quiet"),
            ("model.gguf", "model"),
        ] {
            assert_eq!(name_of(Path::new(file)), expect);
        }
    }
}
