//! The configuration: one value for each key, and the source of the value.
//!
//! There are four layers: the defaults of the role, a YAML file, environment variables (`BATON_SECTION__KEY`), and the command line
//! (`--model`, `--set section.key=value`). A later layer overrides an earlier one. Every layer is checked by itself, so that a bad
//! value is refused even if a later layer overrides it. Each problem is one sentence that names the file, variable or flag, then the
//! key, then the reason.
//!
//! No other module of Baton reads the environment or a configuration file.
//!
//! ```
//! use runtime::config::{Config, Flag, Role, Surroundings};
//!
//! let surroundings = Surroundings::from_variables([("BATON_LINK__PORT".into(), "55556".into())], 4);
//! let flags = [Flag::parse("request.deadline=90s")?];
//! let config = Config::load(Role::Receiver, None, &flags, surroundings)?;
//! assert_eq!(config.link.port, 55556);
//! assert_eq!(config.request.deadline.as_secs(), 90);
//! assert_eq!(config.engine.threads, 4, "one for each core");
//!
//! let wrong = [Flag::parse("link.prot=1")?];
//! let errors = Config::load(Role::Receiver, None, &wrong, config.surroundings.clone()).unwrap_err();
//! assert_eq!(errors.to_string(), "--set link.prot: link.prot is not a key; did you mean link.port?");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod addresses;
mod device_defaults;
mod flag;
mod hub_settings;
mod layers;
mod lmcache;
mod places;
mod print;
mod renamed;
mod role;
mod surroundings;
mod together;
mod values;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use actors::routing::LocalPrefill;
use figment::value::Value;

use addresses::{collector, endpoints, name, names, peer, peers};
use layers::Layers;
use values::{
    Show, address, bytes, bytes_or_zero, count, device, duration, duration_or_zero, host, load_format,
    local_prefill, one_of, optional, path, pod, port, rate, secret, segment, share, share_or_zero, text,
    truth,
};

pub use flag::Flag;
pub use hub_settings::HubSettings;
pub use layers::{ConfigErrors, Problem};
pub use role::Role;
pub use surroundings::{FirstGpu, Surroundings};
pub use values::{ByteSize, DeviceSetting, LoadFormatSetting, Secret};

/// The description of a key: its name, its documentation, its default, and the check of its values.
pub struct ConfigKey {
    /// Dotted path, such as `link.port`.
    pub name: &'static str,
    /// The documentation of the key.
    pub doc: &'static str,
    /// The default value.
    pub(crate) default: fn(Role, &Surroundings) -> Value,
    /// Checks a value. The error continues a sentence that starts with the key.
    pub(crate) check: fn(&Value) -> Result<(), String>,
}

/// Generates from the table of keys one struct for each section, the list of [`ConfigKey`]s, and the functions that read and show
/// the sections. The name, documentation and default of a key are written in one place.
macro_rules! sections {
    ($(
        $(#[doc = $about:literal])+
        $section:ident: $Section:ident {
            $( $(#[doc = $doc:literal])+ $key:ident: $ty:ty = $parse:expr, $default:expr; )+
        }
    )+) => {
        $(
            $(#[doc = $about])+
            #[derive(Clone, Debug, PartialEq)]
            pub struct $Section { $( $(#[doc = $doc])+ pub $key: $ty, )+ }

            impl $Section {
                fn read(layers: &Layers) -> Result<Self, Problem> {
                    Ok(Self { $( $key: layers.get(concat!(stringify!($section), ".", stringify!($key)), $parse)?, )+ })
                }

                fn show(&self, out: &mut Vec<(&'static str, String)>) {
                    $( out.push((concat!(stringify!($section), ".", stringify!($key)), self.$key.show())); )+
                }
            }
        )+

        /// The keys of all sections, in the order in which they are printed.
        const SECTION_KEYS: &[ConfigKey] = &[$( $(
            ConfigKey {
                name: concat!(stringify!($section), ".", stringify!($key)),
                doc: concat!($($doc),+),
                default: |role, place| Value::from(($default)(role, place)),
                check: |value| {
                    let parsed: Result<$ty, String> = ($parse)(value);
                    parsed.map(drop)
                },
            },
        )+ )+];
    };
}

sections! {
    /// The node's own HTTP port. Requests on this port are prefilled and decoded on this node.
    http: HttpSection {
        /// Address of the node's own HTTP port.
        host: String = host, |_, _| "127.0.0.1";
        /// The node's own HTTP port. 0 lets the system choose a free port. The default is 8100 for a sender and 8200 for other roles.
        port: u16 = port, |role, _| if role == Role::Sender { "8100" } else { "8200" };
        /// The address of this port, as `ip:port`, that peers are told. The default is the address on which it listens.
        advertise: Option<SocketAddr> = |value| optional(value, address), |_, _| layers::NOTHING;
    }
    /// The frontend: the HTTP port whose prompts a receiver or node may give to its peers.
    frontend: FrontendSection {
        /// Whether a receiver or node opens the frontend. Role local needs it.
        enabled: bool = truth, |_, _| "true";
        /// Address of the frontend.
        host: String = host, |_, _| "127.0.0.1";
        /// Port of the frontend. 0 lets the system choose a free port.
        port: u16 = port, |_, _| "9000";
        /// Whether a receiver or node may prefill the frontend's prompts itself: `auto`, `never` or `always`.
        local: LocalPrefill = local_prefill, |_, _| "auto";
        /// If no peer is idle, a receiver or node prefills a prompt itself if it expects the first token sooner by more than this.
        local_if_sooner_by: Duration = duration_or_zero, |role, _| if role == Role::Node { "0s" } else { "1s" };
        /// Whether the frontend obeys the headers of routers: `x-prefiller-host-port`, by which they choose the prefiller, and
        /// `x-envoy-expected-rq-timeout-ms`, by which they shorten the deadline.
        trust_header: bool = truth, |_, _| "false";
        /// Whether the HTTP ports have the live page `/` and its data `/debug/live`.
        page: bool = truth, |_, _| "true";
        /// How the model writes tool calls: `hermes`, `llama3_json`, `mistral` or `none`. The default is the format that the chat template shows.
        tool_call_parser: Option<String> =
            |value| optional(value, |value| one_of(value, &["hermes", "llama3_json", "mistral", "none"])), |_, _| layers::NOTHING;
        /// How the model writes its reasoning: `deepseek_r1`, `qwen3` or `none`. The default is the format that the chat template shows.
        reasoning_parser: Option<String> =
            |value| optional(value, |value| one_of(value, &["deepseek_r1", "qwen3", "none"])), |_, _| layers::NOTHING;
    }
    /// TLS of the HTTP ports, `http.port` and `frontend.port`.
    tls: TlsSection {
        /// A PEM file with the certificate of the HTTP ports, and after it its chain. If it is set, both ports serve HTTPS.
        cert_file: Option<PathBuf> = |value| optional(value, path), |_, _| layers::NOTHING;
        /// A PEM file with the key of `tls.cert_file`.
        key_file: Option<PathBuf> = |value| optional(value, path), |_, _| layers::NOTHING;
    }
    /// The placement of prompts.
    routing: RoutingSection {
        /// Memory for the index of the prompts that were placed, which says which process has which prefixes cached. 0 turns it off.
        index_bytes: ByteSize = bytes_or_zero, |_, _| "16MiB";
        /// A process whose expected time to first token is within this gets a prompt whose beginning it has cached.
        ttft_target: Duration = duration, |_, _| "1s";
        /// While answers are decoded, prompts get only as many tokens of a step as fit in this time, but at least 64. The default is 50ms on a
        /// GPU, and no bound on a CPU.
        inter_token_bound: Option<Duration> = |value| optional(value, duration), |_, _| layers::NOTHING;
    }
    /// The link between a process that prefills and a process that decodes.
    link: LinkSection {
        /// Address on which a receiver or node listens for processes that prefill for it.
        host: String = host, |_, _| "127.0.0.1";
        /// Port on which a receiver or node listens for processes that prefill for it. 0 lets the system choose a free port.
        port: u16 = port, |_, _| "55555";
        /// The address of this port, as `ip:port`, that is registered in etcd. The default is the address on which it listens.
        advertise: Option<SocketAddr> = |value| optional(value, address), |_, _| layers::NOTHING;
        /// Secret that both ends of a link must have. Without a secret, any process that reaches the port may join and write pages.
        secret: Option<Secret> = |value| optional(value, secret), |_, _| layers::NOTHING;
        /// A PEM file with the certificate that this process shows to its peers, and after it its chain. If it is set, the link uses TLS.
        tls_cert_file: Option<PathBuf> = |value| optional(value, path), |_, _| layers::NOTHING;
        /// A PEM file with the key of `link.tls_cert_file`.
        tls_key_file: Option<PathBuf> = |value| optional(value, path), |_, _| layers::NOTHING;
        /// A PEM file with the authorities that sign the certificates of peers.
        tls_ca_file: Option<PathBuf> = |value| optional(value, path), |_, _| layers::NOTHING;
        /// Names and addresses of which a peer's certificate must have one. The default is the address that is dialled, and any name of a peer that dials.
        tls_allowed_names: Vec<String> = names, |_, _| Vec::<String>::new();
        /// The link ports, as `host:port`, of the processes that a sender or node prefills for. A sender without a list dials `link.host:link.port`. A node ignores its own address.
        peers: Vec<String> = peers, |_, _| Vec::<String>::new();
        /// Maximum number of sessions of a process, in both directions together.
        sessions: u32 = |value| count(value, 1..=4096), |_, _| "64";
        /// If `link.sessions` are open and another peer waits, the process ends a session over which it has prefilled nothing for this long.
        idle: Duration = duration, |_, _| "10m";
    }
    /// The ring of page credits.
    ring: RingSection {
        /// Maximum number of bytes of the pages of a receiver or node that all its peers together may write at a time. Whole pages, at least one
        /// and at most half the pool.
        bytes: ByteSize = bytes, |_, _| "1GiB";
    }
    /// Processes that prefill for their peers and whose peers prefill for them.
    node: NodeSection {
        /// Pages of a node's pool that are reserved for prompts of its peers. The default is room for one prompt of the greatest length; a lower value is refused.
        prefill_pages: Option<u32> = |value| optional(value, |value| count(value, 1..=u64::from(u32::MAX))), |_, _| layers::NOTHING;
    }
    /// The members of a fleet.
    fleet: FleetSection {
        /// The HTTP ports (`http.port`) of the nodes that a proxy forwards requests to, as `host:port`.
        nodes: Vec<String> = peers, |_, _| Vec::<String>::new();
        /// A PEM file with the authorities that sign the certificates of nodes. If it is set, the proxy connects to nodes with HTTPS.
        nodes_ca_file: Option<PathBuf> = |value| optional(value, path), |_, _| layers::NOTHING;
        /// The name in the certificates of all nodes. The default is the host in the address of each node.
        nodes_tls_name: Option<String> = |value| optional(value, name), |_, _| layers::NOTHING;
        /// The name of the fleet. Processes with the same etcd and name are members of one fleet.
        cluster: String = segment, |_, _| "default";
        /// A host name and a port. The process finds members at all addresses of the name, such as that of a headless Service in Kubernetes.
        dns: Option<String> = |value| optional(value, peer), |_, _| layers::NOTHING;
        /// The client URLs of an etcd, in which the process finds members and registers itself.
        etcd_endpoints: Vec<String> = endpoints, |_, _| Vec::<String>::new();
        /// The user name for etcd.
        etcd_user: Option<String> = |value| optional(value, text), |_, _| layers::NOTHING;
        /// A file with the password of `fleet.etcd_user`.
        etcd_password_file: Option<PathBuf> = |value| optional(value, path), |_, _| layers::NOTHING;
        /// A PEM file with the certificates that sign those of etcd.
        etcd_ca_file: Option<PathBuf> = |value| optional(value, path), |_, _| layers::NOTHING;
        /// A PEM file with the certificate that this process shows to etcd.
        etcd_cert_file: Option<PathBuf> = |value| optional(value, path), |_, _| layers::NOTHING;
        /// A PEM file with the key of `fleet.etcd_cert_file`.
        etcd_key_file: Option<PathBuf> = |value| optional(value, path), |_, _| layers::NOTHING;
    }
    /// The announcements of cached pages to routers.
    kv_events: KvEventsSection {
        /// Whether the process publishes which pages it caches, in the format of vLLM's KV events. Pages of requests with a `cache_salt` are not announced.
        enabled: bool = truth, |_, _| "false";
        /// Address of the ports for KV events. Subscribers see the token ids of prompts.
        host: String = host, |_, _| "127.0.0.1";
        /// Port to which routers subscribe (ZeroMQ PUB). 0 lets the system choose a free port.
        port: u16 = port, |_, _| "5557";
        /// Port that sends earlier events again (ZeroMQ ROUTER). 0 lets the system choose a free port.
        replay_port: u16 = port, |_, _| "5558";
        /// The name of this process in the topic of its events. The default is the address of `http.port` that peers are told.
        pod: Option<String> = |value| optional(value, pod), |_, _| layers::NOTHING;
    }
    /// The engine that runs the model.
    engine: EngineSection {
        /// Compute threads of the CPU. 0 uses one for each core.
        threads: usize = |value| count(value, 0..=256), |_, _| "0";
        /// The device that computes and has the KV pages: `cpu`, or `cuda` for the first GPU that the process sees. The default is `cuda` if the
        /// build has CUDA and its kernels run on that GPU.
        device: DeviceSetting = device, |role, place: &Surroundings| place.device(role);
        /// Share of the GPU's memory for weights, activations and KV pages together.
        gpu_memory_utilization: f32 = share, |_, _| "0.9";
        /// `auto` reads the model's weights. `dummy` makes random weights, on a GPU only, for benchmarks.
        load_format: LoadFormatSetting = load_format, |_, _| "auto";
        /// `fp8_weights` rounds the matrices of the layers to FP8 when they are loaded. `fp8` also rounds the rows that they multiply. Both ends of a link
        /// need the same value.
        quantization: String = |value| one_of(value, &["none", "fp8_weights", "fp8"]), |_, _| "none";
        /// Numbers of the KV pages. `auto` is 32-bit floats on a CPU and bf16 on a GPU. `fp8` takes half the memory of bf16. Both ends of a link need the same value.
        kv_dtype: String = |value| one_of(value, &["auto", "bf16", "fp8"]), |_, _| "auto";
        /// Size of the pool of KV pages. The default is 1GiB, and on a GPU the rest of `engine.gpu_memory_utilization`.
        kv_bytes: Option<ByteSize> = |value| optional(value, bytes), |_, _| layers::NOTHING;
        /// Tokens in a KV page. Both ends of a link need the same value. The default is 16. On a GPU it is a power of two from 16 to 256 that makes pages of about 8 MiB.
        page_tokens: Option<u32> = |value| optional(value, |value| count(value, 1..=1024)), |_, _| layers::NOTHING;
        /// Maximum number of tokens of one prompt in a step. The default is 128, and 2048 on a GPU.
        prefill_chunk_tokens: Option<u32> =
            |value| optional(value, |value| count(value, 1..=32768)), |_, _| layers::NOTHING;
        /// Whether the pages of earlier requests serve later prompts that begin with the same tokens.
        prefix_cache: bool = truth, |_, _| "true";
    }
    /// Limits for requests.
    request: RequestSection {
        /// Maximum time for a request, from the arrival of its head to its last token, including the wait in the queue.
        deadline: Duration = duration, |_, _| "10m";
        /// Maximum number of answers computed at a time. The default is 64, and 256 on a GPU. Further requests wait.
        concurrency: Option<usize> =
            |value| optional(value, |value| count(value, 1..=32768)), |_, _| layers::NOTHING;
        /// Maximum number of requests that wait. Further requests are answered 429.
        queue: usize = |value| count(value, 0..=65536), |_, _| "4096";
        /// Memory for request bodies and prompts until they are answered. A request that does not fit is answered 503.
        input_bytes: ByteSize = bytes, |_, _| "256MiB";
        /// Maximum number of tokens of a prompt and its answer together. 0 uses the model's limit.
        context_tokens: u32 = |value| count(value, 0..=16_777_216), |_, _| "0";
        /// Number of ended requests that `GET /debug/requests` lists. 0 turns it off.
        recent: usize = |value| count(value, 0..=65536), |_, _| "256";
        /// Key that clients must send as `Authorization: Bearer KEY`. Without it, any client that reaches the port may send requests.
        api_key: Option<Secret> = |value| optional(value, secret), |_, _| layers::NOTHING;
    }
    /// The transport of KV bytes.
    transport: TransportSection {
        /// The UCX library (`libucp.so.0`) to load. The default is that of the archive, then of PyPI's libucx beside the program, then the cache folder, then the dynamic loader.
        ucx_library: Option<PathBuf> = |value| optional(value, path), |_, _| layers::NOTHING;
        /// Lowest measured speed in GB/s at which a sender uses a lane. The default is 0, and 5 between GPUs.
        min_gigabytes_per_second: Option<f32> = |value| optional(value, rate), |_, _| layers::NOTHING;
        /// Whether the sender hashes pages and the receiver checks the hashes. Both ends of a link need the same value.
        page_hash: bool = truth, |_, _| "true";
    }
    /// Traces of requests for a collector of OpenTelemetry.
    traces: TracesSection {
        /// URL of the OpenTelemetry collector (OTLP over HTTP), such as `http://localhost:4318`. Without it, nothing is recorded.
        otlp_endpoint: Option<String> = |value| optional(value, collector), |_, _| layers::NOTHING;
        /// Share of requests without the header `traceparent` that are recorded. With it, the client decides.
        sample: f32 = share_or_zero, |_, _| "1";
    }
    /// The log.
    log: LogSection {
        /// `text` writes lines for people, `json` writes one JSON object for each line.
        format: String = |value| one_of(value, &["text", "json"]), |_, _| "text";
    }
    /// The end of a process.
    shutdown: ShutdownSection {
        /// Maximum time for live requests to finish after SIGTERM or SIGINT, counted from the end of `shutdown.delay`.
        drain: Duration = duration, |_, _| "20s";
        /// How long a draining process still accepts requests, while `/health` and `/node` report the drain. Longer than routers take to learn of it.
        delay: Duration = duration_or_zero, |_, _| "0s";
    }
}

/// The keys outside of all sections.
const TOP_KEYS: &[ConfigKey] = &[
    ConfigKey {
        name: "model",
        doc: " The model: a GGUF file, a Hugging Face folder, or the id of a model on the hub.",
        default: |_, place| Value::from(place.default_model().display().to_string()),
        check: |value| path(value).map(drop),
    },
    ConfigKey {
        name: "tokenizer",
        doc: " A GGUF file, a folder or an id of the hub whose tokenizer and chat template are used instead of the model's.",
        default: |_, _| Value::from(layers::NOTHING),
        check: |value| optional(value, path).map(drop),
    },
    ConfigKey {
        name: "served_model_name",
        doc: " The model name that clients use. The default is the file's name without its quantisation, the folder's name, or the id on the hub.",
        default: |_, _| Value::from(layers::NOTHING),
        check: |value| optional(value, text).map(drop),
    },
];

/// Minimum of `link.idle`: longer than a put waits for a credit, and than an idle session keeps credits.
const IDLE_MIN: Duration = Duration::from_secs(60);

/// Maximum default of `engine.threads`: the engine cannot use more.
const THREADS_MAX: usize = 256;

/// All keys, in the order in which they are printed.
pub fn keys() -> impl Iterator<Item = &'static ConfigKey> {
    TOP_KEYS.iter().chain(SECTION_KEYS)
}

/// The resolved configuration of one process.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The model: a GGUF file, a Hugging Face folder, or an id of the hub, which [`crate::hub::localize`] replaces by a path.
    pub model: PathBuf,
    /// The file or folder of the tokenizer and the chat template, if not that of the model.
    pub tokenizer: Option<PathBuf>,
    /// The name of the model in requests; `None` for the name of its file without the quantization.
    pub served_model_name: Option<String>,
    /// The HTTP port of the node, which serves requests without other nodes.
    pub http: HttpSection,
    /// The frontend port, where senders may prefill the prompts of requests.
    pub frontend: FrontendSection,
    /// TLS of the HTTP ports.
    pub tls: TlsSection,
    /// The placement of prompts.
    pub routing: RoutingSection,
    /// The link between a sender and a receiver.
    pub link: LinkSection,
    /// The ring of page credits in a session.
    pub ring: RingSection,
    /// Processes that prefill for their peers and whose peers prefill for them.
    pub node: NodeSection,
    /// The members of a fleet.
    pub fleet: FleetSection,
    /// The announcements of cached pages to routers.
    pub kv_events: KvEventsSection,
    /// The engine that runs the model.
    pub engine: EngineSection,
    /// Limits of requests.
    pub request: RequestSection,
    /// The transport of the KV pages.
    pub transport: TransportSection,
    /// Traces of requests.
    pub traces: TracesSection,
    /// The log.
    pub log: LogSection,
    /// The shutdown.
    pub shutdown: ShutdownSection,
    /// The role of this process.
    pub role: Role,
    /// Notes on the configuration for the log, one sentence each.
    pub notes: Vec<String>,
    /// The environment of the process.
    pub surroundings: Surroundings,
    /// For each key that is set: the file, the variable or the flag that set it.
    origins: Vec<(&'static str, String)>,
}

impl Config {
    /// Resolves the configuration of a process of `role`.
    ///
    /// # Errors
    /// All problems in all layers.
    pub fn load(
        role: Role,
        file: Option<&Path>,
        flags: &[Flag],
        surroundings: Surroundings,
    ) -> Result<Self, ConfigErrors> {
        let layers = Layers::collect(role, file, flags, &surroundings)?;
        let config =
            Self::read(role, &layers, surroundings).map_err(|problem| ConfigErrors(vec![problem]))?;
        config.check_together(role, &layers)?;
        Ok(config)
    }

    fn read(role: Role, layers: &Layers, surroundings: Surroundings) -> Result<Self, Problem> {
        let mut config = Self {
            model: layers.get("model", path)?,
            tokenizer: layers.get("tokenizer", |value| optional(value, path))?,
            served_model_name: layers.get("served_model_name", |value| optional(value, text))?,
            http: HttpSection::read(layers)?,
            frontend: FrontendSection::read(layers)?,
            tls: TlsSection::read(layers)?,
            routing: RoutingSection::read(layers)?,
            link: LinkSection::read(layers)?,
            ring: RingSection::read(layers)?,
            node: NodeSection::read(layers)?,
            fleet: FleetSection::read(layers)?,
            kv_events: KvEventsSection::read(layers)?,
            engine: EngineSection::read(layers)?,
            request: RequestSection::read(layers)?,
            transport: TransportSection::read(layers)?,
            traces: TracesSection::read(layers)?,
            log: LogSection::read(layers)?,
            shutdown: ShutdownSection::read(layers)?,
            origins: layers.origins(),
            notes: layers.notes.clone(),
            role,
            surroundings,
        };
        if config.engine.threads == 0 {
            config.engine.threads = config.surroundings.cores.min(THREADS_MAX);
        }
        // A node without peers prefills for itself only.
        if config.link.peers.is_empty() && role != Role::Node && config.fleet.source().is_none() {
            config.link.peers.push(values::authority(&config.link.host, config.link.port));
        }
        Ok(config)
    }

    /// The role that an LMCache file names (`nixl_role`); `None` for any other file.
    pub fn role_in(file: &Path) -> Option<Role> {
        layers::role_in(file)
    }

    /// Every key with its value as YAML text, in the order of [`keys`].
    pub(crate) fn show(&self) -> Vec<(&'static str, String)> {
        let mut out = vec![
            ("model", self.model.show()),
            ("tokenizer", self.tokenizer.show()),
            ("served_model_name", self.served_model_name.show()),
        ];
        self.http.show(&mut out);
        self.frontend.show(&mut out);
        self.tls.show(&mut out);
        self.routing.show(&mut out);
        self.link.show(&mut out);
        self.ring.show(&mut out);
        self.node.show(&mut out);
        self.fleet.show(&mut out);
        self.kv_events.show(&mut out);
        self.engine.show(&mut out);
        self.request.show(&mut out);
        self.transport.show(&mut out);
        self.traces.show(&mut out);
        self.log.show(&mut out);
        self.shutdown.show(&mut out);
        out
    }

    /// `link.sessions`, or 0 for a role without peers.
    pub fn sessions(&self) -> u32 {
        if self.role.accepts_peers() || self.role.dials_peers() { self.link.sessions } else { 0 }
    }
}

#[cfg(test)]
mod tests;
