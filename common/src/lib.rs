//! Small pure functions for crates that do not import each other.
#![forbid(unsafe_code)]

pub mod cache_folder;
pub mod metrics;
pub mod splitmix;
pub mod sse;
pub mod statistics;
