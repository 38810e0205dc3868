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
        "smollm" => (vec![Digits::new(true).into(), bytes(true)], Words::gpt2(true)),
        "gpt-2" | "default" => (vec![bytes(true)], Words::gpt2(false)),
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
            token_bytes_max: usize::MAX,
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

    /// The tokens of a text. Special tokens that are spelt out in it become special, as in transformers.
    /// `add_bos` asks for the begin-of-sequence token, which comes only if the model wants one.
    ///
    /// # Errors
    /// Text that the vocabulary cannot spell.
    pub fn encode(&self, text: &str, add_bos: bool) -> Result<Vec<u32>, String> {
        let bpe = self.bpe.as_ref().ok_or("this model has no tokenizer; send token ids, or set tokenizer")?;
        let Some(words) = &self.words else {
            // What a `tokenizer.json` adds is its post-processor's.
            let encoded = bpe.encode_fast(text, add_bos).map_err(|error| error.to_string())?;
            return Ok(encoded.get_ids().to_vec());
        };
        let mut tokens: Vec<u32> = self.bos.filter(|_| add_bos).into_iter().collect();
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
    skip_special: bool,
    held: Vec<u8>,
}

impl Detokenizer {
    /// A detokenizer at the start of a text; `skip_special` leaves special tokens out of it.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, held: Vec::new() }
    }

    /// The text of all these tokens; `skip_special` as in [`new`](Self::new).
    pub fn text(tokenizer: &Arc<Tokenizer>, tokens: &[u32], skip_special: bool) -> String {
        let mut detokenizer = Self::new(Arc::clone(tokenizer), skip_special);
        let text: String = tokens.iter().map(|token| detokenizer.push(*token)).collect();
        let text = text + &detokenizer.finish();
        match text.strip_prefix(' ').filter(|_| tokenizer.starts_with_space) {
            Some(rest) => rest.to_owned(),
            None => text,
        }
    }

    /// The text that this token completes; empty while a character is incomplete.
    pub fn push(&mut self, token: u32) -> String {
        if self.skip_special && self.tokenizer.is_special(token) {
            return String::new();
        }
        self.held.extend_from_slice(self.tokenizer.bytes_of(token));
        self.take(false)
    }

    /// What is still held back, with U+FFFD for what never became a character.
    pub fn finish(&mut self) -> String {
        self.take(true)
    }

    fn take(&mut self, all: bool) -> String {
        // Only the last chunk can be incomplete, and it is if it ends where the bytes end in the midst of a character.
        let incomplete = match std::str::from_utf8(&self.held) {
            Ok(_) => 0,
            Err(_) if all => 0,
            Err(_) => {
                let last = self.held.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
                let waits =
                    !last.is_empty() && std::str::from_utf8(last).is_err_and(|e| e.error_len().is_none());
                if waits { last.len() } else { 0 }
            }
        };
        let rest = self.held.split_off(self.held.len() - incomplete);
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held = rest;
        text
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;
    use tokenizers::{PreTokenizedString, PreTokenizer as _};

    use super::super::model_text::testing::{BOS, EOS, bytes_model};
    use super::*;

    fn tokenizer() -> Arc<Tokenizer> {
        Arc::new(Tokenizer::new(&bytes_model()).unwrap())
    }

    #[test]
    fn the_alphabet_is_gpt2s() {
        let alphabet = byte_alphabet();
        assert_eq!(
            (alphabet[b'a' as usize], alphabet[b' ' as usize], alphabet[b'\n' as usize]),
            ('a', 'Ġ', 'Ċ')
        );
        assert_eq!((alphabet[0], alphabet[0xAD], alphabet[0xFF]), ('Ā', '\u{143}', 'ÿ'));
    }

    #[test]
    fn text_becomes_tokens() {
        let tokenizer = tokenizer();
        let check = |text: &str, expect: &[u32]| {
            assert_eq!(tokenizer.encode(text, true).unwrap(), expect, "{text:?}")
        };
        check("", &[]);
        check("he", &[258]);
        check("a he", &[b'a'.into(), 260]);
        check("12", &[b'1'.into(), b'2'.into()]);
        // Digits are cut out first, so blanks before one are a run of their own; transformers' GGUF reader, which leaves
        // that cut out, gives the last blank to itself.
        check("a  5", &[b'a'.into(), 261, b'5'.into()]);
        check("ü", &[0xC3, 0xBC]);
        check("a<|im_end|>he", &[b'a'.into(), EOS, 258]);
    }

    /// Texts of characters that the patterns tell apart, of any others, and of tokens that are matched whole.
    fn texts() -> impl Strategy<Value = String> {
        let telling = select("'sStTrReEvVlLmMdD aA1\u{BD}\u{663}\n\r\t .!-_\u{17F}\u{212A}\u{A0}\u{3000}\u{E9}\u{301}\u{65E5}\u{1F600}".chars().collect::<Vec<_>>());
        let whole =
            prop_oneof![Just("<|im_end|>"), Just("<|im_start|>"), Just("he"), Just(" he"), Just("  ")];
        let piece = prop_oneof![
            8 => telling.prop_map(String::from),
            2 => any::<char>().prop_map(String::from),
            1 => whole.prop_map(str::to_owned),
        ];
        vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    static OF_EACH_KIND: LazyLock<Vec<(&str, Tokenizer, Sequence, Words)>> = LazyLock::new(|| {
        let kind = |pre: &'static str| {
            let text = ModelText { pre: pre.to_owned(), ..bytes_model() };
            let (library, words) = split(pre).unwrap();
            (pre, Tokenizer::new(&text).unwrap(), library, words)
        };
        ["smollm", "gpt-2", LLAMA3, "qwen2"].map(kind).into()
    });

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn words_are_the_librarys(text in texts()) {
            for (pre, tokenizer, library, words) in OF_EACH_KIND.iter() {
                let expect = tokenizer.bpe.as_ref().unwrap().encode_fast(&*text, false).unwrap();
                prop_assert_eq!(tokenizer.encode(&text, false).unwrap(), expect.get_ids(), "{} {:?}", pre, text);
                let mut cut = PreTokenizedString::from(&*text);
                library.pre_tokenize(&mut cut).unwrap();
                let expect: Vec<String> = cut
                    .get_splits(OffsetReferential::Original, OffsetType::None)
                    .into_iter()
                    .map(|(word, ..)| word.to_owned())
                    .collect();
                let mut got = Vec::new();
                let keep = |word: &str| {
                    got.push(word.to_owned());
                    Ok::<_, ()>(())
                };
                words.of(&text, keep).unwrap();
                prop_assert_eq!(got, expect, "{} {:?}", pre, text);
            }
        }
    }

    #[test]
    fn bos_comes_only_if_the_model_and_the_caller_want_it() {
        let with = Tokenizer::new(&ModelText { add_bos: true, ..bytes_model() }).unwrap();
        assert_eq!(with.encode("he", true).unwrap(), [BOS, 258]);
        assert_eq!(with.encode("he", false).unwrap(), [258]);
    }

    #[test]
    fn unknown_tokenizers_are_refused() {
        for (kind, pre) in [("llama", "smollm"), ("gpt2", "dbrx")] {
            let text = ModelText { kind: kind.to_owned(), pre: pre.to_owned(), ..bytes_model() };
            let error = Tokenizer::new(&text).err().unwrap().to_string();
            assert!(error.contains(kind) && error.contains(pre), "{error}");
        }
        let doubled = ModelText { tokens: vec!["a".into(), "a".into()], ..bytes_model() };
        assert!(matches!(Tokenizer::new(&doubled), Err(TextError::Broken(_))));
    }

    #[test]
    fn a_json_says_the_same_as_a_gguf() {
        let from_gguf = tokenizer();
        let mut described: Value = serde_json::to_value(from_gguf.bpe.as_ref()).unwrap();
        described["decoder"] = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false,
            "trim_offsets": true, "use_regex": true});
        let from_json = Arc::new(Tokenizer::from_json(described.to_string().as_bytes()).unwrap());
        assert_eq!(from_json.vocabulary(), from_gguf.vocabulary());
        for text in ["a he  5 ü", "a<|im_end|>he"] {
            let tokens = from_json.encode(text, true).unwrap();
            assert_eq!(tokens, from_gguf.encode(text, true).unwrap(), "{text}");
            for skip in [true, false] {
                let [a, b] =
                    [&from_json, &from_gguf].map(|tokenizer| Detokenizer::text(tokenizer, &tokens, skip));
                assert_eq!(a, b);
            }
        }
    }

    #[test]
    fn a_post_processor_adds_what_begins_a_sequence() {
        let mut described: Value = serde_json::to_value(tokenizer().bpe.as_ref()).unwrap();
        described["decoder"] = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false,
            "trim_offsets": true, "use_regex": true});
        described["post_processor"] = serde_json::json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [BOS], "tokens": ["<|im_start|>"]}}});
        let tokenizer = Tokenizer::from_json(described.to_string().as_bytes()).unwrap();
        assert_eq!(tokenizer.encode("he", true).unwrap(), [BOS, 258]);
        assert_eq!(tokenizer.encode("he", false).unwrap(), [258]);
    }

    #[test]
    fn sentencepiece_vocabularies_are_spelt_out() {
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "post_processor": null,
            "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}],
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "pre_tokenizer": null,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "byte_fallback": true, "unk_token": "<s>", "fuse_unk": true, "merges": [["▁", "a"]],
                "vocab": {"<s>": 0, "<0xC3>": 1, "<0xBC>": 2, "▁": 3, "a": 4, "▁a": 7}},
        });
        let tokenizer = Arc::new(Tokenizer::from_json(json.to_string().as_bytes()).unwrap());
        assert_eq!(tokenizer.vocabulary(), 8, "5 and 6 are no tokens");
        let tokens = tokenizer.encode("a aü", true).unwrap();
        assert_eq!(tokens, [7, 7, 1, 2]);
        assert_eq!(Detokenizer::text(&tokenizer, &tokens, true), "a aü");
        let mut answer = Detokenizer::new(tokenizer.clone(), true);
        let pieces: Vec<String> = tokens.iter().map(|token| answer.push(*token)).collect();
        assert_eq!(pieces, [" a", " a", "", "ü"], "an answer goes on from a prompt");
        assert!(matches!(Tokenizer::from_json(b"{"), Err(TextError::Broken(_))));
    }

    #[test]
    fn characters_come_out_whole() {
        let check = |bytes: &[u8], expect: &[&str], rest: &str| {
            let mut detokenizer = Detokenizer::new(tokenizer(), true);
            let texts: Vec<String> = bytes.iter().map(|byte| detokenizer.push(u32::from(*byte))).collect();
            assert_eq!(texts, expect, "{bytes:?}");
            assert_eq!(detokenizer.finish(), rest, "{bytes:?}");
        };
        check(b"ab", &["a", "b"], "");
        check("ü€".as_bytes(), &["", "ü", "", "", "€"], "");
        check("😀".as_bytes(), &["", "", "", "😀"], "");
        check(&[0xF0, 0x9F], &["", ""], "\u{FFFD}");
        check(&[0xC3, b'a'], &["", "\u{FFFD}a"], "");
        check(&[0xFF, b'a'], &["\u{FFFD}", "a"], "");
        check(&[0xE2, 0x82, 0xC3, 0xBC], &["", "", "\u{FFFD}", "ü"], "");
    }

    #[test]
    fn special_tokens_are_left_out_of_the_text() {
        let mut without = Detokenizer::new(tokenizer(), true);
        assert_eq!(without.push(260) + &without.push(EOS) + &without.push(70_000), " he");
        let mut with = Detokenizer::new(tokenizer(), false);
        assert_eq!(with.push(EOS), "<|im_end|>");
    }
}
