//! The length of functions.

use anyhow::Result;

use super::sources;

/// Maximum number of lines of a function, with its signature and its closing brace.
const FUNCTION_LINES_MAX: usize = 80;

/// Name and length of each function of a formatted source file. A function ends at the first brace that is indented like its signature.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let name = |line: &str| -> Option<String> {
        let (before, after) = line.split_once("fn ")?;
        let words = ["pub", "pub(crate)", "pub(super)", "const", "async", "unsafe", "extern", "\"C\""];
        let is_function = before.split_whitespace().all(|word| words.contains(&word));
        let end = after.find(|c: char| !(c.is_alphanumeric() || c == '_'))?;
        (is_function && end > 0).then(|| after[..end].to_owned())
    };
    let length = |at: usize| {
        let indent = &lines[at][..lines[at].len() - lines[at].trim_start().len()];
        let end = format!("{indent}}}");
        let has_body = |line: &str| line.ends_with('{');
        // A declaration ends in a semicolon before any body begins.
        let first = lines[at..]
            .iter()
            .position(|line| line.ends_with(';') || has_body(line) || line.ends_with('}'))?;
        let is_block = has_body(lines[at + first]);
        is_block.then(|| lines[at..].iter().position(|line| *line == end)).flatten().map(|lines| lines + 1)
    };
    (0..lines.len()).filter_map(|at| Some((name(lines[at])?, length(at)?))).collect()
}

#[test]
fn lengths_are_found() {
    let text = "pub fn one() {\n    a();\n}\n\nimpl X {\n    async fn two(\n        a: u8,\n    ) -> u8 {\n        if a > 0 {\n        \
                }\n        a\n    }\n\n    fn short() {}\n}\n\nextern \"C\" {\n    fn declared(a: u8);\n}\n";
    assert_eq!(functions(text), [("one".to_owned(), 3), ("two".to_owned(), 7)]);
}

#[test]
fn no_function_is_too_long() -> Result<()> {
    let mut found = 0;
    for (name, text) in sources()? {
        for (function, lines) in functions(&text) {
            found += 1;
            assert!(
                lines <= FUNCTION_LINES_MAX,
                "{name}: {function} has {lines} lines, and {FUNCTION_LINES_MAX} are allowed: split it"
            );
        }
    }
    assert!(found > 1000, "only {found} functions are found: the search is broken");
    Ok(())
}
