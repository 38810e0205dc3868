//! The role of a process.

use std::fmt;

/// The role of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Decodes and serves clients; senders connect to it.
    Receiver,
    /// Prefills prompts for the receivers that it connects to.
    Sender,
    /// Prefills and decodes, for itself and for the nodes that it is connected with.
    Node,
    /// Prefills and decodes in one process, without a transport.
    Local,
    /// Forwards the requests of clients to the nodes of a fleet. It has no engine.
    Proxy,
}

impl Role {
    /// The name of the role on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Receiver => "receiver",
            Self::Sender => "sender",
            Self::Node => "node",
            Self::Local => "local",
            Self::Proxy => "proxy",
        }
    }

    /// Whether peers that prefill for it can connect to a process of this role.
    pub(crate) fn accepts_peers(self) -> bool {
        matches!(self, Self::Receiver | Self::Node)
    }

    /// Whether a process of this role connects to peers, to prefill for them.
    pub(crate) fn dials_peers(self) -> bool {
        matches!(self, Self::Sender | Self::Node)
    }

    /// Whether a process of this role uses the key.
    pub(super) fn uses(self, key: &str) -> bool {
        let is_of_proxies = key.starts_with("fleet.nodes");
        let is_of_others = key.starts_with("node.") || is_of_proxies;
        match self {
            Self::Receiver => !["link.peers", "link.idle", "fleet.dns"].contains(&key) && !is_of_others,
            Self::Sender => {
                !key.starts_with("frontend.")
                    && key != "link.advertise"
                    && !is_of_others
                    && !OF_ROUTERS.contains(&key)
            }
            Self::Node => !is_of_proxies,
            Self::Proxy => OF_PROXIES.contains(&key) || !key.contains('.') || key.starts_with("fleet."),
            Self::Local => {
                let unused = ["http.", "link.", "ring.", "node.", "transport.", "fleet."];
                !unused.iter().any(|section| key.starts_with(section)) && !OF_ROUTERS.contains(&key)
            }
        }
    }
}

/// The keys that matter only if other processes can prefill the prompts of a process, beside those of whole sections.
const OF_ROUTERS: &[&str] = &[
    "frontend.local",
    "frontend.local_if_sooner_by",
    "frontend.trust_header",
    "routing.index_bytes",
    "routing.ttft_target",
];

/// The keys of sections that a proxy uses, beside those of `fleet`.
const OF_PROXIES: &[&str] = &[
    "frontend.host",
    "frontend.port",
    "frontend.tool_call_parser",
    "frontend.reasoning_parser",
    "tls.cert_file",
    "tls.key_file",
    "routing.index_bytes",
    "routing.ttft_target",
    "request.deadline",
    "request.input_bytes",
    "request.api_key",
    "traces.otlp_endpoint",
    "traces.sample",
    "log.format",
    "shutdown.drain",
    "shutdown.delay",
];

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
