//! The parts that the tests and programs of this crate share: real `runtime` processes and a client for them, a hub of models, and the simulation of whole
//! histories in virtual time: of such processes ([`simulation`]), and of fleets ([`fleet_simulation`]).
//!
//! Tests bind every port as 0 and read the address back. Every wait has a deadline. A process ends with the test that started it.
#![forbid(unsafe_code)]

pub mod certificates;
pub mod client;
pub mod deadline;
pub mod fixtures;
pub mod fleet_simulation;
pub mod folders;
pub mod fp8_folders;
mod gguf;
pub mod hub;
pub mod kills;
pub mod message_table;
pub mod process;
pub mod simulation;
pub mod small_engine;
pub mod upgrade;

pub use common::statistics;
