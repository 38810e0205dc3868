//! The terminal: the tokens and our own lines on standard output, the processes' logs on standard error.
//!
//! A log line must not land in the middle of an answer, so logs are kept back while one is being printed.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// More lines than this are not kept back: a process that logs so much has something to say.
const HELD_LINES_MAX: usize = 1000;

/// The terminal, shared by the main thread and those that read the logs.
#[derive(Clone)]
pub(super) struct Screen(Arc<Shared>);

struct Shared {
    dim: bool,
    /// The lines kept back; none while logs flow.
    held: Mutex<Option<Vec<String>>>,
}

impl Screen {
    pub(super) fn new() -> Self {
        let dim = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self(Arc::new(Shared { dim, held: Mutex::new(None) }))
    }

    /// Prints lines of the demo itself.
    pub(super) fn say(&self, text: &str) {
        let _held = self.held();
        // A terminal that is gone is no reason to stop.
        let _ = writeln!(io::stdout(), "{text}");
    }

    /// Prints one log line of a process, or keeps it back.
    pub(super) fn log(&self, process: &str, line: &str) {
        let line = decorate(process, line, self.0.dim);
        let mut held = self.held();
        match held.as_mut() {
            Some(lines) if lines.len() < HELD_LINES_MAX => lines.push(line),
            _ => {
                let _ = writeln!(io::stderr(), "{line}");
            }
        }
    }

    /// Keeps logs back until the returned value is dropped.
    pub(super) fn hold_logs(&self) -> Line<'_> {
        *self.held() = Some(Vec::new());
        Line { screen: self }
    }

    fn held(&self) -> MutexGuard<'_, Option<Vec<String>>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer that is being printed.
pub(super) struct Line<'a> {
    screen: &'a Screen,
}

impl Line<'_> {
    /// Prints a piece of the answer at once.
    pub(super) fn print(&self, text: &str) {
        let mut out = io::stdout();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let _ = writeln!(io::stdout());
        for line in self.screen.held().take().unwrap_or_default() {
            let _ = writeln!(io::stderr(), "{line}");
        }
    }
}

fn decorate(process: &str, line: &str, dim: bool) -> String {
    match dim {
        true => format!("\x1b[2m{process:<8} │ {line}\x1b[0m"),
        false => format!("{process:<8} │ {line}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_line_up() {
        assert_eq!(decorate("receiver", "ready", false), "receiver │ ready");
        assert_eq!(decorate("sender", "ready", false), "sender   │ ready");
        assert_eq!(decorate("sender", "ready", true), "\x1b[2msender   │ ready\x1b[0m");
    }

    #[test]
    fn logs_wait_for_the_end_of_an_answer() {
        let screen = Screen::new();
        let line = screen.hold_logs();
        screen.log("sender", "one");
        assert_eq!(screen.held().as_ref().map(Vec::len), Some(1));
        drop(line);
        assert!(screen.held().is_none());
    }
}
