//! Circuit breaking for one node: no requests for a while after its connections broke.

use std::time::{Duration, Instant};

use super::TicketId;

/// First and maximum length of the pause of a node whose connection broke. Each further break doubles the pause, until an answer of the node
/// is complete.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// Number of requests in a row without an answer before their deadline after which a node counts as broken. One such request may have been
/// long.
const LATE_MAX: u32 = 3;

/// Time after which a probe has shown that the node does not break connections at once. Its whole answer may take much longer.
const PROBE: Duration = Duration::from_secs(1);

/// What the proxy knows of the connections to a node.
///
/// A break starts a pause. After the pause, one request probes the node. The next ones follow when it has ended, or after [`PROBE`], until one of
/// them is answered. A node that does not answer before deadlines gets one at a time. Only requests that were placed after the last break
/// count: earlier ones say nothing about the node as it is now.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// When the last break came, and how long the pause after it is. Kept until an answer is complete.
    last: Option<(Instant, Duration)>,
    /// The end of the pause. Kept until an answer begins.
    until: Option<Instant>,
    /// The last request that probes the node after the pause, and when it was placed.
    probe: Option<(TicketId, Instant)>,
    /// The last break was a request that was not answered before its deadline.
    is_silent: bool,
    /// Requests in a row that were not answered before their deadline.
    late: u32,
}

impl Breaker {
    /// Whether the node may get a request now.
    pub(super) fn admits(&self, now: Instant) -> bool {
        let is_held = |(_, placed): (TicketId, Instant)| self.is_silent || now < placed + PROBE;
        self.until.is_none_or(|until| now >= until && !self.probe.is_some_and(is_held))
    }

    /// Whether the node has not answered since its last break.
    pub(super) fn is_tripped(&self) -> bool {
        self.until.is_some()
    }

    /// A request was placed on the node.
    pub(super) fn placed(&mut self, now: Instant, ticket: TicketId) {
        if self.is_tripped() && self.admits(now) {
            self.probe = Some((ticket, now));
        }
    }

    /// An answer has begun. The request was placed at `placed`.
    pub(super) fn began(&mut self, placed: Instant) {
        if !self.is_old(placed) {
            *self = Self { last: self.last, ..Self::default() };
        }
    }

    /// An answer is complete.
    pub(super) fn completed(&mut self, placed: Instant) {
        if !self.is_old(placed) {
            *self = Self::default();
        }
    }

    /// The connection of a request broke.
    pub(super) fn broke(&mut self, now: Instant, placed: Instant) {
        // During a pause, the other requests of the same break arrive.
        if self.is_old(placed) || self.until.is_some_and(|until| now < until) {
            return;
        }
        let pause = self.last.map_or(PAUSE.0, |(_, pause)| (2 * pause).min(PAUSE.1));
        *self = Self { last: Some((now, pause)), until: Some(now + pause), ..Self::default() };
    }

    /// A request was not answered before its deadline.
    pub(super) fn was_late(&mut self, now: Instant, placed: Instant) {
        if self.is_old(placed) {
            return;
        }
        self.late += 1;
        if self.late >= LATE_MAX || self.is_tripped() {
            self.broke(now, placed);
            self.is_silent = true;
        }
    }

    /// A request has ended, or goes to another node.
    pub(super) fn ended(&mut self, ticket: TicketId) {
        self.probe.take_if(|(probe, _)| *probe == ticket);
    }

    fn is_old(&self, placed: Instant) -> bool {
        self.last.is_some_and(|(at, _)| placed < at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A breaker and a clock.
    struct Node {
        breaker: Breaker,
        now: Instant,
        tickets: u64,
    }

    impl Node {
        fn new() -> Self {
            Self { breaker: Breaker::default(), now: Instant::now(), tickets: 0 }
        }

        fn pass(&mut self, millis: u64) {
            self.now += Duration::from_millis(millis);
        }

        /// Places a request if the node admits one.
        fn place(&mut self) -> Option<TicketId> {
            self.breaker.admits(self.now).then(|| {
                self.tickets += 1;
                self.breaker.placed(self.now, TicketId(self.tickets));
                TicketId(self.tickets)
            })
        }

        /// Breaks a request that is placed now. Returns the length of the pause.
        fn break_one(&mut self) -> u64 {
            let placed = self.now;
            self.place().expect("admitted");
            self.pass(1);
            self.breaker.broke(self.now, placed);
            let (from, until) = (self.now, self.breaker.until.expect("a pause"));
            self.now = until - Duration::from_millis(1);
            assert!(self.place().is_none(), "it pauses to the end");
            self.now = until;
            (until - from).as_millis() as u64
        }
    }

    #[test]
    fn each_break_doubles_the_pause_up_to_its_maximum() {
        let mut node = Node::new();
        let pauses: Vec<u64> = (0..11).map(|_| node.break_one()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
    }

    #[test]
    fn one_request_probes_a_node_after_its_pause() {
        let mut node = Node::new();
        node.break_one();
        let first = node.place().expect("the pause is over");
        assert_eq!(node.place(), None, "the probe runs");
        node.breaker.ended(TicketId(99));
        assert_eq!(node.place(), None);
        // Its client leaves.
        node.breaker.ended(first);
        node.place().expect("another probe");
        let placed = node.now;
        node.pass(999);
        assert_eq!(node.place(), None);
        node.pass(1);
        node.place().expect("a second probe, because the first one did not break");
        assert_eq!(node.place(), None);
        node.breaker.began(placed);
        assert!(node.place().is_some() && node.place().is_some());
    }

    #[test]
    fn a_node_whose_answers_break_off_pauses_for_longer_each_time() {
        let mut node = Node::new();
        let mut pauses = Vec::new();
        for _ in 0..4 {
            node.breaker.began(node.now);
            pauses.push(node.break_one());
        }
        assert_eq!(pauses, [100, 200, 400, 800]);
        node.breaker.completed(node.now);
        assert_eq!(node.break_one(), 100, "a complete answer ended the series");
    }

    #[test]
    fn requests_of_before_the_break_do_not_count() {
        let mut node = Node::new();
        let before = node.now;
        node.pass(1);
        node.break_one();
        node.breaker.broke(node.now, before);
        (0..9).for_each(|_| node.breaker.was_late(node.now, before));
        assert!(node.breaker.admits(node.now));
        node.breaker.began(before);
        node.breaker.completed(before);
        node.place().expect("the probe");
        assert_eq!(node.place(), None);
    }

    #[test]
    fn a_node_that_answers_no_request_in_time_pauses() {
        let mut node = Node::new();
        let late = |node: &mut Node| {
            let placed = node.now;
            node.place();
            node.pass(60_000);
            node.breaker.was_late(node.now, placed);
            !node.breaker.admits(node.now)
        };
        assert_eq!([late(&mut node), late(&mut node)], [false; 2]);
        node.breaker.began(node.now);
        assert_eq!([late(&mut node), late(&mut node), late(&mut node)], [false, false, true]);
        node.pass(100);
        assert!(late(&mut node), "a probe that is late is a break");
        node.pass(200);
        node.place().expect("a probe");
        node.pass(5000);
        assert_eq!(node.place(), None, "one at a time, because each may be silent to its deadline");
    }
}
