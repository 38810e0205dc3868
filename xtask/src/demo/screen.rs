//! The terminal. Tokens and the demo's own lines go to standard output, and the logs of the processes go to standard error.
//!
//! Log lines are held back while an answer is printed, so that no log line appears in the middle of the answer.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Maximum number of lines that are held back. Further lines are printed at once.
const HELD_LINES_MAX: usize = 1000;

/// The terminal, shared by the main thread and the threads that read logs.
#[derive(Clone)]
pub(super) struct Screen(Arc<Shared>);

struct Shared {
    dim: bool,
    /// The lines held back; `None` while lines are printed at once.
    held: Mutex<Option<Vec<String>>>,
}

impl Screen {
    pub(super) fn new() -> Self {
        let dim = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self(Arc::new(Shared { dim, held: Mutex::new(None) }))
    }

    /// Prints lines of the demo itself.
    pub(super) fn print_line(&self, text: &str) {
        let _held = self.held();
        // The demo continues without a terminal.
        let _ = writeln!(io::stdout(), "{text}");
    }

    /// Prints one log line of a process, or holds it back.
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

    /// Holds logs back until the returned value is dropped.
    pub(super) fn hold_logs(&self) -> Line<'_> {
        *self.held() = Some(Vec::new());
        Line { screen: self }
    }

    fn held(&self) -> MutexGuard<'_, Option<Vec<String>>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer that is printed.
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
    fn process_names_are_padded() {
        assert_eq!(decorate("receiver", "ready", false), "receiver │ ready");
        assert_eq!(decorate("sender", "ready", false), "sender   │ ready");
        assert_eq!(decorate("sender", "ready", true), "\x1b[2msender   │ ready\x1b[0m");
    }

    #[test]
    fn logs_are_held_back_until_the_answer_ends() {
        let screen = Screen::new();
        let line = screen.hold_logs();
        screen.log("sender", "one");
        assert_eq!(screen.held().as_ref().map(Vec::len), Some(1));
        drop(line);
        assert!(screen.held().is_none());
    }
}
