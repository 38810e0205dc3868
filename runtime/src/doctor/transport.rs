//! Checks of the transport: the UCX library and its settings, the network devices, and a measured put between two processes.

use std::fs;
use std::io::Read;
use std::net::{IpAddr, ToSocketAddrs};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::report::{Finding, bytes_text};
use super::{FACTS_WITHIN, Subject};
use crate::bench::PutMeasurement;
use crate::config::{Config, DeviceSetting, Role, Surroundings};
use crate::roles::joining::is_of_machine;
use crate::roles::plan;

/// Time between two looks at the processes of the measurement.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Whether a process of this role exchanges pages with peers.
pub(super) fn has_lanes(role: Role) -> bool {
    role.accepts_peers() || role.dials_peers()
}

/// Whether a list of transports names one that uses RDMA.
pub(super) fn names_rdma(tls: &str) -> bool {
    let is_rdma = |name: &str| {
        ["rc", "ud", "dc", "srd", "gga"].iter().any(|kind| name.starts_with(kind))
            || ["ib", "all"].contains(&name)
    };
    tls.split(',').any(|name| is_rdma(name.trim()))
}

/// The UCX library, and the variables that UCX reads.
pub(super) fn library(subject: &Subject) -> Vec<Finding> {
    let config = &subject.config;
    if !has_lanes(config.role) {
        return Vec::new();
    }
    let is_on_gpu = config.engine.device == DeviceSetting::Cuda;
    let loaded = connector::ucx::load(&plan::ucx(config, is_on_gpu));
    let mut findings = vec![match loaded {
        Ok(ucx) => Finding::ok("ucx", format!("UCX {} in {}", ucx.version(), ucx.path().display())),
        Err(error) => {
            let remedy = "set transport.ucx_library to libucp.so.0 of UCX 1.21 or newer";
            Finding::from_error("ucx", &error.to_string(), remedy)
        }
    }];
    let variable = |name: &str| config.surroundings.ucx_variable(name);
    findings.extend(judge_variables(
        variable("UCX_TLS").as_deref(),
        (variable("UCX_RNDV_THRESH").is_some(), variable("UCX_PROTO_EMULATION_ENABLE").is_some()),
        is_on_gpu,
    ));
    findings
}

/// Judges the variables of the operator: `UCX_TLS`, and whether the two that belong together are set.
pub(super) fn judge_variables(tls: Option<&str>, pair: (bool, bool), is_on_gpu: bool) -> Vec<Finding> {
    const CHECK: &str = "ucx settings";
    let mut findings = Vec::new();
    if let Some(tls) = tls.filter(|tls| is_on_gpu && !tls.contains("cuda") && *tls != "all") {
        let what = format!("UCX_TLS is {tls}, which has no transport for GPU memory");
        findings.push(Finding::fault(CHECK, what, "unset UCX_TLS, or add cuda_ipc and cuda_copy to it"));
    }
    if pair.0 != pair.1 {
        let what =
            "only one of UCX_RNDV_THRESH and UCX_PROTO_EMULATION_ENABLE is set, and they belong together";
        findings.push(Finding::warning(CHECK, what, "set both or neither (docs/configuration.md)"));
    }
    findings
}

/// The network devices that UCX uses, and whether peers are on other hosts.
#[derive(Clone, Debug, Default)]
pub(super) struct DeviceFacts {
    /// `UCX_NET_DEVICES`; `None` for the default, `lo`.
    pub(super) chosen: Option<String>,
    /// The devices of this machine, and whether each is up.
    pub(super) present: Vec<(String, bool)>,
    /// A peer with an address of another host, or the address of the link port if other hosts can reach it.
    pub(super) elsewhere: Option<String>,
}

pub(super) fn devices(subject: &Subject) -> Vec<Finding> {
    let config = &subject.config;
    if !has_lanes(config.role) {
        return Vec::new();
    }
    vec![judge_devices(&DeviceFacts {
        chosen: config.surroundings.ucx_variable("UCX_NET_DEVICES"),
        present: present_devices(),
        elsewhere: elsewhere(config),
    })]
}

/// The devices of `/sys/class/net` and `/sys/class/infiniband`, and whether each is up. The state of `lo` is never `up`.
fn present_devices() -> Vec<(String, bool)> {
    let names = |folder: &str| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let is_up = |name: &str| {
        let state = fs::read_to_string(format!("/sys/class/net/{name}/operstate")).unwrap_or_default();
        !matches!(state.trim(), "down" | "lowerlayerdown")
    };
    let net = names("/sys/class/net").into_iter().map(|name| (is_up(&name), name));
    let rdma = names("/sys/class/infiniband").into_iter().map(|name| (true, name));
    net.chain(rdma).map(|(is_up, name)| (name, is_up)).collect()
}

/// A peer on another host, if the configuration names one.
fn elsewhere(config: &Config) -> Option<String> {
    let is_elsewhere = |address: IpAddr| !address.is_loopback() && !is_of_machine(address);
    let peers = config.link.peers.iter().filter(|_| config.role.dials_peers());
    let mut remote = peers.filter(|peer| {
        peer.to_socket_addrs().is_ok_and(|mut addresses| addresses.any(|address| is_elsewhere(address.ip())))
    });
    let link = || {
        let is_public = config.link.host.parse::<IpAddr>().is_ok_and(|host| !host.is_loopback());
        (config.role.accepts_peers() && is_public).then(|| format!("link.host {}", config.link.host))
    };
    remote.next().cloned().or_else(link)
}

pub(super) fn judge_devices(facts: &DeviceFacts) -> Finding {
    const CHECK: &str = "network device";
    let DeviceFacts { chosen, present, elsewhere } = facts;
    let names: Vec<&str> = present.iter().map(|(name, _)| name.as_str()).collect();
    let devices = names.join(", ");
    let Some(chosen) = chosen else {
        return match elsewhere {
            Some(place) => Finding::fault(
                CHECK,
                format!("UCX uses lo only, which does not reach other hosts ({place})"),
                format!("set UCX_NET_DEVICES on both hosts to the device between them ({devices})"),
            ),
            None => Finding::ok(CHECK, "lo, which reaches the processes of this host"),
        };
    };
    for wanted in chosen.split(',').map(str::trim).filter(|name| *name != "all") {
        // RDMA devices have a port: `mlx5_0:1`.
        let name = wanted.split(':').next().unwrap_or(wanted);
        match present.iter().find(|(known, _)| known == name) {
            None => {
                let what = format!("UCX_NET_DEVICES names {wanted}, which this machine does not have");
                return Finding::fault(CHECK, what, format!("set UCX_NET_DEVICES to one of {devices}"));
            }
            Some((_, false)) => {
                let what = format!("UCX_NET_DEVICES names {wanted}, which is down");
                return Finding::fault(
                    CHECK,
                    what,
                    format!("run `ip link set {name} up`, or choose another one of {devices}"),
                );
            }
            Some((_, true)) => {}
        }
    }
    Finding::ok(CHECK, format!("{chosen} (UCX_NET_DEVICES)"))
}

/// A measured put, and what is expected of it.
#[derive(Clone, Debug)]
pub(super) struct PutFacts {
    /// The measurement; `Err` has the error of the processes.
    pub(super) measured: Result<PutMeasurement, String>,
    /// `transport.min_gigabytes_per_second`.
    pub(super) least: f64,
    /// The GPUs of receiver and sender, as in `CUDA_VISIBLE_DEVICES`; `None` on the CPU.
    pub(super) gpus: Option<(String, String)>,
}

/// Measures a put between two processes of this machine.
pub(super) fn put(subject: &Subject) -> Vec<Finding> {
    let config = &subject.config;
    if !has_lanes(config.role) {
        return Vec::new();
    }
    let gpus = match config.engine.device {
        DeviceSetting::Cpu => None,
        DeviceSetting::Cuda => {
            let survey = subject.gpus.within(FACTS_WITHIN);
            let count = survey.and_then(|survey| Some(survey.as_ref().as_ref().ok()?.as_ref()?.gpus.len()));
            // Without a GPU, the check `gpu` is a fault.
            let Some(count @ 1..) = count else { return Vec::new() };
            Some(gpu_pair(Surroundings::visible_gpus().as_deref(), count))
        }
    };
    let measured = measure(config, gpus.as_ref(), subject.deadline);
    vec![judge_put(&PutFacts { measured, least: plan::min_gigabytes_per_second(config), gpus })]
}

/// The first two of the visible GPUs, or the only one twice.
fn gpu_pair(visible: Option<&str>, count: usize) -> (String, String) {
    let named: Vec<String> = match visible {
        Some(visible) => visible.split(',').map(|name| name.trim().to_owned()).collect(),
        None => (0..count).map(|ordinal| ordinal.to_string()).collect(),
    };
    let first = named.first().cloned().unwrap_or_else(|| "0".to_owned());
    let second = named.into_iter().take(count).nth(1).unwrap_or_else(|| first.clone());
    (first, second)
}

/// Runs `bench transfer` in a process of its own, because UCX can end the process that it runs in.
fn measure(
    config: &Config,
    gpus: Option<&(String, String)>,
    deadline: Instant,
) -> Result<PutMeasurement, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.args(["bench", "transfer", "--once", "--rounds", "5", "--pages", "32"]);
    let mut set = |key: &str, value: String| {
        command.args(["--set", &format!("{key}={value}")]);
    };
    set("transport.page_hash", config.transport.page_hash.to_string());
    set("engine.device", if gpus.is_some() { "cuda" } else { "cpu" }.to_owned());
    if let Some(library) = &config.transport.ucx_library {
        set("transport.ucx_library", library.display().to_string());
    }
    if let Some((receiver, sender)) = gpus {
        command.env("CUDA_VISIBLE_DEVICES", receiver).args(["--sender-gpu", sender]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Its sender belongs to the group too.
    command.process_group(0);
    let mut process = command.spawn().map_err(|error| error.to_string())?;
    let (out, errors) = (collect(process.stdout.take()), collect(process.stderr.take()));
    let status = wait(&mut process, deadline)?;
    let (out, errors) = (out.join().unwrap_or_default(), errors.join().unwrap_or_default());
    let result = out.lines().last().and_then(|line| serde_json::from_str(line).ok());
    result.ok_or_else(|| {
        let last = errors.lines().last().unwrap_or_default().trim_start_matches("error: ");
        if last.is_empty() {
            format!("the process of the measurement ended: {status}")
        } else {
            last.to_owned()
        }
    })
}

/// Reads all of a stream on its own thread.
fn collect(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.map(|mut stream| stream.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Waits for the end of the process, and kills its group at the deadline.
fn wait(process: &mut Child, deadline: Instant) -> Result<std::process::ExitStatus, String> {
    loop {
        if let Some(status) = process.try_wait().map_err(|error| error.to_string())? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            // The process has not been waited for, so no other group has its number.
            let _ = kill_process_group(Pid::from_child(process), Signal::KILL);
            let _ = process.wait();
            return Err("the processes of the measurement did not end in time".to_owned());
        }
        thread::sleep(LOOK_EVERY);
    }
}

pub(super) fn judge_put(facts: &PutFacts) -> Finding {
    const CHECK: &str = "put";
    let PutFacts { measured, least, gpus } = facts;
    let between = match gpus {
        None => "between two processes".to_owned(),
        Some((one, two)) if one == two => format!("between two processes on GPU {one}, the only visible one"),
        Some((one, two)) => format!("from GPU {two} to GPU {one}"),
    };
    let PutMeasurement { lane, bytes, gigabytes_per_second: speed } = match measured {
        Ok(measured) => measured,
        Err(error) => {
            let remedy =
                "run `runtime bench transfer --cycles 1` with the same UCX_* variables, and read its errors";
            return Finding::from_error(CHECK, &format!("no put {between}: {error}"), remedy);
        }
    };
    let what = format!("{speed:.2} GB/s {between} over {lane} ({} a put)", bytes_text(*bytes));
    if gpus.is_some() && !lane.contains("cuda_ipc") {
        let remedy = "unset UCX_TLS and UCX_NET_DEVICES, run both processes in one PID and IPC namespace, and see the check of the GPU links";
        return Finding::fault(CHECK, format!("{what}, not directly between the GPUs (cuda_ipc)"), remedy);
    }
    if speed < least {
        let what =
            format!("{what}, below transport.min_gigabytes_per_second = {least}: senders refuse this lane");
        let remedy = "end other processes that use the link, or lower transport.min_gigabytes_per_second if the lane is meant to be slow";
        return Finding::fault(CHECK, what, remedy);
    }
    Finding::ok(CHECK, what)
}

#[cfg(test)]
mod tests {
    use std::io::BufRead as _;

    use super::*;

    #[test]
    fn a_measurement_that_hangs_leaves_no_process_behind() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & echo $!; wait"]).stdout(Stdio::piped()).process_group(0);
        let mut process = command.spawn().unwrap();
        let mut child = String::new();
        std::io::BufReader::new(process.stdout.take().unwrap()).read_line(&mut child).unwrap();
        let stat = std::path::PathBuf::from(format!("/proc/{}/stat", child.trim()));
        assert!(stat.exists());
        let error = wait(&mut process, Instant::now()).unwrap_err();
        assert!(error.contains("did not end in time"), "{error}");
        // A process that nothing waits for may stay as a zombie.
        let has_ended =
            || fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z ") || stat.contains(") X "));
        let deadline = Instant::now() + std::time::Duration::from_secs(60);
        while !has_ended() {
            assert!(Instant::now() < deadline, "the sender is left behind");
            thread::yield_now();
        }
    }

    #[test]
    fn the_first_two_visible_gpus_are_measured() {
        let check = |visible, count, one: &str, two: &str| {
            assert_eq!(gpu_pair(visible, count), (one.to_owned(), two.to_owned()));
        };
        check(None, 8, "0", "1");
        check(None, 1, "0", "0");
        check(Some("3"), 1, "3", "3");
        check(Some("5, 2,7"), 3, "5", "2");
    }

    #[test]
    fn rdma_is_recognised_in_a_list_of_transports() {
        for (tls, expect) in
            [("tcp", false), ("cuda_ipc,tcp", false), ("rc,tcp", true), ("tcp,dc_x", true), ("all", true)]
        {
            assert_eq!(names_rdma(tls), expect, "{tls}");
        }
    }
}
