//! `runtime` with an engine that fails for certain prompts, to test how a process handles a failed device and a panic.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::Arc;

use engine::{
    Chunk, CudaError, Engine, EngineConfig, EngineError, KvPool, ModelInfo, OpenError, PageId, Progress,
    Step, StepLimits, StepOutput, TokenMask,
};

/// A prompt with this token three times in a row makes the device fail.
const FAILS: u32 = 777;
/// A prompt with this token three times in a row makes the device fail, and the engine then hangs when it is dropped.
const HANGS: u32 = 778;
/// A prompt with this token three times in a row makes the engine panic.
const PANICS: u32 = 779;

/// An engine on a device that may fail.
struct Failing {
    engine: Box<dyn Engine>,
    hangs: bool,
}

impl Engine for Failing {
    fn model(&self) -> &ModelInfo {
        self.engine.model()
    }

    fn kv(&self) -> &Arc<KvPool> {
        self.engine.kv()
    }

    fn limits(&self) -> StepLimits {
        self.engine.limits()
    }

    fn submit(&mut self, batch: &[Chunk<'_>]) -> Result<Step, EngineError> {
        let has = |token| batch.iter().any(|chunk| chunk.tokens.windows(3).any(|three| three == [token; 3]));
        assert!(!has(PANICS), "the engine panics on purpose");
        self.hangs |= has(HANGS);
        if self.hangs || has(FAILS) {
            return Err(EngineError::Device(CudaError::of_status("cuEventQuery", 700)));
        }
        self.engine.submit(batch)
    }

    fn sample(&mut self, step: &mut Step, masks: &[Option<TokenMask>]) -> Result<(), EngineError> {
        self.engine.sample(step, masks)
    }

    fn is_computed(&mut self, step: &Step) -> Result<bool, EngineError> {
        self.engine.is_computed(step)
    }

    fn poll(&mut self, step: &mut Step) -> Result<Option<StepOutput>, EngineError> {
        self.engine.poll(step)
    }

    fn acquire(&mut self, pages: &[PageId]) -> Result<(), EngineError> {
        self.engine.acquire(pages)
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        if self.hangs {
            loop {
                std::thread::park();
            }
        }
    }
}

fn open(config: &EngineConfig, progress: Progress<'_>) -> Result<Box<dyn Engine>, OpenError> {
    let engine = engine::open_watched(config, progress)?;
    Ok(Box::new(Failing { engine, hangs: false }))
}

fn main() -> ExitCode {
    runtime::cli::main_with(open)
}
