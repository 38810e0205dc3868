//! Parses the names, addresses and URLs of other processes. An error continues a sentence that starts with the key.

use figment::value::Value;
use rustls::pki_types::ServerName;

use super::values::{list, named, text, words};

fn is_host_and_port(text: &str) -> bool {
    let parts = text.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>()));
    let is_name = |host: &str| !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '/');
    matches!(parts, Some((host, Ok(1..))) if is_name(host))
}

/// Parses a list of `host:port`, or one string with commas between them.
pub(super) fn peers(value: &Value) -> Result<Vec<String>, String> {
    let entries = list(value).ok_or_else(|| format!("must be a list of host:port, not {}", named(value)))?;
    match entries.iter().find(|entry| !is_host_and_port(entry)) {
        Some(entry) => Err(format!("must be a list of host:port, but {entry:?} is not host:port")),
        None => Ok(entries),
    }
}

/// Parses `host:port`.
pub(super) fn peer(value: &Value) -> Result<String, String> {
    words(value)
        .filter(|text| is_host_and_port(text))
        .ok_or_else(|| format!("must be host:port, not {}", named(value)))
}

/// Parses a name that a certificate can have.
pub(super) fn name(value: &Value) -> Result<String, String> {
    let parsed = words(value).filter(|text| ServerName::try_from(text.as_str()).is_ok());
    parsed.ok_or_else(|| format!("must be a host name or an address, not {}", named(value)))
}

/// Parses a list of names that certificates can have, or one string with commas between them.
pub(super) fn names(value: &Value) -> Result<Vec<String>, String> {
    let entries = list(value).ok_or_else(|| format!("must be a list of host names, not {}", named(value)))?;
    match entries.iter().find(|entry| ServerName::try_from(entry.as_str()).is_err()) {
        Some(entry) => Err(format!("must be a list of host names and addresses, but {entry:?} is neither")),
        // Such a text comes from a variable that is not set. An empty list would allow all names.
        None if entries.is_empty() && matches!(value, Value::String(..)) => {
            Err("must have at least one name; leave it out to allow all names".to_owned())
        }
        None => Ok(entries),
    }
}

/// Parses a list of URLs without a path, or one string with commas between them. A URL without a scheme gets `http://`.
pub(super) fn endpoints(value: &Value) -> Result<Vec<String>, String> {
    let entries = list(value).ok_or_else(|| format!("must be a list of URLs, not {}", named(value)))?;
    let url = |entry: String| {
        let (scheme, rest) = entry.split_once("://").unwrap_or(("http", &entry));
        let rest = rest.trim_end_matches('/');
        if ["http", "https"].contains(&scheme) && is_host_and_port(rest) {
            return Ok(format!("{scheme}://{rest}"));
        }
        Err(format!("must be a list of URLs such as http://10.0.0.1:2379, but {entry:?} is none"))
    };
    entries.into_iter().map(url).collect()
}

/// Parses the URL of a collector of traces.
pub(super) fn collector(value: &Value) -> Result<String, String> {
    let url = text(value)?;
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let has_host = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['/', ':']));
    if has_host {
        Ok(url)
    } else {
        Err(format!("must be a URL such as http://localhost:4318, not {}", named(value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_has_a_scheme_of_http_and_a_host() {
        let check = |url: &str, is_good| assert_eq!(collector(&Value::from(url)).is_ok(), is_good, "{url}");
        for url in ["http://localhost:4318", "https://c/", "http://gateway/tenant/traces"] {
            check(url, true);
        }
        for url in ["localhost:4318", "grpc://localhost:4317", "http://", "http:///v1/traces", "http://:4318"]
        {
            check(url, false);
        }
    }
}
