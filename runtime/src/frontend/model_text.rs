//! The parts of a model file that concern text: vocabulary, merges, special tokens, chat template.

use engine::gguf::Gguf;

/// The parts of a model file that concern text, independent of the format of the file.
#[derive(Clone, Debug, Default)]
pub struct ModelText {
    /// Kind of the tokenizer; `gpt2` is byte-level BPE, `llama` is sentencepiece.
    pub kind: String,
    /// Name of the rule that splits text before the merges.
    pub pre: String,
    /// Tokens by id, in the byte-level alphabet.
    pub tokens: Vec<String>,
    /// Merges of byte-level BPE, best first. A merge is two tokens with a space between them.
    pub merges: Vec<String>,
    /// Scores of sentencepiece's tokens by id.
    pub scores: Vec<f32>,
    /// Whether sentencepiece puts a space in front of a text.
    pub add_space_prefix: bool,
    /// Kinds of tokens by id (3: special, 4: user-defined).
    pub token_types: Vec<i32>,
    /// Begin-of-sequence token.
    pub bos: Option<u32>,
    /// End-of-sequence token.
    pub eos: Option<u32>,
    /// Whether a raw prompt gets the begin-of-sequence token.
    pub add_bos: bool,
    /// The chat template, in Jinja.
    pub chat_template: Option<String>,
    /// The chat template for conversations with tools, if the model has two.
    pub tool_template: Option<String>,
    /// Maximum number of tokens in a sequence.
    pub context_tokens: u32,
}

/// Why a model cannot serve text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The file lacks a required key.
    #[error("model file has no {0}, which is required; use another file")]
    Missing(&'static str),
    /// The tokenizer is of an unsupported kind.
    #[error(
        "tokenizer {kind} with pre-tokenizer {pre} is not supported; supported are llama (sentencepiece), gpt2 with smollm, gpt-2, llama-bpe, qwen2 or tekken, and a tokenizer.json with a ByteLevel or Metaspace decoder"
    )]
    Unsupported {
        /// `tokenizer.ggml.model`.
        kind: String,
        /// `tokenizer.ggml.pre`.
        pre: String,
    },
    /// A file of the model folder cannot be read.
    #[error("{file} cannot be read: {error}")]
    Read {
        /// Name of the file.
        file: &'static str,
        /// The error of the system.
        error: std::io::Error,
    },
    /// The tokenizer's data are invalid.
    #[error("the tokenizer of the model is invalid: {0}")]
    Broken(String),
    /// The chat template is not a Jinja template.
    #[error("the chat template of the model is invalid: {0}")]
    Template(String),
}

impl TextError {
    /// The kind of the error in one word, for metrics, logs and JSON.
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
    /// [`TextError::Missing`] if a required key is missing.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TextError> {
        let owned = |key: &str| gguf.str(key).map(str::to_owned);
        let list = |key: &'static str| {
            let strings = gguf.strings(key).ok_or(TextError::Missing(key))?;
            Ok::<Vec<String>, TextError>(strings.into_iter().map(str::to_owned).collect())
        };
        let token = |key: &str| gguf.u64(key).and_then(|id| u32::try_from(id).ok());
        let context = format!("{}.context_length", gguf.str("general.architecture").unwrap_or_default());
        let kind = owned("tokenizer.ggml.model").ok_or(TextError::Missing("tokenizer.ggml.model"))?;
        let is_bpe = kind == "gpt2";
        Ok(Self {
            pre: owned("tokenizer.ggml.pre").unwrap_or_else(|| "default".to_owned()),
            tokens: list("tokenizer.ggml.tokens")?,
            merges: if is_bpe { list("tokenizer.ggml.merges")? } else { Vec::new() },
            scores: gguf.f32s("tokenizer.ggml.scores").unwrap_or_default(),
            add_space_prefix: gguf.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true),
            token_types: gguf.i32s("tokenizer.ggml.token_type").unwrap_or_default(),
            bos: token("tokenizer.ggml.bos_token_id"),
            eos: token("tokenizer.ggml.eos_token_id"),
            // The defaults of llama.cpp.
            add_bos: gguf.bool("tokenizer.ggml.add_bos_token").unwrap_or(!is_bpe),
            chat_template: owned("tokenizer.chat_template"),
            tool_template: owned("tokenizer.chat_template.tool_use"),
            context_tokens: token(&context).ok_or(TextError::Missing("context_length"))?,
            kind,
        })
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A vocabulary of single bytes, a few merges and two special tokens.

    use super::ModelText;
    use crate::frontend::tokenizer::byte_alphabet;

    /// The begin-of-turn token of the template.
    pub(crate) const BOS: u32 = 256;
    /// The end-of-turn token of the template.
    pub(crate) const EOS: u32 = 257;

    /// The first 256 token ids are the bytes. Then come `<|im_start|>`, `<|im_end|>` and the merged tokens.
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
            scores: Vec::new(),
            add_space_prefix: false,
            token_types,
            bos: Some(BOS),
            eos: Some(EOS),
            add_bos: false,
            chat_template: Some(template.to_owned()),
            tool_template: None,
            context_tokens: 64,
        }
    }
}
