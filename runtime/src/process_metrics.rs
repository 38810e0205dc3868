//! Metrics of the process as such: its build, its memory, its open files, its start, and the ends of its certificates.
//!
//! The names are those of Prometheus's client libraries. `/proc/self` has the values; one that cannot be read is left out.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::metrics::{Metric, MetricsText};
use rustix::process::{Resource, getrlimit};

use crate::tls::CertificateExpiries;

const BUILD: Metric = Metric::gauge("baton_build_info", "Always 1. The labels describe the process.")
    .by(&["version", "role", "device"]);
const CPU: Metric = Metric::counter("process_cpu_seconds_total", "CPU time that the process has used.");
const FILES: Metric = Metric::gauge("process_open_fds", "Open files, sockets included.");
const FILES_MAX: Metric = Metric::gauge("process_max_fds", "Limit of open files.");
const RESIDENT: Metric = Metric::gauge("process_resident_memory_bytes", "Resident memory.");
const VIRTUAL: Metric = Metric::gauge("process_virtual_memory_bytes", "Virtual memory.");
const START: Metric =
    Metric::gauge("process_start_time_seconds", "Start of the process, in seconds since 1970.");

/// Clock ticks per second in `/proc`. USER_HZ is 100 on every Linux that Rust supports.
const TICKS_PER_SECOND: f64 = 100.0;

/// What the metrics of a process need to know.
#[derive(Clone, Debug)]
pub struct ProcessMetrics {
    role: &'static str,
    device: &'static str,
    started: Duration,
    expiries: CertificateExpiries,
}

impl ProcessMetrics {
    /// The metrics of this process. `device` is where its engine computes.
    pub fn new(role: &'static str, device: &'static str, expiries: CertificateExpiries) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { role, device, started: now.saturating_sub(age().unwrap_or_default()), expiries }
    }

    /// Writes the metrics.
    pub fn write(&self, page: &mut MetricsText) {
        page.family(&BUILD).sample(&[env!("CARGO_PKG_VERSION"), self.role, self.device], 1);
        let mut value = |metric: &Metric, value: Option<f64>| {
            let mut family = page.family(metric);
            value.into_iter().for_each(|value| family.sample(&[], value));
        };
        value(&CPU, stat().map(|stat| (stat.user_ticks + stat.system_ticks) / TICKS_PER_SECOND));
        // The folder itself is open while it is read.
        let files = fs::read_dir("/proc/self/fd").ok().map(|files| files.count().saturating_sub(1));
        value(&FILES, files.map(|files| files as f64));
        // `None` means unlimited.
        value(&FILES_MAX, Some(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) as f64));
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        value(&RESIDENT, status_bytes(&status, "VmRSS:"));
        value(&VIRTUAL, status_bytes(&status, "VmSize:"));
        value(&START, Some((self.started.as_secs_f64() * 100.0).round() / 100.0));
        self.expiries.write(page);
    }
}

/// The part of `/proc/self/stat` that is used.
struct ProcessStat {
    user_ticks: f64,
    system_ticks: f64,
    /// After the start of the system.
    start_ticks: f64,
}

fn stat() -> Option<ProcessStat> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program, in parentheses, may contain anything. The field after it is the third one.
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let field = |number: usize| fields.get(number - 3)?.parse().ok();
    Some(ProcessStat { user_ticks: field(14)?, system_ticks: field(15)?, start_ticks: field(22)? })
}

/// The time since the start of the process.
fn age() -> Option<Duration> {
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split(' ').next()?.parse().ok()?;
    Duration::try_from_secs_f64(uptime - stat()?.start_ticks / TICKS_PER_SECOND).ok()
}

/// A size in `/proc/self/status`.
fn status_bytes(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_of_this_process_are_plausible() {
        let mut page = MetricsText::default();
        ProcessMetrics::new("node", "cpu", CertificateExpiries::default()).write(&mut page);
        let text = page.into_string();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse::<f64>().ok())
                .unwrap_or_else(|| panic!("{name} is not in {text}"))
        };
        let build = "baton_build_info{version=\"";
        assert!(text.contains(build) && text.contains("\",role=\"node\",device=\"cpu\"} 1\n"), "{text}");
        let (resident, virtual_memory) =
            (value("process_resident_memory_bytes"), value("process_virtual_memory_bytes"));
        assert!(resident > 1e5 && virtual_memory >= resident, "{text}");
        assert!(value("process_open_fds") >= 3.0 && value("process_open_fds") <= value("process_max_fds"));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let age = now - value("process_start_time_seconds");
        assert!((-1.0..86_400.0).contains(&age), "{age}");
        assert!(value("process_cpu_seconds_total") >= 0.0);
    }
}
