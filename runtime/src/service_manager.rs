//! Reports to the service manager, such as systemd, that started this process with `Type=notify`.
//!
//! A thread sends the reports, so that busy actors do not delay them. Without a service manager there is no thread and nothing is sent. The
//! protocol is that of `sd_notify(3)`. The crate `sd-notify` reads the variables `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.

pub mod state;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::config::Surroundings;
use state::{START_STEP, ServiceReport, ServiceReports, ServiceView, StartPace};

/// Maximum time between two looks at the process.
const PERIOD: Duration = Duration::from_secs(1);

/// Reports what a process does before it serves, such as "loading the model", and gives it [`START_STEP`] for that. Does nothing without a service
/// manager.
pub fn report_start(status: &str) {
    if Surroundings::has_service_manager() {
        warn_of(&send(&[ServiceReport::Status(status.to_owned()), ServiceReport::Extend(START_STEP)]));
    }
}

/// Keeps the service manager from ending a process whose start takes long and makes progress. Does nothing without a service manager.
#[derive(Debug, Default)]
pub struct StartProgress(Mutex<StartPace>);

impl StartProgress {
    /// A part of a download has arrived, the start waits for the download of another process, or a part of the model is read or loaded. May be
    /// called often.
    pub fn made(&self) {
        let is_due = || self.0.lock().unwrap_or_else(PoisonError::into_inner).is_due(Instant::now());
        if Surroundings::has_service_manager() && is_due() {
            // The next report warns if the service manager cannot be told.
            let _ = send(&[ServiceReport::Extend(START_STEP)]);
        }
    }
}

/// The reports of a process that serves. Dropping it sends those that are due and ends them.
pub struct ServiceManager {
    thread: Option<ReportThread>,
}

struct ReportThread {
    ends: Arc<AtomicBool>,
    /// Wakes the thread, and ends it when dropped.
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ServiceManager {
    /// Reports from now on what `view` shows, once per second, and twice per period of the service manager's watchdog.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn report(view: impl Fn() -> ServiceView + Send + 'static) -> io::Result<Self> {
        if !Surroundings::has_service_manager() {
            return Ok(Self { thread: None });
        }
        let period = sd_notify::watchdog_enabled().map_or(PERIOD, |watchdog| PERIOD.min(watchdog / 2));
        let ends = Arc::new(AtomicBool::new(false));
        let (wake, woken) = sync_channel(1);
        let is_ending = Arc::clone(&ends);
        let reporting = move || {
            let view = || ServiceView { is_ending: is_ending.load(Ordering::SeqCst), ..view() };
            report_regularly(view, period, &woken);
        };
        let thread = thread::Builder::new().name("baton-service".into()).spawn(reporting)?;
        Ok(Self { thread: Some(ReportThread { ends, wake: Some(wake), thread: Some(thread) }) })
    }

    /// Reports at once that the process is going to end.
    pub fn end(&self) {
        if let Some(ReportThread { ends, wake: Some(wake), .. }) = &self.thread {
            ends.store(true, Ordering::SeqCst);
            // A full channel wakes the thread too.
            let _ = wake.try_send(());
        }
    }
}

impl Drop for ReportThread {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            // If the thread panicked, the panic hook has already reported it.
            let _ = thread.join();
        }
    }
}

/// Sends the reports of the process that `view` shows. Looks at it after each `period`, and when woken.
fn report_regularly(view: impl Fn() -> ServiceView, period: Duration, woken: &Receiver<()>) {
    let (mut reports, mut is_reached) = (ServiceReports::default(), true);
    loop {
        let sent = send(&reports.next(view()));
        if is_reached {
            warn_of(&sent);
        }
        is_reached = sent.is_ok();
        if woken.recv_timeout(period) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

fn warn_of(sent: &io::Result<()>) {
    if let Err(error) = sent {
        tracing::warn!(%error, "the service manager cannot be told the state of this process");
    }
}

fn send(reports: &[ServiceReport]) -> io::Result<()> {
    if reports.is_empty() {
        return Ok(());
    }
    let states: Vec<NotifyState<'_>> = reports.iter().map(notify_state).collect();
    sd_notify::notify(&states)
}

fn notify_state(report: &ServiceReport) -> NotifyState<'_> {
    match report {
        ServiceReport::Ready => NotifyState::Ready,
        ServiceReport::Stopping => NotifyState::Stopping,
        ServiceReport::Progress => NotifyState::Watchdog,
        ServiceReport::Status(status) => NotifyState::Status(status),
        ServiceReport::Extend(time) => {
            NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))
        }
    }
}
