//! Server-sent events, as far as an OpenAI stream uses them.

use std::fmt;
use std::io::BufRead;

use anyhow::{Result, bail};

/// The stream broke off before its end.
#[derive(Debug)]
pub(super) struct Broken(String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Broken {}

/// Calls `each` with the data of every event before `[DONE]`. Ignores comments and other fields.
///
/// # Errors
/// `each` fails; or the connection breaks or the stream ends without `[DONE]`, which is [`Broken`].
pub(super) fn for_each(mut stream: impl BufRead, mut each: impl FnMut(&str) -> Result<()>) -> Result<()> {
    let mut data = String::new();
    let mut line = String::new();
    loop {
        line.clear();
        match stream.read_line(&mut line) {
            Ok(0) => bail!(Broken("the stream ended without [DONE]".into())),
            Ok(_) => {}
            Err(error) => bail!(Broken(format!("cannot read the stream: {error}"))),
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
                Err(words) => {
                    let error = result.unwrap_err();
                    assert!(error.is::<Broken>() && error.to_string().contains(words), "{stream:?}: {error}");
                }
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
        let error = result.unwrap_err();
        assert!(!error.is::<Broken>() && error.to_string() == "no a", "{error}");
    }
}
