//! A Rust source file, split into code and string literals.

/// The parts of a source file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Source {
    /// The code, without comments; string literals in it are empty (`""`), character literals a space (`' '`).
    pub(crate) code: String,
    /// The contents of the string literals, with escapes as they are written.
    pub(crate) literals: Vec<String>,
}

/// Splits `text`. Knows line and nested block comments, strings, raw strings, and characters as opposed to lifetimes.
pub(crate) fn split(text: &str) -> Source {
    let mut source = Source::default();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let taken = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(hashes) = raw_string(rest).filter(|_| !in_word(&source.code)) {
            let start = 2 + hashes;
            let end = format!("\"{}", "#".repeat(hashes));
            let length = rest[start..].find(&end).unwrap_or(rest.len() - start);
            source.literals.push(rest[start..start + length].to_owned());
            source.code.push_str("\"\"");
            (start + length + end.len()).min(rest.len())
        } else if next == '"' {
            let length = quoted(&rest[1..], '"');
            source.literals.push(rest[1..1 + length].to_owned());
            source.code.push_str("\"\"");
            (length + 2).min(rest.len())
        } else if let Some(length) = character(rest) {
            source.code.push_str("' '");
            length
        } else {
            source.code.push(next);
            next.len_utf8()
        };
        rest = &rest[taken..];
    }
    source
}

/// Number of bytes up to the quote that closes a literal; a backslash escapes the next character.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    let end = text.char_indices().find(|(_, c)| {
        let ends = *c == quote && !escaped;
        escaped = *c == '\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |(at, _)| at)
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let here = &text.as_bytes()[at..];
        let (step, change) = match here {
            [b'/', b'*', ..] => (2, 1),
            [b'*', b'/', ..] => (2, -1),
            _ => (1, 0),
        };
        (at, depth) = (at + step, depth + change);
        if depth == 0 {
            break;
        }
    }
    at
}

/// How many `#` a raw string that begins here has.
fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some(hashes)
}

/// Whether the code ends inside a word, so that an `r` that follows belongs to it. A byte string's `b` is no such word.
fn in_word(code: &str) -> bool {
    let word = code.trim_end_matches(|c: char| c.is_alphanumeric() || c == '_');
    !matches!(&code[word.len()..], "" | "b")
}

/// Bytes of a character literal that begins here; a lifetime is none.
fn character(text: &str) -> Option<usize> {
    let after = text.strip_prefix('\'')?;
    if after.starts_with('\\') {
        return Some(quoted(after, '\'') + 2);
    }
    let length = after.chars().next()?.len_utf8();
    after[length..].starts_with('\'').then_some(length + 2)
}

#[test]
fn code_and_literals_are_told_apart() {
    let check = |text: &str, code: &str, literals: &[&str]| {
        let expect = Source {
            code: code.to_owned(),
            literals: literals.iter().map(|text| (*text).to_owned()).collect(),
        };
        assert_eq!(split(text), expect, "{text}");
    };
    check("a // \"b\"\nc", "a \nc", &[]);
    check("a /* \" /* */ \" */ c", "a  c", &[]);
    check(r#"f("a\"b", 'c')"#, "f(\"\", ' ')", &[r#"a\"b"#]);
    check(r##"r#"a"b"# + br"c""##, "\"\" + b\"\"", &["a\"b", "c"]);
    check("for\"a\"", "for\"\"", &["a"]);
    check(r"fn f<'a>(x: &'a str) { '\'' == '\u{e9}' }", "fn f<'a>(x: &'a str) { ' ' == ' ' }", &[]);
    check("\"a\nlink.port\"", "\"\"", &["a\nlink.port"]);
}
