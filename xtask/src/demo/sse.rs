//! Server-sent events, as far as an OpenAI stream uses them.

use std::io::BufRead;

use anyhow::{Context, Result, bail};

/// Calls `each` with the data of every event before `[DONE]`. Ignores comments and other fields.
///
/// # Errors
/// `each` fails, the connection breaks, or the stream ends without `[DONE]`.
pub(super) fn for_each(mut stream: impl BufRead, mut each: impl FnMut(&str) -> Result<()>) -> Result<()> {
    let mut data = String::new();
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).context("cannot read the stream")? == 0 {
            bail!("the stream ended without [DONE]");
        }
        let content = line.trim_end_matches(['\r', '\n']);
        if content.is_empty() {
            match data.as_str() {
                "" => {}
                "[DONE]" => return Ok(()),
                event => each(event)?,
            }
            data.clear();
        } else if let Some(value) = content.strip_prefix("data:") {
            if !data.is_empty() {
                data.push('\n');
            }
            data.push_str(value.strip_prefix(' ').unwrap_or(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Read};

    use super::*;

    /// Returns one byte per read.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let Some((first, rest)) = self.0.split_first() else { return Ok(0) };
            (buffer[0], self.0) = (*first, rest);
            Ok(1)
        }
    }

    #[test]
    fn each_event_is_passed_on() {
        fn check(stream: &str, expect: Result<&[&str], &str>) {
            let mut events = Vec::new();
            let result = for_each(BufReader::new(Trickle(stream.as_bytes())), |event| {
                events.push(event.to_owned());
                Ok(())
            });
            match expect {
                Ok(expected) => {
                    result.unwrap();
                    assert_eq!(events, expected, "{stream:?}");
                }
                Err(words) => assert!(result.unwrap_err().to_string().contains(words), "{stream:?}"),
            }
        }
        check("data: {\"a\":1}\n\ndata: [DONE]\n\n", Ok(&["{\"a\":1}"]));
        check("data:{}\r\n\r\ndata: [DONE]\r\n\r\n", Ok(&["{}"]));
        check(": waiting\n\nevent: x\nid: 1\ndata: é\n\n\n\ndata: [DONE]\n\n", Ok(&["é"]));
        check("data: one\ndata: two\n\ndata: [DONE]\n\n", Ok(&["one\ntwo"]));
        check("data: [DONE]\n\ndata: late\n\n", Ok(&[]));
        check("data: cut\n\n", Err("without [DONE]"));
        check("", Err("without [DONE]"));
    }

    #[test]
    fn an_error_of_the_callback_ends_the_loop() {
        let result = for_each("data: a\n\ndata: b\n\n".as_bytes(), |event| bail!("no {event}"));
        assert_eq!(result.unwrap_err().to_string(), "no a");
    }
}
