//! Random grammars of every kind, and random answers to them: an answer can always go on or end.

use super::*;

fn below(random: &mut SplitMix64, most: u64) -> u64 {
    random.draw() % most
}

fn one<'a>(random: &mut SplitMix64, list: &[&'a str]) -> &'a str {
    list[below(random, list.len() as u64) as usize]
}

/// Texts, some of which the model has no tokens for.
const TEXTS: [&str; 14] = [
    "a",
    "ab",
    "yes",
    " no",
    "é",
    "日本",
    "🙂",
    "\u{1}",
    "\u{13}",
    "a\u{13}",
    "\u{50000}",
    "\u{90000}x",
    "\\",
    "\"",
];

fn regex(random: &mut SplitMix64, depth: u32) -> String {
    let atom = match below(random, 8) {
        0 | 1 if depth > 0 => format!("({})", regex(random, depth - 1)),
        2 => {
            one(random, &["[a-c]", "[^\\s\\S]", "[\\x13-\\x14]", ".", "\\d", "\\w", "\\s", "[^a]"]).to_owned()
        }
        _ => one(random, &TEXTS)
            .chars()
            .map(|c| if c == '\\' { "\\\\".to_owned() } else { c.to_string() })
            .collect(),
    };
    let atom = atom + one(random, &["", "", "", "?", "*", "+", "{2,3}"]);
    match below(random, 4) {
        0 if depth > 0 => format!("{atom}|{}", regex(random, depth - 1)),
        1 if depth > 0 => atom + &regex(random, depth - 1),
        _ => atom,
    }
}

fn terminal(random: &mut SplitMix64) -> String {
    match below(random, 4) {
        0 => format!("/{}/", one(random, &["a+", "[a-c]{1,3}", "(.|\\n)*", "x?", "[^a]", "\\x13", "a\\x13"])),
        1 => format!("/{}/ & /{}/", one(random, &["a", "a+", "[ab]*"]), one(random, &["b", "a*", "[ab]{3}"])),
        _ => json!(one(random, &TEXTS)).to_string(),
    }
}

/// A grammar in Lark with three rules and two terminals.
fn lark(random: &mut SplitMix64) -> String {
    let mut text = String::new();
    for rule in ["start", "p", "q"] {
        let options =
            one(random, &["", "", "", "[max_tokens=2]", "[stop=\"b\"]", "[suffix=\"b\"]", "[lazy]"]);
        let is_terminal_rule = !options.is_empty() && rule != "start";
        text += &format!("{rule}{}: ", if is_terminal_rule { options } else { "" });
        if is_terminal_rule {
            text += "/[a-c]*/";
        }
        for n in 0..if is_terminal_rule { 0 } else { 1 + below(random, 3) } {
            text += if n > 0 { one(random, &[" | ", " ", " "]) } else { "" };
            text += &match below(random, 10) {
                0 => json!(one(random, &TEXTS)).to_string(),
                1 => format!("%json {}", schema(random)),
                2 => one(random, &["<|im_start|>", "<|im_end|>", "<[0-3]>", "<[^0-3]>"]).to_owned(),
                3 => "\"\"".to_owned(),
                _ => one(random, &["p", "q", "p", "q", "start", "T", "U", "T", "U"]).to_owned(),
            };
            text += one(random, &["", "", "?", "*"]);
        }
        text.push('\n');
    }
    format!("{text}T: {}\nU: {}\n", terminal(random), terminal(random))
}

fn schema(random: &mut SplitMix64) -> Value {
    match below(random, 6) {
        0 => json!({"enum": [one(random, &TEXTS), one(random, &TEXTS)]}),
        1 => {
            json!({"type": "object", "properties": {(one(random, &TEXTS)): schema(random)}, "required": [one(random, &TEXTS)]})
        }
        2 => json!({"type": "string", "pattern": regex(random, 1)}),
        3 => {
            json!({"properties": {"next": {"$ref": one(random, &["#", "#/properties/next", "#/properties"])}}})
        }
        4 => {
            json!({"anyOf": [schema(random), {"type": "array", "items": {"$ref": "#"}, "minItems": below(random, 2)}]})
        }
        _ => documents::schema(random, 1),
    }
}

fn source(random: &mut SplitMix64) -> GrammarSource {
    match below(random, 4) {
        0 => GrammarSource::Regex(regex(random, 3)),
        1 => GrammarSource::JsonSchema(schema(random).to_string()),
        2 => {
            let choices: Vec<String> =
                (0..1 + below(random, 3)).map(|_| json!(one(random, &TEXTS)).to_string()).collect();
            GrammarSource::Lark(format!("start: CHOICE\nCHOICE: {}\n", choices.join(" | ")))
        }
        _ => GrammarSource::Lark(lark(random)),
    }
}

#[test]
fn answers_to_random_grammars_always_go_on_or_end() {
    let mut random = SplitMix64::new(7);
    let (mut compiled, mut refused) = (0, 0);
    for _ in 0..300 {
        let source = source(&mut random);
        let grammar = match guarded(|| MODEL.compiler.compile(&source)) {
            Ok(grammar) => grammar,
            Err(GrammarError::Invalid(text) | GrammarError::TooLarge(text)) => {
                assert!(!text.is_empty(), "{source:?}");
                refused += 1;
                continue;
            }
            Err(error) => panic!("{source:?}: {error}"),
        };
        compiled += 1;
        for _ in 0..2 {
            walk_to_the_end(&source, &grammar, &mut random);
        }
    }
    assert!(compiled > refused / 4, "{compiled} grammars compiled, and {refused} were refused");
}

/// Follows a random answer for some tokens, and checks that its end is taken where the mask allows it.
fn walk_to_the_end(source: &GrammarSource, grammar: &CompiledGrammar, random: &mut SplitMix64) {
    let mut matcher = guarded(|| grammar.grammar().matcher()).expect("the grammar has a matcher");
    let mut text = Vec::new();
    for _ in 0..12 {
        let context = || format!("{source:?} after {:?}", String::from_utf8_lossy(&text));
        let mask = match guarded(|| matcher.mask()) {
            Ok(mask) => mask,
            // A very ambiguous grammar.
            Err(GrammarError::Failed(text)) if text.contains("Too many items (limit") => return,
            Err(error) => panic!("{}: {error}", context()),
        };
        let allowed: Vec<u32> = (0..TOKENS).filter(|token| allows(&mask, *token)).collect();
        assert!(!allowed.is_empty(), "{}: no token is allowed", context());
        let token = allowed[below(random, allowed.len() as u64) as usize];
        guarded(|| matcher.consume(token))
            .unwrap_or_else(|error| panic!("{} and {token}: {error}", context()));
        if ENDS.contains(&token) {
            let mask = guarded(|| matcher.mask()).expect("the end has a mask");
            assert!(ENDS.iter().all(|end| allows(&mask, *end)), "{}: it goes on after its end", context());
            return;
        }
        text.extend_from_slice(MODEL.tokenizer.bytes_of(token));
    }
}
