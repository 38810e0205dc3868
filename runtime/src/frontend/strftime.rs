//! Formats dates in chat templates like Python's `datetime.strftime` in the C locale.

use jiff::civil::DateTime;
use jiff::fmt::strtime::{BrokenDownTime, Config, PosixCustom};

/// Directives that mean the same in C and in jiff.
const SAME: &str = "aAbBcCdDeFgGhHIjklmMnpPrRStTuUVwWxXyY%";

/// Flags that mean the same in glibc and in jiff: no padding, padding with spaces, padding with zeros, capitals.
const FLAGS: &str = "-_0^";

/// A format with an unknown directive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("strftime_now has no directive {directive:?}, which is in {format:?}")]
pub(super) struct UnknownDirective {
    directive: String,
    format: String,
}

/// Formats `time` with a Python format. `%z` and `%Z` are empty, as for a Python `datetime` without a time zone.
///
/// # Errors
/// The first directive that Python does not have. Python itself copies it into the text, and so into the prompt.
pub(super) fn strftime(format: &str, time: DateTime) -> Result<String, UnknownDirective> {
    let unknown =
        |directive: &str| UnknownDirective { directive: directive.to_owned(), format: format.to_owned() };
    let config = Config::new().custom(PosixCustom::new());
    let broken_down = BrokenDownTime::from(time);
    let mut text = String::new();
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        text.push_str(before);
        let flags = after.len() - after.trim_start_matches(|c: char| FLAGS.contains(c)).len();
        let letter = after[flags..].chars().next().ok_or_else(|| unknown(&format!("%{after}")))?;
        let (flags, tail) = (&after[..flags], &after[flags + letter.len_utf8()..]);
        let directive = format!("%{flags}{letter}");
        match letter {
            'z' | 'Z' => {}
            // Python writes microseconds. The number of digits in jiff depends on the directive.
            'f' if flags.is_empty() => text.push_str(&format!("{:06}", time.subsec_nanosecond() / 1_000)),
            _ if SAME.contains(letter) => {
                let part = broken_down.to_string_with_config(&config, &directive);
                text.push_str(&part.map_err(|_| unknown(&directive))?);
            }
            _ => return Err(unknown(&directive)),
        }
        rest = tail;
    }
    Ok(text + rest)
}

#[cfg(test)]
mod tests {
    use jiff::civil::datetime;

    use super::*;

    /// The expected texts are the output of Python 3.12 on Linux for three times.
    #[test]
    fn directives_are_pythons() {
        let times = [
            datetime(2026, 11, 8, 5, 6, 7, 89_000),
            datetime(2000, 2, 29, 17, 30, 0, 0),
            datetime(1970, 1, 1, 0, 0, 0, 0),
        ];
        let check = |format: &str, expect: [&str; 3]| {
            let got = times.map(|time| strftime(format, time).expect("Python has the directives"));
            assert_eq!(got, expect, "{format}");
        };
        check("%a %A", ["Sun Sunday", "Tue Tuesday", "Thu Thursday"]);
        check("%b %B %h", ["Nov November Nov", "Feb February Feb", "Jan January Jan"]);
        check("%d %-d %e|%_d", ["08 8  8| 8", "29 29 29|29", "01 1  1| 1"]);
        check("%m %-m", ["11 11", "02 2", "01 1"]);
        check("%Y %y %C %G %g", ["2026 26 20 2026 26", "2000 00 20 2000 00", "1970 70 19 1970 70"]);
        check("%H %-H %k", ["05 5  5", "17 17 17", "00 0  0"]);
        check("%I %-I %l %p %P", ["05 5  5 AM am", "05 5  5 PM pm", "12 12 12 AM am"]);
        check("%M:%S.%f", ["06:07.000089", "30:00.000000", "00:00.000000"]);
        check("%j %-j", ["312 312", "060 60", "001 1"]);
        check("%w %u %U %W %V", ["0 7 45 44 45", "2 2 09 09 09", "4 4 00 00 01"]);
        check("%c", ["Sun Nov  8 05:06:07 2026", "Tue Feb 29 17:30:00 2000", "Thu Jan  1 00:00:00 1970"]);
        check("%x %X", ["11/08/26 05:06:07", "02/29/00 17:30:00", "01/01/70 00:00:00"]);
        check("%D %F", ["11/08/26 2026-11-08", "02/29/00 2000-02-29", "01/01/70 1970-01-01"]);
        check("%T %R", ["05:06:07 05:06", "17:30:00 17:30", "00:00:00 00:00"]);
        check("%r", ["05:06:07 AM", "05:30:00 PM", "12:00:00 AM"]);
        check("%^a %^B %0e", ["SUN NOVEMBER 08", "TUE FEBRUARY 29", "THU JANUARY 01"]);
        check("100%%%n%t[%z%Z] é", ["100%\n\t[] é"; 3]);
    }

    #[test]
    fn directives_that_python_does_not_have_are_errors() {
        let check = |format: &str, directive: &str| {
            let error = strftime(format, datetime(2026, 1, 1, 0, 0, 0, 0)).expect_err("unknown");
            assert_eq!(error.directive, directive, "{error}");
        };
        for directive in ["%q", "%Q", "%N", "%E", "%é", "%-", "%"] {
            check(&format!("%Y {directive}"), directive);
        }
        check("%d %:z", "%:");
        check("%5Y", "%5");
        check("%#B", "%#");
        check("%d %L %Y", "%L");
    }
}
