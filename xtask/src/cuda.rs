//! `cargo xtask cuda`: fetches the CUDA compiler and builds the runtime with its CUDA backend.

use anyhow::Result;

use crate::{binary, fetch};

/// Fetches the compiler and the headers, builds the runtime, and prints the path of the binary.
///
/// # Errors
/// The fetch fails (see [`fetch::run`]), or the runtime does not build.
pub(crate) fn run() -> Result<()> {
    fetch::run([fetch::CUDA])?;
    let [runtime] = binary::build([binary::RUNTIME], &["cuda"])?;
    println!("{}", runtime.display());
    println!(
        "the binary starts on every machine; with a GPU it needs the NVIDIA driver and libcublasLt.so.13"
    );
    Ok(())
}
