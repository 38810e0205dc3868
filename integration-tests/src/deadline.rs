//! Deadlines of the waits in tests. They are generous, because tests check results and not speed.

use std::time::Duration;

/// Deadline for a state, such as that a process serves or that its pages are free. A healthy process reaches it within seconds, also
/// beside other tests.
pub const STATE_WITHIN: Duration = Duration::from_secs(120);

/// Deadline for an answer to a request. Hundreds of tokens take a minute on a machine that other tests use too.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(300);
