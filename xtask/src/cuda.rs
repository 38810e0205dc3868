//! `cargo xtask cuda`: the runtime with its CUDA backend, and before it what compiles the kernels.

use anyhow::Result;

use crate::{binary, fetch};

/// Fetches the compiler and the headers, builds, says where the binary is.
///
/// # Errors
/// As [`fetch::run`], or that the runtime does not build.
pub(crate) fn run() -> Result<()> {
    fetch::run([fetch::CUDA])?;
    let [runtime] = binary::build([binary::RUNTIME], &["cuda"])?;
    println!("{}", runtime.display());
    println!("it starts on any machine; on a GPU it wants NVIDIA's driver and libcublasLt.so.13");
    Ok(())
}
