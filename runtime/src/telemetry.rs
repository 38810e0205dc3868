//! The log: one compact line an event on standard error, with colours on a terminal only.

use std::fmt;
use std::io::{self, IsTerminal};

use jiff::Timestamp;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// Crates whose `info` is of no use to who runs Baton.
const QUIET: &str = "actix_server=warn,actix_http=warn,actix_web=warn,mio=warn,tokenizers=warn";

/// Which events are logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(String);

impl Filter {
    /// Reads a filter as `info` or `warn,runtime=debug`; crates that it names override the quiet ones.
    ///
    /// # Errors
    /// What cannot be understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let filter = format!("{QUIET},{text}");
        EnvFilter::builder().parse(&filter).map_err(|error| error.to_string())?;
        Ok(Self(filter))
    }
}

impl Filter {
    /// The same without the line that each finished request has.
    #[must_use]
    pub fn without_requests(self) -> Self {
        Self(format!("{},{REQUESTS}=warn", self.0))
    }
}

/// Shows how far a model is loaded, on a terminal only: a bar that is gone when it is.
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

/// The target of the line for a finished request.
pub const REQUESTS: &str = "runtime::requests";

/// Starts logging; a second call in one process changes nothing.
pub fn start(filter: Filter) {
    let subscriber = tracing_subscriber::fmt()
        .compact()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .with_timer(Utc)
        .with_env_filter(EnvFilter::new(filter.0))
        .finish();
    // Only a second call fails, and then the first one's subscriber is as good.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Times as `2026-11-22 21:32:52.123`, in UTC.
struct Utc;

impl FormatTime for Utc {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        write!(w, "{}", Timestamp::now().strftime("%Y-%m-%d %H:%M:%S.%3f"))
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
