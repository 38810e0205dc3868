//! Splits the reasoning of a model from the rest of its answer, as the text arrives.
//!
//! Reasoning stands between `<think>` and `</think>` at the start of an answer. Some chat templates write `<think>` at the end of the
//! prompt, so that the answer begins inside the reasoning. Line breaks next to the marks are dropped: templates add them.

use super::stop::begun;

const OPENER: &str = "<think>";
const CLOSER: &str = "</think>";

/// A way in which models write their reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningFormat {
    /// The answer begins inside the reasoning, unless the prompt has closed it.
    DeepSeekR1,
    /// The answer begins inside the reasoning if the prompt has opened it. Else it may open it.
    Qwen3,
}

impl ReasoningFormat {
    /// The texts that may be special tokens of the vocabulary. They are part of the text that [`Reasoning`] reads.
    pub(super) const MARKERS: [&str; 2] = [OPENER, CLOSER];

    /// The format of a chat template; `None` if it knows no reasoning.
    pub(super) fn of_template(source: &str) -> Option<Self> {
        source.contains(CLOSER).then_some(Self::Qwen3)
    }

    /// The format with this name of `vllm serve --reasoning-parser`.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "deepseek_r1" => Some(Self::DeepSeekR1),
            "qwen3" => Some(Self::Qwen3),
            _ => None,
        }
    }

    /// Where the answer to a prompt begins. `end` is the end of the prompt without white space.
    pub(super) fn start(self, end: &str) -> ReasoningStart {
        match (end.ends_with(OPENER), end.ends_with(CLOSER)) {
            (true, _) => ReasoningStart::Inside,
            (_, true) => ReasoningStart::Closed,
            (false, false) if self == Self::DeepSeekR1 => ReasoningStart::Inside,
            (false, false) => ReasoningStart::Open,
        }
    }
}

/// Where an answer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReasoningStart {
    /// Inside the reasoning.
    Inside,
    /// Before the reasoning, if there is any.
    Open,
    /// After the reasoning, which the prompt has closed.
    Closed,
}

/// Text of an answer: first reasoning, then content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Split {
    pub(super) reasoning: String,
    pub(super) content: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before the answer's first word. It may open the reasoning.
    Before,
    /// Inside the reasoning, which the prompt has opened. The answer may open it again.
    Entered,
    /// At the start of the reasoning. Line breaks are dropped.
    Opened,
    Inside,
    /// At the start of the content after reasoning. Line breaks are dropped.
    Closed,
    After,
}

/// Splits one answer.
pub(super) struct Reasoning {
    place: Place,
    held: String,
}

impl Reasoning {
    pub(super) fn new(start: ReasoningStart) -> Self {
        let place = match start {
            ReasoningStart::Inside => Place::Entered,
            ReasoningStart::Open | ReasoningStart::Closed => Place::Before,
        };
        Self { place, held: String::new() }
    }

    /// True between the start and the end of the reasoning.
    pub(super) fn is_inside(&self) -> bool {
        matches!(self.place, Place::Entered | Place::Opened | Place::Inside)
    }

    /// Takes the next text of the answer.
    pub(super) fn push(&mut self, text: &str) -> Split {
        let mut split = Split::default();
        self.held += text;
        while self.step(&mut split) {}
        split
    }

    /// Takes the end of the answer.
    pub(super) fn finish(&mut self) -> Split {
        let text = std::mem::take(&mut self.held);
        if self.is_inside() {
            Split { reasoning: text, ..Split::default() }
        } else {
            Split { content: text, ..Split::default() }
        }
    }

    /// Takes some of the text. False if more text is needed.
    fn step(&mut self, split: &mut Split) -> bool {
        let is_break = |c| c == '\n';
        match self.place {
            Place::Before | Place::Entered => {
                let rest = self.held.trim_start();
                if OPENER.starts_with(rest) && rest.len() < OPENER.len() {
                    return false;
                }
                self.place = match (rest.strip_prefix(OPENER), self.place) {
                    (Some(inside), _) => {
                        self.held = inside.to_owned();
                        Place::Opened
                    }
                    (None, Place::Before) => Place::After,
                    (None, _) => Place::Opened,
                };
                true
            }
            Place::Opened | Place::Closed => {
                self.held = self.held.trim_start_matches(is_break).to_owned();
                if self.held.is_empty() {
                    return false;
                }
                self.place = if self.place == Place::Opened { Place::Inside } else { Place::After };
                true
            }
            Place::Inside => match self.held.find(CLOSER) {
                Some(at) => {
                    split.reasoning += self.held[..at].trim_end_matches(is_break);
                    self.held.drain(..at + CLOSER.len());
                    self.place = Place::Closed;
                    true
                }
                None => {
                    let undecided = self.held.len() - begun(&self.held, CLOSER);
                    let end = self.held[..undecided].trim_end_matches(is_break).len();
                    split.reasoning.extend(self.held.drain(..end));
                    false
                }
            },
            Place::After => {
                split.content.extend(self.held.drain(..));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The reasoning and the content of an answer that comes in these pieces.
    fn split(start: ReasoningStart, pieces: &[&str]) -> (String, String) {
        let mut reasoning = Reasoning::new(start);
        let mut all = Split::default();
        for part in pieces.iter().map(|piece| reasoning.push(piece)).collect::<Vec<_>>() {
            all.reasoning += &part.reasoning;
            all.content += &part.content;
        }
        let end = reasoning.finish();
        (all.reasoning + &end.reasoning, all.content + &end.content)
    }

    #[test]
    fn reasoning_is_split_from_content() {
        use ReasoningStart::{Closed, Inside, Open};
        let check = |start, text: &str, reasoning: &str, content: &str| {
            assert_eq!(split(start, &[text]), (reasoning.into(), content.into()), "{start:?} {text:?}");
        };
        check(Open, "<think>\nwhy\n</think>\n\nso", "why", "so");
        check(Open, "\n<think>\n\n</think>\n\nso", "", "so");
        check(Open, " so <think>x</think>", "", " so <think>x</think>");
        check(Open, "<thin", "", "<thin");
        check(Open, "", "", "");
        check(Inside, "why\n\nwhy\n</think>\n\nso\n", "why\n\nwhy", "so\n");
        check(Inside, "<think>\nwhy</think>so", "why", "so");
        check(Inside, "\nwhy\n</thi", "why\n</thi", "");
        check(Inside, "</think>so", "", "so");
        check(Closed, "so\n", "", "so\n");
    }

    #[test]
    fn the_end_of_the_prompt_decides_where_an_answer_begins() {
        use ReasoningFormat::{DeepSeekR1, Qwen3};
        assert_eq!(Qwen3.start("assistant\n<think>"), ReasoningStart::Inside);
        assert_eq!(Qwen3.start("assistant"), ReasoningStart::Open);
        assert_eq!(DeepSeekR1.start("<｜Assistant｜>"), ReasoningStart::Inside);
        assert_eq!(DeepSeekR1.start("<think>\n\n</think>"), ReasoningStart::Closed);
        assert_eq!(ReasoningFormat::of_template("{{ content.split('</think>')[-1] }}"), Some(Qwen3));
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(
            parts in proptest::collection::vec("(<think>|</think>|<|/|think|>|\n|a|ü)", 0..12),
            inside in any::<bool>(),
            cuts in proptest::collection::vec(0usize..6, 40),
        ) {
            let text = parts.concat();
            let start = if inside { ReasoningStart::Inside } else { ReasoningStart::Open };
            let mut pieces = Vec::new();
            let mut rest = &*text;
            for cut in cuts {
                let mut cut = cut.min(rest.len());
                while !rest.is_char_boundary(cut) {
                    cut += 1;
                }
                let (piece, after) = rest.split_at(cut);
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            prop_assert_eq!(split(start, &pieces), split(start, &[&text]));
        }
    }
}
