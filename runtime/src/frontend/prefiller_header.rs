//! The header `x-prefiller-host-port`, which names the process that prefills a request. llm-d's endpoint picker sets it.
//!
//! The value is a list of `ip:port`, separated by commas. The proxy uses the first address that belongs to a connected sender or to this
//! node. An address is only compared with those that peers advertise; nothing connects to it.

use std::net::SocketAddr;

use actix_web::http::header::HeaderMap;
use actors::request::Route;

/// The name of the header.
const NAME: &str = "x-prefiller-host-port";

/// Maximum number of addresses that are used. A picker names one prefiller, and perhaps a few others in case that one has left.
const ADDRESSES_MAX: usize = 16;

/// The route that the header asks for; `None` without the header. Malformed addresses are left out.
pub(super) fn route(headers: &HeaderMap) -> Option<Route> {
    let texts = headers.get_all(NAME).filter_map(|value| value.to_str().ok());
    let addresses = texts.flat_map(|text| text.split(',')).filter_map(address);
    headers.contains_key(NAME).then(|| Route::On(addresses.take(ADDRESSES_MAX).collect()))
}

fn address(text: &str) -> Option<SocketAddr> {
    let address: SocketAddr = text.trim().parse().ok()?;
    // Peers advertise IPv4 addresses in this form.
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn well_formed_addresses_are_read_in_order() {
        let check = |values: &[&[u8]], expect: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(HeaderName::from_static(NAME), HeaderValue::from_bytes(value).unwrap());
            }
            let expect = expect.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(route(&headers), Some(Route::On(expect)), "{values:?}");
        };
        check(&[b"10.0.0.2:8100"], &["10.0.0.2:8100"]);
        check(
            &[b" 10.0.0.2:8100 ,10.0.0.1:80", b"[fd00::1]:1"],
            &["10.0.0.2:8100", "10.0.0.1:80", "[fd00::1]:1"],
        );
        check(&[b"sender:8100,,10.0.0.2,:1,10.0.0.2:99999,10.0.0.2:81"], &["10.0.0.2:81"]);
        check(&[b"[::ffff:10.0.0.2]:8100"], &["10.0.0.2:8100"]);
        check(&[b""], &[]);
        check(&[b"\xff\xfe", b"10.0.0.2:81"], &["10.0.0.2:81"]);
        let many = ["10.0.0.2:81"; 20];
        check(&[many.join(",").as_bytes()], &many[..16]);
        assert_eq!(route(&HeaderMap::new()), None);
    }
}
