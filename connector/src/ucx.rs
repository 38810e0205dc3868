//! The UCX transport: one thread, the registered regions, one UCX worker for each session, one endpoint for each lane of a session.
//!
//! It runs on the thread "baton-ucx" (`ucx/thread.rs`). UCX adds a thread that accepts TCP connections. The command queue is bounded:
//! 1024 commands that are not answered yet, and 64 more for opening, connecting and closing.
//!
//! Each session has its own worker, and so its own sockets and queue pairs; [`lane`] says for which lanes its
//! destruction proves that no more bytes of the session are written. The destruction blocks the thread, and with it the other sessions, for as
//! long as UCX needs to close the sockets or queue pairs. It does not wait for the peer.

mod blob;
mod handles;
mod session;
mod thread;

use crate::memory::Region;
use crate::transport::queue::{Driver, Queue, StopOnExit};
use crate::transport::{Command, EventSink, SubmitError, Transport, TransportError, lane};
use handles::Context;
use std::ffi::CString;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use ucx_sys::{LoadError, Ucx};

const NAME: &str = "ucx";

/// Our defaults for UCX's environment variables, for pages in host memory or on a device (a GPU):
///
/// - `UCX_TLS=tcp`; on a device also the CUDA transports.
/// - `UCX_NET_DEVICES=lo`: every process that reaches UCX's TCP port can write anywhere in our memory, so it listens on loopback.
/// - `UCX_RNDV_THRESH=inf` disables rendezvous, which Baton does not use. If rendezvous is enabled together with peer error handling,
///   UCX requires a lane for puts to support invalidation of memory keys (`ucp/wireup/select.c`). TCP does not, so puts would be
///   emulated, four times slower.
/// - `UCX_PROTO_EMULATION_ENABLE=n`: a put that no lane supports fails instead of being emulated. An emulated put's receiver answers
///   each fragment, and UCX 1.22 *aborts the process* if the sender has just died at that moment (`ucp_rma_sw_send_cmpl`).
/// - `UCX_TCP_CONN_NB=y`: UCX's default `n` blocks in `connect` when it creates an endpoint. A peer machine that does not answer would
///   block all sessions for minutes. Also, UCX 1.22 *aborts the process* if the peer stops listening at that moment: it connects once
///   more, is refused, and destroys the endpoint while operations wait on it (`uct_tcp_ep_t_cleanup`). UCX's help warns that `y` can
///   cause connection resets if very many processes connect at once. A reset ends one session, and the link dials again.
/// - `UCX_MEMTYPE_CACHE=n` on a device: the cache would treat device memory whose allocation UCX did not see as host memory.
pub fn defaults(on_device: bool) -> impl Iterator<Item = (&'static str, &'static str)> {
    let tls = if on_device { "cuda_ipc,cuda_copy,tcp" } else { "tcp" };
    let always = [
        ("UCX_TLS", tls),
        ("UCX_NET_DEVICES", "lo"),
        ("UCX_RNDV_THRESH", "inf"),
        ("UCX_PROTO_EMULATION_ENABLE", "n"),
        ("UCX_TCP_CONN_NB", "y"),
    ];
    always.into_iter().chain(on_device.then_some(("UCX_MEMTYPE_CACHE", "n")))
}

/// Where the UCX library is, and its settings.
#[derive(Clone, Debug)]
pub struct UcxConfig {
    /// The library file that the operator configured. If set, no other file is tried.
    pub library: Option<PathBuf>,
    /// Library files to try in order. If none exists, the dynamic loader searches.
    pub search: Vec<PathBuf>,
    /// Values for the variables that the operator has not set. UCX reads all others from the environment.
    /// [`Default`] has all of [`defaults`] for pages in host memory.
    pub defaults: Vec<(String, String)>,
    /// The operator's `UCX_TLS`, if set. It is not passed to UCX. It decides whether closing a session proves that a lost peer
    /// writes no more ([`Transport::close_ends_writes`]).
    pub tls_of_operator: Option<String>,
}

impl Default for UcxConfig {
    fn default() -> Self {
        let defaults = defaults(false).map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { library: None, search: Vec::new(), defaults, tls_of_operator: None }
    }
}

impl UcxConfig {
    fn default_of(&self, name: &str) -> Option<&String> {
        self.defaults.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }
}

/// Loads the library that [`UcxTransport::start`] uses.
///
/// # Errors
/// The library is missing or unusable.
pub fn load(config: &UcxConfig) -> Result<&'static Ucx, LoadError> {
    match &config.library {
        Some(path) => Ucx::open(path),
        None => Ucx::load(&config.search),
    }
}

/// The UCX transport could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The library is missing or unusable.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A setting contains a zero byte.
    #[error("UCX setting {name} contains a zero byte")]
    Setting {
        /// The setting's name.
        name: String,
    },
    /// UCX rejected its configuration or a region.
    #[error("UCX cannot be started")]
    Call(#[from] TransportError),
    /// The operating system could not create the thread or its eventfd.
    #[error("the UCX thread cannot be started")]
    Thread(#[from] std::io::Error),
}

impl StartError {
    /// One word for metrics, logs and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Load(error) => error.kind(),
            Self::Setting { .. } => "setting",
            Self::Call(error) => error.kind(),
            Self::Thread(_) => "thread",
        }
    }
}

/// The UCX transport.
///
/// A shutdown (or drop) closes all sessions, frees the registration and joins the thread. It takes at most about 2 s, or 6 s if puts
/// in flight still complete but slowly.
pub struct UcxTransport {
    driver: Driver,
    ucx: &'static Ucx,
}

impl UcxTransport {
    /// Loads UCX, registers `regions`, one for each shard of the node's pages, and starts the thread.
    ///
    /// The thread first calls `prepare`, which must make the device current if the regions are device memory. Then it calls `sink`
    /// with all events.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(
        regions: Vec<Region>,
        config: &UcxConfig,
        prepare: Box<dyn FnOnce() + Send>,
        sink: EventSink,
    ) -> Result<Self, StartError> {
        let ucx = load(config)?;
        let setting = |(name, value): &(String, String)| {
            // `ucp_config_modify` takes names without the prefix.
            let unprefixed = |text: &str| CString::new(text.strip_prefix("UCX_").unwrap_or(text)).ok();
            unprefixed(name)
                .zip(CString::new(value.as_str()).ok())
                .ok_or_else(|| StartError::Setting { name: name.clone() })
        };
        let settings: Vec<_> = config.defaults.iter().map(setting).collect::<Result<_, _>>()?;
        let queue = Queue::new()?;
        let (started, report) = mpsc::sync_channel(1);
        let on_thread = Arc::clone(&queue);
        let thread = std::thread::Builder::new().name("baton-ucx".into()).spawn(move || {
            let _stop = StopOnExit(Arc::clone(&on_thread));
            prepare();
            let settings: Vec<_> =
                settings.iter().map(|(name, value)| (name.as_c_str(), value.as_c_str())).collect();
            match Context::new(ucx, &settings, regions) {
                Ok(context) => {
                    let _ = started.send(Ok(()));
                    thread::Thread::new(on_thread, context, sink).run();
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        })?;
        let tls = config.default_of("UCX_TLS").or(config.tls_of_operator.as_ref());
        let driver = Driver::new(NAME, tls.is_some_and(|tls| lane::all_end_with_worker(tls)), queue, thread);
        match report.recv() {
            Ok(result) => result?,
            Err(_) => return Err(std::io::Error::other("the thread ended before it reported").into()),
        }
        Ok(Self { driver, ucx })
    }

    /// The loaded library, for its version and file.
    pub fn library(&self) -> &'static Ucx {
        self.ucx
    }
}

impl Transport for UcxTransport {
    fn name(&self) -> &'static str {
        self.driver.name()
    }

    fn close_ends_writes(&self) -> bool {
        self.driver.close_ends_writes()
    }

    fn submit(&self, command: Command) -> Result<(), SubmitError> {
        self.driver.submit(command)
    }

    fn progress(&self) -> u64 {
        self.driver.progress()
    }

    fn shutdown(&self) {
        self.driver.shutdown();
    }
}

#[cfg(test)]
mod tests;
