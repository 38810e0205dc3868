//! What the CUDA backend decides on the host: plain data and arithmetic, without a device. Tests run it without the feature `cuda`.

pub(crate) mod arguments;
pub(crate) mod plan;
pub(crate) mod rows;
