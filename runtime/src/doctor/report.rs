//! What the checks find, and how it is printed.

use std::fmt::Write as _;

use serde::Serialize;

/// The state of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckState {
    /// Nothing has to be done.
    Ok,
    /// A start works, but an operator should know this.
    Warning,
    /// A start fails, or the process cannot do its work.
    Fault,
}

impl CheckState {
    /// The state in one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Fault => "fault",
        }
    }

    /// The escape sequence of its colour on a terminal.
    fn colour(self) -> &'static str {
        match self {
            Self::Ok => "\x1b[32m",
            Self::Warning => "\x1b[33m",
            Self::Fault => "\x1b[1;31m",
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The name of the check.
    pub check: &'static str,
    /// Its state.
    pub state: CheckState,
    /// What was found, in one sentence.
    pub what: String,
    /// What an operator can do. A fault always has a remedy.
    pub remedy: Option<String>,
}

impl Finding {
    /// A finding that needs no action.
    pub fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, state: CheckState::Ok, what: what.into(), remedy: None }
    }

    /// A finding that an operator should know.
    pub fn warning(check: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, state: CheckState::Warning, what: what.into(), remedy: Some(remedy.into()) }
    }

    /// A fault from an error whose text has advice. `remedy` is for a text without.
    pub(super) fn from_error(check: &'static str, error: &str, remedy: &str) -> Self {
        let (what, advice) = divided(error);
        Self::fault(check, what, advice.unwrap_or_else(|| remedy.to_owned()))
    }

    /// A finding that prevents a start or the work of the process.
    pub fn fault(check: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, state: CheckState::Fault, what: what.into(), remedy: Some(remedy.into()) }
    }
}

/// Words with which the advice in an error begins.
const ADVICE: [&str; 18] = [
    "run", "set", "use", "choose", "delete", "fetch", "build", "lower", "raise", "stop", "write", "check",
    "give", "renew", "upgrade", "make", "unset", "add",
];

/// Divides an error such as `the port is in use; stop the other process` into what is wrong and what to do. The second part may be absent.
pub(super) fn divided(error: &str) -> (String, Option<String>) {
    let is_advice = |rest: &str| rest.split(' ').next().is_some_and(|word| ADVICE.contains(&word));
    let ends = error.match_indices("; ").chain(error.match_indices(": ")).map(|(end, _)| end);
    let end = ends.filter(|end| is_advice(&error[end + 2..])).max();
    end.map_or((error.to_owned(), None), |end| (error[..end].to_owned(), Some(error[end + 2..].to_owned())))
}

/// Width of the column of states.
const STATE_WIDTH: usize = 7;

/// The report for people: one line for each finding, its remedy below it, and a summary. With `colour` for a terminal.
pub fn table(findings: &[Finding], colour: bool) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or_default();
    let mut out = String::new();
    for Finding { check, state, what, remedy } in findings {
        let (on, off) = if colour { (state.colour(), "\x1b[0m") } else { ("", "") };
        let state = state.name();
        let _ = writeln!(out, "{on}{state:<STATE_WIDTH$}{off}  {check:<width$}  {what}");
        if let Some(remedy) = remedy {
            let indent = STATE_WIDTH + 2 + width + 2;
            let _ = writeln!(out, "{:indent$}remedy: {remedy}", "");
        }
    }
    let _ = writeln!(out, "\n{}", summary(findings));
    out
}

/// The last line of the report.
fn summary(findings: &[Finding]) -> String {
    let count = |state| findings.iter().filter(|finding| finding.state == state).count();
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let faults = plural(count(CheckState::Fault), "fault");
    let warnings = plural(count(CheckState::Warning), "warning");
    format!("{faults}, {warnings}, {} ok", count(CheckState::Ok))
}

/// Bytes for people: `16.1 GB`, `64 MB`.
pub(super) fn bytes_text(bytes: u64) -> String {
    match bytes {
        1_000_000_000.. => format!("{:.1} GB", bytes as f64 / 1e9),
        1_000_000.. => format!("{} MB", bytes / 1_000_000),
        _ => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_line_for_each_finding_and_a_summary() {
        let findings = [
            Finding::ok("clock", "right"),
            Finding::warning("hf token", "odd", "set it"),
            Finding::fault("disk", "full", "delete"),
        ];
        let plain = "ok       clock     right\nwarning  hf token  odd\n                   remedy: set it\n\
                     fault    disk      full\n                   remedy: delete\n\n1 fault, 1 warning, 1 ok\n";
        assert_eq!(table(&findings, false), plain);
        let coloured = table(&findings, true);
        assert!(coloured.contains("\x1b[1;31mfault  \x1b[0m  disk"), "{coloured:?}");
        assert_eq!(summary(&[]), "0 faults, 0 warnings, 0 ok");
    }

    #[test]
    fn a_finding_is_an_object_with_four_fields() {
        let json = serde_json::to_string(&Finding::warning("disk", "small", "delete")).unwrap();
        assert_eq!(json, r#"{"check":"disk","state":"warning","what":"small","remedy":"delete"}"#);
        let json = serde_json::to_string(&Finding::ok("disk", "large")).unwrap();
        assert_eq!(json, r#"{"check":"disk","state":"ok","what":"large","remedy":null}"#);
    }

    #[test]
    fn advice_is_divided_from_what_is_wrong() {
        let check = |error: &str, what: &str, advice: Option<&str>| {
            assert_eq!(divided(error), (what.to_owned(), advice.map(str::to_owned)));
        };
        check("no file at a: run b, or set c", "no file at a", Some("run b, or set c"));
        check("model a; model b: c; give both d", "model a; model b: c", Some("give both d"));
        check("a: set b; c is d", "a", Some("set b; c is d"));
        check("cannot read: no such file", "cannot read: no such file", None);
    }

    #[test]
    fn bytes_are_written_for_people() {
        for (bytes, text) in [(999, "999 bytes"), (64_000_000, "64 MB"), (16_060_000_000, "16.1 GB")] {
            assert_eq!(bytes_text(bytes), text);
        }
    }
}
