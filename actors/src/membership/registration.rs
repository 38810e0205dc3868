//! Keeps the own key in an etcd, under a lease.
//!
//! The lease lives for [`LEASE`] and is renewed every [`KEEP_ALIVE_EVERY`]. If etcd says that the lease is gone, the process registers again. If
//! etcd does not answer for as long as the lease lives, the process counts as unregistered, and goes on asking: the lease may have survived.
//! Every tenth renewal also checks that the key exists, because it can be deleted while its lease lives.

use std::time::{Duration, Instant};

use super::pause_after;

/// Life of a lease that is not renewed.
pub const LEASE: Duration = Duration::from_secs(10);

/// Time between two renewals.
pub const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(3);

/// After this many renewals, the key is checked.
const CHECK_EVERY: u32 = 10;

/// What to do next, after a pause. `endpoint` is the index of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistrationStep {
    /// Get a lease of [`LEASE`].
    Grant {
        /// Where.
        endpoint: usize,
        /// The pause.
        after: Duration,
    },
    /// Put the key under this lease, unless it is there under this lease.
    Put {
        /// Where.
        endpoint: usize,
        /// The lease.
        lease: i64,
        /// The pause.
        after: Duration,
    },
    /// Renew the lease.
    KeepAlive {
        /// Where.
        endpoint: usize,
        /// The lease.
        lease: i64,
        /// The pause.
        after: Duration,
    },
}

/// What etcd has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistrationEvent {
    /// There is a new lease.
    Granted(i64),
    /// The key is there.
    Put,
    /// The lease lives for this time after the question.
    KeptAlive(Duration),
    /// The lease has expired, or was never known there.
    LeaseGone,
    /// There was no answer, or an error.
    Failed,
}

/// The own key in an etcd.
#[derive(Debug)]
pub struct Registration {
    endpoints: usize,
    endpoint: usize,
    failures: u32,
    lease: Option<i64>,
    /// The key is there for as long as the lease lives.
    is_put: bool,
    /// The lease lives until then, unless it is revoked.
    lives_until: Option<Instant>,
    /// Renewals since the key was checked.
    unchecked: u32,
}

impl Registration {
    /// A registration that has not begun, in an etcd with this many endpoints; at least one.
    pub fn new(endpoints: usize) -> Self {
        Self {
            endpoints,
            endpoint: 0,
            failures: 0,
            lease: None,
            is_put: false,
            lives_until: None,
            unchecked: 0,
        }
    }

    /// True if the own key is in etcd, as far as this process knows.
    pub fn is_registered(&self, now: Instant) -> bool {
        self.is_put && self.lives_until.is_some_and(|until| now < until)
    }

    /// The lease, if there is one.
    pub fn lease(&self) -> Option<i64> {
        self.lease
    }

    /// The endpoint that is asked next.
    pub fn endpoint(&self) -> usize {
        self.endpoint
    }

    /// What to do next.
    pub fn next(&self) -> RegistrationStep {
        let (endpoint, pause) = (self.endpoint, pause_after(self.failures));
        match self.lease {
            None => RegistrationStep::Grant { endpoint, after: pause },
            Some(lease) if !self.is_put => RegistrationStep::Put { endpoint, lease, after: pause },
            Some(lease) if self.unchecked >= CHECK_EVERY => {
                RegistrationStep::Put { endpoint, lease, after: pause }
            }
            Some(lease) => {
                // Putting and checking the key do not renew the lease.
                let after = match (self.failures, self.unchecked) {
                    (0, 0) => Duration::ZERO,
                    (0, _) => KEEP_ALIVE_EVERY,
                    _ => pause,
                };
                RegistrationStep::KeepAlive { endpoint, lease, after }
            }
        }
    }

    /// Handles the answer to a question that was sent at this time.
    pub fn on(&mut self, sent: Instant, event: RegistrationEvent) {
        match event {
            RegistrationEvent::Granted(lease) => {
                (self.lease, self.is_put, self.lives_until) = (Some(lease), false, Some(sent + LEASE));
            }
            RegistrationEvent::Put => (self.is_put, self.unchecked) = (true, 0),
            RegistrationEvent::KeptAlive(life) => {
                self.lives_until = Some(sent + life);
                self.unchecked += 1;
            }
            RegistrationEvent::LeaseGone => (self.lease, self.is_put, self.lives_until) = (None, false, None),
            RegistrationEvent::Failed => {
                // An etcd that refuses writes, because its disk is full, still renews leases.
                if self.is_put && self.unchecked >= CHECK_EVERY {
                    self.unchecked = 0;
                }
                self.failures += 1;
                self.endpoint = (self.endpoint + 1) % self.endpoints.max(1);
                return;
            }
        }
        self.failures = 0;
    }
}
