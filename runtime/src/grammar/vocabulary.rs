//! The bytes of the model's tokens, as the grammar library needs them.

use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use crate::frontend::Tokenizer;

/// The `tokens` tokens of a model, of which the tokenizer knows the first ones. `eos` are the end-of-sequence tokens, at least one.
///
/// The library does not get the tokenizer. With one, it allows only one tokenization of a text that the grammar leaves no choice about.
/// It tokenizes that text from the last token on, so the tokens can differ from those of the whole answer, which the model prefers.
pub(super) fn vocabulary(tokenizer: &Tokenizer, tokens: u32, eos: &[u32]) -> TokEnv {
    let words: Vec<Vec<u8>> = (0..tokens).map(|token| word(tokenizer, token, eos)).collect();
    let trie = TokTrie::from(&TokRxInfo::new(tokens, eos[0]), &words).with_eos_tokens(eos);
    Arc::new(ApproximateTokEnv::new(trie))
}

/// The bytes of a token; empty if no grammar may allow it. The library marks the name of a special token with the byte 0xFF, so that it
/// differs from the same text in ordinary tokens. An ordinary token with this byte is never part of a text, because UTF-8 does not have it.
fn word(tokenizer: &Tokenizer, token: u32, eos: &[u32]) -> Vec<u8> {
    const MARKER: u8 = TokTrie::SPECIAL_TOKEN_MARKER;
    let bytes = tokenizer.bytes_of(token);
    if tokenizer.is_special(token) || eos.contains(&token) {
        return [&[MARKER], bytes].concat();
    }
    if bytes.contains(&MARKER) { Vec::new() } else { bytes.to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::testing::{BOS, EOS, bytes_model};

    #[test]
    fn special_tokens_are_marked_and_invalid_bytes_left_out() {
        let vocabulary = vocabulary(&Tokenizer::new(&bytes_model()).unwrap(), 300, &[EOS, 258]);
        let trie = vocabulary.tok_trie();
        assert_eq!((trie.vocab_size(), trie.eos_tokens()), (300, &[EOS, 258][..]));
        assert_eq!((trie.token(BOS), trie.token(EOS)), (&b"\xFF<|im_start|>"[..], &b"\xFF<|im_end|>"[..]));
        assert_eq!((trie.token(258), trie.token(260)), (&b"\xFFhe"[..], &b" he"[..]));
        assert_eq!((trie.token(0xFF), trie.token(0xFE), trie.token(280)), (&b""[..], &[0xFE][..], &b""[..]));
    }
}
