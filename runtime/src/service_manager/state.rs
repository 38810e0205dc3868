//! Which reports a service manager gets: the decisions, without a thread or a socket.

use std::time::{Duration, Instant};

/// Time without progress after which the service manager ends a process that starts. The unit's `TimeoutStartSec` is the same.
pub const START_STEP: Duration = Duration::from_secs(300);

/// Minimum time between two reports of progress during a start.
const PACE: Duration = Duration::from_secs(10);

/// When the progress of a start is reported.
#[derive(Debug, Default)]
pub struct StartPace(Option<Instant>);

impl StartPace {
    /// Whether the progress that is made now is reported.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.0.is_none_or(|last| now.duration_since(last) >= PACE);
        if is_due {
            self.0 = Some(now);
        }
        is_due
    }
}

/// What a look at the process shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceView {
    /// Whether `/health` answers 200; of a proxy, whether its port is open.
    pub is_ready: bool,
    /// Whether the process is going to end. A drain that `/admin/drain` began does not end it.
    pub is_ending: bool,
    /// A number that grows while the process makes progress.
    pub progress: u64,
    /// What the process does, in one line.
    pub status: String,
}

/// One report, as `sd_notify(3)` defines it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceReport {
    /// `READY=1`: the start is complete.
    Ready,
    /// `STOPPING=1`: the process is going to end. The service manager kills it if it takes too long.
    Stopping,
    /// `WATCHDOG=1`: the process makes progress. The service manager restarts the process if this report does not come.
    Progress,
    /// `STATUS=`: what the process does.
    Status(String),
    /// `EXTEND_TIMEOUT_USEC=`: the start may take this much longer from now on.
    Extend(Duration),
}

/// The reports so far.
#[derive(Debug, Default)]
pub struct ServiceReports {
    is_ready: bool,
    is_ending: bool,
    progress: u64,
    status: String,
}

impl ServiceReports {
    /// The reports that follow from a look at the process.
    pub fn next(&mut self, view: ServiceView) -> Vec<ServiceReport> {
        let mut reports = Vec::new();
        if view.is_ending && !self.is_ending {
            self.is_ending = true;
            reports.push(ServiceReport::Stopping);
        }
        // A process that ends before it was ready has failed to start.
        if view.is_ready && !self.is_ready && !self.is_ending {
            self.is_ready = true;
            reports.push(ServiceReport::Ready);
        }
        if view.progress != self.progress {
            self.progress = view.progress;
            reports.push(ServiceReport::Progress);
        }
        if view.status != self.status {
            self.status.clone_from(&view.status);
            reports.push(ServiceReport::Status(view.status));
        }
        reports
    }
}

#[cfg(test)]
mod tests {
    use super::ServiceReport::{Progress, Ready, Status, Stopping};
    use super::*;

    fn view(is_ready: bool, progress: u64, status: &str) -> ServiceView {
        ServiceView { is_ready, is_ending: false, progress, status: status.to_owned() }
    }

    #[test]
    fn the_progress_of_a_start_is_reported_at_a_pace() {
        let (mut pace, start) = (StartPace::default(), Instant::now());
        let reported = (0..60u64).filter(|second| pace.is_due(start + Duration::from_secs(*second)));
        assert_eq!(reported.collect::<Vec<_>>(), [0, 10, 20, 30, 40, 50]);
        assert!(PACE < START_STEP / 2, "progress is reported long before the end of the time");
    }

    #[test]
    fn each_change_is_reported_once() {
        let mut reports = ServiceReports::default();
        let status = |text: &str| Status(text.to_owned());
        for (view, expect) in [
            (view(false, 0, "no node is ready"), vec![status("no node is ready")]),
            (view(false, 4, "no node is ready"), vec![Progress]),
            (view(true, 8, "serving"), vec![Ready, Progress, status("serving")]),
            // Stalled: the watchdog counts no more checks.
            (view(false, 8, "down"), vec![status("down")]),
            (view(false, 8, "down"), vec![]),
            (view(true, 9, "serving"), vec![Progress, status("serving")]),
            (ServiceView { is_ending: true, ..view(true, 10, "serving") }, vec![Stopping, Progress]),
            (
                ServiceView { is_ending: true, ..view(false, 11, "draining") },
                vec![Progress, status("draining")],
            ),
        ] {
            assert_eq!(reports.next(view), expect);
        }
    }

    #[test]
    fn a_process_that_ends_does_not_become_ready() {
        let ending = ServiceView { is_ending: true, ..view(true, 0, "") };
        assert_eq!(ServiceReports::default().next(ending), [Stopping]);
    }
}
