//! The log: one compact line an event on standard error, with colours on a terminal only.

use std::fmt;
use std::io::{self, IsTerminal};
use std::time::{SystemTime, UNIX_EPOCH};

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
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        w.write_str(&utc(since_epoch.as_millis() as u64))
    }
}

/// This second as `2026-11-22 21:32:52`, in UTC.
pub(crate) fn utc_seconds() -> String {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let text = utc(since_epoch.as_millis() as u64);
    text.split('.').next().unwrap_or_default().to_owned()
}

/// Year, month and day so many days after 1970-01-01, by Howard Hinnant's `civil_from_days`.
pub(crate) fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Milliseconds since 1970 as a date and a time of day.
fn utc(epoch_ms: u64) -> String {
    let (days, ms) = (epoch_ms / 86_400_000, epoch_ms % 86_400_000);
    let (year, month, day) = civil(days);
    let (hour, minute) = (ms / 3_600_000, ms / 60_000 % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}.{:03}", ms / 1000 % 60, ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_civil() {
        for (epoch_ms, expect) in [
            (0, "1970-01-01 00:00:00.000"),
            (951_782_399_999, "2000-02-28 23:59:59.999"),
            (951_782_400_000, "2000-02-29 00:00:00.000"),
            (1_735_689_599_001, "2024-12-31 23:59:59.001"),
            (4_107_542_400_000, "2100-03-01 00:00:00.000"),
        ] {
            assert_eq!(utc(epoch_ms), expect);
        }
    }

    #[test]
    fn filters_are_checked() {
        assert!(Filter::parse("warn,runtime=debug").is_ok());
        assert!(Filter::parse("runtime=loud").is_err());
    }
}
