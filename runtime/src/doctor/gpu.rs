//! Checks of the GPUs: driver, compute capability, memory, and the links between them.

use engine::{CudaError, GpuFacts, GpuPair, GpuRoom, GpuSurvey, KERNELS_FOR};

use super::report::{Finding, bytes_text};
use super::{FACTS_WITHIN, Subject, transport};
use crate::config::{DeviceSetting, Role};

/// The version of CUDA that the driver must support.
const DRIVER: (i32, i32) = (13, 0);
/// Device memory beside weights and pages: activations and the libraries of CUDA.
const OTHERS: u64 = 2 << 30;

/// What a start wants from GPUs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct GpuWish {
    /// `engine.device` is `cuda`.
    pub(super) is_wanted: bool,
    /// Pages travel between GPUs.
    pub(super) has_lanes: bool,
    /// Bytes of the weights; `None` if the model cannot be read.
    pub(super) weights: Option<u64>,
    /// `engine.kv_bytes`; 0 for all that remains of the share.
    pub(super) kv_bytes: u64,
    /// `engine.gpu_memory_utilization`.
    pub(super) share: f32,
}

/// The answer of the driver, as the judgement needs it.
type Survey<'a> = Result<Option<&'a GpuSurvey>, &'a CudaError>;

pub(super) fn check(subject: &Subject) -> Vec<Finding> {
    let config = &subject.config;
    if config.role == Role::Proxy {
        return Vec::new();
    }
    let is_wanted = config.engine.device == DeviceSetting::Cuda;
    let Some(survey) = subject.gpus.within(FACTS_WITHIN) else {
        let what = format!("the GPU driver did not answer within {} s", FACTS_WITHIN.as_secs());
        let remedy = "see if nvidia-smi answers; if it hangs, read dmesg and restart the machine";
        let finding = if is_wanted { Finding::fault } else { Finding::warning };
        return vec![finding("gpu", what, remedy)];
    };
    let model = if is_wanted { subject.model() } else { None };
    let weights = model.and_then(|model| model.as_ref().as_ref().ok().map(|model| model.gpu_bytes()));
    let wish = GpuWish {
        is_wanted,
        has_lanes: transport::has_lanes(config.role),
        weights,
        kv_bytes: config.engine.kv_bytes.map_or(0, |bytes| bytes.0),
        share: config.engine.gpu_memory_utilization,
    };
    judge(survey.as_ref().as_ref().map(Option::as_ref), wish)
}

/// Judges the GPUs. The first one computes.
pub(super) fn judge(survey: Survey<'_>, wish: GpuWish) -> Vec<Finding> {
    let survey = match (survey, wish.is_wanted) {
        (Ok(Some(survey)), _) => survey,
        (_, false) => return vec![Finding::ok("gpu", "not used: engine.device is cpu")],
        (Ok(None), true) => {
            let what = "engine.device is cuda, but this build has no CUDA";
            return vec![Finding::fault(
                "gpu",
                what,
                "build with `cargo xtask cuda`, or set engine.device=cpu",
            )];
        }
        (Err(error), true) => {
            let remedy = "install NVIDIA's driver for CUDA 13 (in a container: --gpus all and NVIDIA's container toolkit), or set \
                          engine.device=cpu";
            return vec![Finding::fault("gpu", error.to_string(), remedy)];
        }
    };
    let listed = listed(survey);
    if !wish.is_wanted {
        let (major, minor) = KERNELS_FOR;
        let is_usable = survey.gpus.first().is_none_or(|gpu| gpu.capability == KERNELS_FOR);
        let why = if is_usable {
            "engine.device is cpu".to_owned()
        } else {
            format!("the kernels need compute capability {major}.{minor} (H100, H200)")
        };
        return vec![Finding::ok("gpu", format!("not used, because {why}: {listed}"))];
    }
    let (major, minor) = survey.driver;
    if survey.driver < DRIVER {
        let what =
            format!("the driver supports CUDA {major}.{minor}, and the kernels need CUDA 13.0 ({listed})");
        return vec![Finding::fault("gpu", what, "install driver 580 or newer")];
    }
    let Some(first) = survey.gpus.first() else {
        let what = format!("the driver for CUDA {major}.{minor} shows no GPU to this process");
        let remedy =
            "set CUDA_VISIBLE_DEVICES to a GPU of this machine, or unset it (nvidia-smi -L lists them)";
        return vec![Finding::fault("gpu", what, remedy)];
    };
    let mut findings = vec![judge_first(first, &format!("driver for CUDA {major}.{minor}, {listed}"))];
    if let Some(error) = &survey.open_error {
        let remedy = "add the folder of CUDA 13's libraries to LD_LIBRARY_PATH, and see if nvidia-smi reports an error";
        findings.push(Finding::from_error("gpu library", &error.to_string(), remedy));
    }
    findings.extend(judge_memory(first, wish));
    if wish.has_lanes {
        findings.push(judge_links(survey));
    }
    findings
}

/// All GPUs in words: `2 × NVIDIA H200 (143.2 GB)`.
fn listed(survey: &GpuSurvey) -> String {
    let mut kinds: Vec<(String, usize)> = Vec::new();
    for gpu in &survey.gpus {
        let kind = format!("{} ({})", gpu.name, bytes_text(gpu.total_bytes));
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => kinds.push((kind, 1)),
        }
    }
    let words: Vec<String> = kinds.into_iter().map(|(kind, count)| format!("{count} × {kind}")).collect();
    if words.is_empty() { "no GPU".to_owned() } else { words.join(", ") }
}

/// Whether the kernels run on the GPU that computes.
fn judge_first(gpu: &GpuFacts, listed: &str) -> Finding {
    let (major, minor) = gpu.capability;
    let what = format!("{listed}, compute capability {major}.{minor}");
    if gpu.capability != KERNELS_FOR {
        let (needed, rest) = KERNELS_FOR;
        let remedy = format!(
            "choose a GPU with compute capability {needed}.{rest} (H100, H200) by CUDA_VISIBLE_DEVICES, or set engine.device=cpu"
        );
        return Finding::fault(
            "gpu",
            format!("{what}, and the kernels are compiled for {needed}.{rest}"),
            remedy,
        );
    }
    if gpu.is_exclusive {
        let what = format!("{what}; its compute mode does not let a second process use it");
        return Finding::warning(
            "gpu",
            what,
            "run `nvidia-smi --compute-mode=DEFAULT` if processes share the GPU",
        );
    }
    if gpu.name.contains("MIG") {
        let what = format!("{what}; it is a part of a GPU (MIG), and CUDA IPC does not work between parts");
        return Finding::warning("gpu", what, "use whole GPUs for processes that exchange pages");
    }
    Finding::ok("gpu", what)
}

/// Whether weights and pages fit into the GPU, by the rule of a start: `engine.kv_bytes` counts against the free memory, and without it the share does.
fn judge_memory(gpu: &GpuFacts, wish: GpuWish) -> Option<Finding> {
    const CHECK: &str = "gpu memory";
    let memory = GpuRoom { free_bytes: gpu.free_bytes?, total_bytes: gpu.total_bytes };
    let (pages, room) = memory.kv_room(wish.kv_bytes, wish.share, 0);
    let wanted = wish.weights?.saturating_add(OTHERS).saturating_add(wish.kv_bytes);
    let (free, total) = (bytes_text(memory.free_bytes), bytes_text(memory.total_bytes));
    let of = match wish.kv_bytes {
        0 => format!(
            "{} are left of {total} (engine.gpu_memory_utilization {:.2}, {free} free)",
            bytes_text(room),
            wish.share
        ),
        _ => format!("{free} of {total} are free (engine.kv_bytes is {})", bytes_text(pages)),
    };
    let what = format!("a start takes at least {}, and {of}", bytes_text(wanted));
    if wanted > room {
        let remedy = "end other processes on the GPU (nvidia-smi lists them), choose another one by CUDA_VISIBLE_DEVICES, or lower \
                      engine.kv_bytes";
        return Some(Finding::fault(CHECK, what, remedy));
    }
    Some(Finding::ok(CHECK, what))
}

/// The links between the GPUs that this process sees.
fn judge_links(survey: &GpuSurvey) -> Finding {
    const CHECK: &str = "gpu links";
    let pair = |pair: &GpuPair| format!("{} → {}", pair.from, pair.to);
    let without: Vec<String> = survey.pairs.iter().filter(|pair| !pair.has_access).map(pair).collect();
    if !without.is_empty() {
        let what =
            format!("no peer access between GPUs {}: pages go through host memory", without.join(", "));
        let remedy = "use GPUs with NVLink (nvidia-smi topo -m), or turn off ACS and IOMMU for PCIe; to accept it, lower \
                      transport.min_gigabytes_per_second";
        // This process computes on the first GPU. The others are those of its peers, which may use only some of them.
        let concerns_first =
            survey.pairs.iter().any(|pair| !pair.has_access && (pair.from == 0 || pair.to == 0));
        let finding = if concerns_first { Finding::fault } else { Finding::warning };
        return finding(CHECK, what, remedy);
    }
    if survey.pairs.is_empty() {
        return Finding::ok(CHECK, "only one GPU is visible, so links to others are not checked");
    }
    let slow: Vec<String> = survey.pairs.iter().filter(|pair| !pair.has_atomics).map(pair).collect();
    if slow.is_empty() {
        return Finding::ok(CHECK, "NVLink with peer access between all visible GPUs");
    }
    let what = format!("peer access, but PCIe instead of NVLink between GPUs {}", slow.join(", "));
    Finding::warning(CHECK, what, "choose GPUs with NVLink (nvidia-smi topo -m) by CUDA_VISIBLE_DEVICES")
}
