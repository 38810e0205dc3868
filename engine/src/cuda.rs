//! What this machine's CUDA driver says, found at run time: nothing links to CUDA.

use cudarc::driver::{result, sys};

/// The number of CUDA devices the driver shows.
///
/// # Errors
/// One sentence when there is no driver library on this machine or it refuses to start.
pub fn cuda_devices() -> Result<u32, String> {
    // SAFETY: the probe only tries to load the library by name. It comes first because cudarc panics on the
    // first use of a missing library.
    if !unsafe { sys::is_culib_present() } {
        return Err("no CUDA driver library on this machine (libcuda.so.1)".to_owned());
    }
    result::init().map_err(|error| format!("the CUDA driver does not start: {error}"))?;
    let count = result::device::get_count()
        .map_err(|error| format!("the CUDA driver does not count its devices: {error}"))?;
    Ok(count.unsigned_abs())
}
