//! Baton's binary as a library: command line, configuration, roles, and the HTTP frontend.
//!
//! Dependencies between the modules point down this list:
//!
//! - [`cli`]: the command line.
//! - [`mod@bench`]: benchmarks of a running server and of the transport between two processes.
//! - [`roles`]: starts and stops a receiver, a sender or a local process.
//! - [`frontend`]: the only module that knows HTTP, OpenAI's JSON, the tokenizer and the chat template.
//! - [`config`]: the only module that reads the environment and configuration files.
//! - [`telemetry`]: the log.
//! - [`open_files`]: the limit of open files, and the number of connections that it allows.
#![forbid(unsafe_code)]

pub mod bench;
pub mod cli;
pub mod config;
pub mod frontend;
pub mod open_files;
pub mod roles;
pub mod telemetry;
