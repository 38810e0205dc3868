//! What the driver says of the GPUs that this process sees.

use cudarc::driver::{result, sys};

use super::device::{CudaDevice, Named, Result};
use crate::survey::{GpuFacts, GpuPair, GpuSurvey};

/// Asks the driver. With `opens`, opens the first GPU for a moment, to learn its free memory. Other processes may use the others.
pub(crate) fn survey(opens: bool) -> Result<GpuSurvey> {
    let count = CudaDevice::count()?;
    let mut version = 0;
    // SAFETY: `count` has loaded the driver, and the call sets the number.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().named("cuDriverGetVersion")?;
    let mut open_error = None;
    let mut gpus = Vec::new();
    for ordinal in 0..count {
        if !opens || ordinal > 0 {
            gpus.push(gpu(ordinal, None)?);
            continue;
        }
        let free_bytes = match CudaDevice::open(ordinal).and_then(|device| device.memory()) {
            Ok((free, _)) => Some(free),
            Err(error) => {
                open_error.get_or_insert(error);
                None
            }
        };
        gpus.push(gpu(ordinal, free_bytes)?);
    }
    let ordered = (0..count).flat_map(|from| (0..count).map(move |to| (from, to)));
    let pairs = ordered.filter(|(from, to)| from != to).map(|(from, to)| pair(from, to));
    let pairs = pairs.collect::<Result<_>>()?;
    Ok(GpuSurvey { driver: (version / 1000, version % 1000 / 10), gpus, pairs, open_error })
}

/// A GPU with this much free memory.
fn gpu(ordinal: u32, free_bytes: Option<u64>) -> Result<GpuFacts> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR, CU_DEVICE_ATTRIBUTE_COMPUTE_MODE as MODE,
    };
    let device = result::device::get(ordinal.cast_signed()).named("cuDeviceGet")?;
    // SAFETY: the device exists.
    let of =
        |attribute| unsafe { result::device::get_attribute(device, attribute) }.named("cuDeviceGetAttribute");
    // SAFETY: as above.
    let total_bytes = unsafe { result::device::total_mem(device) }.named("cuDeviceTotalMem")? as u64;
    let shared = sys::CUcomputemode::CU_COMPUTEMODE_DEFAULT as i32;
    Ok(GpuFacts {
        name: result::device::get_name(device).named("cuDeviceGetName")?,
        capability: (of(MAJOR)?, of(MINOR)?),
        total_bytes,
        free_bytes,
        is_exclusive: of(MODE)? != shared,
    })
}

fn pair(from: u32, to: u32) -> Result<GpuPair> {
    use sys::CUdevice_P2PAttribute::{
        CU_DEVICE_P2P_ATTRIBUTE_ACCESS_SUPPORTED as ACCESS,
        CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED as ATOMICS,
    };
    let device = |ordinal: u32| result::device::get(ordinal.cast_signed()).named("cuDeviceGet");
    let (source, target) = (device(from)?, device(to)?);
    let of = |attribute| {
        let mut value = 0;
        // SAFETY: both devices exist, and the call sets the number.
        unsafe { sys::cuDeviceGetP2PAttribute(&mut value, attribute, source, target) }
            .result()
            .named("cuDeviceGetP2PAttribute")?;
        Ok(value != 0)
    };
    Ok(GpuPair { from, to, has_access: of(ACCESS)?, has_atomics: of(ATOMICS)? })
}
