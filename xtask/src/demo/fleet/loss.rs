//! What the loss of a process costs: which requests may fail, and what is said about them.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::burst::{Burst, Failure, FailureKind, REQUESTS};

/// The end of the killed process.
pub(super) struct Kill {
    pub(super) at: Instant,
    /// The requests of the burst that were over.
    pub(super) over: usize,
    /// The time until the proxy counted one node less.
    pub(super) noticed: Duration,
}

/// The loss of a process during a burst.
pub(super) struct Loss {
    pub(super) name: &'static str,
    pub(super) pid: u32,
    pub(super) kill: Kill,
    /// Failed attempts after which the proxy sent the request to another process.
    pub(super) retries: u64,
    /// Processes that decoded before the kill.
    pub(super) decoders: u64,
}

/// Fails if a request failed for another reason than the process that was killed at `killed`.
pub(super) fn judge(burst: &Burst, killed: Option<Instant>) -> Result<()> {
    let is_by_kill = |failure: &&Failure| {
        failure.kind != FailureKind::Other && killed.is_some_and(|killed| failure.at >= killed)
    };
    let mut others = burst.failures.iter().filter(|failure| !is_by_kill(failure));
    if let Some(first) = others.next() {
        let but = if killed.is_some() { " for another reason than the killed process" } else { "" };
        bail!("{} of {REQUESTS} requests failed{but}; the first one: {}", 1 + others.count(), first.reason);
    }
    Ok(())
}

impl Loss {
    /// What happened in the burst.
    pub(super) fn summary(&self, burst: &Burst) -> String {
        let Self { name, pid, kill, retries, decoders } = self;
        let failed = |kind| burst.failures.iter().filter(|failure| failure.kind == kind).count() as u64;
        let mut lines = vec![
            format!("{name} (pid {pid}) was killed when {} requests were over.", kill.over),
            format!(
                "{} were answered and {} failed in {:.1} s.",
                burst.answers.len(),
                burst.failures.len(),
                burst.seconds
            ),
        ];
        let mut line = |count: u64, what: &str| {
            if count > 0 {
                lines.push(format!("{count:>3} {what}"));
            }
        };
        line(
            failed(FailureKind::Broken),
            &format!("failed: {name} had begun to answer, and the stream broke off"),
        );
        line(
            failed(FailureKind::NotRetried),
            &format!(
                "failed with status 502: {name} had not begun to answer, and the proxy's limit of retries was reached"
            ),
        );
        line(
            *retries,
            &format!("retried by the proxy: {name} had not begun to answer, and another process did"),
        );
        let noticed = kill.noticed.as_secs_f64();
        let left = decoders - 1;
        lines.push(format!("The proxy's nodes_ready fell from {decoders} to {left} after {noticed:.2} s."));
        lines.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::super::burst::Served;
    use super::*;

    fn burst(failures: &[(FailureKind, Instant)]) -> Burst {
        let failure = |(kind, at): &(FailureKind, Instant)| Failure {
            kind: *kind,
            at: *at,
            reason: format!("{kind:?}"),
        };
        let answers = vec![Served { prefill_pid: 1, decode_pid: 2 }; REQUESTS - failures.len()];
        Burst { answers, failures: failures.iter().map(failure).collect(), seconds: 2.5 }
    }

    #[test]
    fn only_the_killed_process_may_cost_answers() {
        use FailureKind::{Broken, NotRetried, Other};
        let before = Instant::now();
        let killed = before + Duration::from_secs(1);
        let after = killed + Duration::from_secs(1);
        for (failures, killed, expect) in [
            (&[][..], None, None),
            (&[], Some(killed), None),
            (&[(Broken, after), (NotRetried, after)], Some(killed), None),
            (&[(Broken, after)], None, Some("1 of 48 requests failed; the first one: Broken")),
            (&[(Broken, before)], Some(killed), Some("1 of 48 requests failed for another reason")),
            (&[(Broken, after), (Other, after)], Some(killed), Some("the first one: Other")),
            (&[(Other, after); 3], Some(killed), Some("3 of 48")),
        ] {
            match (judge(&burst(failures), killed), expect) {
                (Ok(()), None) => {}
                (Err(error), Some(words)) => assert!(error.to_string().contains(words), "{error}"),
                (result, expect) => panic!("{result:?}, expected {expect:?}"),
            }
        }
    }

    #[test]
    fn the_summary_has_each_number_that_is_not_zero() {
        let at = Instant::now();
        let loss = |retries| {
            let kill = Kill { at, over: 14, noticed: Duration::from_millis(1020) };
            Loss { name: "receiver-2", pid: 77, kill, retries, decoders: 4 }
        };
        assert_eq!(
            loss(2).summary(&burst(&[(FailureKind::Broken, at); 3])),
            "  receiver-2 (pid 77) was killed when 14 requests were over.\n  \
             45 were answered and 3 failed in 2.5 s.\n    \
             3 failed: receiver-2 had begun to answer, and the stream broke off\n    \
             2 retried by the proxy: receiver-2 had not begun to answer, and another process did\n  \
             The proxy's nodes_ready fell from 4 to 3 after 1.02 s."
        );
        let refused = loss(0).summary(&burst(&[(FailureKind::NotRetried, at)]));
        assert!(refused.contains("  1 failed with status 502"), "{refused}");
        assert!(!refused.contains("broke off") && !refused.contains("retried by"), "{refused}");
    }
}
