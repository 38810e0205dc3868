//! Baton's binary as a library: command line, configuration, roles, and the HTTP frontend.
//!
//! Dependencies between the modules point down this list:
//!
//! - [`cli`]: what a person types.
//! - [`mod@bench`]: load on a running server, and what it took; a client that knows nothing of the rest but the tokenizer.
//! - [`roles`]: what runs in a receiver, a sender, a local process.
//! - [`frontend`]: the only place that knows HTTP, OpenAI's JSON, the tokenizer and the chat template.
//! - [`config`]: the only place that reads the environment and configuration files.
//! - [`telemetry`]: the log.
//! - [`open_files`]: how many files may be open, and so how many connections.
#![forbid(unsafe_code)]

pub mod bench;
pub mod cli;
pub mod config;
pub mod frontend;
pub mod open_files;
pub mod roles;
pub mod telemetry;
