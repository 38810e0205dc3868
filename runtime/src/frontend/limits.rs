//! Limits for clients: timeouts and the number of connections.

use std::time::Duration;

/// Limits for clients. Each field documents the reason for its default; tests use shorter periods.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time for the head of a request. Ten seconds allow for three losses of the same packet, which TCP retransmits after one, two and
    /// four seconds.
    pub head: Duration,
    /// Time for the body of a request, from the end of its head. The largest body (8 MiB) arrives in time at 3.4 Mbit/s.
    pub body: Duration,
    /// Time that a connection may be idle. Clients close an idle connection after 5 s (httpx) or 15 s (aiohttp). The server waits
    /// longer, so that it does not close a connection while a client sends a request on it.
    pub idle: Duration,
    /// Time after which a streamed response starts without a token, and interval of the blank lines of a silent stream. Most
    /// requests have a first token or fail sooner, so that failures get an HTTP status. Proxies close connections that are silent for
    /// 30 to 60 s.
    pub keep_alive: Duration,
    /// Time that sent bytes may stay unacknowledged, and that a client may have no room for more, before the system resets the
    /// connection. By default, Linux retransmits for a quarter of an hour and waits for room forever. The default here allows for a
    /// change of network.
    pub unanswered: Duration,
    /// Time after the deadline of a request at which the frontend gives up. The decoder enforces the deadline; this limit is for a
    /// decoder that is gone.
    pub grace: Duration,
    /// Maximum number of connections of an HTTP port. Further ones wait in the system's backlog, where the frontend does not see them.
    /// Therefore there is one for each request that may run or wait, [`SPARE`](Self::SPARE) more, and at least
    /// [`CONNECTIONS`](Self::CONNECTIONS) if the limit of open files allows them.
    pub connections: usize,
}

impl Limits {
    /// Connections for probes and for clients that are idle.
    pub const SPARE: usize = 128;

    /// Connections that an HTTP port takes if enough files may be open. Most clients keep connections that they do not use, and an idle one takes a
    /// few KiB.
    pub const CONNECTIONS: usize = 16_384;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            body: Duration::from_secs(20),
            idle: Duration::from_secs(20),
            keep_alive: Duration::from_secs(5),
            unanswered: Duration::from_secs(30),
            grace: Duration::from_secs(2),
            connections: Self::SPARE,
        }
    }
}
