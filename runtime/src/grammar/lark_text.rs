//! Reads what has to be known of a grammar in Lark before the library compiles it: its JSON schemas, and how deep it may nest.

use std::ops::Range;

use serde_json::Value;

/// What a grammar in Lark contains.
#[derive(Debug, Default)]
pub(super) struct LarkText {
    /// The schemas after `%json`, and the places of their texts.
    pub(super) schemas: Vec<(Range<usize>, Value)>,
    /// The texts of the string literals, except negated ones and single characters, which may be ends of ranges.
    pub(super) strings: Vec<String>,
    /// Number of lines, parentheses and brackets.
    pub(super) levels: usize,
    /// A rule is defined with `::=`, as in GBNF.
    pub(super) is_gbnf: bool,
}

impl LarkText {
    /// Reads a grammar. A text that is not Lark is refused by the library.
    pub(super) fn read(text: &str) -> Self {
        const JSON: &str = "%json";
        let (mut found, mut at) = (Self { levels: 1, ..Self::default() }, 0);
        let bytes = text.as_bytes();
        while let Some(byte) = bytes.get(at) {
            at += 1;
            match byte {
                b'/' if bytes.get(at) == Some(&b'/') => at = line_end(bytes, at),
                b'#' => at = line_end(bytes, at),
                b'"' | b'/' => {
                    let start = at - 1;
                    at = literal_end(bytes, at, *byte);
                    let is_negated = text[..start].trim_end().ends_with('~');
                    let string = text.get(start..at).filter(|_| !is_negated);
                    // A regular expression is no JSON.
                    let string = string.and_then(|literal| serde_json::from_str::<String>(literal).ok());
                    found.strings.extend(string.filter(|string| string.chars().nth(1).is_some()));
                }
                b'%' if text[at - 1..].starts_with(JSON) => {
                    at += JSON.len() - 1;
                    let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>();
                    if let Some(Ok(schema)) = values.next() {
                        let start = at;
                        at += values.byte_offset();
                        found.schemas.push((start..at, schema));
                    }
                }
                b'\n' | b'(' | b'[' => found.levels += 1,
                b':' if bytes[at..].starts_with(b":=") => found.is_gbnf = true,
                _ => {}
            }
        }
        found
    }
}

/// The end of the line that has the byte `at`.
fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |length| at + length)
}

/// The place after the string or regular expression that begins before `at` and ends with `quote`.
fn literal_end(bytes: &[u8], mut at: usize, quote: u8) -> usize {
    while let Some(byte) = bytes.get(at) {
        at += if *byte == b'\\' { 2 } else { 1 };
        if *byte == quote {
            break;
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn strings_comments_and_schemas_are_no_rules() {
        let schemas = |text: &str| {
            let places = LarkText::read(text).schemas;
            places.into_iter().map(|(place, schema)| (text[place].to_owned(), schema)).collect::<Vec<_>>()
        };
        let schema = ("{\"items\": 1}", json!({"items": 1}));
        for text in
            ["start: \"a\" ", "start: /\"/ ", "# \"\nstart: ", "start: \"%json\" ", "// %json {}\na: "]
        {
            let text = format!("{text}%json {}\nb: \"c\"", schema.0);
            let found = schemas(&text);
            assert_eq!(found.len(), 1, "{text}");
            assert_eq!((found[0].0.trim(), &found[0].1), (schema.0, &schema.1), "{text}");
        }
        assert_eq!(schemas("start: %json {} \"x\" %json{\"a\":\"%json {\"}").len(), 2);
        for text in ["start: %json", "é %json \"", "\"\\", "start: %json {"] {
            assert!(schemas(text).is_empty(), "{text}");
        }
        let is_gbnf = |text: &str| LarkText::read(text).is_gbnf;
        assert!(is_gbnf("root ::= \"a\""));
        assert!(!is_gbnf("start: \"::=\" /::=/ %json {\"title\": \"::=\"} // ::="));
    }

    #[test]
    fn strings_have_the_escapes_of_json() {
        let text = r#"start: "a\u0013" ~"no" | "\u0000".."\u001f" | /"no"/ | "é\"" // "no""#;
        assert_eq!(LarkText::read(text).strings, ["a\u{13}", "é\""]);
    }

    #[test]
    fn levels_are_lines_parentheses_and_brackets() {
        let levels = |text: &str| LarkText::read(text).levels;
        assert_eq!(levels("start: (a [b])\na: \"b\"\n"), 5);
        assert_eq!(levels("start: \"([\\\"(\" /\\/(/ %json {\"a\": [[\n1]]} // (["), 1);
    }
}
