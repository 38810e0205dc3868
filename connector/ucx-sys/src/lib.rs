//! Run-time bindings to the part of UCX that Baton uses.
//!
//! Nothing links against UCX. [`Ucx::load`] opens `libucp.so.0` at run time, so the project builds on machines without UCX. This crate
//! has two of three layers: [`raw`] has names and layouts as in C, and [`result`] converts statuses into [`CallError`] and is still
//! unsafe. The third layer, safe RAII handles, is in `connector::ucx`.
//!
//! The bindings are written by hand for the headers of UCX 1.22. Assertions check them against the layouts of a C compiler
//! (`raw/layout.rs`). Functions that Baton does not use are absent: tag matching, streams, atomics, active messages and everything
//! deprecated.

pub mod load;
pub mod raw;
pub mod result;

pub use load::{LoadError, Ucx, Version};
pub use result::{CallError, Posted};
