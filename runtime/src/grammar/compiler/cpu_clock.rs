//! The CPU time of a thread, as other threads read it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// The CPU time that one thread has used. If the system does not tell, the time since the clock began counts.
pub(super) struct CpuClock {
    /// `/proc/…/schedstat` of the thread. Its first number is the CPU time in nanoseconds, and 0 if the kernel does not count it.
    file: Option<File>,
    began: Instant,
}

impl CpuClock {
    /// The clock of the calling thread.
    pub(super) fn of_this_thread() -> Self {
        Self { file: File::open("/proc/thread-self/schedstat").ok(), began: Instant::now() }
    }

    /// The time that the thread has used so far.
    pub(super) fn used(&self) -> Duration {
        let mut bytes = [0; 64];
        let length = self.file.as_ref().and_then(|file| file.read_at(&mut bytes, 0).ok()).unwrap_or(0);
        let first = std::str::from_utf8(&bytes[..length]).ok().and_then(|text| text.split(' ').next());
        match first.and_then(|nanoseconds| nanoseconds.parse().ok()) {
            None | Some(0) => self.began.elapsed(),
            Some(nanoseconds) => Duration::from_nanos(nanoseconds),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn waiting_is_no_cpu_time_and_working_is() {
        let (clock, read) = mpsc::channel();
        let (work, wait) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let own = CpuClock::of_this_thread();
            let begin = own.used();
            clock.send(CpuClock::of_this_thread()).unwrap();
            wait.recv().unwrap();
            while own.used() < begin + Duration::from_millis(300) {}
            wait.recv().unwrap();
        });
        let clock = read.recv().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        assert!(clock.used() < Duration::from_millis(200), "{:?}", clock.used());
        work.send(()).unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while clock.used() < Duration::from_millis(300) {
            assert!(Instant::now() < end, "{:?}", clock.used());
            std::thread::sleep(Duration::from_millis(1));
        }
        work.send(()).unwrap();
        thread.join().unwrap();
    }
}
