//! `cargo xtask cuda`: the runtime with its CUDA backend, and before it what compiles the kernels.

use anyhow::Result;

use crate::{binary, fetch};

/// Fetches the compiler and the headers, builds, says where the binary is.
///
/// # Errors
/// As [`fetch::run`], or that the runtime does not build.
pub(crate) fn run() -> Result<()> {
    let [folder] = fetch::run([fetch::CUDA])?;
    println!("nvcc 13.0 and FlashInfer's headers are in {}", folder.display());
    let [runtime] = binary::build([binary::RUNTIME], &["cuda"])?;
    println!("{}", runtime.display());
    println!("it starts on any machine; on a GPU it wants NVIDIA's driver and libcublasLt.so.13");
    Ok(())
}
