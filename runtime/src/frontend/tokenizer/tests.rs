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
    assert_eq!((alphabet[b'a' as usize], alphabet[b' ' as usize], alphabet[b'\n' as usize]), ('a', 'Ġ', 'Ċ'));
    assert_eq!((alphabet[0], alphabet[0xAD], alphabet[0xFF]), ('Ā', '\u{143}', 'ÿ'));
}

#[test]
fn text_becomes_tokens() {
    let tokenizer = tokenizer();
    let check = |text: &str, expect: &[u32]| {
        assert_eq!(tokenizer.encode(text, Bos::Add).unwrap(), expect, "{text:?}")
    };
    check("", &[]);
    check("he", &[258]);
    check("a he", &[b'a'.into(), 260]);
    check("12", &[b'1'.into(), b'2'.into()]);
    // Digits are split off first, so the blanks before a digit are one word. The GGUF reader of transformers does not split off digits, and
    // makes the last blank a word of its own.
    check("a  5", &[b'a'.into(), 261, b'5'.into()]);
    check("ü", &[0xC3, 0xBC]);
    check("a<|im_end|>he", &[b'a'.into(), EOS, 258]);
}

#[test]
fn qwen2_composes_characters() {
    let ids = |pre: &str, text: &str| {
        let text_of = ModelText { pre: pre.to_owned(), ..bytes_model() };
        Tokenizer::new(&text_of).unwrap().encode(text, Bos::Omit).unwrap()
    };
    let (composed, decomposed) = ("h\u{E9}<|im_end|>", "he\u{301}<|im_end|>");
    assert_eq!(ids(QWEN2, decomposed), [b'h'.into(), 0xC3, 0xA9, EOS]);
    assert_eq!(ids(QWEN2, composed), ids(QWEN2, decomposed));
    assert_eq!(ids(LLAMA3, decomposed), [258, 0xCC, 0x81, EOS], "Llama 3 does not");
}

/// Texts of characters that the patterns distinguish, of other characters, and of tokens that are matched as a whole.
fn texts() -> impl Strategy<Value = String> {
    let telling = select("'sStTrReEvVlLmMdD aA1\u{BD}\u{663}\n\r\t .!-_\u{17F}\u{212A}\u{A0}\u{3000}\u{E9}\u{301}\u{65E5}\u{1F600}".chars().collect::<Vec<_>>());
    let whole = prop_oneof![Just("<|im_end|>"), Just("<|im_start|>"), Just("he"), Just(" he"), Just("  ")];
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
        (pre, Tokenizer::new(&text).unwrap(), library, words.unwrap())
    };
    ["smollm", "gpt-2", LLAMA3, QWEN2].map(kind).into()
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn words_are_those_of_the_library(text in texts()) {
        for (pre, tokenizer, library, words) in OF_EACH_KIND.iter() {
            let expect = tokenizer.bpe.as_ref().unwrap().encode_fast(&*text, false).unwrap();
            prop_assert_eq!(tokenizer.encode(&text, Bos::Omit).unwrap(), expect.get_ids(), "{} {:?}", pre, text);
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
fn bos_is_added_if_the_model_and_the_caller_want_it() {
    let with = Tokenizer::new(&ModelText { add_bos: true, ..bytes_model() }).unwrap();
    assert_eq!(with.encode("he", Bos::Add).unwrap(), [BOS, 258]);
    assert_eq!(with.encode("he", Bos::Omit).unwrap(), [258]);
}

#[test]
fn unknown_tokenizers_are_refused() {
    for (kind, pre) in [("bert", "smollm"), ("gpt2", "dbrx")] {
        let text = ModelText { kind: kind.to_owned(), pre: pre.to_owned(), ..bytes_model() };
        let error = Tokenizer::new(&text).err().unwrap().to_string();
        assert!(error.contains(kind) && error.contains(pre), "{error}");
    }
    let doubled = ModelText { tokens: vec!["a".into(), "a".into()], ..bytes_model() };
    assert!(matches!(Tokenizer::new(&doubled), Err(TextError::Broken(_))));
}

#[test]
fn a_json_gives_the_same_tokens_as_a_gguf() {
    let from_gguf = tokenizer();
    let mut described: Value = serde_json::to_value(from_gguf.bpe.as_ref()).unwrap();
    described["decoder"] = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false,
        "trim_offsets": true, "use_regex": true});
    let from_json = Arc::new(Tokenizer::from_json(described.to_string().as_bytes()).unwrap());
    assert_eq!(from_json.vocabulary(), from_gguf.vocabulary());
    for text in ["a he  5 ü", "a<|im_end|>he"] {
        let tokens = from_json.encode(text, Bos::Add).unwrap();
        assert_eq!(tokens, from_gguf.encode(text, Bos::Add).unwrap(), "{text}");
        for special_tokens in [SpecialTokens::Skip, SpecialTokens::Show] {
            let [a, b] = [&from_json, &from_gguf]
                .map(|tokenizer| Detokenizer::text(tokenizer, &tokens, special_tokens));
            assert_eq!(a, b);
        }
    }
}

#[test]
fn a_post_processor_adds_the_begin_of_sequence_token() {
    let mut described: Value = serde_json::to_value(tokenizer().bpe.as_ref()).unwrap();
    described["decoder"] = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false,
        "trim_offsets": true, "use_regex": true});
    described["post_processor"] = serde_json::json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [BOS], "tokens": ["<|im_start|>"]}}});
    let tokenizer = Tokenizer::from_json(described.to_string().as_bytes()).unwrap();
    assert_eq!(tokenizer.encode("he", Bos::Add).unwrap(), [BOS, 258]);
    assert_eq!(tokenizer.encode("he", Bos::Omit).unwrap(), [258]);
}

#[test]
fn sentencepiece_vocabularies_are_supported() {
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
    assert_eq!(tokenizer.vocabulary(), 8, "5 and 6 are unused ids");
    let tokens = tokenizer.encode("a aü", Bos::Add).unwrap();
    assert_eq!(tokens, [7, 7, 1, 2]);
    assert_eq!(Detokenizer::text(&tokenizer, &tokens, SpecialTokens::Skip), "a aü");
    let mut answer = Detokenizer::new(tokenizer.clone(), SpecialTokens::Skip);
    let pieces: Vec<String> = tokens.iter().map(|token| answer.push(*token)).collect();
    assert_eq!(pieces, [" a", " a", "", "ü"], "the first space of an answer stays");
    assert!(matches!(Tokenizer::from_json(b"{"), Err(TextError::Broken(_))));
}

#[test]
fn tekken_splits_words_at_capitals() {
    let library = split(TEKKEN).unwrap().0;
    let check = |text: &str, expect: &[&str]| {
        let mut cut = PreTokenizedString::from(text);
        library.pre_tokenize(&mut cut).unwrap();
        let words = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let words: Vec<&str> = words.into_iter().map(|(_, (from, to), _)| &text[from..to]).collect();
        assert_eq!(words, expect);
    };
    check("HelloWorld XMLHttp don't\n", &["Hello", "World", " XMLHttp", " don", "'t", "\n"]);
    check("path/to/\n  x 12", &["path", "/to", "/\n", " ", " x", " ", "1", "2"]);
    check("ÉCOLE école aé", &["ÉCOLE", " école", " aé"]);
    let text = ModelText { pre: TEKKEN.to_owned(), add_bos: true, ..bytes_model() };
    let tokenizer = Tokenizer::new(&text).unwrap();
    assert_eq!(tokenizer.encode("a he", Bos::Add).unwrap(), [BOS, b'a'.into(), 260]);
    assert_eq!(tokenizer.encode("a he", Bos::Omit).unwrap(), [b'a'.into(), 260]);
}

/// The vocabulary and the ids are from `integration-tests/fixtures/make_sentencepiece.py`.
#[test]
fn sentencepiece_in_a_gguf_file_gives_the_tokens_of_sentencepiece() {
    #[derive(serde::Deserialize)]
    struct Fixture {
        tokens: Vec<String>,
        scores: Vec<f32>,
        types: Vec<i32>,
        texts: Vec<Expected>,
    }
    #[derive(serde::Deserialize)]
    struct Expected {
        text: String,
        ids: Vec<u32>,
    }
    let fixture: Fixture =
        serde_json::from_str(include_str!("../../../fixtures/sentencepiece.json")).unwrap();
    let text = ModelText {
        kind: "llama".to_owned(),
        tokens: fixture.tokens,
        token_types: fixture.types,
        scores: fixture.scores,
        merges: Vec::new(),
        bos: Some(1),
        eos: Some(2),
        add_bos: true,
        add_space_prefix: true,
        ..bytes_model()
    };
    let tokenizer = Arc::new(Tokenizer::new(&text).unwrap());
    for Expected { text, ids } in fixture.texts {
        assert_eq!(tokenizer.encode(&text, Bos::Omit).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.encode(&text, Bos::Add).unwrap(), [&[1], &*ids].concat(), "{text:?}");
        let spaces = text.replace('▁', " ");
        assert_eq!(Detokenizer::text(&tokenizer, &ids, SpecialTokens::Show), spaces);
    }
    assert_eq!(tokenizer.encode("</s>", Bos::Omit).unwrap(), [2], "a control token is matched as a whole");
    let unscored = ModelText { scores: Vec::new(), ..text.clone() };
    let error = Tokenizer::new(&unscored).err().unwrap().to_string();
    assert!(error.contains("0 scores for 520 tokens"), "{error}");
    let plain = Tokenizer::new(&ModelText { add_space_prefix: false, add_bos: false, ..text }).unwrap();
    assert_ne!(plain.encode("the", Bos::Add).unwrap(), tokenizer.encode("the", Bos::Omit).unwrap());
}

#[test]
fn characters_come_out_whole() {
    let check = |bytes: &[u8], expect: &[&str], rest: &str| {
        let mut detokenizer = Detokenizer::new(tokenizer(), SpecialTokens::Skip);
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
    let mut without = Detokenizer::new(tokenizer(), SpecialTokens::Skip);
    assert_eq!(without.push(260) + &without.push(EOS) + &without.push(70_000), " he");
    let mut with = Detokenizer::new(tokenizer(), SpecialTokens::Show);
    assert_eq!(with.push(EOS), "<|im_end|>");
}

#[test]
fn without_a_tokenizer_texts_are_refused_and_no_bound_on_them_overflows() {
    let none = Tokenizer::none(1000);
    assert!(
        none.token_bytes_max().checked_mul(u32::MAX as usize).is_some(),
        "multiplied with the longest context"
    );
    assert!(none.encode("a", Bos::Add).unwrap_err().contains("no tokenizer"));
}
