//! The sentencepiece tokenizer of a GGUF file, as a `tokenizer.json`.
//!
//! A GGUF file has a score for each token. sentencepiece merges the two adjacent pieces that make the token with the highest score.
//! The library merges by a list of pairs. So the list has every pair of tokens that makes a token, in the order of the scores.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{SPECIAL, USER_DEFINED};
use crate::frontend::model_text::{ModelText, TextError};

/// GGUF's name of the kind.
pub(super) const KIND: &str = "llama";
/// GGUF's type of the unknown token.
const UNKNOWN: i32 = 2;

/// The `tokenizer.json` of the tokenizer that a model file describes.
///
/// # Errors
/// [`TextError::Broken`] if a token has no score, or the begin-of-sequence token does not exist.
pub(super) fn described(text: &ModelText) -> Result<Value, TextError> {
    if text.scores.len() != text.tokens.len() {
        let what = format!("it has {} scores for {} tokens", text.scores.len(), text.tokens.len());
        return Err(TextError::Broken(what));
    }
    let typed = |id: usize| text.token_types.get(id).copied().unwrap_or_default();
    let whole = text
        .tokens
        .iter()
        .enumerate()
        .filter(|(id, _)| [UNKNOWN, SPECIAL, USER_DEFINED].contains(&typed(*id)));
    let added: Vec<Value> = whole
        .map(|(id, token)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": typed(id) != USER_DEFINED})
        })
        .collect();
    let unknown = (0..text.tokens.len()).find(|id| typed(*id) == UNKNOWN).map(|id| &text.tokens[id]);
    let vocabulary: HashMap<&String, usize> = text.tokens.iter().zip(0..).collect();
    let replace =
        |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut normalizers = vec![replace(" ", "▁")];
    if text.add_space_prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
    }
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "pre_tokenizer": null,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "post_processor": begin(text)?,
        "decoder": {"type": "Sequence", "decoders": [replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "byte_fallback": true, "fuse_unk": true, "unk_token": unknown,
            "vocab": vocabulary, "merges": merges(text, &vocabulary)},
    }))
}

/// Every pair of tokens that makes a token, the highest score first.
fn merges<'a>(text: &'a ModelText, vocabulary: &HashMap<&String, usize>) -> Vec<[&'a str; 2]> {
    let mut ids: Vec<usize> = (0..text.tokens.len()).collect();
    ids.sort_by(|a, b| text.scores[*b].total_cmp(&text.scores[*a]));
    let has = |part: &str| vocabulary.contains_key(&part.to_owned());
    let pairs = |id: usize| {
        let token = &*text.tokens[id];
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        cuts.filter(|(left, right)| has(left) && has(right)).map(|(left, right)| [left, right])
    };
    ids.into_iter().flat_map(pairs).collect()
}

/// Puts the begin-of-sequence token in front of a text.
fn begin(text: &ModelText) -> Result<Value, TextError> {
    let Some(bos) = text.bos.filter(|_| text.add_bos) else { return Ok(Value::Null) };
    let token = text.tokens.get(bos as usize).ok_or_else(|| {
        TextError::Broken(format!("its begin-of-sequence token {bos} is not in the vocabulary"))
    })?;
    let special = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    Ok(json!({
        "type": "TemplateProcessing",
        "single": [special, sequence("A")],
        "pair": [special, sequence("A"), sequence("B")],
        "special_tokens": {token: {"id": token, "ids": [bos], "tokens": [token]}},
    }))
}
