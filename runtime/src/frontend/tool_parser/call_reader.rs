//! Reads one tool call, character by character.

use super::json_span::{JsonSpan, Span};

/// What a reader found in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// The name of the tool. Its arguments follow.
    Name(String),
    /// Text of the arguments.
    Arguments(String),
    /// The call is an element of a list.
    List,
}

/// What a character is to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The call goes on.
    More,
    /// It is the last character of the call.
    Done,
    /// It cannot be part of the call.
    Broken,
}

/// Reads one call.
pub(super) enum CallReader {
    /// The start of Mistral's calls: a list of objects or a name.
    ListOrName,
    /// `{"name": …, "arguments": …}`
    Object(CallObject),
    /// `name[ARGS]{…}`
    Named(NamedCall),
}

impl CallReader {
    /// A reader of an object. In a `marked` call, missing arguments are no arguments.
    pub(super) fn object(marked: bool) -> Self {
        Self::Object(CallObject { marked, ..CallObject::default() })
    }

    /// True if the arguments have begun and are not complete.
    pub(super) fn is_in_arguments(&self) -> bool {
        match self {
            Self::ListOrName => false,
            Self::Object(object) => object.place == Place::Value(Key::Arguments),
            Self::Named(named) => named.arguments.is_some(),
        }
    }

    /// Takes the next character.
    pub(super) fn push(&mut self, c: char, heard: &mut Vec<Heard>) -> Step {
        match self {
            Self::ListOrName if c.is_whitespace() => Step::More,
            Self::ListOrName => match c {
                '[' => {
                    *self = Self::object(true);
                    heard.push(Heard::List);
                    Step::More
                }
                '{' => {
                    *self = Self::object(true);
                    self.push(c, heard)
                }
                _ => {
                    *self = Self::Named(NamedCall::default());
                    self.push(c, heard)
                }
            },
            Self::Object(object) => object.push(c, heard),
            Self::Named(named) => named.push(c, heard),
        }
    }
}

/// The keys of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Name,
    Arguments,
    Other,
}

/// A place in a call's object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// Before the object.
    #[default]
    Start,
    /// Before a key, or before the end of an empty object.
    BeforeKey,
    InKey,
    BeforeColon(Key),
    BeforeValue(Key),
    Value(Key),
    AfterValue,
}

/// A call as a JSON object. Its keys may have any order; it may have others besides name and arguments.
#[derive(Default)]
pub(super) struct CallObject {
    marked: bool,
    place: Place,
    span: JsonSpan,
    /// The text of a key, a name, or arguments that are held back.
    text: String,
    name: Option<String>,
    /// Arguments that came before the name.
    early: Option<String>,
    /// The arguments have begun.
    has_arguments: bool,
}

impl CallObject {
    fn push(&mut self, c: char, heard: &mut Vec<Heard>) -> Step {
        match self.place {
            Place::InKey => self.key(c),
            Place::Value(key) => self.value(key, c, heard),
            _ if c.is_whitespace() => Step::More,
            Place::BeforeValue(key) => self.first_of_value(key, c, heard),
            Place::Start if c == '{' => self.go(Place::BeforeKey),
            Place::BeforeKey if c == '"' => {
                (self.span, self.text) = (JsonSpan::default(), String::new());
                self.place = Place::InKey;
                self.key(c)
            }
            Place::BeforeColon(key) if c == ':' => self.go(Place::BeforeValue(key)),
            Place::AfterValue if c == ',' => self.go(Place::BeforeKey),
            Place::AfterValue if c == '}' => self.end(heard),
            _ => Step::Broken,
        }
    }

    fn go(&mut self, place: Place) -> Step {
        self.place = place;
        Step::More
    }

    fn key(&mut self, c: char) -> Step {
        self.text.push(c);
        match self.span.push(c) {
            Span::Within => Step::More,
            Span::Last => self.go(Place::BeforeColon(match &*self.text {
                "\"name\"" => Key::Name,
                "\"arguments\"" | "\"parameters\"" => Key::Arguments,
                _ => Key::Other,
            })),
            Span::Past | Span::Bad => Step::Broken,
        }
    }

    /// Takes the first character of a value.
    fn first_of_value(&mut self, key: Key, c: char, heard: &mut Vec<Heard>) -> Step {
        let fits = match key {
            Key::Name => c == '"' && self.name.is_none(),
            // Null stands for no arguments. Some models write the object as a string.
            Key::Arguments => "{\"n".contains(c) && !self.has_arguments,
            Key::Other => true,
        };
        if !fits {
            return Step::Broken;
        }
        (self.span, self.text) = (JsonSpan::default(), String::new());
        self.place = Place::Value(key);
        if key == Key::Arguments {
            self.has_arguments = true;
            if let (Some(name), '{') = (&self.name, c) {
                heard.push(Heard::Name(name.clone()));
            }
        }
        self.value(key, c, heard)
    }

    fn value(&mut self, key: Key, c: char, heard: &mut Vec<Heard>) -> Step {
        let span = self.span.push(c);
        let is_object = self.text.starts_with('{') || (self.text.is_empty() && c == '{');
        let streams = key == Key::Arguments && is_object && self.name.is_some();
        match span {
            Span::Bad => return Step::Broken,
            Span::Within | Span::Last if streams => {
                // The text only notes that it is an object.
                self.text.replace_range(.., "{");
                heard.push(Heard::Arguments(c.to_string()));
            }
            Span::Within | Span::Last if key != Key::Other => self.text.push(c),
            _ => {}
        }
        if span == Span::Within {
            return Step::More;
        }
        self.place = Place::AfterValue;
        let text = std::mem::take(&mut self.text);
        let is_right = match key {
            Key::Name => self.named(&text, heard),
            Key::Arguments => streams || self.argued(text, heard),
            Key::Other => true,
        };
        match (is_right, span) {
            (false, _) => Step::Broken,
            (true, Span::Past) => self.push(c, heard),
            (true, _) => Step::More,
        }
    }

    /// Takes the name. False if it is none.
    fn named(&mut self, text: &str, heard: &mut Vec<Heard>) -> bool {
        let name = serde_json::from_str::<String>(text).ok().filter(|name| !name.is_empty());
        let Some(name) = name else { return false };
        if let Some(early) = self.early.take() {
            heard.extend([Heard::Name(name.clone()), Heard::Arguments(early)]);
        }
        self.name = Some(name);
        true
    }

    /// Takes arguments that were held back. False if they are none.
    fn argued(&mut self, text: String, heard: &mut Vec<Heard>) -> bool {
        let arguments = match text.chars().next() {
            Some('"') => match serde_json::from_str::<String>(&text) {
                Ok(inner) if inner.trim_start().starts_with('{') => inner,
                _ => return false,
            },
            Some('{') => text,
            _ if text == "null" => "{}".to_owned(),
            _ => return false,
        };
        match &self.name {
            Some(name) => heard.extend([Heard::Name(name.clone()), Heard::Arguments(arguments)]),
            None => self.early = Some(arguments),
        }
        true
    }

    fn end(&mut self, heard: &mut Vec<Heard>) -> Step {
        match (&self.name, self.has_arguments) {
            (Some(_), true) => Step::Done,
            (Some(name), false) if self.marked => {
                heard.extend([Heard::Name(name.clone()), Heard::Arguments("{}".to_owned())]);
                Step::Done
            }
            _ => Step::Broken,
        }
    }
}

/// A call as a name and a JSON object: `name[ARGS]{…}`, `name[CALL_ID]id[ARGS]{…}` or `name{…}`.
#[derive(Default)]
pub(super) struct NamedCall {
    name: String,
    /// The text after the name, up to the arguments.
    tags: String,
    arguments: Option<JsonSpan>,
}

/// Maximum length of the text between a name and its arguments.
const TAGS_BYTES_MAX: usize = 256;

impl NamedCall {
    fn push(&mut self, c: char, heard: &mut Vec<Heard>) -> Step {
        if let Some(span) = &mut self.arguments {
            let step = match span.push(c) {
                Span::Within => Step::More,
                Span::Last => Step::Done,
                Span::Past | Span::Bad => return Step::Broken,
            };
            heard.push(Heard::Arguments(c.to_string()));
            return step;
        }
        if self.tags.is_empty() && (c.is_alphanumeric() || "_-.".contains(c)) {
            self.name.push(c);
            return Step::More;
        }
        let tags = self.tags.trim_ascii();
        let is_complete = tags.is_empty() || tags.ends_with("[ARGS]");
        if c == '{' && is_complete && !self.name.is_empty() {
            heard.push(Heard::Name(self.name.clone()));
            let mut span = JsonSpan::default();
            span.push(c);
            self.arguments = Some(span);
            heard.push(Heard::Arguments(c.to_string()));
            return Step::More;
        }
        self.tags.push(c);
        let tags = self.tags.trim_ascii();
        let begins = |tag: &str| tag.starts_with(tags);
        let is_tag = begins("[ARGS]") || begins("[CALL_ID]") || tags.starts_with("[CALL_ID]");
        if self.name.is_empty() || !is_tag || tags.len() > TAGS_BYTES_MAX { Step::Broken } else { Step::More }
    }
}
