//! Who may use `/admin` and `/debug`.
//!
//! A client needs the API key. If there is none, it must be a program on the same machine: the connection comes from a loopback address, `Host`
//! names a loopback address, and neither `Origin` nor `Sec-Fetch-Site` tells of another site. The last three keep the pages of a browser on this machine away,
//! which could otherwise reach the port under a name of their own, by a form or by a request whose answer they cannot read. The live page, which
//! comes from the port itself, is let in.

use std::net::{IpAddr, SocketAddr};

use actix_web::HttpRequest;
use actix_web::http::StatusCode;
use actix_web::http::header::{HOST, HeaderMap, ORIGIN};

use super::api_error::ApiError;

/// The header by which a browser says whether a page of the same origin asks, or the address line (`none`).
const FETCH_SITE: &str = "sec-fetch-site";

/// Checks that the client of a request is an operator. `has_key` tells that the port has an API key; then the middleware has checked it.
pub(super) fn check(has_key: bool, request: &HttpRequest) -> Result<(), ApiError> {
    if has_key || is_local(request.peer_addr(), request.headers()) {
        return Ok(());
    }
    let message = format!(
        "without request.api_key, only programs on the same machine may use {}: connect to a loopback address, send it as Host, and \
         send no Origin; or set request.api_key",
        request.path()
    );
    Err(ApiError::new(StatusCode::FORBIDDEN, message))
}

/// Whether a request comes from a program on this machine that is no page of a browser.
fn is_local(peer: Option<SocketAddr>, headers: &HeaderMap) -> bool {
    let is_loopback = |ip: IpAddr| ip.to_canonical().is_loopback();
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    peer.is_some_and(|peer| is_loopback(peer.ip()))
        && host.is_some_and(|host| named(host) == Some("localhost") || address(host).is_some_and(is_loopback))
        && !headers.contains_key(ORIGIN)
        && headers.get(FETCH_SITE).is_none_or(|site| site == "same-origin" || site == "none")
}

/// The name in `Host`, without the port.
fn named(host: &str) -> Option<&str> {
    let (name, port) = host.split_once(':').unwrap_or((host, "0"));
    port.parse::<u16>().ok().map(|_| name)
}

/// The IP address in `Host`, without the port.
fn address(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.parse().map(|address: SocketAddr| address.ip()).or_else(|_| bare.parse()).ok()
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    #[test]
    fn only_programs_on_this_machine_count_as_local() {
        let check = |peer: &str, host: Option<&str>, origin: Option<&str>, expect: bool| {
            let mut headers = HeaderMap::new();
            for (name, value) in [(HOST, host), (ORIGIN, origin)] {
                if let Some(value) = value {
                    headers.append(name, HeaderValue::from_str(value).unwrap());
                }
            }
            let peer = peer.parse().ok();
            assert_eq!(is_local(peer, &headers), expect, "{peer:?} {host:?} {origin:?}");
        };
        for peer in ["127.0.0.1:5", "127.8.8.8:5", "[::1]:5", "[::ffff:127.0.0.1]:5"] {
            for host in ["127.0.0.1", "127.0.0.1:8200", "localhost", "localhost:8200", "[::1]", "[::1]:8200"]
            {
                check(peer, Some(host), None, true);
            }
        }
        for peer in ["10.0.0.1:5", "[fd00::1]:5", "unknown"] {
            check(peer, Some("127.0.0.1:8200"), None, false);
        }
        // A name that resolves to this machine, and what is no host.
        for host in ["rebound.example:8200", "10.0.0.1:8200", "localhost.example", "localhost:x", "", "[::1"]
        {
            check("127.0.0.1:5", Some(host), None, false);
        }
        check("127.0.0.1:5", None, None, false);
        check("127.0.0.1:5", Some("127.0.0.1:8200"), Some("http://127.0.0.1:8200"), false);
        check("127.0.0.1:5", Some("127.0.0.1:8200"), Some("null"), false);
        for (site, expect) in
            [("same-origin", true), ("none", true), ("same-site", false), ("cross-site", false)]
        {
            let mut headers = HeaderMap::new();
            headers.append(HOST, HeaderValue::from_static("localhost:8200"));
            headers.append(FETCH_SITE.parse().unwrap(), HeaderValue::from_static(site));
            assert_eq!(is_local("127.0.0.1:5".parse().ok(), &headers), expect, "{site}");
        }
    }
}
