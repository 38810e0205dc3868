//! The bytes of the model's tokens, as the grammar library needs them.

use std::sync::Arc;

use llguidance::toktrie::{TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::frontend::{Bos, Tokenizer};

/// Minimum number of bytes of a text that are tokenized at once. See [`Vocabulary::tokenize_bytes`].
const TOKENIZE_BYTES: usize = 4 << 10;

/// The model's tokens in a trie, and its tokenizer.
pub(super) struct Vocabulary {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
}

impl Vocabulary {
    /// The `tokens` tokens of a model, of which the tokenizer knows the first ones. `eos` are the end-of-sequence tokens, at least one.
    pub(super) fn new(tokenizer: Arc<Tokenizer>, tokens: u32, eos: &[u32]) -> Self {
        let words: Vec<Vec<u8>> = (0..tokens).map(|token| word(&tokenizer, token, eos)).collect();
        let trie = TokTrie::from(&TokRxInfo::new(tokens, eos[0]), &words).with_eos_tokens(eos);
        Self { tokenizer, trie }
    }

    /// The canonical tokens of a text; `None` if they do not spell exactly the text.
    fn canonical(&self, text: &str) -> Option<Vec<TokenId>> {
        let mut tokens = Vec::new();
        for token in self.tokenizer.encode(text, Bos::Omit).ok()? {
            if self.tokenizer.is_special(token) {
                // The text of a special token is ordinary text in a grammar.
                tokens.extend(self.trie.greedy_tokenize(self.tokenizer.bytes_of(token)));
            } else {
                tokens.push(token);
            }
        }
        let spelt = tokens.iter().flat_map(|token| self.tokenizer.bytes_of(*token));
        spelt.eq(text.as_bytes()).then_some(tokens)
    }
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

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// Where a grammar leaves only one text, the library allows only the first token of this tokenization. So an answer has the tokens that
    /// the model knows from its training. The library uses no more than the first tokens, so the rest of a long text is left out. A text
    /// that the tokenizer changes, for example by a leading space, is split into the longest tokens.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let most = TOKENIZE_BYTES.max(4 * self.trie.max_token_len());
        let bytes = &bytes[..bytes.len().min(most)];
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            self.canonical(text).unwrap_or_else(|| self.trie.greedy_tokenize(text.as_bytes()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::testing::{BOS, EOS, bytes_model};

    fn vocabulary(tokens: u32, eos: &[u32]) -> Vocabulary {
        Vocabulary::new(Arc::new(Tokenizer::new(&bytes_model()).unwrap()), tokens, eos)
    }

    #[test]
    fn special_tokens_are_marked_and_invalid_bytes_left_out() {
        let vocabulary = vocabulary(300, &[EOS, 258]);
        let trie = vocabulary.tok_trie();
        assert_eq!((trie.vocab_size(), trie.eos_tokens()), (300, &[EOS, 258][..]));
        assert_eq!((trie.token(BOS), trie.token(EOS)), (&b"\xFF<|im_start|>"[..], &b"\xFF<|im_end|>"[..]));
        assert_eq!((trie.token(258), trie.token(260)), (&b"\xFFhe"[..], &b" he"[..]));
        assert_eq!((trie.token(0xFF), trie.token(0xFE), trie.token(280)), (&b""[..], &[0xFE][..], &b""[..]));
    }

    #[test]
    fn texts_are_tokenized_as_by_the_tokenizer_without_special_tokens() {
        let vocabulary = vocabulary(262, &[EOS]);
        assert_eq!(vocabulary.tokenize_bytes(b"a he"), [b'a'.into(), 260]);
        let spelt = vocabulary.tokenize_bytes(b"he<|im_end|>");
        assert_eq!(spelt[0], 258);
        assert!(!spelt.contains(&EOS));
        assert_eq!(vocabulary.tok_trie().decode(&spelt), b"he<|im_end|>");
        let cut = "é he".as_bytes();
        assert_eq!(vocabulary.tok_trie().decode(&vocabulary.tokenize_bytes(&cut[1..])), &cut[1..]);
    }

    #[test]
    fn the_start_of_a_long_text_is_tokenized() {
        let vocabulary = vocabulary(262, &[EOS]);
        let tokens = vocabulary.tokenize_bytes(&vec![b'a'; 1 << 20]);
        assert_eq!(tokens.len(), TOKENIZE_BYTES);
    }
}
