//! The CPU time of this program's processes and of the whole machine.

use std::time::Instant;

use anyhow::{Context, Result};

/// USER_HZ is 100 on every Linux that Rust supports.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time until one moment, in seconds.
pub(crate) struct Cpu {
    at: Instant,
    /// All programs of the machine.
    machine: f64,
    /// The processes of this PID namespace that have not ended.
    own: f64,
}

impl Cpu {
    /// Reads the counters.
    pub(crate) fn now() -> Result<Self> {
        Ok(Self {
            at: Instant::now(),
            machine: machine()? / TICKS_PER_SECOND,
            own: own()? / TICKS_PER_SECOND,
        })
    }

    /// The average number of cores since `earlier`: of this program's processes, and of other programs. Processes that have ended count as other programs.
    pub(crate) fn since(&self, earlier: &Self) -> (f64, f64) {
        let seconds = (self.at - earlier.at).as_secs_f64();
        let (machine, own) = (self.machine - earlier.machine, self.own - earlier.own);
        (own / seconds, (machine - own).max(0.0) / seconds)
    }
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal.
fn machine() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line =
        stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("/proc/stat has no cpu")?;
    let ticks: Vec<f64> = line.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>()?;
    let idle = ticks.iter().skip(3).take(2).sum::<f64>();
    Ok(ticks.iter().sum::<f64>() - idle)
}

fn own() -> Result<f64> {
    let mut ticks = 0.0;
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let is_process = path.file_name().is_some_and(|name| name.to_string_lossy().parse::<u32>().is_ok());
        // A process may end meanwhile.
        let Some(stat) = is_process.then(|| std::fs::read_to_string(path.join("stat")).ok()).flatten() else {
            continue;
        };
        let fields = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').skip(11).take(2));
        ticks += fields.into_iter().flatten().filter_map(|field| field.parse::<f64>().ok()).sum::<f64>();
    }
    Ok(ticks)
}
