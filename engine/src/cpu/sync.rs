//! The synchronisation primitives of [`threads`](super::threads), from the standard library. Tests replace them with
//! loom's.

pub(super) use std::hint::spin_loop;
pub(super) use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
pub(super) use std::sync::{Arc, Condvar, Mutex, MutexGuard};
pub(super) use std::thread::{Builder, JoinHandle};

/// Busy-poll iterations before a thread sleeps: 50 µs on the machine measured, an AMD EPYC.
pub(super) const SPINS: u32 = 2000;

/// Claims into which a thread divides its equal share of the units that are left.
pub(super) const CLAIMS: usize = 2;
