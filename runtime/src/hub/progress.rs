//! The progress of a download: a bar on a terminal, a log line every few seconds elsewhere.

use std::cell::Cell;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use super::error::size_text;
use crate::service_manager::StartProgress;

/// The time between two drawings of the bar.
const DRAW_EVERY: Duration = Duration::from_millis(100);

/// The time between two log lines.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// The progress of all files of one model together.
pub(super) struct Progress {
    name: String,
    total: u64,
    done: Cell<u64>,
    /// Bytes that were there before, or that were discarded. They do not count for the speed.
    before: Cell<u64>,
    began: Instant,
    shown: Cell<Instant>,
    is_terminal: bool,
    service: StartProgress,
}

impl Progress {
    /// The progress of a download of `total` bytes.
    pub(super) fn new(name: &str, total: u64) -> Self {
        let now = Instant::now();
        let is_terminal = io::stderr().is_terminal();
        Self {
            name: name.to_owned(),
            total,
            done: Cell::new(0),
            before: Cell::new(0),
            began: now,
            shown: Cell::new(now),
            is_terminal,
            service: StartProgress::default(),
        }
    }

    /// Bytes have arrived.
    pub(super) fn add(&self, bytes: u64) {
        self.done.set(self.done.get() + bytes);
        self.service.made();
        let every = if self.is_terminal { DRAW_EVERY } else { LOG_EVERY };
        if self.shown.get().elapsed() >= every {
            self.shown.set(Instant::now());
            self.show();
        }
    }

    /// Another process downloads the file.
    pub(super) fn waits(&self) {
        self.service.made();
    }

    /// Bytes are there without having been downloaded now.
    pub(super) fn skip(&self, bytes: u64) {
        self.before.set(self.before.get() + bytes);
        self.done.set(self.done.get() + bytes);
    }

    /// Bytes that were counted are discarded.
    pub(super) fn discard(&self, bytes: u64) {
        self.done.set(self.done.get().saturating_sub(bytes));
        self.before.set(self.before.get().saturating_sub(bytes));
    }

    fn show(&self) {
        let seconds = self.began.elapsed().as_secs_f64().max(1e-3);
        let done = self.done.get();
        let per_second = done.saturating_sub(self.before.get()) as f64 / seconds;
        let line = line(&self.name, done, self.total, per_second);
        if self.is_terminal {
            let filled = (done * 30 / self.total.max(1)).min(30) as usize;
            eprint!("\r|{}{}| {line}\x1b[K", "█".repeat(filled), " ".repeat(30 - filled));
        } else {
            tracing::info!("{line}");
        }
    }
}

/// Removes the bar, so that the next line of the log or of an error begins at the left.
impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_terminal {
            eprint!("\r\x1b[2K");
        }
    }
}

/// The progress in words.
fn line(name: &str, done: u64, total: u64, per_second: f64) -> String {
    let percent = (done * 100).checked_div(total).unwrap_or(100).min(100);
    let speed = size_text(per_second as u64);
    let left = total.saturating_sub(done) as f64 / per_second;
    let left = if left.is_finite() && left < 1e6 {
        format!(", {}:{:02} left", left as u64 / 60, left as u64 % 60)
    } else {
        String::new()
    };
    format!("downloading {name}: {percent} % of {}, {speed}/s{left}", size_text(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_share_speed_and_time() {
        assert_eq!(
            line("a/b", 8_000_000_000, 16_000_000_000, 1e8),
            "downloading a/b: 50 % of 16.0 GB, 100.0 MB/s, 1:20 left"
        );
        assert_eq!(line("a/b", 0, 10, 0.0), "downloading a/b: 0 % of 10 B, 0 B/s");
        assert_eq!(line("a/b", 20, 10, 1.0), "downloading a/b: 100 % of 10 B, 1 B/s, 0:00 left");
        assert_eq!(line("a/b", 0, 0, 0.0), "downloading a/b: 100 % of 0 B, 0 B/s");
    }

    #[test]
    fn discarded_bytes_do_not_count() {
        let progress = Progress::new("a/b", 100);
        progress.skip(40);
        progress.add(20);
        progress.discard(60);
        assert_eq!((progress.done.get(), progress.before.get()), (0, 0));
    }
}
