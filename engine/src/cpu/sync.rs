//! The synchronisation primitives of [`threads`](super::threads), from the standard library. Tests replace them with
//! loom's.

pub(super) use std::hint::spin_loop;
pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
pub(super) use std::sync::{Arc, Condvar, Mutex, MutexGuard};
pub(super) use std::thread::{Builder, JoinHandle};

/// A cell with the methods of loom's, which checks that accesses are ordered.
pub(super) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    pub(super) fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    pub(super) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get())
    }

    pub(super) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}

/// Busy-poll iterations before a thread sleeps: 50 µs on the machine measured, an AMD EPYC.
pub(super) const SPINS: u32 = 2000;

/// Claims into which a thread divides its equal share of the units that are left.
pub(super) const CLAIMS: usize = 2;
