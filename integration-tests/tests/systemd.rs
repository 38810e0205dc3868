//! The unit `configs/systemd/baton@.service` fits the program: its command line, its times, and the reports that systemd gets.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use integration_tests::client::{get, post};
use integration_tests::deadline::STATE_WITHIN;
use integration_tests::process::{Process, binary};
use runtime::config::{Config, Role, Surroundings};
use runtime::service_manager::state::START_STEP;
use serde_json::Value;

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

fn unit() -> Result<String> {
    Ok(fs::read_to_string(configs().join("systemd/baton@.service"))?)
}

/// The values of a setting of the unit.
fn values<'a>(unit: &'a str, name: &str) -> Vec<&'a str> {
    unit.lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| value)
        .collect()
}

fn seconds(unit: &str, name: &str) -> Result<u64> {
    let [value] = values(unit, name)[..] else { bail!("the unit has no {name}") };
    Ok(value.parse()?)
}

/// The socket of a service manager.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    /// The reports that were received.
    reports: Vec<String>,
}

impl Manager {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("baton-notify-{name}-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path)?;
        socket.set_read_timeout(Some(STATE_WITHIN))?;
        Ok(Self { socket, path, reports: Vec::new() })
    }

    /// Receives reports until one begins with `report`, and returns it.
    fn wait(&mut self, report: &str) -> Result<String> {
        loop {
            let mut bytes = [0; 4096];
            let received = self.socket.recv(&mut bytes);
            let size = received.with_context(|| format!("no {report} after {:?}", self.reports))?;
            let lines: Vec<String> =
                String::from_utf8(bytes[..size].to_vec())?.lines().map(str::to_owned).collect();
            self.reports.extend(lines.iter().cloned());
            if let Some(found) = lines.into_iter().find(|line| line.starts_with(report)) {
                return Ok(found);
            }
        }
    }

    fn count(&self, report: &str) -> usize {
        self.reports.iter().filter(|line| *line == report).count()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Starts the command line of the unit for the instance `role`, on free ports, as systemd would.
fn start(role: &str, manager: &Manager, watchdog: Duration) -> Result<Process> {
    let unit = unit()?;
    let [line] = values(&unit, "ExecStart")[..] else { bail!("the unit has no ExecStart") };
    ensure!(values(&unit, "Environment").contains(&"ROLE=%i"), "the role is the name of the instance");
    let configs = configs().display().to_string();
    let line = line.replace("/etc/baton", &configs).replace("${ROLE}", role).replace("%i", role);
    let (program, arguments) = line.split_once(' ').context("ExecStart has no arguments")?;
    assert_eq!(program, "/opt/baton/bin/runtime");
    let mut command = Command::new(binary()?);
    command.args(arguments.split(' '));
    for port in ["http.port", "frontend.port", "link.port"] {
        command.args(["--set", &format!("{port}=0")]);
    }
    command.env("NOTIFY_SOCKET", &manager.path).env("WATCHDOG_USEC", watchdog.as_micros().to_string());
    command.env_remove("WATCHDOG_PID");
    Process::start_command(command)
}

#[test]
fn a_service_reports_its_start_its_progress_and_its_end() -> Result<()> {
    let mut manager = Manager::new("life")?;
    let mut service = start("receiver", &manager, Duration::from_secs(1))?;
    manager.wait("STATUS=loading the model")?;
    let more = format!("EXTEND_TIMEOUT_USEC={}", START_STEP.as_micros());
    assert!(manager.count(&more) >= 1, "{:?}", manager.reports);
    assert_eq!(manager.count("READY=1"), 0);
    manager.wait("READY=1")?;
    assert_eq!(
        get(&service.address("frontend.port")?, "/health")?.0,
        200,
        "READY means that /health answers 200"
    );
    for _ in 0..3 {
        manager.wait("WATCHDOG=1")?;
    }
    service.signal("-TERM")?;
    manager.wait("STOPPING=1")?;
    assert!(service.wait()?.success());
    assert_eq!((manager.count("READY=1"), manager.count("STOPPING=1")), (1, 1), "{:?}", manager.reports);
    let status = manager.reports.iter().find(|line| line.starts_with("STATUS=serving"));
    assert!(status.is_some_and(|line| line.ends_with("0 running, 0 waiting, 0 peers")), "{status:?}");
    Ok(())
}

/// After `STOPPING=1`, systemd kills a process that does not end. A process that `/admin/drain` has drained stays up.
#[test]
fn a_drain_by_http_is_no_end() -> Result<()> {
    let mut manager = Manager::new("drain")?;
    let mut service = start("receiver", &manager, Duration::from_secs(1))?;
    manager.wait("READY=1")?;
    post(&service.address("http.port")?, "/admin/drain", &Value::Null)?;
    manager.wait("STATUS=draining")?;
    manager.wait("WATCHDOG=1")?;
    assert_eq!(manager.count("STOPPING=1"), 0);
    service.signal("-TERM")?;
    manager.wait("STOPPING=1")?;
    assert!(service.wait()?.success());
    Ok(())
}

#[test]
fn the_times_of_the_unit_fit_the_defaults() -> Result<()> {
    let unit = unit()?;
    for role in [Role::Receiver, Role::Sender, Role::Node, Role::Local] {
        let config = Config::load(role, None, &[], Surroundings::from_variables([], 2))
            .expect("the defaults are valid");
        let end = config.shutdown.delay + config.shutdown.drain + Duration::from_secs(15);
        assert_eq!(seconds(&unit, "TimeoutStopSec")?, end.as_secs(), "{role}");
    }
    assert_eq!(
        seconds(&unit, "TimeoutStartSec")?,
        START_STEP.as_secs(),
        "each report of progress gives the same time"
    );
    assert!(
        seconds(&unit, "WatchdogSec")? >= 30,
        "a part may make no progress for 5 s, a step of an engine for longer"
    );
    assert_eq!(values(&unit, "RestartPreventExitStatus"), ["2"], "a wrong configuration stays wrong");
    Ok(())
}

/// These settings hide GPUs, or break CUDA or the transport between two services.
#[test]
fn the_hardening_leaves_gpus_and_shared_memory() -> Result<()> {
    let unit = unit()?;
    let names: BTreeSet<&str> =
        unit.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
    // ProtectClock implies DeviceAllow=char-rtc, which hides all other devices.
    let breaks = [
        "PrivateDevices",
        "DevicePolicy",
        "DeviceAllow",
        "ProtectClock",
        "PrivateIPC",
        "PrivateUsers",
        "PrivatePIDs",
    ];
    for name in breaks.iter().chain(&["MemoryDenyWriteExecute", "PrivateNetwork", "ProtectProc"]) {
        assert!(!names.contains(name), "{name}");
    }
    assert_eq!(values(&unit, "LimitMEMLOCK"), ["infinity"]);
    assert_eq!(values(&unit, "LimitCORE"), ["0"], "a core file would have prompts and secrets");
    Ok(())
}
