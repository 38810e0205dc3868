use serde_json::{Value, json};

use crate::frontend::Bos;
use crate::frontend::testing::{BOS, EOS, bytes_model};

use super::super::limits::{FORMATS, UNSUPPORTED};
use super::*;

/// More tokens than the tokenizer has.
const TOKENS: u32 = 300;

/// End-of-sequence tokens. The second one has an ordinary text.
const ENDS: [u32; 2] = [EOS, 261];

fn tokenizer() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::new(&bytes_model()).unwrap())
}

fn library() -> Library {
    Library::new(&tokenizer(), TOKENS, &ENDS).unwrap()
}

fn json(schema: &str) -> GrammarSource {
    GrammarSource::JsonSchema(schema.to_owned())
}

fn regex(text: &str) -> GrammarSource {
    GrammarSource::Regex(text.to_owned())
}

fn lark(text: &str) -> GrammarSource {
    GrammarSource::Lark(text.to_owned())
}

fn allowed(mask: &TokenMask) -> Vec<u32> {
    (0..32 * mask.len() as u32).filter(|token| is_set(mask, *token)).collect()
}

/// Whether the grammar allows the text, token by token, and then its end.
fn allows(grammar: &Compiled, text: &str) -> bool {
    let mut matcher = grammar.matcher().unwrap();
    for token in tokenizer().encode(text, Bos::Omit).unwrap() {
        let mask = matcher.mask().unwrap();
        assert_eq!(mask.len(), TOKENS.div_ceil(32) as usize);
        let allowed = allowed(&mask);
        assert!(!allowed.is_empty() && !allowed.contains(&BOS) && allowed.iter().all(|token| *token < 262));
        if !allowed.contains(&token) {
            assert!(matcher.consume(token).is_err(), "{text:?}: refused by the mask and taken");
            return false;
        }
        matcher.consume(token).unwrap();
    }
    let ends = allowed(&matcher.mask().unwrap());
    let may_end = ENDS.map(|end| ends.contains(&end));
    assert_eq!(may_end[0], may_end[1], "{text:?}: all ends or none");
    if !may_end[0] {
        assert!(matcher.consume(EOS).is_err(), "{text:?}");
        return false;
    }
    for end in ENDS {
        matcher.consume(end).unwrap();
        assert_eq!(allowed(&matcher.mask().unwrap()), ENDS, "only the end may follow the end");
    }
    assert!(matcher.consume(b'a'.into()).is_err());
    true
}

#[test]
fn answers_follow_their_grammar() {
    let library = library();
    let check = |source: GrammarSource, good: &[&str], bad: &[&str]| {
        let grammar = library.compile(&source).unwrap_or_else(|error| panic!("{source:?}: {error}"));
        good.iter().for_each(|text| assert!(allows(&grammar, text), "{source:?} {text:?}"));
        bad.iter().for_each(|text| assert!(!allows(&grammar, text), "{source:?} {text:?}"));
    };
    let object = r#"{"type": "object", "properties": {"he": {"type": "integer"}, "a": {"type": "boolean"}}, "required": ["he", "a"], "additionalProperties": false}"#;
    check(
        json(object),
        &[r#"{"he": 1, "a": true}"#, r#"{"he": -70, "a": false}"#],
        &[
            r#"{"a": true, "he": 1}"#,
            r#"{"he":1, "a": true}"#,
            r#"{"he": 1,"a": true}"#,
            r#"{"he": 1}"#,
            "",
            r#"{"he": 1, "a": true}x"#,
            "[]",
        ],
    );
    check(
        json(r#"{"type": "object"}"#),
        &["{}", r#"{"a": [1, {"b": null}]}"#],
        &["[]", "1", "\"a\"", "{ }", "null"],
    );
    check(json("true"), &["1", "[]", "{}"], &["x"]);
    check(
        json(r#"{"enum": ["a", 1, null, {"b": 2}]}"#),
        &["\"a\"", "1", "null", r#"{"b": 2}"#],
        &["\"b\"", "2"],
    );
    check(
        json(r##"{"oneOf": [{"$ref": "#/$defs/a"}, {"type": "null"}], "$defs": {"a": {"const": "x"}}}"##),
        &["\"x\"", "null"],
        &["1"],
    );
    let flexible = r#"{"type": "object", "x-guidance": {"whitespace_flexible": true}}"#;
    check(json(flexible), &["{}", "{ }", "{\"a\": 1}"], &["[]"]);
    check(regex("he+|[0-9]{3}"), &["he", "heee", "123"], &["h", "12", "1234", "hex", ""]);
    check(regex("^ a/b$"), &[" a/b"], &["a/b"]);
    check(regex(""), &[""], &["a"]);
    check(lark("start: \"::=\""), &["::="], &[":", ""]);
    check(lark("start: \"a\" (\",\" \"a\")*"), &["a", "a,a", "a,a,a"], &["", "a,", "b"]);
    check(
        lark("start: A\nA: \"he\" | \"hehe\" | \"q\\\"\\\\\" | \"\""),
        &["he", "hehe", "q\"\\", ""],
        &["h", "hehehe"],
    );
    // The text of a special token is ordinary text, and a name in angle brackets is the token.
    check(json(r#"{"const": "<|im_end|>he"}"#), &[], &[r#""<|im_end|>he""#, "\"<|im_end|>\""]);
}

#[test]
fn the_text_of_a_special_token_is_spelt_with_ordinary_tokens() {
    let grammar = library().compile(&json(r#"{"const": "<|im_end|>"}"#)).unwrap();
    let mut matcher = grammar.matcher().unwrap();
    for byte in br#""<|im_end|>""# {
        assert_eq!(allowed(&matcher.mask().unwrap()), [u32::from(*byte)]);
        matcher.consume((*byte).into()).unwrap();
    }
    assert_eq!(allowed(&matcher.mask().unwrap()), ENDS);
}

#[test]
fn a_grammar_can_ask_for_special_tokens() {
    let grammar = library().compile(&lark("start: <|im_start|> \"a\"")).unwrap();
    let mut matcher = grammar.matcher().unwrap();
    assert_eq!(allowed(&matcher.mask().unwrap()), [BOS]);
    matcher.consume(BOS).unwrap();
    assert_eq!(allowed(&matcher.mask().unwrap()), [u32::from(b'a')]);
}

#[test]
fn references_are_decoded() {
    let schema = r##"{"properties": {"a": {"$ref": "#/$defs/a~1b"}, "b": {"$ref": "#/%24defs/50%25~0"}}, "required": ["a", "b"],
        "$defs": {"a/b": {"const": 1}, "50%~": {"const": 2}}}"##;
    let grammar = library().compile(&json(schema)).unwrap();
    assert!(allows(&grammar, r#"{"a": 1, "b": 2}"#));
    assert!(!allows(&grammar, r#"{"a": 2, "b": 2}"#));
}

#[test]
fn matchers_of_one_grammar_are_independent() {
    let grammar = library().compile(&regex("ab|cd")).unwrap();
    let (mut first, mut second) = (grammar.matcher().unwrap(), grammar.matcher().unwrap());
    first.consume(b'a'.into()).unwrap();
    second.consume(b'c'.into()).unwrap();
    assert!(first.consume(b'x'.into()).is_err());
    assert_eq!(allowed(&second.mask().unwrap()), [u32::from(b'd')]);
}

#[test]
fn a_panic_in_one_answer_costs_no_other_answer() {
    let grammar = library().compile(&regex("ab|cd")).unwrap();
    let (mut first, mut second) = (grammar.answer(), grammar.answer());
    first.matcher.test_trigger_lexer_error().unwrap_err();
    assert!(first.mask().is_err());
    second.consume(b'c'.into()).unwrap();
    assert_eq!(allowed(&second.mask().unwrap()), [u32::from(b'd')]);
    assert!(allows(&grammar, "ab"));
}

#[test]
fn bad_sources_are_refused_with_a_sentence() {
    let library = library();
    let check = |source: GrammarSource, words: &str| {
        let error = library.compile(&source).err().unwrap_or_else(|| panic!("{source:?} compiles"));
        let GrammarError::Invalid(text) = &error else { panic!("{source:?}: {error:?}") };
        assert!(text.contains(words) && !text.contains('\n'), "{source:?}: {text}");
        assert!(text.len() <= 4 * MESSAGE_MAX);
    };
    check(json("{"), "not valid JSON");
    check(json("[]"), "schema must be an object or boolean");
    check(json(r#"{"type": "text"}"#), "Invalid type: text");
    check(
        json(r#"{"properties": {"a": {"not": {}}}}"#),
        "the keyword not at #/properties/a is not supported",
    );
    check(json(r#"{"type": "string", "format": "regex"}"#), "the format \"regex\" at # is not supported");
    check(json(r#"{"type": "integer", "minimum": 3, "maximum": 2}"#), "Unsatisfiable");
    check(json(r##"{"$ref": "#/$defs/a"}"##), "$defs");
    let endless = "an answer that reached it could not end";
    check(json(r##"{"$ref": "#"}"##), endless);
    check(
        json(r##"{"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}"##),
        endless,
    );
    check(json(r##"{"properties": {"a": {"$ref": "#/properties/a"}}}"##), endless);
    check(lark("start: \"a\" | b\nb: \"x\" b"), endless);
    check(lark("start: \"a\" | \"b\" C\nC: /a/ & /b/"), endless);
    check(lark("start: \"a\" C?\nC: /a[^\\s\\S]/"), endless);
    check(regex("[^\\s\\S]"), endless);
    check(
        json(r#"{"multipleOf": 999999937}"#),
        "multipleOf 999999937 at # is not supported; without its point it may be at most 10000",
    );
    check(json(r#"{"x-guidance": {"spaces": 1}}"#), "unknown field `spaces`");
    check(json("false"), "Unsatisfiable");
    check(regex("("), "invalid regex");
    check(regex("(?=a)b"), "look-around");
    check(lark("root ::= \"a\""), "GBNF");
    check(lark("begin: \"a\""), "start");
    check(lark("start: A\nA: %regex {\"substring\": \"::=\"}"), "unknown field");
    check(lark("start: b"), "unknown name: \"b\"");
    check(lark("start: /[/"), "invalid regex");
}

/// A tokenizer without tokens for the byte `z`.
fn without_z() -> Library {
    let mut text = bytes_model();
    text.tokens[usize::from(b'z')] = "aaa".to_owned();
    let tokenizer = Tokenizer::new(&text).unwrap();
    Library::new(&tokenizer, TOKENS, &ENDS).unwrap()
}

#[test]
fn an_answer_ends_where_no_token_continues_it() {
    let library = without_z();
    for source in [regex("az"), regex("(a|b)z"), json(r#"{"enum": ["z"]}"#), lark("start: \"a\" \"z\"")] {
        let grammar = library.compile(&source).unwrap();
        let mut replayed = grammar.matcher().unwrap();
        let mut matcher = grammar.matcher().unwrap();
        let first = allowed(&matcher.mask().unwrap())[0];
        matcher.consume(first).unwrap();
        assert_eq!(allowed(&matcher.mask().unwrap()), ENDS, "{source:?}");
        assert!(matcher.consume(first).is_err());
        matcher.consume(ENDS[1]).unwrap();
        assert_eq!(allowed(&matcher.mask().unwrap()), ENDS);
        // A sequence that is computed again tells its tokens without asking for masks.
        [first, EOS, EOS].into_iter().for_each(|token| replayed.consume(token).unwrap());
    }
}

#[test]
fn strings_that_tokens_cannot_spell_are_refused() {
    let library = without_z();
    let refused = |text: &str| library.compile(&lark(text)).err().map(|error| error.to_string());
    let expect = Some("the model has no tokens for the string \"az\"".to_owned());
    assert_eq!(refused("start: CHOICE\nCHOICE: \"b\" | \"az\"\n"), expect);
    let first = Some("no answer of the model's tokens matches the grammar".to_owned());
    assert_eq!(refused("start: \"z\" | \"z\" \"a\""), first);
    assert_eq!(refused("start: \"a\"..\"z\""), None);
    assert_eq!(refused("start: \"b\" | \"z\""), None, "it is never begun");
}

#[test]
fn a_grammar_can_ask_for_the_end() {
    let grammar = library().compile(&lark("start: \"a\" (<|im_end|> | \"b\")")).unwrap();
    let mut matcher = grammar.matcher().unwrap();
    matcher.consume(b'a'.into()).unwrap();
    assert_eq!(allowed(&matcher.mask().unwrap()), [u32::from(b'b'), EOS]);
    matcher.consume(EOS).unwrap();
    assert_eq!(allowed(&matcher.mask().unwrap()), ENDS);
}

#[test]
fn the_lists_of_keywords_and_formats_are_those_of_the_library() {
    let library = library();
    let outcome =
        |schema: Value| library.factory.create_parser(TopLevelGrammar::from_json_schema(schema)).err();
    for keyword in UNSUPPORTED {
        let error = outcome(json!({keyword: {}})).unwrap_or_else(|| panic!("{keyword} is supported"));
        assert!(error.to_string().contains(&format!("Unimplemented keys: [\"{keyword}\"]")), "{error}");
    }
    for format in FORMATS {
        assert!(outcome(json!({"type": "string", "format": format})).is_none(), "{format}");
    }
    assert!(outcome(json!({"type": "string", "format": "regex"})).is_some());
}

#[test]
fn the_page_names_all_keywords_and_formats() {
    let page = include_str!("../../../../docs/structured-output.md");
    let names = UNSUPPORTED.iter().chain(&FORMATS);
    let missing: Vec<_> = names.filter(|name| !page.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn a_model_without_tokenizer_or_end_has_no_grammars() {
    let compile = |tokenizer: Tokenizer, eos: &[u32]| {
        let compiler = ModelCompiler::new(Arc::new(tokenizer), TOKENS, eos);
        assert!(compiler.cached(&regex("a")).is_none());
        compiler.compile(&regex("a")).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert!(compile(Tokenizer::none(TOKENS), &ENDS).contains("no tokenizer"));
    assert!(compile(Tokenizer::new(&bytes_model()).unwrap(), &[TOKENS]).contains("no end-of-sequence token"));
    assert_eq!(compile(Tokenizer::new(&bytes_model()).unwrap(), &[TOKENS, EOS]), "");
}

#[test]
fn a_panic_of_the_library_is_told_from_an_error() {
    let error = failed("panic: index out of range\n<backtrace>\nx\n</backtrace>", GrammarError::Failed);
    assert_eq!(error, GrammarError::Panicked("index out of range".to_owned()));
    assert_eq!(
        failed("a\n  b\n<non-verbose/>", GrammarError::Failed),
        GrammarError::Failed("a b".to_owned())
    );
}
