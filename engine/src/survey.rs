//! The driver and the GPUs that a process sees, as facts.

use crate::error::CudaError;

/// The compute capability that the GPU kernels are compiled for: Hopper.
pub const KERNELS_FOR: (i32, i32) = (9, 0);

/// One GPU that this process sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuFacts {
    /// Its name. A part of a GPU (MIG) has `MIG` in its name.
    pub name: String,
    /// Major and minor number of its compute capability.
    pub capability: (i32, i32),
    /// Its memory in bytes.
    pub total_bytes: u64,
    /// Its free memory in bytes; `None` if the GPU was not opened.
    pub free_bytes: Option<u64>,
    /// Only one process may use it, or none (`nvidia-smi --compute-mode`).
    pub is_exclusive: bool,
}

/// Whether one GPU can write the memory of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuPair {
    /// The ordinal of the GPU that writes.
    pub from: u32,
    /// The ordinal of the other GPU.
    pub to: u32,
    /// The driver allows peer access.
    pub has_access: bool,
    /// The link has atomic operations. NVLink has them, and PCIe has not.
    pub has_atomics: bool,
}

/// The driver and the GPUs that this process sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuSurvey {
    /// The version of CUDA that the driver supports: major and minor number.
    pub driver: (i32, i32),
    /// The GPUs, by ordinal.
    pub gpus: Vec<GpuFacts>,
    /// All ordered pairs of them.
    pub pairs: Vec<GpuPair>,
    /// Why the first GPU could not be opened, for example because a library of CUDA is missing.
    pub open_error: Option<CudaError>,
}
