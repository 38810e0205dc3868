//! The rounding of weights and pages, from the command line.

use std::sync::OnceLock;

use engine::{KvCacheDtype, Quantization};

/// The rounding of all models.
#[derive(Clone, Copy, Default)]
pub(super) struct Modes {
    pub(super) quantization: Quantization,
    pub(super) kv_dtype: KvCacheDtype,
}

static MODES: OnceLock<Modes> = OnceLock::new();

impl Modes {
    /// The modes of this run.
    pub(super) fn current() -> Self {
        MODES.get().copied().unwrap_or_default()
    }

    /// Whether the rows that the matrices of the layers multiply are in FP8.
    pub(super) fn rounds_rows() -> bool {
        Self::current().quantization == Quantization::Fp8
    }

    /// Whether pages are in FP8.
    pub(super) fn has_fp8_pages() -> bool {
        Self::current().kv_dtype == KvCacheDtype::Fp8
    }

    /// Whether the numbers are those of the model's files, so that answers are those of transformers.
    pub(super) fn are_plain() -> bool {
        Self::current().quantization == Quantization::None && !Self::has_fp8_pages()
    }

    /// Takes the modes from the front of the arguments.
    pub(super) fn take(arguments: &mut Vec<&str>) {
        let mut modes = Self::default();
        loop {
            match arguments.first() {
                Some(&"fp8_weights") => modes.quantization = Quantization::Fp8Weights,
                Some(&"fp8") => modes.quantization = Quantization::Fp8,
                Some(&"fp8_kv") => modes.kv_dtype = KvCacheDtype::Fp8,
                _ => break,
            }
            arguments.remove(0);
        }
        MODES.get_or_init(|| modes);
    }
}
