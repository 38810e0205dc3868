//! Baton's binary as a library: command line, configuration, roles, and the HTTP frontend.
//!
//! Dependencies between the modules point down this list:
//!
//! - [`cli`]: the command line.
//! - [`doctor`]: checks what a start needs, and names the remedies.
//! - [`mod@bench`]: benchmarks of a running server and of the transport between two processes.
//! - [`panics`]: ends the process when a thread panics.
//! - [`roles`]: starts and stops a receiver, a sender or a local process.
//! - [`hub`]: models by name, from the hub and the cache that Python's tools share.
//! - [`metrics_page`]: the page `docs/metrics.md`.
//! - [`membership`]: the members of a fleet, from etcd or DNS.
//! - [`grammar`]: compiles the grammars that answers follow.
//! - [`frontend`]: the only module that knows HTTP, OpenAI's JSON, the tokenizer and the chat template.
//! - [`tls`]: the certificates and keys of HTTP and of the link.
//! - [`drain`]: the stages of the end of a process's work.
//! - [`kv_events`]: publishes the changes of the prefix cache to routers.
//! - [`config`]: the only module that reads the environment and configuration files.
//! - [`service_manager`]: reports to systemd.
//! - [`early_signals`]: ends a process that gets a signal before it serves.
//! - [`telemetry`]: the log.
//! - [`process_metrics`]: the metrics of the process as such.
//! - [`open_files`]: the limit of open files, and the number of connections that it allows.
#![forbid(unsafe_code)]

pub mod bench;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod drain;
pub mod early_signals;
pub mod frontend;
pub mod grammar;
pub mod hub;
pub mod kv_events;
pub mod membership;
pub mod metrics_page;
pub mod open_files;
pub mod panics;
pub mod process_metrics;
pub mod roles;
pub mod service_manager;
pub mod telemetry;
pub mod tls;
pub mod traces;
