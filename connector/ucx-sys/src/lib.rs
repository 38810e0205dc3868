//! Run-time bindings to the part of UCX that Baton uses.
//!
//! Nothing links against UCX: [`Ucx::load`] opens `libucp.so.0` while the program runs, so everything builds and
//! unit-tests where UCX is absent. Two of the three layers live here: [`raw`] has names and layouts as in C, and
//! [`result`] turns statuses into [`CallError`] without adding any safety. The third, RAII handles, is
//! `connector::ucx`.
//!
//! The bindings are written by hand against the headers of UCX 1.22 and checked against the numbers a C compiler
//! gives for them (`raw/layout.rs`). Most of UCX's own entry points are absent on purpose: tag matching, streams,
//! atomics, active messages and everything deprecated.

pub mod load;
pub mod raw;
pub mod result;

pub use load::{LoadError, Ucx, Version};
pub use result::{CallError, Posted};
