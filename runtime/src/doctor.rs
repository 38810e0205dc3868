//! `runtime doctor`: checks what a start with the same flags needs, and names the remedies.
//!
//! Each check has two parts. One part collects facts and does all I/O. The other part is a pure function from facts to [`Finding`]s. A check uses
//! the same code as a start: it binds the same ports, reads the same headers, loads the same library, and shakes hands with the same peers.
//!
//! All checks run at the same time, each on its own thread. A check that has not ended within 14 s is a fault, so the command ends even if
//! a driver or a file system hangs. Nothing is changed on the machine: ports are released at once, and no session with a peer is opened.

mod awaited;
mod certificates;
mod fleet;
mod gpu;
mod machine;
mod memory;
mod model;
mod network;
mod peers;
mod port_holder;
mod report;
mod transport;

use std::fmt::Display;
use std::io::{IsTerminal, Write as _, stdout};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use engine::{CudaError, GpuSurvey, InspectedModel, OpenError};

use crate::config::{Config, DeviceSetting, Role};
use crate::hub;
use crate::roles::plan;
use awaited::Awaited;

pub use report::{CheckState, Finding, table};

/// Time limit of all checks together.
const LIMIT: Duration = Duration::from_secs(14);

/// Time that is left for the report when processes that a check has started are ended.
const SPARE: Duration = Duration::from_secs(1);

/// Time for which a check waits for the headers of the model or for the GPU driver.
const FACTS_WITHIN: Duration = Duration::from_secs(8);

/// The headers of the model, or why they cannot be used.
type ModelFact = Arc<Result<InspectedModel, OpenError>>;

/// The answer of the GPU driver. `None`: this build has no CUDA.
type GpuFact = Arc<Result<Option<GpuSurvey>, CudaError>>;

/// The fingerprint of the model; `Err` has the sentence of the error.
type FingerprintFact = Result<[u8; 32], Arc<OpenError>>;

/// What the checks look at: the configuration, and facts that several checks need.
struct Subject {
    config: Config,
    /// Why the model's name stands for no model in the cache.
    not_cached: Option<String>,
    /// When processes that a check has started are ended.
    deadline: Instant,
    model: Awaited<ModelFact>,
    fingerprint: Awaited<FingerprintFact>,
    gpus: Awaited<GpuFact>,
}

impl Subject {
    /// The headers of the model, if they can be used.
    fn model(&self) -> Option<ModelFact> {
        self.model.within(FACTS_WITHIN).filter(|model| model.is_ok())
    }

    /// The fingerprint of the model; `None` if it is not known within `limit`, or never.
    fn fingerprint(&self, limit: Duration) -> Option<FingerprintFact> {
        let has_model = self.config.role != Role::Proxy && self.model().is_some();
        if has_model { self.fingerprint.within(limit) } else { None }
    }

    /// Reads the headers of the model, and then all of it if a check needs the fingerprint.
    fn read_model(&self) {
        let model = Arc::new(InspectedModel::open(&plan::engine(&self.config)));
        self.model.set(Arc::clone(&model));
        if let Ok(inspected) = model.as_ref()
            && model::needs_fingerprint(&self.config, inspected)
        {
            self.fingerprint.set(inspected.fingerprint().map_err(Arc::new));
        }
    }
}

/// One check: what it is called if it hangs, what to do then, and how it is made.
struct Checkup {
    name: &'static str,
    if_stuck: &'static str,
    run: fn(&Subject) -> Vec<Finding>,
}

/// All checks, in the order of the report.
const CHECKS: &[Checkup] = &[
    Checkup { name: "build", if_stuck: "report this as a bug", run: build },
    Checkup {
        name: "gpu",
        if_stuck: "see if nvidia-smi answers; if it hangs, read dmesg and restart the machine",
        run: gpu::check,
    },
    Checkup { name: "namespaces", if_stuck: "see if /proc is mounted", run: machine::namespaces },
    Checkup {
        name: "model",
        if_stuck: "see if the file system of the model answers (ls, dmesg)",
        run: model::files,
    },
    Checkup {
        name: "checksum",
        if_stuck: "see if the file system of the model answers (ls, dmesg)",
        run: model::checksum,
    },
    Checkup {
        name: "tokenizer",
        if_stuck: "see if the file system of the model answers (ls, dmesg)",
        run: model::text,
    },
    Checkup { name: "hf token", if_stuck: "report this as a bug", run: model::hugging_face },
    Checkup { name: "memory", if_stuck: "see if /proc and /sys are mounted", run: memory::check },
    Checkup {
        name: "disk",
        if_stuck: "see if the file system of the cache folder answers (df)",
        run: machine::disk,
    },
    Checkup { name: "clock", if_stuck: "report this as a bug", run: machine::clock },
    Checkup { name: "open files", if_stuck: "report this as a bug", run: machine::open_files },
    Checkup { name: "locked memory", if_stuck: "see if /sys is mounted", run: machine::locked_memory },
    Checkup { name: "loopback", if_stuck: "run `ip link set lo up`", run: network::loopback },
    Checkup { name: "ports", if_stuck: "see if the names of the hosts resolve", run: network::ports },
    Checkup {
        name: "certificates",
        if_stuck: "see if the file system of the certificates answers (ls, dmesg)",
        run: certificates::check,
    },
    Checkup {
        name: "ucx",
        if_stuck: "see if the file system of the library answers",
        run: transport::library,
    },
    Checkup { name: "network device", if_stuck: "see if /sys is mounted", run: transport::devices },
    Checkup {
        name: "put",
        if_stuck: "run `runtime bench transfer --cycles 1` to see where it hangs",
        run: transport::put,
    },
    Checkup {
        name: "peers",
        if_stuck: "see if the names of the peers resolve, and if a firewall drops packets",
        run: peers::check,
    },
    Checkup {
        name: "fleet",
        if_stuck: "see if the names of etcd and of the nodes resolve, and if a firewall drops packets",
        run: fleet::check,
    },
];

/// Checks a start with this configuration, and prints the report, as JSON if `json`. The exit code is 1 if there is a fault.
pub fn run(config: Config, json: bool) -> ExitCode {
    let findings = examine(config);
    let text = match json {
        true => serde_json::to_string_pretty(&findings).expect("findings are plain text") + "\n",
        false => table(&findings, stdout().is_terminal()),
    };
    // A reader such as `head` may have closed the pipe. The exit code still tells the result.
    let _ = stdout().write_all(text.as_bytes());
    let worst = findings.iter().map(|finding| finding.state).max();
    if worst == Some(CheckState::Fault) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Makes all checks at the same time. Returns their findings in the order of the report.
pub fn examine(config: Config) -> Vec<Finding> {
    let deadline = Instant::now() + LIMIT;
    let (config, not_cached) = localized(config, FACTS_WITHIN, hub::localize_cached);
    let subject = Arc::new(Subject {
        config,
        not_cached,
        deadline: deadline - SPARE,
        model: Awaited::new(),
        fingerprint: Awaited::new(),
        gpus: Awaited::new(),
    });
    let (told, found) = mpsc::channel();
    // Threads that hang are left behind. They end with the process.
    let on_thread = |work: Box<dyn FnOnce(&Subject) + Send>| {
        let subject = Arc::clone(&subject);
        thread::spawn(move || work(&subject));
    };
    if subject.config.role != Role::Proxy {
        on_thread(Box::new(Subject::read_model));
    }
    on_thread(Box::new(|subject| {
        let opens = subject.config.engine.device == DeviceSetting::Cuda && subject.config.role != Role::Proxy;
        subject.gpus.set(Arc::new(engine::gpu_survey(opens)));
    }));
    for (place, checkup) in CHECKS.iter().enumerate() {
        let told = told.clone();
        on_thread(Box::new(move |subject| {
            // Fails after the time limit.
            let _ = told.send((place, (checkup.run)(subject)));
        }));
    }
    let mut all: Vec<Option<Vec<Finding>>> = CHECKS.iter().map(|_| None).collect();
    while all.iter().any(Option::is_none) {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok((place, findings)) = found.recv_timeout(left) else { break };
        all[place] = Some(findings);
    }
    let stuck = |checkup: &Checkup| {
        let what = format!("this check did not end within {} s", LIMIT.as_secs());
        vec![Finding::fault(checkup.name, what, checkup.if_stuck)]
    };
    all.into_iter().zip(CHECKS).flat_map(|(found, checkup)| found.unwrap_or_else(|| stuck(checkup))).collect()
}

/// The configuration with the files in the cache that the model's name stands for, or why there are none. A file system that hangs costs `limit`.
fn localized<E: Display + Send + 'static>(
    config: Config,
    limit: Duration,
    look: impl FnOnce(&Config) -> Result<Config, E> + Send + 'static,
) -> (Config, Option<String>) {
    let (told, found) = mpsc::channel();
    let asked = config.clone();
    // A thread that hangs is left behind. It ends with the process.
    thread::spawn(move || {
        // Fails after the time limit.
        let _ = told.send(look(&asked));
    });
    match found.recv_timeout(limit) {
        Ok(Ok(localized)) => (localized, None),
        Ok(Err(error)) => (config, Some(error.to_string())),
        Err(_) => {
            let reason =
                format!("the folder of downloaded models did not answer within {} s", limit.as_secs());
            (config, Some(reason))
        }
    }
}

/// The version of this build, and the role that is checked.
fn build(subject: &Subject) -> Vec<Finding> {
    let cuda = if cfg!(feature = "cuda") { "with CUDA" } else { "without CUDA" };
    let versions = connector::frame::Versions::OURS;
    let (version, role) = (env!("CARGO_PKG_VERSION"), subject.config.role);
    vec![Finding::ok(
        "build",
        format!("runtime {version} {cuda}, link protocol {versions}, checked for role {role}"),
    )]
}

#[cfg(test)]
mod tests;
