//! Converts text to tokens and back.

mod added_starts;
mod sentencepiece;
mod words;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, Model as _, OffsetReferential, OffsetType, SplitDelimiterBehavior};

use super::model_text::{ModelText, TextError};
use added_starts::AddedStarts;
use words::Words;

/// GGUF's type of a control token.
const SPECIAL: i32 = 3;
/// GGUF's type of a token that is matched as a whole before the merges.
const USER_DEFINED: i32 = 4;

/// Whether an encoded text begins with the begin-of-sequence token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bos {
    /// The token is added if the model wants one.
    Add,
    /// The token is not added.
    Omit,
}

/// Whether special tokens appear in decoded text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialTokens {
    /// They are left out.
    Skip,
    /// They are spelt out.
    Show,
}

/// Converts text to tokens and back. All HTTP workers share it.
pub struct Tokenizer {
    /// The library's tokenizer; `None` for a model without a tokenizer.
    bpe: Option<tokenizers::Tokenizer>,
    /// Splits text into words before the merges. If `None`, `bpe` does it.
    words: Option<Words>,
    starts: AddedStarts,
    /// The bytes of all tokens, in the order of their ids.
    bytes: Vec<u8>,
    /// Where the bytes of each token end in `bytes`.
    ends: Vec<usize>,
    special: Vec<bool>,
    token_bytes_max: usize,
    bos: Option<u32>,
    /// Texts are tokenized as if they began with a space.
    starts_with_space: bool,
}

/// How a vocabulary writes bytes.
enum Spelling {
    /// Each byte is a character of the byte-level alphabet.
    ByteLevel(HashMap<char, u8>),
    /// The spelling of sentencepiece: `▁` is a space, and `<0x0A>` is a byte that no other token has.
    Metaspace,
}

impl Spelling {
    /// The spelling that the decoder of a `tokenizer.json` uses; `None` if it is not supported.
    fn of(decoder: &Value) -> Option<Self> {
        let steps = match decoder["decoders"].as_array() {
            Some(steps) => steps.clone(),
            None => vec![decoder.clone()],
        };
        let has = |kind: &str| steps.iter().any(|step| step["type"] == kind);
        let replaces =
            || steps.iter().any(|step| step["type"] == "Replace" && step["pattern"]["String"] == "▁");
        if has("ByteLevel") {
            return Some(Self::ByteLevel(byte_alphabet().into_iter().zip(0u8..=255).collect()));
        }
        (has("Metaspace") || replaces()).then_some(Self::Metaspace)
    }

    /// The bytes of a token.
    fn bytes(&self, token: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel(alphabet) => {
                let spelt: Option<Vec<u8>> = token.chars().map(|c| alphabet.get(&c).copied()).collect();
                spelt.unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Self::Metaspace => {
                let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                match hex.filter(|hex| hex.len() == 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                    Some(byte) => vec![byte],
                    None => token.replace('▁', " ").into_bytes(),
                }
            }
        }
    }
}

/// Upper bound of token ids. It bounds the tables of tokens.
const VOCABULARY_MAX: u32 = 1 << 24;

/// Length of the longest token in bytes, at least 1.
fn longest(ends: &[usize]) -> usize {
    let starts = std::iter::once(&0).chain(ends);
    ends.iter().zip(starts).map(|(end, start)| end - start).max().unwrap_or(0).max(1)
}

/// GGUF's name for the rule by which Llama 3 splits text.
const LLAMA3: &str = "llama-bpe";
/// GGUF's name for the rule of Qwen2, Qwen2.5 and Qwen3.
const QWEN2: &str = "qwen2";

/// GGUF's name for the rule of Mistral Nemo and later.
const TEKKEN: &str = "tekken";

/// The rule with this GGUF name that splits text before the merges, for the library and, if it has the rule, for [`Words`].
fn split(pre: &str) -> Option<(Sequence, Option<Words>)> {
    let bytes = |regex: bool| ByteLevel::new(false, true, regex).into();
    let words = |pattern: &str| {
        let pattern = SplitPattern::Regex(pattern.to_owned());
        Split::new(pattern, SplitDelimiterBehavior::Isolated, false).ok().map(Into::into)
    };
    let (steps, words) = match pre {
        "smollm" => (vec![Digits::new(true).into(), bytes(true)], Some(Words::smollm())),
        "gpt-2" | "default" => (vec![bytes(true)], Some(Words::gpt2())),
        // The patterns are from the tokenizer.json of Llama 3, of Qwen2 and of Mistral Nemo.
        LLAMA3 => (
            vec![
                words(
                    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                )?,
                bytes(false),
            ],
            Some(Words::llama3(3)),
        ),
        QWEN2 => (
            vec![
                words(
                    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                )?,
                bytes(false),
            ],
            Some(Words::llama3(1)),
        ),
        TEKKEN => (
            vec![
                words(
                    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                )?,
                bytes(false),
            ],
            None,
        ),
        _ => return None,
    };
    Some((Sequence::new(steps), words))
}

impl Tokenizer {
    /// Builds the tokenizer that a model file describes.
    ///
    /// # Errors
    /// [`TextError`] if the kind of tokenizer is not supported or its data are invalid.
    pub fn new(text: &ModelText) -> Result<Self, TextError> {
        if text.kind == sentencepiece::KIND {
            return Self::from_described(&sentencepiece::described(text)?);
        }
        let unsupported = || TextError::Unsupported { kind: text.kind.clone(), pre: text.pre.clone() };
        let (split, words) = split(&text.pre).filter(|_| text.kind == "gpt2").ok_or_else(unsupported)?;
        let broken = |reason: String| TextError::Broken(reason);
        let type_of = |id: usize| text.token_types.get(id).copied().unwrap_or_default();
        let ids = (0u32..).zip(&text.tokens);
        let vocab: Vocab = ids.map(|(id, token)| (token.clone(), id)).collect();
        if vocab.len() != text.tokens.len() {
            return Err(broken(format!("{} tokens appear more than once", text.tokens.len() - vocab.len())));
        }
        let pair = |merge: &String| merge.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned()));
        let merges: Option<Vec<_>> = text.merges.iter().map(pair).collect();
        let merges = merges.ok_or_else(|| broken("a merge does not have two tokens".to_owned()))?;
        let bpe = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .ignore_merges([LLAMA3, TEKKEN].contains(&&*text.pre));
        let mut bpe = tokenizers::Tokenizer::new(bpe.build().map_err(|e| broken(e.to_string()))?);
        bpe.with_pre_tokenizer(Some(split));
        // The GGUF format has no normalizer. Qwen's tokenizer.json composes characters.
        if text.pre == QWEN2 {
            bpe.with_normalizer(Some(NFC)).map_err(|e| broken(e.to_string()))?;
        }
        let of_type = |wanted: i32| {
            let whole = text.tokens.iter().enumerate().filter(move |(id, _)| type_of(*id) == wanted);
            whole
                .map(move |(_, token)| AddedToken::from(token.clone(), wanted == SPECIAL))
                .collect::<Vec<_>>()
        };
        bpe.add_special_tokens(of_type(SPECIAL)).map_err(|e| broken(e.to_string()))?;
        bpe.add_tokens(of_type(USER_DEFINED)).map_err(|e| broken(e.to_string()))?;

        let alphabet: HashMap<char, u8> = byte_alphabet().into_iter().zip(0u8..=255).collect();
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(text.tokens.len()));
        for (id, token) in text.tokens.iter().enumerate() {
            let spelt: Option<Vec<u8>> = token.chars().map(|c| alphabet.get(&c).copied()).collect();
            match spelt.filter(|_| ![SPECIAL, USER_DEFINED].contains(&type_of(id))) {
                Some(spelt) => bytes.extend(spelt),
                None => bytes.extend(token.as_bytes()),
            }
            ends.push(bytes.len());
        }
        let special = (0..text.tokens.len()).map(|id| type_of(id) == SPECIAL).collect();
        let bos = text.bos.filter(|_| text.add_bos);
        let token_bytes_max = longest(&ends);
        let starts = AddedStarts::of(&bpe)?;
        let bpe = Some(bpe);
        Ok(Self { bpe, words, starts, bytes, ends, special, token_bytes_max, bos, starts_with_space: false })
    }

    /// Reads a `tokenizer.json`. Its post-processor adds the begin-of-sequence token.
    ///
    /// # Errors
    /// [`TextError`] if the file is invalid or its decoder is not supported.
    pub fn from_json(json: &[u8]) -> Result<Self, TextError> {
        let described = serde_json::from_slice(json);
        Self::from_described(
            &described.map_err(|error| TextError::Broken(format!("tokenizer.json: {error}")))?,
        )
    }

    /// As [`from_json`](Self::from_json), with the contents of the file.
    fn from_described(described: &Value) -> Result<Self, TextError> {
        let broken = |reason: String| TextError::Broken(format!("tokenizer.json: {reason}"));
        let json = described.to_string();
        let mut bpe = tokenizers::Tokenizer::from_bytes(json).map_err(|error| broken(error.to_string()))?;
        bpe.with_padding(None);
        bpe.with_truncation(None).map_err(|error| broken(error.to_string()))?;
        let spelling = Spelling::of(&described["decoder"]).ok_or_else(|| TextError::Unsupported {
            kind: described["model"]["type"].as_str().unwrap_or("none").to_owned(),
            pre: described["decoder"]["type"].as_str().unwrap_or("none").to_owned(),
        })?;
        let added = bpe.get_added_tokens_decoder();
        let mut tokens: Vec<(u32, String)> =
            bpe.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
        tokens.sort_unstable();
        if let Some((id, _)) = tokens.last().filter(|(id, _)| *id >= VOCABULARY_MAX) {
            return Err(broken(format!("token id {id} is too large")));
        }
        let (mut bytes, mut ends, mut special) = (Vec::new(), Vec::new(), Vec::new());
        for (id, token) in tokens {
            // Unused ids become tokens without text.
            ends.resize((id as usize).max(ends.len()), bytes.len());
            special.resize(ends.len(), false);
            match added.get(&id) {
                Some(_) => bytes.extend(token.as_bytes()),
                None => bytes.extend(spelling.bytes(&token)),
            }
            ends.truncate(id as usize);
            ends.push(bytes.len());
            special.truncate(id as usize);
            special.push(added.get(&id).is_some_and(|added| added.special));
        }
        let starts_with_space = matches!(spelling, Spelling::Metaspace);
        let token_bytes_max = longest(&ends);
        Ok(Self {
            bpe: Some(bpe),
            words: None,
            starts: AddedStarts::default(),
            bytes,
            ends,
            special,
            token_bytes_max,
            bos: None,
            starts_with_space,
        })
    }

    /// The tokenizer of a model without one. It refuses texts, and its `vocabulary` tokens have no text.
    pub fn none(vocabulary: u32) -> Self {
        let tokens = vocabulary as usize;
        Self {
            bpe: None,
            words: None,
            starts: AddedStarts::default(),
            bytes: Vec::new(),
            ends: vec![0; tokens],
            special: vec![false; tokens],
            // Larger than any text. The product with a context length does not overflow.
            token_bytes_max: u32::MAX as usize,
            bos: None,
            starts_with_space: false,
        }
    }

    /// False for a model without a tokenizer, which takes token ids only.
    pub fn reads_text(&self) -> bool {
        self.bpe.is_some()
    }

    /// Number of tokens.
    pub fn vocabulary(&self) -> u32 {
        self.ends.len() as u32
    }

    /// Tokens that are not special and have a text, in the order of their ids.
    pub fn ordinary(&self) -> Vec<u32> {
        let said = |token: &u32| !self.is_special(*token) && !self.bytes_of(*token).is_empty();
        (0..self.vocabulary()).filter(said).collect()
    }

    /// Length of the longest token in bytes. A text of more than *n* times this length has more than *n* tokens.
    pub fn token_bytes_max(&self) -> usize {
        self.token_bytes_max
    }

    /// Maximum temporary memory of [`encode`](Self::encode) for a text of this many bytes, as measured. The library stores the origin of
    /// each byte several times, and each character may be a word.
    pub fn encode_bytes(&self, text_bytes: usize) -> usize {
        let is_normalized = self.bpe.as_ref().is_some_and(|bpe| bpe.get_normalizer().is_some());
        let a_byte = match &self.words {
            // A normalizer makes the text and the origins again.
            Some(_) if is_normalized => 160,
            Some(_) => 80,
            None => 256,
        };
        text_bytes.saturating_mul(a_byte)
    }

    /// The tokens of a text. The text of a special token becomes that token, as in transformers.
    ///
    /// # Errors
    /// The text cannot be tokenized.
    pub fn encode(&self, text: &str, bos: Bos) -> Result<Vec<u32>, String> {
        let bpe = self
            .bpe
            .as_ref()
            .ok_or("this model has no tokenizer; send token ids, or set the key tokenizer")?;
        // Most tokens of a text have more than three bytes.
        let mut tokens = Vec::with_capacity(text.len() / 3 + 1);
        tokens.extend(self.bos.filter(|_| bos == Bos::Add));
        let Some(words) = &self.words else {
            // The post-processor of a `tokenizer.json` adds special tokens.
            let encoded = bpe.encode_fast(text, bos == Bos::Add).map_err(|error| error.to_string())?;
            tokens.extend(encoded.get_ids());
            return Ok(tokens);
        };
        let merge = |tokens: &mut Vec<u32>, word: &str| {
            let merged = bpe.get_model().tokenize(word).map_err(|error| error.to_string())?;
            tokens.extend(merged.iter().map(|token| token.id));
            Ok::<_, String>(())
        };
        // ASCII text is normalized.
        let normalizer = bpe.get_normalizer().filter(|_| !text.is_ascii());
        // Without added tokens, the text is one piece. The library takes long to find that.
        if normalizer.is_none() && !self.starts.may_be_in(text) {
            words.of(text, |word| merge(&mut tokens, word))?;
            return Ok(tokens);
        }
        let pieces = bpe.get_added_vocabulary().extract_and_normalize(normalizer, text);
        for (piece, _, added) in pieces.get_splits(OffsetReferential::Original, OffsetType::None) {
            match added {
                Some(added) => tokens.extend(added.iter().map(|token| token.id)),
                None => words.of(piece, |word| merge(&mut tokens, word))?,
            }
        }
        Ok(tokens)
    }

    /// The bytes of a token; empty for an id outside the vocabulary.
    pub fn bytes_of(&self, token: u32) -> &[u8] {
        let token = token as usize;
        let Some(end) = self.ends.get(token) else { return &[] };
        let start = token.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..*end]
    }

    /// The text of a single token, with U+FFFD for incomplete characters.
    pub(super) fn text_of(&self, token: u32) -> Cow<'_, str> {
        String::from_utf8_lossy(self.bytes_of(token))
    }

    /// Number of characters in [`text_of`](Self::text_of) the token.
    pub(super) fn characters_of(&self, token: u32) -> usize {
        self.text_of(token).chars().count()
    }

    /// The special token with this text; `None` if the vocabulary has none.
    pub(super) fn special_token(&self, text: &str) -> Option<u32> {
        self.bpe.as_ref()?.token_to_id(text).filter(|id| self.is_special(*id))
    }

    /// Whether the token is special. Its text is then usually left out of answers.
    pub fn is_special(&self, token: u32) -> bool {
        self.special.get(token as usize).copied().unwrap_or(false)
    }
}

/// The byte-level alphabet (GPT-2's `bytes_to_unicode`): the character of each byte. Printable Latin-1 characters represent themselves.
/// The other bytes have the characters from U+0100 on, in order.
pub(crate) fn byte_alphabet() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| match byte as u8 {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte as u8),
        _ => {
            next += 1;
            char::from_u32(next - 1).unwrap_or_default()
        }
    })
}

/// Converts tokens to text one by one. It holds the bytes of an incomplete character back.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    special_tokens: SpecialTokens,
    /// Special tokens that appear although others do not.
    shown: Arc<[u32]>,
    held: Vec<u8>,
}

impl Detokenizer {
    /// A detokenizer at the start of a text.
    pub fn new(tokenizer: Arc<Tokenizer>, special_tokens: SpecialTokens) -> Self {
        Self { tokenizer, special_tokens, shown: Arc::default(), held: Vec::new() }
    }

    /// The detokenizer with these special tokens in its text.
    pub(super) fn showing(self, shown: Arc<[u32]>) -> Self {
        Self { shown, ..self }
    }

    /// The text of all these tokens.
    pub fn text(tokenizer: &Arc<Tokenizer>, tokens: &[u32], special_tokens: SpecialTokens) -> String {
        let mut detokenizer = Self::new(Arc::clone(tokenizer), special_tokens);
        let text: String = tokens.iter().map(|token| detokenizer.push(*token)).collect();
        let text = text + &detokenizer.finish();
        match text.strip_prefix(' ').filter(|_| tokenizer.starts_with_space) {
            Some(rest) => rest.to_owned(),
            None => text,
        }
    }

    /// The text that this token completes. It is empty while a character is incomplete.
    pub fn push(&mut self, token: u32) -> String {
        let is_skipped = self.special_tokens == SpecialTokens::Skip && self.tokenizer.is_special(token);
        if is_skipped && !self.shown.contains(&token) {
            return String::new();
        }
        self.held.extend_from_slice(self.tokenizer.bytes_of(token));
        self.take(incomplete_bytes(&self.held))
    }

    /// The text of the bytes that are still held back, with U+FFFD for incomplete characters.
    pub fn finish(&mut self) -> String {
        self.take(0)
    }

    /// Takes the text of the held bytes, except for the last `incomplete` ones.
    fn take(&mut self, incomplete: usize) -> String {
        let rest = self.held.split_off(self.held.len() - incomplete);
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held = rest;
        text
    }
}

/// Bytes at the end of `bytes` that begin a character and do not complete it.
fn incomplete_bytes(bytes: &[u8]) -> usize {
    // Only the last invalid chunk can be incomplete. It is if `error_len` is `None`: the bytes end inside a character.
    let last = bytes.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
    let is_incomplete = std::str::from_utf8(last).is_err_and(|error| error.error_len().is_none());
    if is_incomplete { last.len() } else { 0 }
}

#[cfg(test)]
mod tests;
