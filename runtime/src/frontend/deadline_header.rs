//! The header `x-envoy-expected-rq-timeout-ms`: the time in milliseconds for which a router waits for the whole answer. Envoy sets it, and so
//! does the proxy of a fleet. A node ends the request by then, so that it computes nothing that no client gets.

use std::time::Duration;

use actix_web::http::header::HeaderMap;

/// The name of the header.
pub(super) const NAME: &str = "x-envoy-expected-rq-timeout-ms";

/// The time in the header. Zero and malformed values do not limit the request.
pub(super) fn read(headers: &HeaderMap) -> Option<Duration> {
    let milliseconds = headers.get(NAME)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_millis(milliseconds)).filter(|time| !time.is_zero())
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn only_a_positive_number_limits_the_request() {
        let check = |value: &'static [u8], expect: Option<u64>| {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(NAME), HeaderValue::from_bytes(value).unwrap());
            assert_eq!(read(&headers), expect.map(Duration::from_millis), "{value:?}");
        };
        check(b"1500", Some(1500));
        check(b" 1 ", Some(1));
        check(b"18446744073709551615", Some(u64::MAX));
        for value in [&b"0"[..], b"", b"-1", b"1.5", b"1s", b"18446744073709551616", b"\xff"] {
            check(value, None);
        }
        assert_eq!(read(&HeaderMap::new()), None);
    }
}
