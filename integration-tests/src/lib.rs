//! Starts real `runtime` processes and talks to them: what the tests and programs of this crate share; and whole histories
//! of such processes in virtual time ([`simulation`]).
//!
//! Every port is bound as 0 and read back from the log, every wait has a deadline, and no process outlives the test that
//! started it.
#![forbid(unsafe_code)]

pub mod client;
pub mod fixtures;
pub mod folders;
pub mod kills;
pub mod message_table;
pub mod process;
pub mod simulation;

pub use common::statistics;
