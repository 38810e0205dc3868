//! Splits a text into words before the merges of byte-level BPE.
//!
//! The library `tokenizers` uses a backtracking regular expression over text that stores the origin of each character. This takes most
//! of the time of tokenizing. The patterns of GPT-2, Llama 3 and Qwen2 can be matched without backtracking, from the classes of the
//! characters. The classes are those of `regex-syntax`, which compiles the library's expressions too.

use std::sync::LazyLock;

use regex_syntax::hir::{Class as HirClass, HirKind};

use super::byte_alphabet;

/// Class of a character in the patterns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\s`
    Space,
    /// None of the other classes.
    Other,
}

/// The ranges of the classes, in the order of the characters. Characters outside the ranges are [`Class::Other`].
static RANGES: LazyLock<Vec<(char, char, Class)>> = LazyLock::new(|| {
    let ranges_of = |(pattern, class)| {
        let parsed = regex_syntax::parse(pattern).map(regex_syntax::hir::Hir::into_kind);
        let ranges = match parsed {
            Ok(HirKind::Class(HirClass::Unicode(ranges))) => ranges.ranges().to_vec(),
            other => unreachable!("{pattern} is a character class, not {other:?}"),
        };
        ranges.into_iter().map(move |range| (range.start(), range.end(), class))
    };
    let patterns = [(r"\p{L}", Class::Letter), (r"\p{N}", Class::Number), (r"\s", Class::Space)];
    let mut ranges: Vec<_> = patterns.into_iter().flat_map(ranges_of).collect();
    ranges.sort_unstable_by_key(|(start, ..)| *start);
    ranges
});

static ASCII: LazyLock<[Class; 128]> =
    LazyLock::new(|| std::array::from_fn(|code| in_ranges(char::from(code as u8))));

fn in_ranges(c: char) -> Class {
    let after = RANGES.partition_point(|(start, ..)| *start <= c);
    match after.checked_sub(1).map(|at| RANGES[at]) {
        Some((_, end, class)) if c <= end => class,
        _ => Class::Other,
    }
}

fn class(c: char) -> Class {
    ASCII.get(c as usize).copied().unwrap_or_else(|| in_ranges(c))
}

/// Splits text by a rule. Writes words in the byte-level alphabet.
#[derive(Clone, Debug)]
pub(super) struct Words {
    rule: Rule,
    alphabet: [char; 256],
}

#[derive(Clone, Copy, Debug)]
enum Rule {
    /// GPT-2's pattern.
    Gpt2,
    /// Each digit is a word; GPT-2's pattern cuts the text between them.
    SmolLm,
    /// Llama 3's pattern, with at most this many digits in a word.
    Llama3 { digits: usize },
}

impl Words {
    /// GPT-2's rule.
    pub(super) fn gpt2() -> Self {
        Self { rule: Rule::Gpt2, alphabet: byte_alphabet() }
    }

    /// SmolLM's rule: each digit is a word, and GPT-2's rule splits the text between digits.
    pub(super) fn smollm() -> Self {
        Self { rule: Rule::SmolLm, alphabet: byte_alphabet() }
    }

    /// Llama 3's rule with at most this many digits in a word. Qwen2 has the same rule with one digit.
    pub(super) fn llama3(digits: usize) -> Self {
        Self { rule: Rule::Llama3 { digits }, alphabet: byte_alphabet() }
    }

    /// Calls `each` with each word of `text`, written in the byte-level alphabet.
    ///
    /// # Errors
    /// The first error of `each`.
    pub(super) fn of<E>(&self, text: &str, mut each: impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
        let mut spelt = String::with_capacity(64);
        let mut cut = |text: &str, length: fn(&str, usize) -> usize, digits: usize| {
            let mut rest = text;
            while !rest.is_empty() {
                let (word, after) = rest.split_at(length(rest, digits));
                spelt.clear();
                spelt.extend(word.bytes().map(|byte| self.alphabet[usize::from(byte)]));
                each(&spelt)?;
                rest = after;
            }
            Ok(())
        };
        match self.rule {
            Rule::Gpt2 => cut(text, gpt2, 0),
            Rule::SmolLm => {
                let mut rest = text;
                while !rest.is_empty() {
                    let digit = rest.find(char::is_numeric).unwrap_or(rest.len());
                    let (before, after) = rest.split_at(digit);
                    cut(before, gpt2, 0)?;
                    let width = after.chars().next().map_or(0, char::len_utf8);
                    cut(&after[..width], gpt2, 0)?;
                    rest = &after[width..];
                }
                Ok(())
            }
            Rule::Llama3 { digits } => cut(text, llama3, digits),
        }
    }
}

/// Length in bytes of the first word by the pattern
/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
fn gpt2(text: &str, _: usize) -> usize {
    if let Some(length) = contraction(text, |c| c) {
        return length;
    }
    let rest = text.strip_prefix(' ').unwrap_or(text);
    match rest.chars().next().map(class) {
        None | Some(Class::Space) => blanks(text),
        Some(class) => text.len() - rest.len() + run(rest, class),
    }
}

/// Length in bytes of the first word by the pattern
/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`.
fn llama3(text: &str, digits: usize) -> usize {
    if let Some(length) = contraction(text, without_case) {
        return length;
    }
    let Some(first) = text.chars().next() else { return 0 };
    let (kind, rest) = (class(first), &text[first.len_utf8()..]);
    if kind == Class::Number {
        let few: usize =
            text.chars().take(digits).take_while(|c| class(*c) == Class::Number).map(char::len_utf8).sum();
        return few;
    }
    let lead = if kind == Class::Letter || is_newline(first) { text } else { rest };
    let letters = run(lead, Class::Letter);
    if letters > 0 {
        return text.len() - lead.len() + letters;
    }
    let rest = text.strip_prefix(' ').unwrap_or(text);
    let others = run(rest, Class::Other);
    if others > 0 {
        let newlines = rest[others..].find(|c| !is_newline(c)).unwrap_or(rest.len() - others);
        return text.len() - rest.len() + others + newlines;
    }
    let spaces = run(text, Class::Space);
    match text[..spaces].rfind(is_newline) {
        Some(last) => last + 1,
        None => blanks(text),
    }
}

fn is_newline(c: char) -> bool {
    matches!(c, '\r' | '\n')
}

/// A character as a case-insensitive expression sees it. To such an expression the long s is an s.
fn without_case(c: char) -> char {
    if c == 'ſ' { 's' } else { c.to_ascii_lowercase() }
}

/// Bytes of an English contraction such as `'ll` at the start of the text. `folded` maps each character before it is compared.
fn contraction(text: &str, folded: fn(char) -> char) -> Option<usize> {
    let rest = text.strip_prefix('\'')?;
    let mut chars = rest.chars();
    let first = chars.next()?;
    match (folded(first), chars.next().map(folded)) {
        ('s' | 't' | 'm' | 'd', _) => Some(1 + first.len_utf8()),
        ('r' | 'v', Some('e')) | ('l', Some('l')) => Some(3),
        _ => None,
    }
}

/// Length in bytes of the run of characters of one class at the start of the text.
fn run(text: &str, wanted: Class) -> usize {
    text.find(|c| class(c) != wanted).unwrap_or(text.len())
}

/// Length in bytes of the blanks at the start of the text. If a word follows several blanks, the last blank belongs to that word and is not
/// counted.
fn blanks(text: &str) -> usize {
    let all = run(text, Class::Space);
    let last = text[..all].chars().next_back().map_or(0, char::len_utf8);
    if all < text.len() && all > last { all - last } else { all }
}
