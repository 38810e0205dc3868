//! Dialling: the pauses between attempts to reach an address, and the statement of each Hello about earlier sessions.
//!
//! One counter numbers all attempts of the process. So the numbers grow for each receiver, and no number is used twice. A Hello
//! names the last attempt with that receiver that *came up*, and says whether that session has drained. The attempts between it
//! and the present one never came up and wrote nothing. Therefore a receiver may treat a Hello as proof, however late it reads
//! it. If a session ended without proof, no later Hello is proof for it, even if later sessions have drained.
//!
//! Records are kept by the receiver's incarnation, not by its address, because two addresses may lead to one process, and a
//! process restarted at the same address is another process. A record is kept while a session lives or has no proof.

use std::collections::HashMap;
use std::time::Duration;

use connector::frame::Incarnation;

use crate::messages::Attempt;

/// First and maximum pause between attempts to reach a receiver.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// Pause after a refusal that only a changed setting can end, and at an address whose process is already connected.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// Upper bound of the receivers with a record.
const RECORDS_MAX: usize = 1024;

/// The record of the sessions with one receiver's process. Sessions with a process do not overlap.
#[derive(Debug)]
struct Record {
    /// The number of the attempt in progress or of the live session.
    live: Option<u64>,
    /// The number of the last session that came up; 0 if there is none.
    previous: u64,
    /// Whether that session has drained.
    previous_drained: bool,
    /// A session before the previous one ended without proof.
    has_unproved: bool,
}

/// Numbers the attempts of this process and keeps the records of its receivers.
#[derive(Debug, Default)]
pub struct Attempts {
    next: u64,
    records: HashMap<Incarnation, Record>,
    /// A record without proof was dropped, so a receiver without a record may have sessions that can still write.
    has_dropped: bool,
}

impl Attempts {
    /// Begins an attempt with this process. `None` if an attempt or session with it already exists.
    pub fn begin(&mut self, receiver: Incarnation) -> Option<Attempt> {
        if self.is_live(receiver) {
            return None;
        }
        self.next += 1;
        let session = self.next;
        if self.records.len() >= RECORDS_MAX && !self.records.contains_key(&receiver) {
            self.drop_one();
        }
        // After a record without proof was dropped, the Hello to a receiver without a record claims no proof: it names the
        // previous attempt as not drained.
        let previous = if self.has_dropped { session - 1 } else { 0 };
        let record = self.records.entry(receiver).or_insert(Record {
            live: None,
            previous,
            previous_drained: !self.has_dropped,
            has_unproved: false,
        });
        record.live = Some(session);
        Some(Attempt { session, previous: record.previous, previous_drained: record.previous_drained })
    }

    /// True if an attempt or session with this process exists.
    pub fn is_live(&self, receiver: Incarnation) -> bool {
        self.records.get(&receiver).is_some_and(|record| record.live.is_some())
    }

    /// The attempt with this process never came up.
    pub fn failed(&mut self, receiver: Incarnation) {
        if let Some(record) = self.records.get_mut(&receiver) {
            record.live = None;
            self.forget_if_drained(receiver);
        }
    }

    /// The session with this process has ended. `drained` is the transport's statement that all its puts have completed.
    pub fn over(&mut self, receiver: Incarnation, drained: bool) {
        if let Some(record) = self.records.get_mut(&receiver)
            && let Some(session) = record.live.take()
        {
            record.has_unproved |= !record.previous_drained;
            (record.previous, record.previous_drained) = (session, drained);
            self.forget_if_drained(receiver);
        }
    }

    fn forget_if_drained(&mut self, receiver: Incarnation) {
        let is_proved =
            |record: &Record| record.live.is_none() && record.previous_drained && !record.has_unproved;
        if self.records.get(&receiver).is_some_and(is_proved) {
            self.records.remove(&receiver);
        }
    }

    /// Drops the oldest record without a live session, to make room for another.
    fn drop_one(&mut self) {
        let idle = self.records.iter().filter(|(_, record)| record.live.is_none());
        if let Some(receiver) = idle.min_by_key(|(_, record)| record.previous).map(|(receiver, _)| *receiver)
        {
            self.records.remove(&receiver);
            self.has_dropped = true;
        }
    }
}

/// One address that this process dials.
#[derive(Debug)]
pub struct Dialler {
    address: String,
    backoff: Duration,
    /// The reason of the last failure in the log.
    logged: Option<String>,
    /// A session over this address has moved pages.
    has_worked: bool,
    /// We have hung up on the last attempt. A failure of it that was on its way is ignored, because the dialler will be woken already.
    has_hung_up: bool,
    /// False once the address has left the fleet. The dialler stays while its session lives, and dials no more.
    is_wanted: bool,
}

impl Dialler {
    /// A dialler for an address that was not dialled yet.
    pub fn new(address: String) -> Self {
        Self {
            address,
            backoff: BACKOFF.0,
            logged: None,
            has_worked: false,
            has_hung_up: false,
            is_wanted: true,
        }
    }

    /// The address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The address belongs to the fleet, or not any more.
    pub fn set_wanted(&mut self, is_wanted: bool) {
        self.is_wanted = is_wanted;
    }

    /// False once the address has left the fleet.
    pub fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    /// An attempt begins.
    pub fn begin(&mut self) {
        self.has_hung_up = false;
    }

    /// We hang up on the attempt.
    pub fn hang_up(&mut self) {
        self.has_hung_up = true;
    }

    /// True if we have hung up on the last attempt.
    pub fn has_hung_up(&self) -> bool {
        self.has_hung_up
    }

    /// True if a session over this address has moved pages.
    pub fn has_worked(&self) -> bool {
        self.has_worked
    }

    /// The last attempt failed for this reason. Returns true if the reason differs from that of the failure before.
    pub fn on_failed(&mut self, reason: &str) -> bool {
        let is_news = self.logged.as_deref() != Some(reason);
        self.logged = Some(reason.to_owned());
        is_news
    }

    /// A session over this address has moved pages. The pauses start again, and the next failure is logged whatever its reason.
    pub fn on_worked(&mut self) {
        (self.backoff, self.logged, self.has_worked) = (BACKOFF.0, None, true);
    }

    /// The pause before the next attempt. Each pause is twice as long as the one before, up to two seconds.
    pub fn pause(&mut self) -> Duration {
        let pause = self.backoff;
        self.backoff = (pause * 2).min(BACKOFF.1);
        pause
    }

    /// The pause after a refusal that only a changed setting can end, and at an address whose process is connected or is this one: 30 s.
    pub fn long_pause(&self) -> Duration {
        REFUSED_PAUSE
    }

    /// The pause while this process is unhealthy or has no place for a session: two seconds.
    pub fn short_pause(&self) -> Duration {
        BACKOFF.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32) -> Incarnation {
        Incarnation { pid, start_ticks: 1, boot: 2, pid_namespace: 3, random: 4 }
    }

    fn attempt(session: u64, previous: u64, previous_drained: bool) -> Option<Attempt> {
        Some(Attempt { session, previous, previous_drained })
    }

    #[test]
    fn a_hello_names_the_last_attempt_that_came_up() {
        let (mut attempts, a) = (Attempts::default(), process(1));
        assert_eq!(attempts.begin(a), attempt(1, 0, true));
        attempts.over(a, false);
        assert_eq!(attempts.begin(a), attempt(2, 1, false));
        attempts.failed(a);
        assert_eq!(attempts.begin(a), attempt(3, 1, false), "attempt 2 never came up");
        attempts.over(a, true);
        assert_eq!(
            attempts.begin(a),
            attempt(4, 3, true),
            "the Hello does not cover session 1, which has not drained"
        );
    }

    #[test]
    fn no_record_is_kept_once_all_sessions_have_drained() {
        let (mut attempts, a) = (Attempts::default(), process(1));
        assert_eq!(attempts.begin(a), attempt(1, 0, true));
        attempts.over(a, true);
        assert!(attempts.records.is_empty());
        assert_eq!(attempts.begin(a), attempt(2, 0, true));
    }

    #[test]
    fn records_are_kept_by_process() {
        let (mut attempts, a, b) = (Attempts::default(), process(1), process(2));
        assert_eq!(attempts.begin(a), attempt(1, 0, true));
        assert_eq!(attempts.begin(a), None, "another address of the same process");
        attempts.over(a, false);
        // Another process answers at the same address. The record of the first process is kept.
        assert_eq!(attempts.begin(b), attempt(2, 0, true));
        attempts.over(b, true);
        assert_eq!(attempts.begin(a), attempt(3, 1, false));
    }

    #[test]
    fn a_receiver_whose_record_was_dropped_is_not_reported_drained() {
        let mut attempts = Attempts::default();
        for pid in 0..RECORDS_MAX as u32 + 1 {
            attempts.begin(process(pid));
            attempts.over(process(pid), false);
        }
        assert_eq!(attempts.records.len(), RECORDS_MAX);
        let next = attempts.next + 1;
        assert_eq!(attempts.begin(process(0)), attempt(next, next - 1, false), "no proof is claimed");
    }

    #[test]
    fn pauses_grow_until_a_session_has_moved_pages() {
        let mut dialler = Dialler::new(String::new());
        let mut pauses = || -> Vec<u128> { (0..5).map(|_| dialler.pause().as_millis()).collect() };
        assert_eq!(pauses(), [200, 400, 800, 1600, 2000]);
        assert!(dialler.on_failed("refused") && !dialler.on_failed("refused"), "a reason is new once");
        assert!(dialler.on_failed("another model"), "another reason is new");
        assert_eq!(dialler.pause().as_millis(), 2000);
        dialler.on_worked();
        assert_eq!(dialler.pause().as_millis(), 200);
        assert!(dialler.on_failed("another model"), "the reason is new again after a session that worked");
    }
}
