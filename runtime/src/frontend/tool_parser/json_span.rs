//! Finds the end of a JSON value, character by character.

/// What a character is to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Span {
    /// It belongs to the value.
    Within,
    /// It is the last character of the value.
    Last,
    /// It comes after the value, which is a number or a word.
    Past,
    /// It cannot be part of JSON.
    Bad,
}

/// Follows one JSON value from its first character on. It checks brackets and strings, and that other characters can occur in JSON.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct JsonSpan {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    in_word: bool,
}

impl JsonSpan {
    /// Takes the next character.
    pub(super) fn push(&mut self, c: char) -> Span {
        if self.in_string {
            let ends = c == '"' && !self.is_escaped;
            self.is_escaped = c == '\\' && !self.is_escaped;
            self.in_string = !ends;
            return if ends && self.depth == 0 { Span::Last } else { Span::Within };
        }
        let is_word = c.is_ascii_alphanumeric() || "+-.".contains(c);
        if self.in_word {
            return if is_word { Span::Within } else { Span::Past };
        }
        match c {
            '"' => self.in_string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' if self.depth > 0 => {
                self.depth -= 1;
                if self.depth == 0 {
                    return Span::Last;
                }
            }
            _ if self.depth > 0 && (is_word || c.is_whitespace() || ":,".contains(c)) => {}
            _ if self.depth == 0 && is_word => self.in_word = true,
            _ => return Span::Bad,
        }
        Span::Within
    }
}
