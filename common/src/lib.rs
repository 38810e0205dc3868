//! What crates that know nothing of each other have in common: small pure functions that several of them need.
#![forbid(unsafe_code)]

pub mod cache_folder;
pub mod splitmix;
pub mod sse;
pub mod statistics;
