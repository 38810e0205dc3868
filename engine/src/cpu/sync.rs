//! What [`threads`](super::threads) takes of the standard library. Tests put loom's in its place.

pub(super) use std::hint::spin_loop;
pub(super) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
pub(super) use std::sync::{Arc, Condvar, Mutex, MutexGuard};
pub(super) use std::thread::{Builder, JoinHandle};

/// Turns of the wait before a thread sleeps: ten to twenty microseconds on the machines tried.
pub(super) const SPINS: u32 = 400;
