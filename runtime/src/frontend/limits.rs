//! How long the frontend waits for its clients, and how many of them it keeps.

use std::time::Duration;

/// What bounds a client: each default has its reason, and tests inject shorter periods.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long a connection may take to send a request's head. Ten seconds let a packet be lost three times (TCP sends it again
    /// after one second, then two, then four), which is what delays an honest one.
    pub head: Duration,
    /// How long a request's body may take, from the end of its head: the largest one that is taken, 8 MiB, over 3.4 Mbit/s.
    pub body: Duration,
    /// How long a connection may wait for its next request. Longer than the 5 s (httpx) and 15 s (aiohttp) after which clients
    /// let go of an idle connection, so that no request meets one that is just being closed.
    pub idle: Duration,
    /// How long a streamed request waits for its first token before its response starts, and how long a stream is silent
    /// before a comment says that it lives. Most first tokens, and so most failures, come sooner and keep a status of their
    /// own; proxies on the way drop what is silent for 30 to 60 s.
    pub keep_alive: Duration,
    /// How long sent bytes may stay unacknowledged, and how long a client may have no room for the next ones, before the system
    /// resets the connection. By itself Linux sends them again for a quarter of an hour, and waits for room for ever. Long
    /// enough for a change of network.
    pub unanswered: Duration,
    /// How long past its deadline a request may stay silent before the frontend gives up on it by itself. The decoder owns
    /// the deadline; this is for a decoder that is gone.
    pub grace: Duration,
    /// Most connections of an HTTP port. The next ones wait in the system's backlog, where nothing is known of them, so there are to
    /// be as many as requests that may run or wait, and [`SPARE`](Self::SPARE) more.
    pub connections: usize,
}

impl Limits {
    /// Connections beside those of requests that run or wait: of probes, and of clients that keep theirs without a request.
    pub const SPARE: usize = 128;
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
