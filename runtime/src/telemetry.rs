//! Logging to standard error, one line per event, as text or JSON. Colours are used on a terminal only.

use std::fmt;
use std::io::{self, IsTerminal};

use jiff::Timestamp;
use tracing::subscriber::set_global_default;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::config::Config;

/// Crates whose `info` events do not help an operator.
const QUIET: &str =
    "actix_server=warn,actix_http=warn,actix_http::h1=off,actix_web=warn,mio=warn,tokenizers=warn";

/// Which events are logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(String);

impl Filter {
    /// Parses a filter such as `info` or `warn,runtime=debug`. It may override the levels of the quiet crates.
    ///
    /// # Errors
    /// The part that is not a directive of `tracing`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let filter = format!("{QUIET},{text}");
        EnvFilter::builder().parse(&filter).map_err(|error| error.to_string())?;
        Ok(Self(filter))
    }

    /// The same filter without the line for each finished request.
    #[must_use]
    pub fn without_requests(self) -> Self {
        Self(format!("{},{REQUESTS}=warn", self.0))
    }
}

/// Shows a progress bar while a model is loaded, on a terminal only.
pub fn loading() -> engine::Progress<'static> {
    if !io::stderr().is_terminal() {
        return &|_, _| ();
    }
    &|done, total| {
        let filled = (done * 40 / total.max(1)) as usize;
        let bar = format!("{}{}", "█".repeat(filled), " ".repeat(40 - filled));
        let percent = done * 100 / total.max(1);
        let end = if done >= total { "\r\x1b[2K" } else { "" };
        eprint!("\rloading model {percent:3}% |{bar}|{end}");
    }
}

/// The target of the log line for a finished request.
pub const REQUESTS: &str = "runtime::requests";

/// How lines of the log are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object for each line, with the time, the level and all fields of the event.
    Json,
}

impl LogFormat {
    /// The format of `log.format`.
    pub fn of(config: &Config) -> Self {
        if config.log.format == "json" { Self::Json } else { Self::Text }
    }
}

/// Starts logging. A second call in the same process has no effect.
pub fn start(filter: Filter, format: LogFormat) {
    let base = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_timer(Utc)
        .with_env_filter(EnvFilter::new(filter.0));
    let text = io::stderr().is_terminal();
    // A second call fails; the subscriber of the first call stays.
    let _ = match format {
        LogFormat::Text => set_global_default(base.compact().with_ansi(text).with_target(false).finish()),
        LogFormat::Json => set_global_default(base.with_timer(Rfc3339).json().flatten_event(true).finish()),
    };
}

/// Formats times as `2026-11-22 21:32:52.123`, in UTC.
struct Utc;

impl FormatTime for Utc {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        write!(w, "{}", Timestamp::now().strftime("%Y-%m-%d %H:%M:%S.%3f"))
    }
}

/// Formats times as `2026-11-22T21:32:52.123Z`.
struct Rfc3339;

impl FormatTime for Rfc3339 {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        write!(w, "{}", Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%3fZ"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked() {
        assert!(Filter::parse("warn,runtime=debug").is_ok());
        assert!(Filter::parse("runtime=loud").is_err());
    }
}
