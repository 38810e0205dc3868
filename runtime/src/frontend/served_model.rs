//! The model as clients see it: its name, its context length, its tokenizer.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use engine::gguf::Gguf;
use serde_json::Value;

use super::chat_template::{ChatTemplate, TOOL_USE};
use super::model_text::{ModelText, TextError};
use super::reasoning::ReasoningFormat;
use super::tokenizer::Tokenizer;
use super::tool_parser::ToolFormat;

/// The model as clients see it. The frontends of a process share it.
pub struct ServedModel {
    /// Name of the model in requests.
    pub name: String,
    /// Path of the model's file or folder. It is `root` in the list of models.
    pub root: String,
    /// Maximum number of tokens in a prompt and its answer together.
    pub context_tokens: u32,
    /// End-of-sequence tokens.
    pub eos: Vec<u32>,
    /// Converts text to tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Converts messages to text; `None` if the model has no chat template.
    pub template: Option<ChatTemplate>,
    /// How the model writes tool calls; `None` if it writes none.
    pub tool_format: Option<ToolFormat>,
    /// How the model writes its reasoning; `None` if it writes none.
    pub reasoning_format: Option<ReasoningFormat>,
    /// Time at which this process opened the model, in seconds since 1970.
    pub created: u64,
}

impl ServedModel {
    /// Opens the model in a GGUF file or a Hugging Face folder. `text` is the file or folder that has the tokenizer. Without `name`, the
    /// model is named after its file or folder.
    ///
    /// # Errors
    /// [`TextError`] if the tokenizer or the chat template cannot be used.
    pub fn open(path: &Path, text: &Path, name: Option<&str>) -> Result<Self, TextError> {
        if text.is_dir() {
            return Self::from_folder(path, text, name);
        }
        let gguf = Gguf::open(text).map_err(|error| TextError::Broken(error.to_string()))?;
        Self::new(path, &ModelText::from_gguf(&gguf)?, name)
    }

    /// Opens a Hugging Face folder. The caller sets the context length and the end-of-sequence tokens, which the engine reads from the
    /// folder's configuration.
    fn from_folder(path: &Path, text: &Path, name: Option<&str>) -> Result<Self, TextError> {
        const TOKENIZER: &str = "tokenizer.json";
        let tokenizer = match std::fs::read(text.join(TOKENIZER)) {
            Ok(json) => Tokenizer::from_json(&json)?,
            // A model without a tokenizer, for measurements with token ids.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Tokenizer::none(vocabulary_of(text).ok_or(TextError::Read { file: TOKENIZER, error })?)
            }
            Err(error) => return Err(TextError::Read { file: TOKENIZER, error }),
        };
        let config = std::fs::read(text.join("tokenizer_config.json")).ok();
        let config: Value = config.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        // A token is a string or an object that contains the string.
        let token = |key: &str| {
            let value = &config[key];
            value.as_str().or_else(|| value["content"].as_str()).unwrap_or_default().to_owned()
        };
        let template = std::fs::read_to_string(text.join("chat_template.jinja")).ok();
        let template = template.or_else(|| template_of(&config["chat_template"], "default"));
        let tool_use = std::fs::read_to_string(text.join("additional_chat_templates/tool_use.jinja")).ok();
        let tool_use = tool_use.or_else(|| template_of(&config["chat_template"], TOOL_USE));
        let compile =
            |source| ChatTemplate::compile(source, tool_use, token("bos_token"), token("eos_token"));
        Ok(Self {
            name: name.map_or_else(|| name_of(path), str::to_owned),
            root: path.display().to_string(),
            context_tokens: u32::MAX,
            eos: Vec::new(),
            tokenizer: Arc::new(tokenizer),
            template: template.map(compile).transpose()?,
            tool_format: None,
            reasoning_format: None,
            created: now(),
        }
        .with_formats_of_template())
    }

    /// The model with this tokenizer and chat template.
    ///
    /// # Errors
    /// [`TextError`] if the tokenizer or the chat template cannot be used.
    pub fn new(path: &Path, text: &ModelText, name: Option<&str>) -> Result<Self, TextError> {
        Ok(Self {
            name: name.map_or_else(|| name_of(path), str::to_owned),
            root: path.display().to_string(),
            context_tokens: text.context_tokens,
            eos: text.eos.into_iter().collect(),
            tokenizer: Arc::new(Tokenizer::new(text)?),
            template: ChatTemplate::new(text)?,
            tool_format: None,
            reasoning_format: None,
            created: now(),
        }
        .with_formats_of_template())
    }

    /// The model with the formats that its chat template shows.
    fn with_formats_of_template(self) -> Self {
        let source = self.template.as_ref().map(ChatTemplate::source);
        Self {
            tool_format: source.and_then(ToolFormat::of_template),
            reasoning_format: source.and_then(ReasoningFormat::of_template),
            ..self
        }
    }

    /// Sets the formats by the names of `frontend.tool_call_parser` and `frontend.reasoning_parser`. Without a name, the format is that of
    /// the chat template.
    pub fn set_parsers(&mut self, tools: Option<&str>, reasoning: Option<&str>) {
        if let Some(name) = tools {
            self.tool_format = ToolFormat::named(name);
        }
        if let Some(name) = reasoning {
            self.reasoning_format = ReasoningFormat::named(name);
        }
    }
}

/// Size of the vocabulary of a folder's model.
fn vocabulary_of(folder: &Path) -> Option<u32> {
    let config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).ok()?).ok()?;
    config["vocab_size"].as_u64().and_then(|size| size.try_into().ok())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The chat template with this name. A single template is the one with the name `default`.
fn template_of(value: &Value, name: &str) -> Option<String> {
    let several = || value.as_array()?.iter().find(|one| one["name"] == name)?["template"].as_str();
    value.as_str().filter(|_| name == "default").or_else(several).map(str::to_owned)
}

/// The name on the Hugging Face hub of a folder in the hub's cache (`models--meta-llama--Llama-3.1-8B/snapshots/…`).
fn hub_name(path: &Path) -> Option<String> {
    let folder = path.ancestors().nth(2)?.file_name()?.to_string_lossy().into_owned();
    let in_cache = path.parent()?.file_name()? == "snapshots";
    folder.strip_prefix("models--").filter(|_| in_cache).map(|name| name.replace("--", "/"))
}

/// The name of a model after its file, without the quantization. `general.name` in the file is often no useful name, for example
/// "Smollm2 135M 8k Lc100K Mix1 Ep2".
fn name_of(path: &Path) -> String {
    if let Some(name) = hub_name(path) {
        return name;
    }
    if path.extension().is_none_or(|extension| extension != "gguf") {
        return path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    }
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
            ("/m/Llama-3.1-8B", "Llama-3.1-8B"),
            ("/c/models--meta-llama--Llama-3.1-8B/snapshots/0e9e", "meta-llama/Llama-3.1-8B"),
        ] {
            assert_eq!(name_of(Path::new(file)), expect);
        }
    }
}
