//! The error of a failed CUDA call. It tells whether the process can still use its GPU. It is plain data that needs no
//! CUDA, so other crates and test engines can use it in every build.

/// The status that a failed call returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CudaStatus {
    /// A `CUresult` of the driver or a `cudaError_t` of the runtime. Both use the same numbers.
    Cuda(i32),
    /// A `cublasStatus_t`.
    Cublas(i32),
    /// The call returned no status: the library is missing, or the C++ wrapper caught an exception.
    None,
}

/// A call of the CUDA driver, or of a library on top of it, failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call} failed: {text}")]
pub struct CudaError {
    /// The name of the called function.
    pub call: &'static str,
    /// The status that it returned.
    pub status: CudaStatus,
    /// The status in words.
    pub text: String,
}

/// The driver sees no GPU.
const NO_DEVICE: i32 = 100;
/// The library of the driver is that of a toolkit, for machines that only compile.
const STUB_LIBRARY: i32 = 34;

/// Sticky statuses. After one of them every later call of the process fails too. Either the driver's reference says so
/// ("the process must be terminated and relaunched"), or the device is gone.
const STICKY: [(i32, &str); 22] = [
    (4, "CUDA_ERROR_DEINITIALIZED"),
    (46, "CUDA_ERROR_DEVICE_UNAVAILABLE"),
    (NO_DEVICE, "CUDA_ERROR_NO_DEVICE"),
    (101, "CUDA_ERROR_INVALID_DEVICE"),
    (214, "CUDA_ERROR_ECC_UNCORRECTABLE"),
    (220, "CUDA_ERROR_NVLINK_UNCORRECTABLE"),
    (226, "CUDA_ERROR_CONTAINED"),
    (700, "CUDA_ERROR_ILLEGAL_ADDRESS"),
    (702, "CUDA_ERROR_LAUNCH_TIMEOUT"),
    (709, "CUDA_ERROR_CONTEXT_IS_DESTROYED"),
    (710, "CUDA_ERROR_ASSERT"),
    (714, "CUDA_ERROR_HARDWARE_STACK_ERROR"),
    (715, "CUDA_ERROR_ILLEGAL_INSTRUCTION"),
    (716, "CUDA_ERROR_MISALIGNED_ADDRESS"),
    (717, "CUDA_ERROR_INVALID_ADDRESS_SPACE"),
    (718, "CUDA_ERROR_INVALID_PC"),
    (719, "CUDA_ERROR_LAUNCH_FAILED"),
    (721, "CUDA_ERROR_TENSOR_MEMORY_LEAK"),
    (805, "CUDA_ERROR_MPS_CONNECTION_FAILED"),
    (806, "CUDA_ERROR_MPS_RPC_FAILURE"),
    (911, "CUDA_ERROR_EXTERNAL_DEVICE"),
    (999, "CUDA_ERROR_UNKNOWN"),
];

impl CudaError {
    /// `call` returned this `CUresult` or `cudaError_t`.
    #[must_use]
    pub fn of_status(call: &'static str, status: i32) -> Self {
        let text = match sticky_name(status) {
            Some(name) => format!("{name} ({status})"),
            None => format!("CUDA error {status}"),
        };
        Self { call, status: CudaStatus::Cuda(status), text }
    }

    /// `call` returned no status. `text` is the reason.
    #[must_use]
    pub fn without_status(call: &'static str, text: &str) -> Self {
        Self { call, status: CudaStatus::None, text: text.to_owned() }
    }

    /// True if the answer of the driver, or its absence, means that this machine has no GPU for this process. False for a GPU or driver with a fault.
    #[must_use]
    pub fn is_no_gpu(&self) -> bool {
        match self.status {
            CudaStatus::None => true,
            CudaStatus::Cuda(status) => [NO_DEVICE, STUB_LIBRARY].contains(&status),
            CudaStatus::Cublas(_) => false,
        }
    }

    /// True if this process can no longer use its GPU. Every later call fails too; only a new process can use the GPU again.
    #[must_use]
    pub fn is_sticky(&self) -> bool {
        matches!(self.status, CudaStatus::Cuda(status) if sticky_name(status).is_some())
    }
}

fn sticky_name(status: i32) -> Option<&'static str> {
    STICKY.iter().find(|(sticky, _)| *sticky == status).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_end_the_use_of_the_gpu_are_sticky() {
        let sticky = |error: CudaError| error.is_sticky();
        for status in [46, 214, 700, 702, 716, 719, 999] {
            assert!(sticky(CudaError::of_status("cuEventQuery", status)), "{status}");
        }
        // Invalid arguments, out of memory, not ready, too many resources, an invalidated capture: a later call may succeed.
        for status in [1, 2, 3, 400, 600, 701, 720, 900] {
            assert!(!sticky(CudaError::of_status("cuLaunchKernel", status)), "{status}");
        }
        // The same number has another meaning in another library.
        let cublas = CudaStatus::Cublas(4);
        assert!(!sticky(CudaError { status: cublas, ..CudaError::without_status("cublasLtMatmul", "x") }));
        assert!(!sticky(CudaError::without_status("baton_fa3_plan", "it threw a C++ exception")));
    }

    #[test]
    fn a_fault_is_not_the_absence_of_a_gpu() {
        assert!(CudaError::without_status("loading CUDA", "x").is_no_gpu());
        let of = |status| CudaError::of_status("cuInit", status).is_no_gpu();
        assert_eq!([100, 34, 35, 46, 802, 803, 999].map(of), [true, true, false, false, false, false, false]);
    }

    #[test]
    fn an_error_names_the_call_and_the_status() {
        let text = CudaError::of_status("cuEventQuery", 700).to_string();
        assert_eq!(text, "cuEventQuery failed: CUDA_ERROR_ILLEGAL_ADDRESS (700)");
        assert_eq!(CudaError::of_status("baton_embed", 1).to_string(), "baton_embed failed: CUDA error 1");
    }
}
