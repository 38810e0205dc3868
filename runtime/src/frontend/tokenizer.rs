//! Text to tokens and back, for byte-level BPE.

mod words;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, Model as _, NormalizerWrapper, OffsetReferential, OffsetType, SplitDelimiterBehavior,
};

use super::model_text::{ModelText, TextError};
use words::Words;

/// GGUF's mark of a token that controls and is no text.
const SPECIAL: i32 = 3;
/// GGUF's mark of a token that is matched whole, outside of the merges.
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

/// Text to tokens and back. Shared by all HTTP workers.
pub struct Tokenizer {
    /// `None` for a model without one.
    bpe: Option<tokenizers::Tokenizer>,
    /// How text is cut before the merges, where that is known here; else `bpe` does it.
    words: Option<Words>,
    /// The bytes of all tokens, one after the other.
    bytes: Vec<u8>,
    /// Token id → where its bytes end.
    ends: Vec<usize>,
    special: Vec<bool>,
    token_bytes_max: usize,
    bos: Option<u32>,
    /// Texts are tokenised as if a space came before them.
    starts_with_space: bool,
}

/// How a vocabulary spells bytes.
enum Spelling {
    /// Each byte is a character of the byte-level alphabet.
    ByteLevel(HashMap<char, u8>),
    /// As in sentencepiece: `▁` is a space, `<0x0A>` a byte that no token has.
    Metaspace,
}

impl Spelling {
    /// What a `tokenizer.json` decodes with.
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

/// Above the ids of any vocabulary, and few enough that a table of them is small.
const VOCABULARY_MAX: u32 = 1 << 24;

/// Bytes of the longest token, at least one.
fn longest(ends: &[usize]) -> usize {
    let starts = std::iter::once(&0).chain(ends);
    ends.iter().zip(starts).map(|(end, start)| end - start).max().unwrap_or(0).max(1)
}

/// GGUF's name for how Llama 3 cuts text.
const LLAMA3: &str = "llama-bpe";

/// How text is cut before the merges, by the name that GGUF has for it: for the library, and for [`Words`].
fn split(pre: &str) -> Option<(Sequence, Words)> {
    let bytes = |regex: bool| ByteLevel::new(false, true, regex).into();
    let words = |pattern: &str| {
        let pattern = SplitPattern::Regex(pattern.to_owned());
        Split::new(pattern, SplitDelimiterBehavior::Isolated, false).ok().map(Into::into)
    };
    let (steps, words) = match pre {
        "smollm" => (vec![Digits::new(true).into(), bytes(true)], Words::smollm()),
        "gpt-2" | "default" => (vec![bytes(true)], Words::gpt2()),
        // From the tokenizer.json of Llama 3 and of Qwen2.
        LLAMA3 => (
            vec![
                words(
                    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                )?,
                bytes(false),
            ],
            Words::llama3(3),
        ),
        "qwen2" => (
            vec![
                words(
                    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                )?,
                bytes(false),
            ],
            Words::llama3(1),
        ),
        _ => return None,
    };
    Some((Sequence::new(steps), words))
}

impl Tokenizer {
    /// Builds the tokenizer that a model file describes.
    ///
    /// # Errors
    /// [`TextError`] for a kind of tokenizer that is not known here, or a vocabulary that contradicts itself.
    pub fn new(text: &ModelText) -> Result<Self, TextError> {
        let unsupported = || TextError::Unsupported { kind: text.kind.clone(), pre: text.pre.clone() };
        let (split, words) = split(&text.pre).filter(|_| text.kind == "gpt2").ok_or_else(unsupported)?;
        let broken = |reason: String| TextError::Broken(reason);
        let type_of = |id: usize| text.token_types.get(id).copied().unwrap_or_default();
        let ids = (0u32..).zip(&text.tokens);
        let vocab: Vocab = ids.map(|(id, token)| (token.clone(), id)).collect();
        if vocab.len() != text.tokens.len() {
            return Err(broken(format!("{} tokens are doubled", text.tokens.len() - vocab.len())));
        }
        let pair = |merge: &String| merge.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned()));
        let merges: Option<Vec<_>> = text.merges.iter().map(pair).collect();
        let merges = merges.ok_or_else(|| broken("a merge does not have two tokens".to_owned()))?;
        let bpe = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(text.pre == LLAMA3);
        let mut bpe = tokenizers::Tokenizer::new(bpe.build().map_err(|e| broken(e.to_string()))?);
        bpe.with_pre_tokenizer(Some(split));
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
        let (bpe, words) = (Some(bpe), Some(words));
        Ok(Self { bpe, words, bytes, ends, special, token_bytes_max, bos, starts_with_space: false })
    }

    /// Reads a `tokenizer.json`. Its own post-processor adds the begin-of-sequence token.
    ///
    /// # Errors
    /// [`TextError`] for a file that the library does not read, or tokens whose bytes are not known here.
    pub fn from_json(json: &[u8]) -> Result<Self, TextError> {
        let broken = |reason: String| TextError::Broken(format!("tokenizer.json: {reason}"));
        let mut bpe = tokenizers::Tokenizer::from_bytes(json).map_err(|error| broken(error.to_string()))?;
        bpe.with_padding(None);
        bpe.with_truncation(None).map_err(|error| broken(error.to_string()))?;
        let described: Value = serde_json::from_slice(json).map_err(|error| broken(error.to_string()))?;
        let spelling = Spelling::of(&described["decoder"]).ok_or_else(|| TextError::Unsupported {
            kind: described["model"]["type"].as_str().unwrap_or("none").to_owned(),
            pre: described["decoder"]["type"].as_str().unwrap_or("none").to_owned(),
        })?;
        let added = bpe.get_added_tokens_decoder();
        let mut tokens: Vec<(u32, String)> =
            bpe.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
        tokens.sort_unstable();
        if let Some((id, _)) = tokens.last().filter(|(id, _)| *id >= VOCABULARY_MAX) {
            return Err(broken(format!("token {id} is beyond any vocabulary")));
        }
        let (mut bytes, mut ends, mut special) = (Vec::new(), Vec::new(), Vec::new());
        for (id, token) in tokens {
            // Ids that no token has are tokens without text.
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
            bytes,
            ends,
            special,
            token_bytes_max,
            bos: None,
            starts_with_space,
        })
    }

    /// No tokenizer: texts are refused, and `vocabulary` token ids say nothing.
    pub fn none(vocabulary: u32) -> Self {
        let tokens = vocabulary as usize;
        Self {
            bpe: None,
            words: None,
            bytes: Vec::new(),
            ends: vec![0; tokens],
            special: vec![false; tokens],
            // More than any text has, and no overflow when multiplied with a context.
            token_bytes_max: u32::MAX as usize,
            bos: None,
            starts_with_space: false,
        }
    }

    /// How many tokens there are.
    pub fn vocabulary(&self) -> u32 {
        self.ends.len() as u32
    }

    /// Tokens that are not special and have a text, in the order of their ids.
    pub fn ordinary(&self) -> Vec<u32> {
        let said = |token: &u32| !self.is_special(*token) && !self.bytes_of(*token).is_empty();
        (0..self.vocabulary()).filter(said).collect()
    }

    /// Bytes of the longest token: a text of more than *n* times as many has more than *n* tokens.
    pub fn token_bytes_max(&self) -> usize {
        self.token_bytes_max
    }

    /// Bytes that [`encode`](Self::encode) takes at most for a text of so many, as measured: the library remembers for each byte where it
    /// came from, several times, and a text of single characters is as many words.
    pub fn encode_bytes(&self, text_bytes: usize) -> usize {
        let a_byte = if self.words.is_some() { 80 } else { 256 };
        text_bytes.saturating_mul(a_byte)
    }

    /// The tokens of a text. Special tokens that are spelt out in it become special, as in transformers.
    ///
    /// # Errors
    /// Text that the vocabulary cannot spell.
    pub fn encode(&self, text: &str, bos: Bos) -> Result<Vec<u32>, String> {
        let bpe = self.bpe.as_ref().ok_or("this model has no tokenizer; send token ids, or set tokenizer")?;
        let Some(words) = &self.words else {
            // What a `tokenizer.json` adds is its post-processor's.
            let encoded = bpe.encode_fast(text, bos == Bos::Add).map_err(|error| error.to_string())?;
            return Ok(encoded.get_ids().to_vec());
        };
        let mut tokens: Vec<u32> = self.bos.filter(|_| bos == Bos::Add).into_iter().collect();
        let pieces = bpe.get_added_vocabulary().extract_and_normalize(None::<&NormalizerWrapper>, text);
        for (piece, _, added) in pieces.get_splits(OffsetReferential::Original, OffsetType::None) {
            match added {
                Some(added) => tokens.extend(added.iter().map(|token| token.id)),
                None => words.of(piece, |word| {
                    let merged = bpe.get_model().tokenize(word).map_err(|error| error.to_string())?;
                    tokens.extend(merged.iter().map(|token| token.id));
                    Ok::<_, String>(())
                })?,
            }
        }
        Ok(tokens)
    }

    /// The bytes of a token; none for an id out of vocabulary.
    pub(super) fn bytes_of(&self, token: u32) -> &[u8] {
        let token = token as usize;
        let Some(end) = self.ends.get(token) else { return &[] };
        let start = token.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..*end]
    }

    /// The text of one token by itself, with U+FFFD for what is no character.
    pub(super) fn text_of(&self, token: u32) -> Cow<'_, str> {
        String::from_utf8_lossy(self.bytes_of(token))
    }

    /// How many characters that has.
    pub(super) fn characters_of(&self, token: u32) -> usize {
        self.text_of(token).chars().count()
    }

    fn is_special(&self, token: u32) -> bool {
        self.special.get(token as usize).copied().unwrap_or(false)
    }
}

/// Byte → character of the byte-level alphabet: printable characters of Latin-1 stand for themselves, the other bytes for
/// the characters from U+0100 on, in order (GPT-2's `bytes_to_unicode`).
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

/// Turns tokens into text one by one, and holds back the first bytes of a character until its last one is here.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    special_tokens: SpecialTokens,
    held: Vec<u8>,
}

impl Detokenizer {
    /// A detokenizer at the start of a text.
    pub fn new(tokenizer: Arc<Tokenizer>, special_tokens: SpecialTokens) -> Self {
        Self { tokenizer, special_tokens, held: Vec::new() }
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

    /// The text that this token completes; empty while a character is incomplete.
    pub fn push(&mut self, token: u32) -> String {
        if self.special_tokens == SpecialTokens::Skip && self.tokenizer.is_special(token) {
            return String::new();
        }
        self.held.extend_from_slice(self.tokenizer.bytes_of(token));
        self.take(incomplete_bytes(&self.held))
    }

    /// What is still held back, with U+FFFD for what never became a character.
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
