//! Server-sent events: the part of them that an OpenAI stream uses.

use std::io::BufRead;

use anyhow::{Context, Result, bail};

/// Gives the data of every event to `each`, up to `[DONE]`. Comments and other fields are passed over.
///
/// # Errors
/// Those of `each`, a broken connection, and a stream that ends without `[DONE]`.
pub(super) fn for_each(mut stream: impl BufRead, mut each: impl FnMut(&str) -> Result<()>) -> Result<()> {
    let mut data = String::new();
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).context("the stream broke")? == 0 {
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

    /// Hands out one byte at a time, as the worst connection would.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let Some((first, rest)) = self.0.split_first() else { return Ok(0) };
            (buffer[0], self.0) = (*first, rest);
            Ok(1)
        }
    }

    #[test]
    fn events_are_found() {
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
    fn an_error_of_the_reader_stops_it() {
        let result = for_each("data: a\n\ndata: b\n\n".as_bytes(), |event| bail!("no {event}"));
        assert_eq!(result.unwrap_err().to_string(), "no a");
    }
}
