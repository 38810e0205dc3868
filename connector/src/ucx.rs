//! The UCX transport: one thread, one registered region, one UCX worker a session.
//!
//! Runs on the thread "baton-ucx" (the loop is in `ucx/thread.rs`); UCX itself adds a thread that accepts TCP
//! connections. Commands come through a queue bounded at 1024 operations that are not answered yet, and 64 more
//! commands for opening and closing. A worker of its own a session makes destroying it the proof that no byte of
//! the session moves any more: over TCP it is the receiver's progress that copies.

mod blob;
mod handles;
mod session;
mod thread;

use crate::memory::Region;
use crate::transport::queue::{Driver, Queue, StopOnExit};
use crate::transport::{Command, EventSink, SubmitError, Transport, TransportError};
use handles::Context;
use std::ffi::CString;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use ucx_sys::{LoadError, Ucx};

const NAME: &str = "ucx";

/// What UCX's variables are to be, unless the operator set them, for pages in host memory or on a device (a GPU):
/// - `UCX_TLS`: `tcp`, and to a GPU what goes there by itself.
/// - `UCX_NET_DEVICES`: UCX's TCP port would write anywhere for whoever reaches it, so the loopback device.
/// - `UCX_RNDV_THRESH`: `inf` switches rendezvous off, which nothing here uses. With it on and peer error handling, UCX
///   demands invalidation of memory keys from a lane that carries puts (`ucp/wireup/select.c`), TCP has none, and puts fall
///   back to emulation, four times slower.
/// - `UCX_PROTO_EMULATION_ENABLE`: with `n` a put that no lane carries fails. Emulation is not only slow. Its receiver answers
///   each fragment, and UCX 1.22 *aborts the process* when that answer meets a sender that has just died
///   (`ucp_rma_sw_send_cmpl`).
/// - `UCX_TCP_CONN_NB`: with `n`, UCX's own choice, creating an endpoint waits in `connect`, which holds up every session for
///   minutes if the peer's machine is silent. And UCX 1.22 *aborts the process* when the peer's listener goes just then: it
///   connects once more, is refused, and destroys the endpoint under the operations that wait on it (`uct_tcp_ep_t_cleanup`).
///   UCX's help warns of resets where very many connect at once; one costs a session, and the link dials again.
/// - `UCX_MEMTYPE_CACHE`, on a device: UCX's cache of memory types takes what it did not see allocated for host memory.
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

/// How the UCX transport finds and sets up the library.
#[derive(Clone, Debug)]
pub struct UcxConfig {
    /// The library the operator named; no other is tried.
    pub library: Option<PathBuf>,
    /// Files to try in order; the loader's own search comes after them.
    pub search: Vec<PathBuf>,
    /// Variables that the operator has not set, with what they are to be; UCX reads the others from the environment itself.
    /// In [`Default`]: all of [`defaults`] for pages in host memory.
    pub defaults: Vec<(String, String)>,
    /// The `UCX_TLS` that the operator has set, if so. It is not passed on; it decides what proves that a lost peer
    /// can write no more.
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

/// The UCX transport could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The library is missing or unusable.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A setting has a zero byte in it.
    #[error("UCX setting {name} has a zero byte in it")]
    Setting {
        /// The setting.
        name: String,
    },
    /// UCX refused its configuration or the region.
    #[error("UCX does not start: {0}")]
    Call(#[from] TransportError),
    /// The operating system refused the thread or its doorbell.
    #[error("the UCX thread does not start: {0}")]
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

/// The UCX transport. Shutting it down (or dropping it) closes every session within about two seconds, three times
/// that if a drain moves on slowly, frees the registration and joins the thread.
pub struct UcxTransport {
    driver: Driver,
    ucx: &'static Ucx,
}

impl UcxTransport {
    /// Loads UCX, registers `region` and starts the thread, on which `prepare` is called first (for memory of a device: to make
    /// that current); `sink` gets every event on that thread.
    pub fn start(
        region: Region,
        config: &UcxConfig,
        prepare: Box<dyn FnOnce() + Send>,
        sink: EventSink,
    ) -> Result<Self, StartError> {
        let ucx = match &config.library {
            Some(path) => Ucx::open(path)?,
            None => Ucx::load(&config.search)?,
        };
        let setting = |(name, value): &(String, String)| {
            // UCX's own names have no prefix.
            let of = |text: &str| CString::new(text.strip_prefix("UCX_").unwrap_or(text)).ok();
            of(name)
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
            match Context::new(ucx, &settings, region) {
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
        let driver = Driver::new(NAME, tls.is_some_and(|tls| tls == "tcp"), queue, thread);
        match report.recv() {
            Ok(result) => result?,
            Err(_) => return Err(std::io::Error::other("it ended before it reported").into()),
        }
        Ok(Self { driver, ucx })
    }

    /// The library in use: its version and file.
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
