//! What a start needs: its ports, its engine, its transport and its open files. `runtime doctor` checks the same.

use connector::ucx::{self, UcxConfig};
use engine::{ComputeDevice, EngineConfig, KvCacheDtype, LoadFormat, Quantization};

use crate::config::{Config, DeviceSetting, LoadFormatSetting, Role};
use crate::frontend::Limits;
use crate::{kv_events, open_files};

/// Default of `engine.kv_bytes` on the CPU.
const KV_BYTES: u64 = 1 << 30;

/// Seed of random weights. All processes use the same seed, so that peers have the same model.
const DUMMY_SEED: u64 = 0;

/// A port that a process opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlannedPort<'a> {
    /// Its configuration key.
    pub(crate) key: &'static str,
    /// The address to bind.
    pub(crate) host: &'a str,
    /// The port; 0 lets the system choose one.
    pub(crate) port: u16,
}

/// The ports that a process of `role` opens.
pub(crate) fn ports(role: Role, config: &Config) -> Vec<PlannedPort<'_>> {
    let has_http = !matches!(role, Role::Local | Role::Proxy);
    let has_frontend = role == Role::Proxy || (role != Role::Sender && config.frontend.enabled);
    let has_events = role != Role::Proxy && config.kv_events.enabled;
    let (http, frontend, link, events) = (&config.http, &config.frontend, &config.link, &config.kv_events);
    [
        (has_http, "http.port", &http.host, http.port),
        (has_frontend, "frontend.port", &frontend.host, frontend.port),
        (role.accepts_peers(), "link.port", &link.host, link.port),
        (has_events, "kv_events.port", &events.host, events.port),
        (has_events, "kv_events.replay_port", &events.host, events.replay_port),
    ]
    .into_iter()
    .filter_map(|(is_open, key, host, port)| is_open.then_some(PlannedPort { key, host, port }))
    .collect()
}

/// The configuration of the engine.
pub(crate) fn engine(config: &Config) -> EngineConfig {
    EngineConfig {
        model: config.model.clone(),
        threads: config.engine.threads,
        kv_bytes: match (config.engine.kv_bytes, config.engine.device) {
            (Some(bytes), _) => bytes.0,
            (None, DeviceSetting::Cpu) => KV_BYTES,
            (None, DeviceSetting::Cuda) => 0,
        },
        page_tokens: config.engine.page_tokens,
        step_tokens: step_tokens(config),
        device: match config.engine.device {
            DeviceSetting::Cpu => ComputeDevice::Cpu,
            DeviceSetting::Cuda => {
                let memory_utilization = config.engine.gpu_memory_utilization;
                ComputeDevice::Cuda { ordinal: 0, memory_utilization }
            }
        },
        load_format: match config.engine.load_format {
            LoadFormatSetting::Auto => LoadFormat::Auto,
            LoadFormatSetting::Dummy => LoadFormat::Dummy { seed: DUMMY_SEED },
        },
        quantization: match config.engine.quantization.as_str() {
            "fp8_weights" => Quantization::Fp8Weights,
            "fp8" => Quantization::Fp8,
            _ => Quantization::None,
        },
        kv_dtype: match config.engine.kv_dtype.as_str() {
            "bf16" => KvCacheDtype::Bf16,
            "fp8" => KvCacheDtype::Fp8,
            _ => KvCacheDtype::Auto,
        },
        digests: config.digests_file(),
    }
}

/// Tokens of the largest step: one prefill chunk and one decode token of every other request.
fn step_tokens(config: &Config) -> u32 {
    config.prefill_chunk_tokens() + config.concurrency() as u32
}

/// Where UCX is, and its settings, for pages in host memory or on a device.
pub(crate) fn ucx(config: &Config, is_on_device: bool) -> UcxConfig {
    let unset = |(name, value): (&str, &str)| {
        config.surroundings.ucx_default(name, value).map(|value| (name.to_owned(), value))
    };
    UcxConfig {
        library: config.transport.ucx_library.clone(),
        search: config.ucx_search(),
        defaults: ucx::defaults(is_on_device).filter_map(unset).collect(),
        tls_of_operator: config.surroundings.ucx_variable("UCX_TLS"),
    }
}

/// `transport.min_gigabytes_per_second`, or the default of the device: a lane between GPUs that moves less than 5 GB/s is not a direct one.
pub(crate) fn min_gigabytes_per_second(config: &Config) -> f64 {
    let default = if config.engine.device == DeviceSetting::Cuda { 5.0 } else { 0.0 };
    config.transport.min_gigabytes_per_second.map_or(default, f64::from)
}

/// The open files of a process, and the connections of clients that they allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenFilePlan {
    /// Connections for each HTTP port that `request.concurrency` and `request.queue` need.
    pub(crate) wanted: usize,
    /// Connections for each HTTP port that the limit allows: more than `wanted` if many files may be open.
    pub(crate) connections: usize,
    /// The limit that allows the `wanted` ones.
    pub(crate) needed: u64,
}

impl OpenFilePlan {
    /// The plan of a process with this limit of open files and this many HTTP ports.
    pub(crate) fn new(config: &Config, open_files: u64, ports: usize) -> Self {
        let wanted = config.concurrency() + config.request.queue + Limits::SPARE;
        let subscribers = if config.kv_events.enabled { kv_events::CONNECTIONS } else { 0 };
        let reserved = open_files::reserved(config.sessions(), subscribers);
        Self {
            wanted,
            connections: open_files::connections(
                open_files,
                wanted.max(Limits::CONNECTIONS),
                ports,
                reserved,
            ),
            needed: open_files::needed(wanted, ports, reserved),
        }
    }
}
