//! What a model file says about text: vocabulary, merges, special tokens, chat template.

use engine::gguf::Gguf;

/// The textual half of a model file, independent of the file's format.
#[derive(Clone, Debug, Default)]
pub struct ModelText {
    /// Which kind of tokenizer: `gpt2` is byte-level BPE.
    pub kind: String,
    /// Which split comes before the merges.
    pub pre: String,
    /// Token id → token, in the byte-level alphabet.
    pub tokens: Vec<String>,
    /// Merges, best first: two tokens with a space between.
    pub merges: Vec<String>,
    /// Token id → what kind of token (3: special, 4: added by the user).
    pub token_types: Vec<i32>,
    /// Begin-of-sequence token.
    pub bos: Option<u32>,
    /// End-of-sequence token.
    pub eos: Option<u32>,
    /// Whether a raw prompt gets the begin-of-sequence token.
    pub add_bos: bool,
    /// The chat template, in Jinja.
    pub chat_template: Option<String>,
    /// How many tokens a sequence may have.
    pub context_tokens: u32,
}

/// Why a model file cannot serve text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The file lacks a key.
    #[error("model file has no {0}; it cannot be served without")]
    Missing(&'static str),
    /// The tokenizer is of a kind that is not known here.
    #[error(
        "model file needs tokenizer {kind} with pre-tokenizer {pre}; this build knows gpt2 with smollm, gpt-2, llama-bpe or qwen2, and tokenizer.json with a ByteLevel or Metaspace decoder"
    )]
    Unsupported {
        /// `tokenizer.ggml.model`.
        kind: String,
        /// `tokenizer.ggml.pre`.
        pre: String,
    },
    /// A file of the folder cannot be read.
    #[error("{file} cannot be read: {error}")]
    Read {
        /// Its name.
        file: &'static str,
        /// What the system says.
        error: std::io::Error,
    },
    /// The vocabulary contradicts itself.
    #[error("model file has a broken vocabulary: {0}")]
    Broken(String),
    /// The chat template is not Jinja.
    #[error("model file has a chat template that cannot be read: {0}")]
    Template(String),
}

impl TextError {
    /// One word for metrics, logs and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Missing(_) => "missing",
            Self::Unsupported { .. } => "unsupported",
            Self::Read { .. } => "read",
            Self::Broken(_) => "broken",
            Self::Template(_) => "template",
        }
    }
}

impl ModelText {
    /// Reads the metadata of a GGUF file.
    ///
    /// # Errors
    /// [`TextError::Missing`] for a key without which no text can be made.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TextError> {
        let owned = |key: &str| gguf.str(key).map(str::to_owned);
        let list = |key: &'static str| {
            let strings = gguf.strings(key).ok_or(TextError::Missing(key))?;
            Ok::<Vec<String>, TextError>(strings.into_iter().map(str::to_owned).collect())
        };
        let token = |key: &str| gguf.u64(key).and_then(|id| u32::try_from(id).ok());
        let context = format!("{}.context_length", gguf.str("general.architecture").unwrap_or_default());
        Ok(Self {
            kind: owned("tokenizer.ggml.model").ok_or(TextError::Missing("tokenizer.ggml.model"))?,
            pre: owned("tokenizer.ggml.pre").unwrap_or_else(|| "default".to_owned()),
            tokens: list("tokenizer.ggml.tokens")?,
            merges: list("tokenizer.ggml.merges")?,
            token_types: gguf.i32s("tokenizer.ggml.token_type").unwrap_or_default(),
            bos: token("tokenizer.ggml.bos_token_id"),
            eos: token("tokenizer.ggml.eos_token_id"),
            add_bos: gguf.bool("tokenizer.ggml.add_bos_token").unwrap_or(false),
            chat_template: owned("tokenizer.chat_template"),
            context_tokens: token(&context).ok_or(TextError::Missing("context_length"))?,
        })
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A vocabulary of single bytes, a few merges and two special tokens.

    use super::ModelText;
    use crate::frontend::tokenizer::byte_alphabet;

    /// The template's begin-of-turn token.
    pub(crate) const BOS: u32 = 256;
    /// The template's end-of-turn token.
    pub(crate) const EOS: u32 = 257;

    /// Token id = byte for the first 256; then `<|im_start|>`, `<|im_end|>` and what the merges make.
    pub(crate) fn bytes_model() -> ModelText {
        let mut tokens: Vec<String> = byte_alphabet().iter().map(char::to_string).collect();
        tokens.extend(["<|im_start|>", "<|im_end|>", "he", "Ġh", "Ġhe", "ĠĠ"].map(str::to_owned));
        let mut token_types = vec![1; tokens.len()];
        token_types[BOS as usize] = 3;
        token_types[EOS as usize] = 3;
        let template = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + \
                        message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}\
                        {{ '<|im_start|>assistant\n' }}{% endif %}";
        ModelText {
            kind: "gpt2".to_owned(),
            pre: "smollm".to_owned(),
            tokens,
            merges: ["h e", "Ġ h", "Ġ he", "Ġ Ġ"].map(str::to_owned).into(),
            token_types,
            bos: Some(BOS),
            eos: Some(EOS),
            add_bos: false,
            chat_template: Some(template.to_owned()),
            context_tokens: 64,
        }
    }
}
