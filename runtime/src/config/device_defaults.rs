//! Values whose defaults depend on `engine.device`.

use std::time::Duration;

use super::{Config, DeviceSetting};

/// Default of `routing.inter_token_bound` on a GPU.
const INTER_TOKEN_BOUND: Duration = Duration::from_millis(50);

impl Config {
    /// `engine.prefill_chunk_tokens`, or the default of the device.
    pub fn prefill_chunk_tokens(&self) -> u32 {
        self.engine.prefill_chunk_tokens.unwrap_or(if self.engine.device == DeviceSetting::Cuda {
            2048
        } else {
            128
        })
    }

    /// `routing.inter_token_bound`, or the default of the device. On a CPU, a step of 64 prompt tokens takes longer than any useful bound.
    pub fn inter_token_bound(&self) -> Option<Duration> {
        let default = (self.engine.device == DeviceSetting::Cuda).then_some(INTER_TOKEN_BOUND);
        self.routing.inter_token_bound.or(default)
    }

    /// `request.concurrency`, or the default of the device. On a GPU, that is the number of rows of the largest step with a captured
    /// graph.
    pub fn concurrency(&self) -> usize {
        self.request.concurrency.unwrap_or(if self.engine.device == DeviceSetting::Cuda { 256 } else { 64 })
    }
}
