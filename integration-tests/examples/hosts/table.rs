//! The table of results.

use std::fmt;
use std::time::Duration;

/// One line.
struct Row {
    event: String,
    what: String,
    value: String,
    /// The bound as text, and whether it holds.
    bound: Option<(String, bool)>,
}

/// What was measured at each event, and the bounds.
#[derive(Default)]
pub(crate) struct Table(Vec<Row>);

impl Table {
    /// Adds a value without a bound.
    pub(crate) fn note(&mut self, event: &str, what: &str, value: impl fmt::Display) {
        self.push(event, what, value.to_string(), None);
    }

    /// Adds a value with a bound.
    pub(crate) fn check(
        &mut self,
        event: &str,
        what: &str,
        value: impl fmt::Display,
        bound: &str,
        holds: bool,
    ) {
        self.push(event, what, value.to_string(), Some((bound.to_owned(), holds)));
    }

    /// Adds a time with a bound. Without a time, the event did not happen.
    pub(crate) fn check_time(&mut self, event: &str, what: &str, time: Option<Duration>, most: Duration) {
        let value = time.map_or_else(|| "never".to_owned(), seconds);
        let holds = time.is_some_and(|time| time <= most);
        self.check(event, what, value, &format!("<= {}", seconds(most)), holds);
    }

    fn push(&mut self, event: &str, what: &str, value: String, bound: Option<(String, bool)>) {
        let row = Row { event: event.to_owned(), what: what.to_owned(), value, bound };
        eprintln!("{row}");
        self.0.push(row);
    }

    /// Prints the bounds that were missed, and returns their number.
    pub(crate) fn print_missed(&self) -> usize {
        let missed = self.0.iter().filter(|row| row.bound.as_ref().is_some_and(|(_, holds)| !holds));
        missed.map(|row| println!("missed: {row}")).count()
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = match &self.bound {
            None => String::new(),
            Some((bound, holds)) => format!("{bound} {}", if *holds { "ok" } else { "MISSED" }),
        };
        write!(f, "{:<16} {:<58} {:>12}  {bound}", self.event, self.what, self.value)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}

/// A duration in seconds, or in milliseconds if it is short.
pub(crate) fn seconds(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds < 0.1 => format!("{:.2} ms", seconds * 1e3),
        seconds => format!("{seconds:.2} s"),
    }
}
