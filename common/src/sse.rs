//! Server-sent events, as far as streams of the OpenAI API use them.

use std::io::{self, BufRead};

/// One message of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SseMessage {
    /// The data of an event. Several `data` lines of one event are joined with newlines.
    Data(String),
    /// A comment, such as a keep-alive.
    Comment(String),
}

/// Reads the messages of a stream. It skips the fields `event`, `id` and `retry`, and an event that the stream cuts off.
#[derive(Debug)]
pub struct SseReader<R>(R);

impl<R: BufRead> SseReader<R> {
    /// A reader at the start of `stream`.
    pub fn new(stream: R) -> Self {
        Self(stream)
    }
}

impl<R: BufRead> Iterator for SseReader<R> {
    type Item = io::Result<SseMessage>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut data: Option<String> = None;
        let mut line = String::new();
        loop {
            line.clear();
            match self.0.read_line(&mut line) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
            let content = line.trim_end_matches(['\r', '\n']);
            let value =
                |prefix| content.strip_prefix(prefix).map(|value| value.strip_prefix(' ').unwrap_or(value));
            if content.is_empty() {
                if let Some(data) = data.take() {
                    return Some(Ok(SseMessage::Data(data)));
                }
            } else if let Some(value) = value("data:") {
                match &mut data {
                    None => data = Some(value.to_owned()),
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                }
            } else if let Some(comment) = value(":") {
                return Some(Ok(SseMessage::Comment(comment.to_owned())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(stream: &str, expect: &[SseMessage]) {
        let messages: Vec<SseMessage> = SseReader::new(stream.as_bytes()).map(Result::unwrap).collect();
        assert_eq!(messages, expect, "{stream:?}");
    }

    #[test]
    fn messages_are_read() {
        let data = |text: &str| SseMessage::Data(text.to_owned());
        let comment = |text: &str| SseMessage::Comment(text.to_owned());
        check("data: {\"a\":1}\n\ndata: [DONE]\n\n", &[data("{\"a\":1}"), data("[DONE]")]);
        check("data:{}\r\n\r\n", &[data("{}")]);
        check("\n\ndata: after\n\n\ndata: between\n\n", &[data("after"), data("between")]);
        check(": waiting\n\nevent: x\nid: 1\ndata: é\n\n\n\n", &[comment("waiting"), data("é")]);
        check("data: one\ndata: two\n\n", &[data("one\ntwo")]);
        check("data:\n\n", &[data("")]);
        check("data: whole\n\ndata: cut off\n", &[data("whole")]);
        check("", &[]);
    }

    #[test]
    fn a_broken_stream_is_an_error() {
        let broken: &[u8] = b"data: \xff\n\n";
        assert!(SseReader::new(broken).next().is_some_and(|message| message.is_err()));
    }
}
