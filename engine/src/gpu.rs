//! The host side of the CUDA backend: plain data and arithmetic that need no device. Tests run it without the feature
//! `cuda`.

pub(crate) mod adjustment_lists;
pub(crate) mod arguments;
pub(crate) mod places;
pub(crate) mod plan;
pub(crate) mod rows;
pub(crate) mod score;
