//! Parses and shows the value of a key. An error continues a sentence that starts with the key.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use actors::routing::LocalPrefill;
use figment::value::Value;

/// A number of bytes, written as `1GiB`, `512 MiB`, `1.5 GB` or `4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// Units of bytes. `kb` is 1000 bytes and `kib` is 1024 bytes.
const BYTE_UNITS: [(&str, u64); 8] = [
    ("gib", 1 << 30),
    ("mib", 1 << 20),
    ("kib", 1 << 10),
    ("gb", 1_000_000_000),
    ("mb", 1_000_000),
    ("kb", 1_000),
    ("b", 1),
    ("", 1),
];

/// Units of time and their nanoseconds.
const TIME_UNITS: [(&str, u64); 4] =
    [("ms", 1_000_000), ("s", 1_000_000_000), ("m", 60_000_000_000), ("h", 3_600_000_000_000)];

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, size) in [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if self.0 >= size && self.0.is_multiple_of(size) {
                return write!(f, "{}{unit}", self.0 / size);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// A secret that never prints itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Shown in place of a secret.
pub(super) const MASK: &str = "***";

impl Secret {
    /// A secret.
    pub(crate) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The secret text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

/// The device that computes. Its memory holds the KV pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceSetting {
    /// The CPU, with pages in host memory.
    Cpu,
    /// The first GPU that is visible to the process.
    Cuda,
}

impl DeviceSetting {
    /// The value of `engine.device`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// The source of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadFormatSetting {
    /// The files of the model.
    Auto,
    /// Random weights of the shape of the model.
    Dummy,
}

/// The value as it appears in a message: `"abc"`, `5`, `a list`.
pub(super) fn named(value: &Value) -> String {
    match value {
        Value::String(_, text) if text.chars().count() > 60 => {
            format!("{:?}…", text.chars().take(60).collect::<String>())
        }
        Value::String(_, text) => format!("{text:?}"),
        Value::Char(_, character) => format!("{:?}", character.to_string()),
        Value::Bool(_, truth) => truth.to_string(),
        Value::Num(..) => scalar(value).unwrap_or_default(),
        Value::Empty(..) => "nothing".to_owned(),
        Value::Dict(..) => "a section".to_owned(),
        Value::Array(..) => "a list".to_owned(),
    }
}

/// A string or a number as text. Variables and flags have numbers as strings.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(_, text) => Some(text.trim().to_owned()),
        Value::Char(_, character) => Some(character.to_string()),
        Value::Num(_, number) => number
            .to_u128()
            .map(|number| number.to_string())
            .or_else(|| number.to_i128().map(|number| number.to_string()))
            .or_else(|| number.to_f64().map(|number| number.to_string())),
        _ => None,
    }
}

/// A string that is not blank.
pub(super) fn words(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(_, text) => text.trim().to_owned(),
        Value::Char(_, character) => character.to_string(),
        _ => return None,
    };
    (!text.is_empty()).then_some(text)
}

/// The advice for a number in place of text.
fn quotes_hint(value: &Value) -> &'static str {
    if matches!(value, Value::Num(..)) { "; put a number in quotes" } else { "" }
}

/// Parses text that is not empty.
pub(super) fn text(value: &Value) -> Result<String, String> {
    words(value).ok_or_else(|| format!("must be text, not {}{}", named(value), quotes_hint(value)))
}

/// Parses the name of a process in a topic, whose parts are separated by `@`.
pub(super) fn pod(value: &Value) -> Result<String, String> {
    let name = words(value).filter(|name| !name.contains(|c: char| c.is_whitespace() || c == '@'));
    name.ok_or_else(|| format!("must be a name without spaces and without @, not {}", named(value)))
}

/// Parses a file path.
pub(super) fn path(value: &Value) -> Result<PathBuf, String> {
    words(value).map(PathBuf::from).ok_or_else(|| format!("must be a path, not {}", named(value)))
}

/// Parses a host name or address without a port.
pub(super) fn host(value: &Value) -> Result<String, String> {
    let host = words(value).filter(|host| !host.contains(|c: char| c.is_whitespace() || "/[]@".contains(c)));
    let host = host.filter(|host| host.parse::<std::net::Ipv6Addr>().is_ok() || !host.contains(':'));
    host.ok_or_else(|| format!("must be a host name or an address without a port, not {}", named(value)))
}

/// Parses an IP address and a port that peers can connect to.
pub(super) fn address(value: &Value) -> Result<SocketAddr, String> {
    let address = words(value).and_then(|text| text.parse::<SocketAddr>().ok());
    let is_reachable = |address: &SocketAddr| !address.ip().is_unspecified() && address.port() != 0;
    address
        .filter(is_reachable)
        .ok_or_else(|| format!("must be an address such as 10.0.0.1:8200, not {}", named(value)))
}

/// Parses a secret. Errors do not show the value.
pub(super) fn secret(value: &Value) -> Result<Secret, String> {
    match words(value) {
        Some(text) if text == MASK => Err(format!(
            "is {MASK}, which only masks a secret in printed configurations; set the secret itself"
        )),
        Some(text) => Ok(Secret(text)),
        None => Err(format!("must be text that is not empty{}", quotes_hint(value))),
    }
}

/// Parses `true` or `false`.
pub(super) fn truth(value: &Value) -> Result<bool, String> {
    let parsed = match value {
        Value::Bool(_, truth) => Some(*truth),
        Value::String(_, text) => text.trim().parse().ok(),
        _ => None,
    };
    parsed.ok_or_else(|| format!("must be true or false, not {}", named(value)))
}

/// Parses a port from 0 to 65535.
pub(super) fn port(value: &Value) -> Result<u16, String> {
    let parsed = scalar(value).and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| format!("must be a port from 0 to 65535, not {}", named(value)))
}

/// Parses a whole number in a range.
pub(super) fn count<T: TryFrom<u64>>(value: &Value, range: RangeInclusive<u64>) -> Result<T, String> {
    let parsed =
        scalar(value).and_then(|text| text.parse::<u64>().ok()).filter(|number| range.contains(number));
    parsed.and_then(|number| T::try_from(number).ok()).ok_or_else(|| {
        format!("must be a whole number from {} to {}, not {}", range.start(), range.end(), named(value))
    })
}

/// Parses a number above zero with one of these units. Returns the number in the smallest unit.
fn measured(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let size = units.iter().find(|(name, _)| *name == unit)?.1;
    let total = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(size)?,
        Err(_) => {
            let product = number.parse::<f64>().ok()? * size as f64;
            // An f64 does not represent every whole number above 2^53.
            (product < 9.0e15).then_some(product.round() as u64)?
        }
    };
    (total > 0).then_some(total)
}

/// Parses a number of bytes above zero.
pub(super) fn bytes(value: &Value) -> Result<ByteSize, String> {
    let parsed = scalar(value).and_then(|text| measured(&text, &BYTE_UNITS));
    parsed
        .map(ByteSize)
        .ok_or_else(|| format!("must be a size above zero such as 1GiB or 512 MiB, not {}", named(value)))
}

/// Parses a number of bytes, which may be 0.
pub(super) fn bytes_or_zero(value: &Value) -> Result<ByteSize, String> {
    if scalar(value).as_deref() == Some("0") {
        return Ok(ByteSize(0));
    }
    bytes(value).map_err(|_| format!("must be 0 or a size such as 16MiB, not {}", named(value)))
}

/// Parses a duration above zero. A number without a unit is refused.
pub(super) fn duration(value: &Value) -> Result<Duration, String> {
    let parsed = scalar(value).and_then(|text| measured(&text, &TIME_UNITS));
    parsed.map(Duration::from_nanos).ok_or_else(|| {
        format!("must be a duration with a unit such as 500ms, 20s, 10m or 1h, not {}", named(value))
    })
}

/// Parses a duration, which may be 0.
pub(super) fn duration_or_zero(value: &Value) -> Result<Duration, String> {
    if scalar(value).is_some_and(|text| ["0", "0ms", "0s", "0m", "0h"].contains(&&*text)) {
        return Ok(Duration::ZERO);
    }
    duration(value)
}

/// A list of texts, or one string with commas between them.
pub(super) fn list(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Array(_, entries) => entries.iter().map(words).collect::<Option<Vec<_>>>(),
        Value::String(_, text) => {
            let text = text.trim().trim_start_matches('[').trim_end_matches(']');
            let parts = text.split(',').map(|part| part.trim().to_owned());
            Some(parts.filter(|part| !part.is_empty()).collect())
        }
        _ => None,
    }
}

/// Parses text that can be a part of a path.
pub(super) fn segment(value: &Value) -> Result<String, String> {
    let fits = |text: &String| text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    text(value).ok().filter(fits).ok_or_else(|| {
        format!("must have only letters, digits, dots, hyphens and underscores, not {}", named(value))
    })
}

/// Parses a device.
pub(super) fn device(value: &Value) -> Result<DeviceSetting, String> {
    match words(value).as_deref() {
        Some("cpu") => Ok(DeviceSetting::Cpu),
        Some("cuda") if cfg!(feature = "cuda") => Ok(DeviceSetting::Cuda),
        Some("cuda") => {
            Err("cannot be cuda in this build; build it with `cargo xtask cuda`, or set it to cpu".to_owned())
        }
        _ => Err(format!("must be cpu or cuda, not {}", named(value))),
    }
}

/// Parses whether the decoding node prefills.
pub(super) fn local_prefill(value: &Value) -> Result<LocalPrefill, String> {
    Ok(match one_of(value, &["auto", "never", "always"])?.as_str() {
        "never" => LocalPrefill::Never,
        "always" => LocalPrefill::Always,
        _ => LocalPrefill::Auto,
    })
}

/// Parses a source of weights.
pub(super) fn load_format(value: &Value) -> Result<LoadFormatSetting, String> {
    match words(value).as_deref() {
        Some("auto") => Ok(LoadFormatSetting::Auto),
        Some("dummy") => Ok(LoadFormatSetting::Dummy),
        _ => Err(format!("must be auto or dummy, not {}", named(value))),
    }
}

/// Parses one of at least two words.
pub(super) fn one_of(value: &Value, known: &[&str]) -> Result<String, String> {
    let word = words(value).filter(|word| known.contains(&&**word));
    word.ok_or_else(|| match known {
        [first @ .., last] => format!("must be {} or {last}, not {}", first.join(", "), named(value)),
        [] => format!("must not be {}", named(value)),
    })
}

/// Parses a number of at least 0.
pub(super) fn rate(value: &Value) -> Result<f32, String> {
    let parsed = scalar(value).and_then(|text| text.parse::<f32>().ok());
    let rate = parsed.filter(|rate| rate.is_finite() && *rate >= 0.0);
    rate.ok_or_else(|| format!("must be a number of at least 0, not {}", named(value)))
}

/// Parses a number above 0 and up to 1.
pub(super) fn share(value: &Value) -> Result<f32, String> {
    let parsed = scalar(value).and_then(|text| text.parse::<f32>().ok());
    let share = parsed.filter(|share| *share > 0.0 && *share <= 1.0);
    share.ok_or_else(|| format!("must be above 0 and up to 1, not {}", named(value)))
}

/// Parses a number from 0 to 1.
pub(super) fn share_or_zero(value: &Value) -> Result<f32, String> {
    let parsed = scalar(value).and_then(|text| text.parse::<f32>().ok());
    let share = parsed.filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("must be from 0 to 1, not {}", named(value)))
}

/// Returns `None` for an empty value, else the result of `parse`.
pub(super) fn optional<T>(
    value: &Value,
    parse: fn(&Value) -> Result<T, String>,
) -> Result<Option<T>, String> {
    if matches!(value, Value::Empty(..)) { Ok(None) } else { parse(value).map(Some) }
}

/// `host:port`, with brackets around an IPv6 address.
pub(super) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Writes a value as YAML that parses to the same value.
pub(super) trait Show {
    /// The YAML text on one line.
    fn show(&self) -> String;
}

impl Show for str {
    fn show(&self) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        let starts = self.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/');
        let word = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
            .contains(&&*self.to_ascii_lowercase());
        let number =
            self.parse::<f64>().is_ok() || ["0x", "0o", "0b"].iter().any(|base| self.starts_with(base));
        // A double-quoted Rust literal of printable text is also a double-quoted YAML scalar.
        if starts && !word && !number && self.chars().all(plain) {
            self.to_owned()
        } else {
            format!("{self:?}")
        }
    }
}

impl Show for String {
    fn show(&self) -> String {
        self.as_str().show()
    }
}

impl Show for PathBuf {
    fn show(&self) -> String {
        self.to_string_lossy().show()
    }
}

impl Show for SocketAddr {
    fn show(&self) -> String {
        self.to_string().show()
    }
}

impl Show for Secret {
    fn show(&self) -> String {
        MASK.show()
    }
}

impl Show for LocalPrefill {
    fn show(&self) -> String {
        match self {
            Self::Auto => "auto".to_owned(),
            Self::Never => "never".to_owned(),
            Self::Always => "always".to_owned(),
        }
    }
}

impl Show for DeviceSetting {
    fn show(&self) -> String {
        self.name().to_owned()
    }
}

impl Show for LoadFormatSetting {
    fn show(&self) -> String {
        match self {
            Self::Auto => "auto".to_owned(),
            Self::Dummy => "dummy".to_owned(),
        }
    }
}

impl Show for f32 {
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Show for Duration {
    fn show(&self) -> String {
        let nanos = self.as_nanos() as u64;
        if nanos == 0 {
            return "0s".to_owned();
        }
        for (unit, size) in TIME_UNITS.iter().rev() {
            if nanos.is_multiple_of(*size) {
                return format!("{}{unit}", nanos / size);
            }
        }
        format!("{}ms", nanos as f64 / 1e6)
    }
}

impl<T: Show> Show for Option<T> {
    fn show(&self) -> String {
        self.as_ref().map_or_else(|| "null".to_owned(), Show::show)
    }
}

impl Show for Vec<String> {
    fn show(&self) -> String {
        format!("[{}]", self.iter().map(Show::show).collect::<Vec<_>>().join(", "))
    }
}

macro_rules! show_as_displayed {
    ($($ty:ty),+) => { $( impl Show for $ty { fn show(&self) -> String { self.to_string() } } )+ };
}

show_as_displayed!(bool, u16, u32, usize, ByteSize);
