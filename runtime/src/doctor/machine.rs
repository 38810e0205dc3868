//! Checks of the machine: namespaces, disk, clock, open files, locked memory.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::statvfs;
use rustix::process::{Resource, getrlimit};

use super::report::{Finding, bytes_text};
use super::{Subject, transport};
use crate::config::{Config, DeviceSetting, Role};
use crate::roles::plan::{self, OpenFilePlan};
use crate::roles::proxying;

/// Numbers of the first PID and IPC namespace of a kernel (`PROC_PID_INIT_INO`, `PROC_IPC_INIT_INO`).
const FIRST_NAMESPACES: (u64, u64) = (0xEFFF_FFFC, 0xEFFF_FFFF);

/// The namespaces of this process: their numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct NamespaceFacts {
    pub(super) pid: Option<u64>,
    pub(super) ipc: Option<u64>,
    /// Peers exchange pages through CUDA IPC.
    pub(super) uses_cuda_ipc: bool,
}

pub(super) fn namespaces(subject: &Subject) -> Vec<Finding> {
    let number = |name: &str| fs::metadata(format!("/proc/self/ns/{name}")).map(|file| file.ino()).ok();
    let config = &subject.config;
    vec![judge_namespaces(NamespaceFacts {
        pid: number("pid"),
        ipc: number("ipc"),
        uses_cuda_ipc: config.engine.device == DeviceSetting::Cuda && transport::has_lanes(config.role),
    })]
}

pub(super) fn judge_namespaces(facts: NamespaceFacts) -> Finding {
    const CHECK: &str = "namespaces";
    let (Some(pid), Some(ipc)) = (facts.pid, facts.ipc) else {
        return Finding::warning(CHECK, "/proc/self/ns cannot be read", "mount /proc");
    };
    if (pid, ipc) == FIRST_NAMESPACES {
        return Finding::ok(CHECK, "PID and IPC namespace of the host");
    }
    let what = format!("this process has a PID or IPC namespace of its own (pid:[{pid}], ipc:[{ipc}])");
    if facts.uses_cuda_ipc {
        let remedy = "run both processes of a pair in one container or pod with a shared process namespace, or use the namespaces of the \
                      host (docker: --pid=host --ipc=host); CUDA IPC needs it";
        return Finding::warning(CHECK, what, remedy);
    }
    Finding::ok(CHECK, format!("{what}, which is no problem without CUDA IPC"))
}

/// The file system of the cache folder.
#[derive(Clone, Debug)]
pub(super) struct DiskFacts {
    pub(super) folder: PathBuf,
    pub(super) free: u64,
    pub(super) total: u64,
    /// The model is not there, so it has to be fetched.
    pub(super) wants_model: bool,
}

/// Below this, the disk counts as full.
const DISK_FULL: u64 = 100_000_000;
/// Below this, a model of a billion parameters in bf16 and its tokenizer do not fit.
const DISK_SMALL: u64 = 3_000_000_000;

pub(super) fn disk(subject: &Subject) -> Vec<Finding> {
    let Config { surroundings, model, .. } = &subject.config;
    let existing = |folder: &Path| folder.ancestors().find(|folder| folder.exists()).map(Path::to_owned);
    let Some(folder) = existing(&surroundings.cache) else { return Vec::new() };
    vec![match statvfs(&folder) {
        Ok(stat) => judge_disk(&DiskFacts {
            folder,
            free: stat.f_bavail * stat.f_frsize,
            total: stat.f_blocks * stat.f_frsize,
            wants_model: !model.exists(),
        }),
        Err(error) => Finding::warning(
            "disk",
            format!("the file system of {} cannot be asked: {error}", folder.display()),
            "set XDG_CACHE_HOME to a folder that can be read",
        ),
    }]
}

pub(super) fn judge_disk(facts: &DiskFacts) -> Finding {
    let DiskFacts { folder, free, total, wants_model } = facts;
    let place = format!(
        "{} free of {} in {} (cache folder)",
        bytes_text(*free),
        bytes_text(*total),
        folder.display()
    );
    let remedy = "delete files that are not needed, or set XDG_CACHE_HOME to a folder on a larger disk";
    match (*free, wants_model) {
        (..DISK_FULL, true) => {
            Finding::fault("disk", format!("{place}, and the model is still to be fetched"), remedy)
        }
        (..DISK_SMALL, _) => {
            Finding::warning("disk", format!("{place}, too little to fetch a model"), remedy)
        }
        _ => Finding::ok("disk", place),
    }
}

/// What the clock says.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClockFacts {
    /// Seconds since 1970.
    pub(super) seconds: u64,
    /// Whether systemd has synchronised it; `None` if systemd does not keep the time here.
    pub(super) is_synchronised: Option<bool>,
}

/// No build of this version existed before: 2026-01-01.
const EARLIEST: u64 = 1_767_225_600;
/// Certificates rarely live as long: 2100-01-01.
const LATEST: u64 = 4_102_444_800;

pub(super) fn clock(_: &Subject) -> Vec<Finding> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let systemd = Path::new("/run/systemd/timesync");
    let is_synchronised = systemd.exists().then(|| systemd.join("synchronized").exists());
    vec![judge_clock(ClockFacts { seconds, is_synchronised })]
}

pub(super) fn judge_clock(facts: ClockFacts) -> Finding {
    let remedy = "synchronise the clock (timedatectl set-ntp true, or chronyd)";
    let seconds = i64::try_from(facts.seconds).unwrap_or(i64::MAX);
    let now = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX).strftime("%F %T UTC");
    if !(EARLIEST..LATEST).contains(&facts.seconds) {
        let what =
            format!("the clock says {now}, so certificates are refused and the times in the log are wrong");
        return Finding::fault("clock", what, remedy);
    }
    match facts.is_synchronised {
        Some(true) => Finding::ok("clock", format!("{now}, synchronised")),
        Some(false) => Finding::warning("clock", format!("{now}, but it is not synchronised"), remedy),
        None => Finding::ok("clock", format!("{now}; whether it is synchronised is not known")),
    }
}

/// The limit of open files, and what it allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenFileFacts {
    /// The hard limit; a start raises the soft one to it.
    pub(super) limit: u64,
    pub(super) wanted: usize,
    pub(super) connections: usize,
    /// The limit that allows all connections.
    pub(super) needed: u64,
}

/// With fewer connections, a process is of no use.
const CONNECTIONS_MIN: usize = 16;

/// With fewer connections, a proxy is a bottleneck for a few nodes.
const PROXY_CONNECTIONS: usize = 1024;

pub(super) fn open_files(subject: &Subject) -> Vec<Finding> {
    let config = &subject.config;
    let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    vec![judge_open_files(if config.role == Role::Proxy {
        let wanted = PROXY_CONNECTIONS;
        let needed = proxying::FILES_PER_CLIENT
            * crate::open_files::needed(wanted, 1, crate::open_files::reserved(0, 0));
        OpenFileFacts { limit, wanted, connections: proxying::connections(limit), needed }
    } else {
        let ports = plan::ports(config.role, config);
        let http = ports.iter().filter(|port| matches!(port.key, "http.port" | "frontend.port")).count();
        let OpenFilePlan { wanted, connections, needed } = OpenFilePlan::new(config, limit, http);
        OpenFileFacts { limit, wanted, connections, needed }
    })]
}

pub(super) fn judge_open_files(facts: OpenFileFacts) -> Finding {
    const CHECK: &str = "open files";
    let OpenFileFacts { limit, wanted, connections, needed } = facts;
    let remedy = format!("raise the hard limit of open files to {needed} (ulimit -Hn, systemd: LimitNOFILE)");
    let what = |allows: &str| {
        format!("the hard limit of {limit} open files allows {allows} connections on each HTTP port")
    };
    if connections >= wanted {
        return Finding::ok(CHECK, what(&connections.to_string()));
    }
    let what = what(&format!("{connections} of {wanted}"));
    if connections < CONNECTIONS_MIN {
        return Finding::fault(CHECK, what, remedy);
    }
    Finding::warning(CHECK, what, remedy)
}

/// The limit of locked memory, and whether RDMA needs it.
#[derive(Clone, Debug)]
pub(super) struct LockedMemoryFacts {
    pub(super) rdma_devices: Vec<String>,
    /// UCX may use RDMA: `UCX_TLS` names it.
    pub(super) uses_rdma: bool,
    /// Bytes; `None` for no limit.
    pub(super) limit: Option<u64>,
    /// Bytes of the pages, which UCX registers.
    pub(super) pool_bytes: u64,
}

pub(super) fn locked_memory(subject: &Subject) -> Vec<Finding> {
    let config = &subject.config;
    if !transport::has_lanes(config.role) {
        return Vec::new();
    }
    let tls = config.surroundings.ucx_variable("UCX_TLS");
    let names = |folder: fs::ReadDir| {
        folder.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    vec![judge_locked_memory(&LockedMemoryFacts {
        rdma_devices: fs::read_dir("/sys/class/infiniband").map(names).unwrap_or_default(),
        uses_rdma: tls.is_some_and(|tls| transport::names_rdma(&tls)),
        limit: getrlimit(Resource::Memlock).current,
        pool_bytes: plan::engine(config).kv_bytes,
    })]
}

pub(super) fn judge_locked_memory(facts: &LockedMemoryFacts) -> Finding {
    const CHECK: &str = "locked memory";
    let LockedMemoryFacts { rdma_devices, uses_rdma, limit, pool_bytes } = facts;
    if !uses_rdma {
        return Finding::ok(CHECK, "no RDMA transport is in UCX_TLS, so no memory is locked");
    }
    if rdma_devices.is_empty() {
        let what = "UCX_TLS names an RDMA transport, but this machine has no RDMA device";
        return Finding::fault(
            CHECK,
            what,
            "unset UCX_TLS, or load the driver of the network card (ibv_devices lists its devices)",
        );
    }
    let devices = rdma_devices.join(", ");
    match limit {
        Some(limit) if limit < pool_bytes => Finding::fault(
            CHECK,
            format!(
                "RDMA locks the {} of KV pages, but the limit of locked memory is {}",
                bytes_text(*pool_bytes),
                bytes_text(*limit)
            ),
            "remove the limit (ulimit -l unlimited, systemd: LimitMEMLOCK=infinity, docker: --ulimit memlock=-1)",
        ),
        _ => Finding::ok(CHECK, format!("the limit is high enough for RDMA ({devices})")),
    }
}
