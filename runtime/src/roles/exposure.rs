//! Warnings about ports that other machines can reach without a secret.

use std::net::SocketAddr;

use crate::config::{Config, Secret};

/// The purpose of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// Peers that prefill connect to it.
    Link,
    /// Peers that prefill connect to it with a certificate that any of the authorities may have signed.
    LinkOfAnyName,
    /// HTTP clients connect to it.
    Http,
    /// Routers subscribe to KV events.
    KvEvents,
}

impl Port {
    /// The purpose of the link port; `None` if only peers with an allowed name can join.
    pub(crate) fn link(config: &Config) -> Option<Self> {
        match (&config.link.tls_cert_file, config.link.tls_allowed_names.is_empty()) {
            (None, _) => Some(Self::Link),
            (Some(_), true) => Some(Self::LinkOfAnyName),
            (Some(_), false) => None,
        }
    }

    /// The warning for this port at `address`; `None` if the address is a loopback address or the port requires a secret.
    pub(crate) fn warning(self, address: SocketAddr, secret: Option<&Secret>) -> Option<&'static str> {
        if address.ip().to_canonical().is_loopback() || secret.is_some() {
            return None;
        }
        Some(match self {
            Self::Link => {
                "any process that can reach the link port can join and write KV pages; set link.secret"
            }
            Self::LinkOfAnyName => {
                "any process with a certificate of an authority in link.tls_ca_file can join and write KV pages; set link.tls_allowed_names \
                 or link.secret"
            }
            Self::KvEvents => {
                "any client that can reach this port gets the tokens of prompts; set kv_events.host"
            }
            Self::Http => "any client that can reach this port can send requests; set request.api_key",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_ports_without_a_secret_have_a_warning() {
        let secret = crate::config::Secret::new("s");
        for (address, public) in [
            ("127.0.0.1:1", false),
            ("127.9.9.9:1", false),
            ("[::1]:1", false),
            ("[::ffff:127.0.0.1]:1", false),
            ("0.0.0.0:1", true),
            ("[::]:1", true),
            ("10.0.0.1:1", true),
        ] {
            let address = address.parse().expect("an address");
            for (port, key) in [
                (Port::Link, "link.secret"),
                (Port::LinkOfAnyName, "link.tls_allowed_names or link.secret"),
                (Port::Http, "request.api_key"),
                (Port::KvEvents, "kv_events.host"),
            ] {
                let warning = port.warning(address, None);
                assert_eq!(warning.is_some_and(|text| text.contains(key)), public, "{address} {warning:?}");
                assert_eq!(port.warning(address, Some(&secret)), None);
            }
        }
    }
}
